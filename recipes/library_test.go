// SPDX-License-Identifier: Apache-2.0

package recipes

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/internal/kernel/kerneltest"
)

func TestLibrary(t *testing.T) {
	list, err := List()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range list {
		got = append(got, fmt.Sprintf("%s %s/%s %s", s.Name, s.Distribution, s.Suite, s.Grade))
		if s.Description == "" {
			t.Errorf("%s has no description", s.Name)
		}
		r, err := Load("", s.Name)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range r.Source.Pockets {
			if ring, fingerprints := r.Source.Signers(p.Value); len(ring) == 0 || len(fingerprints) == 0 {
				t.Errorf("%s: nobody signs %s", s.Name, p.Value)
			}
		}
		if !r.Machine.Boot || position(r.Packages.Add, "systemd-sysv") < 0 || position(r.Packages.Add, "dbus") < 0 {
			t.Errorf("%s does not boot", s.Name)
		}
		if text, err := LibrarySource(s.Name); err != nil || !bytes.Contains(text, []byte(s.Name)) {
			t.Errorf("%s: %v", s.Name, err)
		}
	}
	want := "debian-oldstable debian/bookworm signed\ndebian-sid debian/sid signed\ndebian-stable debian/trixie signed\n" +
		"debian-testing debian/forky signed\nubuntu-jammy ubuntu/jammy signed\nubuntu-lts ubuntu/noble signed"
	if strings.Join(got, "\n") != want {
		t.Errorf("got\n%s", strings.Join(got, "\n"))
	}
}

var assignment = regexp.MustCompile(`^[a-z_.]+ = `)

func TestInit(t *testing.T) {
	text, err := Init("web")
	if err != nil {
		t.Fatal(err)
	}
	r, err := Parse("web.toml", text)
	if err != nil {
		t.Fatal(err)
	}
	if r.Name != "web" || position(r.Packages.Add, "nano") < 0 || string(r.Files[0].Data) != "Welcome to web.\n" {
		t.Errorf("%+v", r)
	}
	// Every commented key is valid too.
	var all []string
	for line := range strings.Lines(string(text)) {
		rest, ok := strings.CutPrefix(line, "# ")
		if ok && (strings.HasPrefix(rest, "[[") || strings.HasPrefix(rest, "'''") || strings.HasPrefix(rest, "touch") || assignment.MatchString(rest)) {
			line = rest
		}
		all = append(all, strings.Replace(line, "AAAA...", "AAAAC3NzaC1lZDI1NTE5AAAAIDBr8QVC0GGl5sSJvrkPuu2V3PM1Ig0Sn3RbqOCGzo0y", 1))
	}
	if _, err := Parse("all.toml", []byte(strings.Join(all, ""))); err != nil {
		t.Errorf("%v\n%s", err, strings.Join(all, ""))
	}
	if _, err := Init("../x"); fault.ClassOf(err) != fault.Config {
		t.Errorf("%v", err)
	}
}

func TestKeys(t *testing.T) {
	var seen []string
	for _, k := range Keys() {
		if p, _ := ruleFingerprint(k.Fingerprint); p != "" || strings.ToUpper(k.Fingerprint) != k.Fingerprint || slices.Contains(seen, k.Fingerprint) {
			t.Errorf("fingerprint %q", k.Fingerprint)
		}
		seen = append(seen, k.Fingerprint)
		if data := Keyring([]Key{k}); !bytes.Contains(data, []byte(k.UserID)) {
			t.Errorf("the data of %s is not of %s", k.Fingerprint, k.UserID)
		}
		d, ok := DistributionOf(k.Distribution)
		if !ok {
			t.Errorf("distribution %q", k.Distribution)
		}
		for _, s := range k.Suites {
			if suite, ok := d.Suite(s); !ok || suite.Codename != s {
				t.Errorf("suite %q", s)
			}
		}
	}
	entries, err := library.ReadDir("library/keys")
	if err != nil || len(entries) != len(seen) {
		t.Errorf("%d files of %d keys, %v", len(entries), len(seen), err)
	}
	if got := PinnedKeys("debian", "stable", "security"); len(got) != 3 {
		t.Errorf("%v", got)
	}
	if got := PinnedKeys("debian", "sid", "release"); len(got) != 3 {
		t.Errorf("%v", got)
	}
	if got := PinnedKeys("debian", "trixie", "release"); len(got) != 4 || got[3].UserID[:20] != "Debian Stable Releas" {
		t.Errorf("%v", got)
	}
	if got := PinnedKeys("kali", "rolling", "release"); got != nil && len(got) != 0 {
		t.Errorf("%v", got)
	}
}

// TestKeysProve verifies InRelease files of the real archives with gpgv: exactly with the
// keys that are pinned for their suite and pocket.
func TestKeysProve(t *testing.T) {
	gpgv := kerneltest.Program(t, "gpgv")
	files, err := filepath.Glob("testdata/inrelease/*.gz")
	if err != nil || len(files) < 7 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, packed := range files {
		name := strings.TrimSuffix(filepath.Base(packed), ".gz")
		part := strings.Split(name, "_") // distribution, suite, pocket
		file := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(file, gunzip(t, packed), 0o600); err != nil {
			t.Fatal(err)
		}
		ring := filepath.Join(t.TempDir(), "ring.pgp")
		if err := os.WriteFile(ring, Keyring(PinnedKeys(part[0], part[1], part[2])), 0o600); err != nil {
			t.Fatal(err)
		}
		out, _ := exec.Command(gpgv, "--status-fd", "1", "--keyring", ring, file).CombinedOutput()
		if n := bytes.Count(out, []byte("VALIDSIG")); n < 1 {
			t.Errorf("%s: no pinned key signed it\n%s", file, out)
		}
	}
}

func gunzip(t *testing.T, path string) []byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
