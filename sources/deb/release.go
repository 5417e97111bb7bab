// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/sources/pgp"
)

// Release is the signed table of contents of a suite.
type Release struct {
	Origin, Label   string
	Suite, Codename string
	Version         string
	Date            time.Time
	ValidUntil      time.Time // zero where the archive sets no limit
	AcquireByHash   bool
	// NotAutomatic and ButAutomaticUpgrades lower apt's priority of the suite to 1 and 100.
	NotAutomatic         bool
	ButAutomaticUpgrades bool
	Architectures        []string
	Components           []string
	// NoAllPackages: the indexes of each architecture hold the packages of architecture
	// "all" too, so binary-all need not be read (No-Support-for-Architecture-all: Packages).
	NoAllPackages bool
	Files         map[string]ReleaseFile // by path below the suite's directory

	// Text is the SHA-256 of the signed text; Signers are the keys that proved it. Both are
	// set by FetchRelease.
	Text    string
	Signers []pgp.Signer
}

// ReleaseFile is what a Release says about one file.
type ReleaseFile struct {
	Size   int64
	SHA256 string
}

// Limits of a Release text; the largest real ones have 6 000 files in 300 kB.
const (
	maxRelease      = 16 << 20
	maxReleaseFiles = 200_000
)

// ParseRelease reads the text of a Release file whose signature was checked. It is strict:
// one paragraph, no field twice, no path twice with different digests. A text without SHA256
// digests is a fault.Verify error, a malformed one fault.Format.
func ParseRelease(text []byte) (*Release, error) {
	r, err := parseRelease(text)
	if err != nil {
		return nil, fmt.Errorf("cannot read Release: %w", err)
	}
	return r, nil
}

func parseRelease(text []byte) (*Release, error) {
	if len(text) > maxRelease {
		return nil, fault.New(fault.Limit, "larger than %d MiB", maxRelease>>20)
	}
	if pgp.LooksLikeHTML(text) {
		return nil, notRelease()
	}
	fields, err := releaseFields(text)
	if err != nil {
		return nil, err
	}
	r := &Release{
		Origin:               fields["origin"],
		Label:                fields["label"],
		Suite:                fields["suite"],
		Codename:             fields["codename"],
		Version:              fields["version"],
		AcquireByHash:        fields["acquire-by-hash"] == "yes",
		NotAutomatic:         fields["notautomatic"] == "yes",
		ButAutomaticUpgrades: fields["butautomaticupgrades"] == "yes",
		Architectures:        strings.Fields(fields["architectures"]),
		Components:           strings.Fields(fields["components"]),
		NoAllPackages:        slices.Contains(strings.Fields(fields["no-support-for-architecture-all"]), "Packages"),
	}
	if r.Suite == "" && r.Codename == "" {
		return nil, fault.New(fault.Format, "neither Suite nor Codename is set")
	}
	if r.Date, err = releaseTime(fields, "Date"); err != nil {
		return nil, err
	}
	if r.Date.IsZero() {
		return nil, fault.New(fault.Format, "Date is missing")
	}
	if r.ValidUntil, err = releaseTime(fields, "Valid-Until"); err != nil {
		return nil, err
	}
	table, ok := fields["sha256"]
	if !ok {
		return nil, fault.New(fault.Verify, "it has no SHA256 digests; weaker ones are not accepted")
	}
	if r.Files, err = releaseTable(table); err != nil {
		return nil, err
	}
	return r, nil
}

func notRelease() error {
	return fault.Hint(fault.New(fault.Verify, "it is a web page, not a Release file"),
		"a captive portal or proxy may be answering instead of the mirror; open a web page to log in, or try another mirror with --mirror")
}

