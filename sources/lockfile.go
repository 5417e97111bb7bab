// SPDX-License-Identifier: Apache-2.0

package sources

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"sort"
	"strings"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/internal/pattern"
)

// maxLock bounds a lock file, in bytes; a lock of 5,000 packages has about 2 MB.
const maxLock = 64 << 20

// FormatLock is the file form of a lock: JSON, indented, one final newline.
// The same lock always gives the same bytes.
func FormatLock(l *Lock) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(l); err != nil {
		return nil, fmt.Errorf("cannot format lock: %w", err)
	}
	return b.Bytes(), nil
}

// ParseLock reads the file form. It is strict: unknown fields, an unknown schema, a bad
// digest or a path that leaves the mirror are errors of class Lock.
func ParseLock(data []byte, file string) (*Lock, error) {
	fail := func(format string, args ...any) (*Lock, error) {
		err := fault.New(fault.Lock, "cannot read lock %q: %w", file, fmt.Errorf(format, args...))
		return nil, fault.Hint(err, "make it anew: mkmachine lock --update RECIPE")
	}
	if len(data) > maxLock {
		return fail("it has %d bytes, the limit is %d", len(data), maxLock)
	}
	var schema struct {
		Schema int `json:"schema"`
	}
	if err := json.Unmarshal(data, &schema); err != nil {
		return fail("%w", err)
	}
	if schema.Schema != LockSchema {
		return fail("schema %d is not supported, only %d", schema.Schema, LockSchema)
	}
	var l Lock
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&l); err != nil {
		return fail("%w", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return fail("there is more text behind the end")
	}
	if err := l.check(); err != nil {
		return fail("%w", err)
	}
	return &l, nil
}

var (
	digestForm  = pattern.New(`^[0-9a-f]{64}$`)
	fprForm     = pattern.New(`^([0-9A-F]{40}|[0-9A-F]{64})$`)
	packageForm = pattern.New(`^[a-z0-9][a-z0-9+.-]{0,255}$`)
	archForm    = pattern.New(`^[a-z0-9][a-z0-9-]{0,63}$`)
	versionForm = pattern.New(`^[0-9A-Za-z.+:~-]{1,256}$`)
	wordForm    = pattern.New(`^[0-9A-Za-z][0-9A-Za-z._+-]{0,127}$`)
)

// check says what is wrong with a lock that came from a file; nothing of it is used before.
func (l *Lock) check() error {
	if !digestForm.MatchString(l.Request) {
		return fmt.Errorf("request %q is not a SHA-256", l.Request)
	}
	if !archForm.MatchString(l.Arch) {
		return fmt.Errorf("arch %q is not a name", l.Arch)
	}
	if l.Date.IsZero() || l.Date.Year() > 9999 || l.Date.Unix() < 0 {
		return fmt.Errorf("date %v is out of range", l.Date)
	}
	for _, k := range l.Keys {
		if !fprForm.MatchString(k.Fingerprint) {
			return fmt.Errorf("key %q is not a full fingerprint", k.Fingerprint)
		}
	}
	repos := map[string]bool{}
	for _, r := range l.Repositories {
		if repos[r.ID] || r.ID == "" {
			return fmt.Errorf("repository %q has no id of its own", r.ID)
		}
		repos[r.ID] = true
		if !digestForm.MatchString(r.Release) {
			return fmt.Errorf("repository %q: release %q is not a SHA-256", r.ID, r.Release)
		}
		if !wordForm.MatchString(r.Family) {
			return fmt.Errorf("repository %q: family %q is not a name", r.ID, r.Family)
		}
		for _, f := range r.Indexes {
			if err := checkFile(f.Path, f.Size, f.SHA256); err != nil {
				return fmt.Errorf("repository %q: %w", r.ID, err)
			}
		}
	}
	seen := map[string]bool{}
	for _, p := range l.Packages {
		id := p.Name + ":" + p.Arch
		switch {
		case !packageForm.MatchString(p.Name):
			return fmt.Errorf("package name %q is not valid", p.Name)
		case !archForm.MatchString(p.Arch):
			return fmt.Errorf("package %q: arch %q is not valid", p.Name, p.Arch)
		case !versionForm.MatchString(p.Version):
			return fmt.Errorf("package %q: version %q is not valid", p.Name, p.Version)
		case seen[id]:
			return fmt.Errorf("package %q is listed twice", id)
		case !repos[p.Repository]:
			return fmt.Errorf("package %q: there is no repository %q", p.Name, p.Repository)
		case p.Phase != PhaseRequired && p.Phase != PhaseBase && p.Phase != PhaseAdded:
			return fmt.Errorf("package %q: unknown phase %q", p.Name, p.Phase)
		}
		seen[id] = true
		if err := checkFile(p.Path, p.Size, p.SHA256); err != nil {
			return fmt.Errorf("package %q: %w", p.Name, err)
		}
	}
	return nil
}

