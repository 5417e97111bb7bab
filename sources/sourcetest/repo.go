// SPDX-License-Identifier: Apache-2.0

// Package sourcetest makes fake signed Debian repositories for tests: packages built in
// memory, indexes, Release files signed by a key of its own, served on the loopback
// interface with faults on demand.
//
// It is for tests only and never reaches beyond 127.0.0.1. The same Spec gives the same
// packages and indexes byte for byte; keys and signatures differ from run to run.
package sourcetest

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"

	"github.com/mkmachine/mkmachine/internal/compress"
)

// Spec says what a repository holds. Zero fields get the default in parentheses.
type Spec struct {
	Family     string // mirror family ("debian")
	Suite      string // directory below dists/ and Suite field ("stable")
	Codename   string // ("trixie")
	Origin     string // ("Debian")
	Label      string // ("Debian")
	Arch       string // architecture of the indexes ("amd64")
	Components []string
	Date       time.Time     // (one hour ago)
	ValidFor   time.Duration // Valid-Until after Date (seven days); negative: no field
	Indexes    []string      // suffixes of Packages to publish (".xz", ".gz", ".zst", "")
	NoByHash   bool          // no Acquire-By-Hash
	NoInline   bool          // Release and Release.gpg only, no InRelease
	Packages   []Package
	// Release adds or replaces fields of the Release text; an empty value leaves the field out.
	Release map[string]string
}

// Repo is a repository, built and served. Its files may be changed while it is served.
type Repo struct {
	Spec        Spec
	URL         string // of the mirror root, http://127.0.0.1:PORT
	Keyring     []byte // binary public key that signed
	Fingerprint string // 40 upper-case hex digits

	signer *openpgp.Entity
	mu     sync.Mutex
	files  map[string][]byte
	faults []activeFault
	hits   map[string]int
	debs   map[string]string // "name version arch" → pool path
}

// NewRepo builds the repository and serves it until the test ends.
func NewRepo(t testing.TB, spec Spec) *Repo {
	t.Helper()
	setDefaults(&spec)
	signer, err := newKey("Test Archive", keyTime(spec.Date))
	if err != nil {
		t.Fatal(err)
	}
	r := &Repo{Spec: spec, signer: signer, files: map[string][]byte{}, hits: map[string]int{}, debs: map[string]string{}}
	r.Keyring, r.Fingerprint = publicKey(signer)
	if err := r.build(); err != nil {
		t.Fatal(err)
	}
	r.serve(t)
	return r
}

func setDefaults(s *Spec) {
	for p, v := range map[*string]string{&s.Family: "debian", &s.Suite: "stable", &s.Codename: "trixie", &s.Origin: "Debian", &s.Label: "Debian", &s.Arch: "amd64"} {
		if *p == "" {
			*p = v
		}
	}
	if len(s.Components) == 0 {
		s.Components = []string{"main"}
	}
	if s.Date.IsZero() {
		s.Date = time.Now().Add(-time.Hour)
	}
	s.Date = s.Date.UTC().Truncate(time.Second)
	if s.ValidFor == 0 {
		s.ValidFor = 7 * 24 * time.Hour
	}
	if s.Indexes == nil {
		s.Indexes = []string{".xz", ".gz"}
	}
}

// keyTime is when a repository's key was made: before its Release, and not in the future.
func keyTime(date time.Time) time.Time {
	if now := time.Now(); date.After(now) {
		date = now
	}
	return date.Add(-24 * time.Hour)
}

func newKey(name string, created time.Time) (*openpgp.Entity, error) {
	return openpgp.NewEntity(name, "", "archive@example.org", &packet.Config{
		Algorithm: packet.PubKeyAlgoEdDSA,
		Time:      func() time.Time { return created },
	})
}

func publicKey(e *openpgp.Entity) ([]byte, string) {
	var out bytes.Buffer
	if err := e.Serialize(&out); err != nil {
		panic(err) // writing to memory
	}
	return out.Bytes(), fmt.Sprintf("%X", e.PrimaryKey.Fingerprint)
}

// build makes every file of the repository anew.
func (r *Repo) build() error {
	indexes := map[string]*bytes.Buffer{}
	for _, c := range r.Spec.Components {
		indexes[c] = &bytes.Buffer{}
	}
	for _, p := range r.Spec.Packages {
		p.setDefaults(&r.Spec)
		deb, err := p.Build()
		if err != nil {
			return fmt.Errorf("cannot build package %s: %w", p.Name, err)
		}
		path := fmt.Sprintf("pool/%s/%c/%s/%s_%s_%s.deb", p.Component, p.Name[0], p.Name, p.Name, strings.ReplaceAll(p.Version, ":", "%3a"), p.Arch)
		r.files[path] = deb
		r.debs[p.Name+" "+p.Version+" "+p.Arch] = path
		index, ok := indexes[p.Component]
		if !ok {
			return fmt.Errorf("package %s is in component %q, which the repository does not have", p.Name, p.Component)
		}
		index.WriteString(p.stanza(path, deb))
	}
	table := map[string][]byte{}
	for c, index := range indexes {
		base := c + "/binary-" + r.Spec.Arch + "/Packages"
		table[base] = index.Bytes()
		for _, suffix := range r.Spec.Indexes {
			data, err := compressBytes(index.Bytes(), compress.KindByName("x"+suffix))
			if err != nil {
				return err
			}
			table[base+suffix] = data
			r.files[r.dir()+base+suffix] = data
			r.files[r.dir()+c+"/binary-"+r.Spec.Arch+"/by-hash/SHA256/"+digest(data)] = data
		}
	}
	return r.Sign(r.releaseText(table))
}

