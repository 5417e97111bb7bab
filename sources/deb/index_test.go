// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"fmt"
	"strings"
	"testing"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/sources"
)

const digest = "704dae7df79a35ed1bd3a0a8d5d1b9ce7a4ecdef74ddff72114d9523d63710eb"

// stanza writes a Packages stanza from "Field: value" lines, with what every package needs
// unless the lines say otherwise. A line "-Field" leaves a field out.
func stanza(lines ...string) string {
	fields := [][2]string{{"Package", "p"}, {"Version", "1"}, {"Architecture", "amd64"}, {"Filename", ""}, {"Size", "1000"}, {"SHA256", digest}, {"Priority", "optional"}}
	for _, l := range lines {
		name, value, _ := strings.Cut(l, ":")
		drop := strings.HasPrefix(name, "-")
		name = strings.TrimPrefix(name, "-")
		found := false
		for i := range fields {
			if fields[i][0] == name {
				fields[i][1], found = strings.TrimPrefix(value, " "), true
				if drop {
					fields[i][0] = ""
				}
			}
		}
		if !found && !drop {
			fields = append(fields, [2]string{name, strings.TrimPrefix(value, " ")})
		}
	}
	var b strings.Builder
	for _, f := range fields {
		if f[0] == "Filename" && f[1] == "" {
			f[1] = "pool/main/p/" + fields[0][1] + "_" + strings.ReplaceAll(fields[1][1], ":", "") + ".deb"
		}
		if f[0] != "" {
			fmt.Fprintf(&b, "%s: %s\n", f[0], f[1])
		}
	}
	return b.String() + "\n"
}

