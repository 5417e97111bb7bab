// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/sources"
)

func TestAptSources(t *testing.T) {
	armored := []byte("\n-----BEGIN PGP PUBLIC KEY BLOCK-----\n")
	for _, c := range []struct {
		name string
		list []AptSource
		want map[string]string
	}{
		{"a keyring of a package", []AptSource{{
			URIs: []string{"http://a.example/debian"}, Suites: []string{"trixie", "trixie-updates"}, Components: []string{"main", "contrib"},
			SignedBy: "/usr/share/keyrings/a.pgp", Keyring: armored,
		}}, map[string]string{
			"/etc/apt/sources.list.d/x.sources": "Types: deb\nURIs: http://a.example/debian\nSuites: trixie trixie-updates\n" +
				"Components: main contrib\nSigned-By: /usr/share/keyrings/a.pgp\n",
		}},
		{"keyrings of our own", []AptSource{
			{URIs: []string{"http://a.example", "http://b.example"}, Suites: []string{"s"}, Components: []string{"main"}, Architectures: []string{"amd64", "i386"}, Keyring: armored},
			{URIs: []string{"http://c.example"}, Suites: []string{"./"}, Keyring: []byte{0x99, 1}},
		}, map[string]string{
			"/etc/apt/keyrings/x.asc":   string(armored),
			"/etc/apt/keyrings/x-2.pgp": "\x99\x01",
			"/etc/apt/sources.list.d/x.sources": "Types: deb\nURIs: http://a.example http://b.example\nSuites: s\nComponents: main\n" +
				"Architectures: amd64 i386\nSigned-By: /etc/apt/keyrings/x.asc\n\n" +
				"Types: deb\nURIs: http://c.example\nSuites: ./\nSigned-By: /etc/apt/keyrings/x-2.pgp\n",
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			files, err := AptSources("x", c.list)
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]string{}
			for _, f := range files {
				if got[f.Path] = string(f.Data); f.Mode != 0o644 {
					t.Errorf("%s has mode %o", f.Path, f.Mode)
				}
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestAptSourcesRefuses(t *testing.T) {
	for _, c := range []struct {
		why, name string
		change    func(*AptSource)
		says      string
	}{
		{"no name", "", nil, "is not a name"},
		{"a name with a slash", "../x", nil, "is not a name"},
		{"a hidden name", ".x", nil, "is not a name"},
		{"a long name", strings.Repeat("x", 101), nil, "is not a name"},
		{"no address", "x", func(s *AptSource) { s.URIs = nil }, "has no URIs"},
		{"no suite", "x", func(s *AptSource) { s.Suites = nil }, "has no Suites"},
		{"no keys", "x", func(s *AptSource) { s.SignedBy = "" }, "Signed-By"},
		{"a field within an address", "x", func(s *AptSource) { s.URIs = []string{"http://a\nTrusted:yes"} }, "URIs"},
		{"two suites in one", "x", func(s *AptSource) { s.Suites = []string{"a b"} }, "Suites"},
		{"an empty component", "x", func(s *AptSource) { s.Components = []string{"main", ""} }, "Components"},
		{"a control character", "x", func(s *AptSource) { s.Architectures = []string{"amd64\x7f"} }, "Architectures"},
		{"a keyring with a space", "x", func(s *AptSource) { s.SignedBy = "/a b" }, "Signed-By"},
	} {
		s := AptSource{URIs: []string{"http://a.example"}, Suites: []string{"s"}, Components: []string{"main"}, SignedBy: "/k"}
		if c.change != nil {
			c.change(&s)
		}
		files, err := AptSources(c.name, []AptSource{s})
		if files != nil || fault.ClassOf(err) != fault.Config || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %v, %v", c.why, files, err)
		}
	}
}

func TestAutoInstalled(t *testing.T) {
	item := func(name, arch string, auto bool) Item {
		return Item{Package: sources.Package{Name: name, Arch: arch, Auto: auto}}
	}
	items := []Item{item("z", "all", true), item("lib", "i386", true), item("asked", "amd64", false), item("lib", "amd64", true)}
	want := ""
	for _, l := range []string{"lib amd64", "lib i386", "z amd64"} {
		name, arch, _ := strings.Cut(l, " ")
		want += "Package: " + name + "\nArchitecture: " + arch + "\nAuto-Installed: 1\n\n"
	}
	if d := cmp.Diff(want, string(autoInstalled(items, "amd64"))); d != "" {
		t.Error(d)
	}
	if got := autoInstalled(items[2:3], "amd64"); len(got) > 0 {
		t.Errorf("nothing is automatic, got %q", got)
	}
}
