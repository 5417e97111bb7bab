// SPDX-License-Identifier: Apache-2.0

package recipes

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestDocs parses every example of docs/recipe.md, and finds every key described there.
func TestDocs(t *testing.T) {
	text, err := os.ReadFile("../docs/recipe.md")
	if err != nil {
		t.Fatal(err)
	}
	examples := regexp.MustCompile("(?s)```toml\n(.*?)```").FindAllStringSubmatch(string(text), -1)
	if len(examples) < 9 {
		t.Fatalf("%d examples", len(examples))
	}
	for _, e := range examples {
		dir := t.TempDir()
		files := map[string]string{"example.toml": e[1]}
		if m := regexp.MustCompile(`^# needs the file (\S+)`).FindStringSubmatch(e[1]); m != nil {
			files[m[1]] = "some bytes"
		}
		write(t, dir, files)
		if _, err := Load(dir, "example.toml"); err != nil {
			t.Errorf("%v\n%s", err, e[1])
		}
	}
	sections := map[string][]string{}
	section := ""
	for line := range strings.Lines(string(text)) {
		if title, ok := strings.CutPrefix(line, "## "); ok {
			section = strings.Trim(strings.TrimSpace(title), "[]")
		}
		if m := regexp.MustCompile("^\\| `([a-z_]+)[`.]").FindStringSubmatch(line); m != nil {
			sections[section] = append(sections[section], m[1])
		}
	}
	d := &decoder{}
	keys := func(fields []field) (out []string) {
		for _, f := range fields {
			out = append(out, f.key)
		}
		return out
	}
	for name, want := range map[string][]string{
		"source": keys(d.source(&node{}, &Source{})), "packages": keys(d.packages(&node{}, &Packages{})),
		"system": keys(d.system(&node{}, &System{})), "machine": keys(d.machine(&node{}, &Machine{})),
		"repository": tableKeys(func(n *node) { d.repository(n) }, d), "files": tableKeys(func(n *node) { d.file(n) }, d),
		"users": tableKeys(func(n *node) { d.user(n) }, d), "script": tableKeys(func(n *node) { d.script(n) }, d),
		"test": tableKeys(func(n *node) { d.test(n) }, d),
	} {
		if !sameSet(sections[name], want) {
			t.Errorf("[%s]: documented %v, read %v", name, sections[name], want)
		}
	}
}

// tableKeys asks a section for its keys by giving it an unknown one, whose hint lists them.
func tableKeys(read func(*node), d *decoder) []string {
	n := &node{kind: kindTable}
	n.put(strings.Repeat("?", 65), n.pos, &node{})
	d.problems = nil
	read(n)
	for _, p := range d.problems {
		if list, ok := strings.CutPrefix(p.Hint, "one of: "); ok {
			return strings.Split(list, ", ")
		}
	}
	return nil
}

func sameSet(a, b []string) bool {
	seen := map[string]int{}
	for _, s := range a {
		seen[s] |= 1
	}
	for _, s := range b {
		seen[s] |= 2
	}
	for _, v := range seen {
		if v != 3 {
			return false
		}
	}
	return true
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(full))
	f.Add([]byte(starter))
	f.Add([]byte(head + "[a.b]\n[a]\nb.c=1\n[[x]]\n[x.y]\n[[x]]\nz={a.b=1,a.c={}}\n"))
	for _, name := range libraryNames() {
		text, err := LibrarySource(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := Parse("fuzz.toml", data)
		if (r == nil) == (err == nil) {
			t.Fatal("a recipe and an error, or neither")
		}
		if err != nil {
			if len(problemsOf(t, err)) == 0 {
				t.Fatal("an error without a problem")
			}
			return
		}
		if CheckName(r.Name) != nil || r.Source.Kind.Value == "" || len(r.Source.Pockets) == 0 {
			t.Fatalf("incomplete: %+v", r)
		}
		r.Canonical()
		for _, line := range r.Request() {
			if strings.ContainsAny(line, "\n\x00\x1b") {
				t.Fatalf("request line %q", line)
			}
		}
	})
}