func index(t testing.TB, src IndexSource, stanzas ...string) *Index {
	t.Helper()
	if src.Name == "" {
		src.Name = "test"
	}
	x, err := ParseIndex(src, []byte(strings.Join(stanzas, "")))
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func TestParseIndex(t *testing.T) {
	text := "\n\npackage: a\nVERSION: 1:2-3\nArchitecture:all\nDescription: x\n y: z\n .\nDepends: b,\n c (>= 1)\nX-Other: 1\n\n" +
		"Package: b\nVersion: 1\nArchitecture: amd64\nEssential: yes\nPriority: required"
	x, err := ParseIndex(IndexSource{Name: "i"}, []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if x.Len() != 2 {
		t.Fatalf("got %d stanzas", x.Len())
	}
	a, b := &x.entries[0], &x.entries[1]
	if a.Name() != "a" || a.Version() != "1:2-3" || a.Arch() != "all" || a.get(fDepends) != "b,\n c (>= 1)" || a.line != 3 || a.Essential() {
		t.Errorf("got %q %q %q %q line %d", a.Name(), a.Version(), a.Arch(), a.get(fDepends), a.line)
	}
	if b.Name() != "b" || !b.Essential() || b.Priority() != "required" || b.get(fDepends) != "" || b.line != 13 {
		t.Errorf("got %q %v %q line %d", b.Name(), b.Essential(), b.Priority(), b.line)
	}
	for f := range nFields {
		for _, name := range []string{fieldNames[f], strings.ToLower(fieldNames[f]), strings.ToUpper(fieldNames[f])} {
			if got := lookup([]byte(name)); got != f {
				t.Errorf("%s is found as %d, want %d", name, got, f)
			}
		}
	}
}

func TestParseIndexRefuses(t *testing.T) {
	for _, test := range []struct{ text, at string }{
		{" a\n", "i:1"},
		{"Package: a\nVersion: 1\nArchitecture: all\n\n x\n", "i:5"},
		{"Package: a\nrubbish\n", "i:2"},
		{"Package: a\n: x\n", "i:2"},
		{"Package: a\nA B: x\n", "i:2"},
		{"Package: a\r\n\r\n", "i:2"},
		{"Package: a\nVersion: 1\n\n", "i:1"},
		{"\nVersion: 1\nArchitecture: all\n\n", "i:2"},
		{"Package: a\nVersion:\nArchitecture: all\n\n", "i:1"},
		{"Package: a\nVersion: 1\nArchitecture: all\nPackage: b\n\n", "i:4"},
		{"Package: a\nVersion: 1\nArchitecture: all\nsha256: b\nSHA256: c\n", "i:5"},
		{"Package: a\nV\x00: 1\n", "i:2"},
		{"<html>\n", "i:1"},
	} {
		_, err := ParseIndex(IndexSource{Name: "i"}, []byte(test.text))
		if err == nil || fault.ClassOf(err) != fault.Format || !strings.Contains(err.Error(), test.at+":") {
			t.Errorf("%q: got %v, want a format error at %s", test.text, err, test.at)
		}
	}
}

// TestChosenPackage is REL-11 to REL-17 of the list of bad inputs.
func TestChosenPackage(t *testing.T) {
	const ok = fault.Class("")
	for _, test := range []struct {
		line  string
		class fault.Class
	}{
		{"Section: x", ok},
		{"Filename: pool/a/a_1%3a2.deb", fault.Path},
		{"Filename: ./a.deb", ok},
		{"Filename: pool/l/libstdc++/g++_1:2~3_all.deb", ok},
		{"Filename: ../../etc/passwd", fault.Path},
		{"Filename: /abs", fault.Path},
		{"Filename: http://evil/x", fault.Path},
		{"Filename: %2e%2e/%2e%2e/x", fault.Path},
		{"Filename: a//b", fault.Path},
		{"Filename: .", fault.Path},
		{"Filename: ././a", fault.Path},
		{"Filename: a/./b", fault.Path},
		{"Filename: a/../b", fault.Path},
		{"Filename: a/", fault.Path},
		{"Filename: a?b", fault.Path},
		{"Filename: a\\b", fault.Path},
		{"Filename: a%0d%0aHost: x", fault.Format},
		{"Filename: a%0ab", fault.Format},
		{"Filename: a\n b", fault.Format},
		{"Filename: a b", fault.Format},
		{"Filename: " + strings.Repeat("a", 2000), fault.Format},
		{"-Filename", fault.Format},
		{"-SHA256", fault.Verify},
		{"SHA256: " + strings.ToUpper(digest), ok},
		{"SHA256: " + digest[1:], fault.Verify},
		{"SHA256: " + digest + " ", fault.Verify},
		{"SHA256: g" + digest[1:], fault.Verify},
		{"Size: -1", fault.Format},
		{"Size: 99999999999999999999", fault.Format},
		{"Size: 1e3", fault.Format},
		{"Size:   12 ", fault.Format},
		{"Size: 0", fault.Format},
		{"Size: 1\n 2", fault.Format},
		{"-Size", fault.Format},
		{"Installed-Size: 18446744073709551615", fault.Format},
		{"Installed-Size: 10", ok},
		{"Package: ../x", fault.Format},
		{"Package: -oDir::Etc=x", fault.Format},
		{"Package: A B", fault.Format},
		{"Package: x", fault.Format},
		{"Package: Xa", fault.Format},
		{"Package: " + strings.Repeat("a", 1<<20), fault.Format},
		{"Version: 1:2:3", fault.Format},
		{"Version: 1 0", fault.Format},
		{"Version: 99999999999:1", fault.Format},
		{"Version: " + strings.Repeat("1", 1<<16), fault.Format},
		{"Architecture: ../x", fault.Format},
	} {
		x := index(t, IndexSource{Repository: "r"}, stanza("Package: pp", "Filename: pool/p.deb", test.line))
		p, err := x.entries[0].choose(sources.PhaseBase, true)
		if test.class == ok {
			if err != nil || p.SHA256 != digest || p.Repository != "r" || p.Phase != sources.PhaseBase || !p.Auto || strings.HasPrefix(p.Path, ".") {
				t.Errorf("%.60q: got %+v, %v", test.line, p, err)
			}
			continue
		}
		if err == nil || fault.ClassOf(err) != test.class || len(err.Error()) > 3000 {
			t.Errorf("%.60q: got %v, want %s", test.line, err, test.class)
		}
	}
}

func FuzzIndex(f *testing.F) {
	f.Add([]byte(stanza("Depends: a, b | c", "Provides: x (= 1)")))
	f.Add([]byte("Package: a\nVersion: 1\nArchitecture: all\nDepends: b,\n c\n\n\n x"))
	f.Add([]byte("Package:\nSize: 1"))
	f.Fuzz(func(t *testing.T, text []byte) {
		x, err := ParseIndex(IndexSource{Name: "i"}, text)
		if err != nil {
			if fault.ClassOf(err) != fault.Format {
				t.Errorf("class of %v", err)
			}
			return
		}
		for i := range x.entries {
			e := &x.entries[i]
			if e.Name() == "" || e.Version() == "" || e.Arch() == "" {
				t.Errorf("stanza at line %d lacks a field", e.line)
			}
			if p, err := e.choose(sources.PhaseAdded, false); err == nil {
				if strings.HasPrefix(p.Path, "/") || strings.Contains("/"+p.Path+"/", "/../") || p.Size <= 0 || len(p.SHA256) != 64 {
					t.Errorf("chosen: %+v", p)
				}
			}
		}
		u := NewUniverse(x, x)
		u.link()
		for i := range x.entries {
			if n := 0; !u.Has(x.entries[i].Name()) {
				t.Error("lost", x.entries[i].Name(), n)
			}
		}
	})
}

func BenchmarkParseIndex(b *testing.B) {
	// As many stanzas as Debian's main for one architecture, of about the same size.
	var text strings.Builder
	for i := range 63_000 {
		text.WriteString(stanza(fmt.Sprintf("Package: package-number-%d", i), "Depends: libc6 (>= 2.34), libgcc-s1 (>= 4.2), libstdc++6 (>= 13.1), python3:any",
			"Description: what the package is about", "Homepage: https://www.example.org/some/page", "Maintainer: Somebody <somebody@example.org>",
			"Description-md5: 26581e685027d5ae84824362a4ba59ee", "Tag: role::app-data, interface::graphical,\n uitoolkit::sdl, uitoolkit::wxwidgets, use::gameplaying,\n x11::application",
			"Section: games", "Priority: optional", "MD5sum: 8bc5ae2a785f8a88e4c6a1ecc1e0e245", "Installed-Size: 2429", "Multi-Arch: foreign"))
	}
	data := []byte(text.String())
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, err := ParseIndex(IndexSource{}, data); err != nil {
			b.Fatal(err)
		}
	}
}