func checkFile(p string, size int64, digest string) error {
	if !CleanPath(p) {
		return fmt.Errorf("path %q would leave the mirror", p)
	}
	if size < 0 {
		return fmt.Errorf("%s: size %d", p, size)
	}
	if !digestForm.MatchString(digest) {
		return fmt.Errorf("%s: %q is not a SHA-256", p, digest)
	}
	return nil
}

// CleanPath reports whether p may be appended to a mirror's URL: relative, already clean,
// no component "..", only printable ASCII without the characters that have a meaning in a URL.
func CleanPath(p string) bool {
	if p == "" || p == "." || p[0] == '/' || path.Clean(p) != p || p == ".." || strings.HasPrefix(p, "../") {
		return false
	}
	for i := range len(p) {
		if c := p[i]; c <= ' ' || c >= 0x7f || strings.IndexByte(`%?#\"<>`, c) >= 0 {
			return false
		}
	}
	return true
}

// Blob is the package's file, to be fetched.
func (l *Lock) Blob(p *Package) Blob {
	b := Blob{Path: p.Path, Size: p.Size, SHA256: p.SHA256}
	for i := range l.Repositories {
		if r := &l.Repositories[i]; r.ID == p.Repository {
			b.Family = r.Family
		}
	}
	return b
}

// Change is one difference between two locks.
type Change struct {
	Kind string `json:"kind"` // added | removed | upgraded | downgraded | changed
	Name string `json:"name"` // NAME:ARCH, or the repository's id
	Old  string `json:"old,omitempty"`
	New  string `json:"new,omitempty"`
}

// Diff lists what changes from old to new, sorted by kind of thing and name. A nil old is
// an empty lock. compare orders versions as the ecosystem does.
func Diff(old, new *Lock, compare func(a, b string) int) []Change {
	if old == nil {
		old = &Lock{}
	}
	var out []Change
	before, after := map[string]string{}, map[string]string{}
	for _, r := range old.Repositories {
		before[r.ID] = r.Date.UTC().Format("2006-01-02 15:04")
	}
	for _, r := range new.Repositories {
		after[r.ID] = r.Date.UTC().Format("2006-01-02 15:04")
	}
	out = append(out, diffMaps(before, after, strings.Compare)...)
	before, after = map[string]string{}, map[string]string{}
	digests := map[string]string{}
	for _, p := range old.Packages {
		before[p.Name+":"+p.Arch] = p.Version
		digests[p.Name+":"+p.Arch] = p.SHA256
	}
	for _, p := range new.Packages {
		id := p.Name + ":" + p.Arch
		after[id] = p.Version
		if before[id] == p.Version && digests[id] != p.SHA256 {
			out = append(out, Change{"changed", id, p.Version + " " + digests[id][:12], p.Version + " " + p.SHA256[:12]})
		}
	}
	return append(out, diffMaps(before, after, compare)...)
}

func diffMaps(before, after map[string]string, compare func(a, b string) int) []Change {
	var out []Change
	for id, v := range after {
		old, had := before[id]
		switch {
		case !had:
			out = append(out, Change{"added", id, "", v})
		case old != v && compare(old, v) < 0:
			out = append(out, Change{"upgraded", id, old, v})
		case old != v:
			out = append(out, Change{"downgraded", id, old, v})
		}
	}
	for id, v := range before {
		if _, still := after[id]; !still {
			out = append(out, Change{"removed", id, v, ""})
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}