func (r *Repo) dir() string { return "dists/" + r.Spec.Suite + "/" }

func compressBytes(data []byte, kind compress.Kind) ([]byte, error) {
	var out bytes.Buffer
	w, err := compress.NewWriter(&out, kind)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(data); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

func (r *Repo) releaseText(table map[string][]byte) string {
	const stamp = "Mon, 02 Jan 2006 15:04:05 UTC"
	fields := []struct{ name, value string }{
		{"Origin", r.Spec.Origin},
		{"Label", r.Spec.Label},
		{"Suite", r.Spec.Suite},
		{"Codename", r.Spec.Codename},
		{"Date", r.Spec.Date.Format(stamp)},
		{"Valid-Until", r.Spec.Date.Add(r.Spec.ValidFor).Format(stamp)},
		{"Acquire-By-Hash", "yes"},
		{"No-Support-for-Architecture-all", "Packages"},
		{"Architectures", "all " + r.Spec.Arch},
		{"Components", strings.Join(r.Spec.Components, " ")},
	}
	var out strings.Builder
	known := map[string]bool{}
	for _, f := range fields {
		known[f.name] = true
		if v, ok := r.Spec.Release[f.name]; ok {
			f.value = v
		} else if (f.name == "Valid-Until" && r.Spec.ValidFor < 0) || (f.name == "Acquire-By-Hash" && r.Spec.NoByHash) {
			f.value = ""
		}
		if f.value != "" {
			fmt.Fprintf(&out, "%s: %s\n", f.name, f.value)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.Spec.Release)) {
		if v := r.Spec.Release[name]; !known[name] && v != "" {
			fmt.Fprintf(&out, "%s: %s\n", name, v)
		}
	}
	out.WriteString("SHA256:\n")
	for _, path := range slices.Sorted(maps.Keys(table)) {
		fmt.Fprintf(&out, " %s %d %s\n", digest(table[path]), len(table[path]), path)
	}
	return out.String()
}

// ReleaseText is the Release that was signed last.
func (r *Repo) ReleaseText() string { return string(r.File(r.dir() + "Release")) }

// Sign replaces the Release text and signs it again with the repository's key.
func (r *Repo) Sign(text string) error { return r.signBy(r.signer, text) }

// SignByStranger signs the present Release with a key that is not in Keyring, and returns
// that key.
func (r *Repo) SignByStranger() ([]byte, error) {
	stranger, err := newKey("Stranger", keyTime(r.Spec.Date))
	if err != nil {
		return nil, err
	}
	key, _ := publicKey(stranger)
	return key, r.signBy(stranger, r.ReleaseText())
}

func (r *Repo) signBy(e *openpgp.Entity, text string) error {
	at := r.Spec.Date
	if now := time.Now(); at.After(now) {
		at = now // a Release from the future still has a signature that counts
	}
	inline, err := Clearsign(e, text, at)
	if err != nil {
		return err
	}
	detached, err := detachedSignature(e, []byte(text), at)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.files[r.dir()+"Release"] = []byte(text)
	r.files[r.dir()+"Release.gpg"] = detached
	if !r.Spec.NoInline {
		r.files[r.dir()+"InRelease"] = inline
	}
	return nil
}

func signParams(at time.Time, text bool) *openpgp.SignParams {
	return &openpgp.SignParams{TextSig: text, Config: &packet.Config{
		DefaultHash: crypto.SHA256,
		Time:        func() time.Time { return at },
	}}
}

func detachedSignature(e *openpgp.Entity, data []byte, at time.Time) ([]byte, error) {
	var out bytes.Buffer
	if err := openpgp.ArmoredDetachSign(&out, []*openpgp.Entity{e}, bytes.NewReader(data), signParams(at, false)); err != nil {
		return nil, err
	}
	return append(out.Bytes(), '\n'), nil
}

// Clearsign writes text as one clearsigned message. Lines must not end in blanks.
func Clearsign(e *openpgp.Entity, text string, at time.Time) ([]byte, error) {
	text = strings.TrimSuffix(text, "\n")
	var sig bytes.Buffer
	// The last line end belongs to the framing, not to what is signed (RFC 4880 section 7.1).
	if err := openpgp.ArmoredDetachSign(&sig, []*openpgp.Entity{e}, strings.NewReader(text), signParams(at, true)); err != nil {
		return nil, err
	}
	var out bytes.Buffer
	out.WriteString("-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n")
	for line := range strings.SplitSeq(text, "\n") {
		if strings.HasPrefix(line, "-") {
			out.WriteString("- ")
		}
		out.WriteString(line + "\n")
	}
	out.Write(bytes.TrimRight(sig.Bytes(), "\n"))
	out.WriteByte('\n')
	return out.Bytes(), nil
}