// releaseFields splits the one paragraph; names in lower case, continuation lines joined by LF.
func releaseFields(text []byte) (map[string]string, error) {
	fields := map[string]string{}
	name, number, pos := "", 0, 0
	var value strings.Builder
	flush := func() {
		if name != "" {
			fields[name] = value.String()
		}
		value.Reset()
	}
	for raw := range bytes.Lines(text) {
		number++
		pos += len(raw)
		line := bytes.TrimSuffix(raw, []byte("\n"))
		if i := bytes.IndexFunc(line, func(c rune) bool { return (c < 0x20 && c != '\t') || c == 0x7f }); i >= 0 {
			return nil, fault.New(fault.Format, "line %d: control character", number)
		}
		switch {
		case len(bytes.TrimSpace(line)) == 0:
			if len(bytes.TrimSpace(text[pos:])) != 0 {
				return nil, fault.New(fault.Format, "line %d: more than one paragraph", number)
			}
			flush()
			return fields, nil
		case line[0] == ' ' || line[0] == '\t':
			if name == "" {
				return nil, fault.New(fault.Format, "line %d: continuation of nothing", number)
			}
			value.WriteByte('\n')
			value.Write(line)
		default:
			key, rest, ok := strings.Cut(string(line), ":")
			if !ok || !fieldName(key) {
				return nil, fault.New(fault.Format, "line %d: %q is no field", number, clip(line))
			}
			flush()
			name = strings.ToLower(key)
			if _, twice := fields[name]; twice {
				return nil, fault.New(fault.Format, "line %d: field %s is there twice", number, key)
			}
			value.WriteString(strings.TrimSpace(rest))
		}
	}
	flush()
	return fields, nil
}

func fieldName(s string) bool {
	if s == "" || s[0] == '-' || s[0] == '#' {
		return false
	}
	for _, c := range []byte(s) {
		if c <= 0x20 || c >= 0x7f || c == ':' {
			return false
		}
	}
	return true
}

func clip(b []byte) []byte {
	if len(b) > 60 {
		return append(b[:57:57], "..."...)
	}
	return b
}

// releaseTime reads a date field: RFC 2822 in UTC, as archives write it.
func releaseTime(fields map[string]string, name string) (time.Time, error) {
	v, ok := fields[strings.ToLower(name)]
	if !ok {
		return time.Time{}, nil
	}
	base, zone := v, ""
	if i := strings.LastIndexByte(v, ' '); i >= 0 {
		base, zone = v[:i], v[i+1:]
	}
	if zone == "UTC" || zone == "GMT" || zone == "Z" || zone == "+0000" || zone == "+00:00" {
		if t, err := time.Parse("Mon, _2 Jan 2006 15:04:05", base); err == nil {
			return t.UTC(), nil
		}
	}
	return time.Time{}, fault.New(fault.Format, "%s: %q is no date in UTC", name, clip([]byte(v)))
}

// releaseTable reads the lines "DIGEST SIZE PATH" of the SHA256 field.
func releaseTable(table string) (map[string]ReleaseFile, error) {
	files := make(map[string]ReleaseFile, strings.Count(table, "\n"))
	for line := range strings.SplitSeq(table, "\n") {
		parts := strings.Fields(line)
		if len(parts) == 0 {
			continue
		}
		if len(parts) != 3 {
			return nil, fault.New(fault.Format, "SHA256: line %q has not three parts", clip([]byte(line)))
		}
		digest, path := parts[0], parts[2]
		if !hexDigest(digest) {
			return nil, fault.New(fault.Format, "SHA256: %q is no digest", clip([]byte(digest)))
		}
		size, err := strconv.ParseInt(parts[1], 10, 63)
		if err != nil || size < 0 || parts[1][0] == '+' || (len(parts[1]) > 1 && parts[1][0] == '0') {
			return nil, fault.New(fault.Format, "SHA256: %q is no size", clip([]byte(parts[1])))
		}
		if !plainPath(path) {
			return nil, fault.New(fault.Path, "SHA256: path %q is not plain", clip([]byte(path)))
		}
		f := ReleaseFile{Size: size, SHA256: digest}
		if have, twice := files[path]; twice && have != f {
			return nil, fault.New(fault.Format, "SHA256: %s is there twice with different digests", path)
		}
		if len(files) == maxReleaseFiles {
			return nil, fault.New(fault.Limit, "SHA256: more than %d files", maxReleaseFiles)
		}
		files[path] = f
	}
	return files, nil
}

func hexDigest(s string) bool {
	if len(s) != sha256.Size*2 || strings.ToLower(s) != s {
		return false
	}
	_, err := hex.DecodeString(s)
	return err == nil
}

