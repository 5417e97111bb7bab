// SPDX-License-Identifier: Apache-2.0

package sources

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/mkmachine/mkmachine/internal/fault"
)

func sample() *Lock {
	digest := strings.Repeat("ab", 32)
	return &Lock{
		Schema: LockSchema, Recipe: "web", Request: digest, Asked: []string{"source.suite stable"}, Arch: "amd64",
		Date: time.Date(2026, 9, 12, 7, 55, 41, 0, time.UTC),
		Keys: []Key{{Fingerprint: strings.Repeat("A1", 20), UserID: "Archive <a@example.org>"}},
		Repositories: []Repository{{
			ID: "debian stable", Family: "debian", Suite: "stable", Codename: "trixie", Components: []string{"main"},
			Date: time.Date(2026, 9, 12, 7, 55, 41, 0, time.UTC), Release: digest,
			Indexes:  []RepositoryFile{{"dists/stable/main/binary-amd64/Packages.xz", 10, digest}},
			SignedBy: []string{strings.Repeat("A1", 20)},
		}},
		Packages: []Package{{
			Name: "hello", Version: "1:2.10-3+b1~x", Arch: "amd64", Repository: "debian stable",
			Path: "pool/main/h/hello/hello_2.10-3_amd64.deb", Size: 5, SHA256: digest, Phase: PhaseAdded,
		}},
	}
}

func TestLockRoundTrip(t *testing.T) {
	want := sample()
	text, err := FormatLock(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseLock(text, "web.lock.json")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("lock changed on its way through the file:\n%s", d)
	}
	again, _ := FormatLock(got)
	if !bytes.Equal(text, again) {
		t.Error("formatting is not stable")
	}
}

func TestLockRefusesHostileText(t *testing.T) {
	good, _ := FormatLock(sample())
	for name, edit := range map[string][2]string{
		"unknown field":     {`"schema": 1,`, `"schema": 1, "extra": 2,`},
		"other schema":      {`"schema": 1`, `"schema": 2`},
		"path leaves":       {"pool/main/h/hello/hello_2.10-3_amd64.deb", "../../etc/shadow"},
		"path absolute":     {"pool/main/h/hello/hello_2.10-3_amd64.deb", "/etc/shadow"},
		"path encoded":      {"pool/main/h/hello/hello_2.10-3_amd64.deb", "pool/%2e%2e/x"},
		"name is a path":    {`"name": "hello"`, `"name": "../hello"`},
		"name is an option": {`"name": "hello"`, `"name": "-oDir=x"`},
		"version has space": {`"version": "1:2.10-3+b1~x"`, `"version": "1 2"`},
		"negative size":     {`"size": 5`, `"size": -5`},
		"unknown phase":     {`"phase": "added"`, `"phase": "soon"`},
		"no repository":     {`"repository": "debian stable"`, `"repository": "other"`},
		"short digest":      {`"release": "` + strings.Repeat("ab", 32), `"release": "abab`},
		"short fingerprint": {`"fingerprint": "` + strings.Repeat("A1", 20), `"fingerprint": "A1A1A1A1`},
		"trailing text":     {"\n}\n", "\n}\n{}\n"},
	} {
		text := strings.Replace(string(good), edit[0], edit[1], 1)
		if text == string(good) {
			t.Fatalf("%s: the edit did not apply", name)
		}
		_, err := ParseLock([]byte(text), "web.lock.json")
		if err == nil {
			t.Errorf("%s: accepted", name)
		} else if fault.ClassOf(err) != fault.Lock {
			t.Errorf("%s: class %s, want %s: %v", name, fault.ClassOf(err), fault.Lock, err)
		}
	}
}

func TestDiff(t *testing.T) {
	old, new := sample(), sample()
	new.Packages[0].Version = "1:3"
	p := new.Packages[0]
	p.Name, p.Version = "curl", "8.1"
	new.Packages = append(new.Packages, p)
	got := Diff(old, new, strings.Compare)
	want := []Change{{"added", "curl:amd64", "", "8.1"}, {"upgraded", "hello:amd64", "1:2.10-3+b1~x", "1:3"}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if got := Diff(nil, old, strings.Compare); len(got) != 2 || got[1].Kind != "added" {
		t.Errorf("against nothing: %v", got)
	}
	new = sample()
	new.Packages[0].SHA256 = strings.Repeat("cd", 32)
	if got := Diff(old, new, strings.Compare); len(got) != 1 || got[0].Kind != "changed" {
		t.Errorf("same version, other bytes: %v", got)
	}
}

func FuzzParseLock(f *testing.F) {
	good, _ := FormatLock(sample())
	f.Add(good)
	f.Add([]byte(`{"schema":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := ParseLock(data, "x")
		if err != nil {
			return
		}
		text, err := FormatLock(l)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseLock(text, "x"); err != nil {
			t.Fatalf("what was accepted is refused after formatting: %v", err)
		}
	})
}