// plainPath accepts relative paths without empty, "." and ".." components.
func plainPath(path string) bool {
	if len(path) > 1024 {
		return false
	}
	for part := range strings.SplitSeq(path, "/") {
		if part == "" || part == "." || part == ".." {
			return false
		}
	}
	return !strings.ContainsAny(path, "\\?#")
}

// ReleaseWant says which Release was asked for. Empty fields are not checked.
type ReleaseWant struct {
	Suite    string // as below dists/: a suite name or a codename
	Codename string
	Origin   string
	Label    string
}

// Clock is what time means for a Release.
type Clock struct {
	Now time.Time
	// Snapshot is the recipe's pin; zero without one. A pinned Release may be past its
	// Valid-Until and older than what was seen, but not newer than the pin.
	Snapshot time.Time
	// Seen is the newest Date accepted before for this repository and key; zero for none.
	Seen time.Time
}

// CheckRelease decides whether a verified Release is the one asked for and fresh. Every
// failure is a fault.Verify error.
func CheckRelease(r *Release, want ReleaseWant, clock Clock) error {
	if err := checkIdentity(r, want); err != nil {
		return err
	}
	stamp := func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 MST") }
	now := clock.Now
	if r.Date.After(now.Add(pgp.Skew)) {
		return fault.Hint(fault.New(fault.Verify, "cannot use Release of %s: it is dated %s, in the future", want.Suite, stamp(r.Date)),
			"check this machine's clock, it says %s", stamp(now))
	}
	if pin := clock.Snapshot; !pin.IsZero() {
		if r.Date.After(pin) {
			return fault.Hint(fault.New(fault.Verify, "cannot use Release of %s: it is dated %s, after the snapshot %s", want.Suite, stamp(r.Date), stamp(pin)),
				"a snapshot needs a mirror that keeps old states; name one in the recipe or with --mirror")
		}
		if !r.ValidUntil.IsZero() && r.ValidUntil.Before(pin) {
			return fault.New(fault.Verify, "cannot use Release of %s: it had expired on %s, before the snapshot %s", want.Suite, stamp(r.ValidUntil), stamp(pin))
		}
		return nil
	}
	if !r.ValidUntil.IsZero() && now.After(r.ValidUntil) {
		return fault.Hint(fault.New(fault.Verify, "cannot use Release of %s: it expired on %s", want.Suite, stamp(r.ValidUntil)),
			"the mirror is out of date or this machine's clock is wrong (it says %s); try another mirror with --mirror, or pin snapshot = %q in the recipe",
			stamp(now), r.Date.UTC().Format(time.RFC3339))
	}
	if r.Date.Before(clock.Seen) {
		return fault.Hint(fault.New(fault.Verify, "cannot use Release of %s: it is dated %s, but a newer one of %s was seen before", want.Suite, stamp(r.Date), stamp(clock.Seen)),
			"the mirror is out of date; try another one with --mirror, or pin snapshot = %q in the recipe", r.Date.UTC().Format(time.RFC3339))
	}
	return nil
}

func checkIdentity(r *Release, want ReleaseWant) error {
	// Old security suites are called bookworm/updates in the path and bookworm in the file.
	suite := strings.TrimSuffix(want.Suite, "/updates")
	switch {
	case want.Suite != "" && suite != r.Suite && suite != r.Codename && want.Suite != r.Suite && want.Suite != r.Codename:
		return fault.New(fault.Verify, "cannot use Release of %s: it says suite %q, codename %q", want.Suite, r.Suite, r.Codename)
	case want.Codename != "" && want.Codename != r.Codename:
		return fault.New(fault.Verify, "cannot use Release of %s: it says codename %q, want %q", want.Suite, r.Codename, want.Codename)
	case want.Origin != "" && want.Origin != r.Origin:
		return fault.New(fault.Verify, "cannot use Release of %s: it says origin %q, want %q", want.Suite, r.Origin, want.Origin)
	case want.Label != "" && want.Label != r.Label:
		return fault.New(fault.Verify, "cannot use Release of %s: it says label %q, want %q", want.Suite, r.Label, want.Label)
	}
	return nil
}
