// SPDX-License-Identifier: Apache-2.0

package recipes

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/mkmachine/mkmachine/internal/fault"
)

const full = `schema = 1
name = "full"
description = "everything"
[source]
kind = "deb"
distribution = "debian"
suite = "trixie"
arch = "arm64"
snapshot = 2026-09-20T00:00:00Z
mirror = "https://me:secret@mirror.example/debian"
keys = ["41587f7db8c774bccf131416762f67a0b2c39de4", "04B54C3CDCA79751B16BC6B5225629DF75B188BD", "5E04A1E3223A19A20706E20F9904613D4CCE68C6"]
insecure = "a test"
[packages]
add = ["nginx-light"]
recommends = true
[[files]]
path = "/etc/a"
content = "a"
[[users]]
name = "u"
groups = ["g"]
ssh_authorized_keys = ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDBr8QVC0GGl5sSJvrkPuu2V3PM1Ig0Sn3RbqOCGzo0y me"]
[system]
services = { enable = ["a.service"], disable = ["b.service"], mask = ["c.service"] }
[[script]]
run = "true"
env = { A = "1" }
[machine]
bind = ["/srv"]
ports = ["80"]
env = { A = "1" }
command = ["ls"]
[[test]]
commands = [["true"]]
expect_packages = ["nginx-light"]
`

func loadFull(t *testing.T) *Recipe {
	t.Helper()
	r, err := Parse("full.toml", []byte(full))
	if err != nil {
		t.Fatal(err)
	}
	r.Repositories = []Repository{{Keys: []String{{}}, Components: []String{{}}}}
	return r
}

// TestCanonicalForgetsNothing changes every leaf of a recipe, one at a time: the request,
// or the bytes for layers, must notice, except the fields that are listed here.
func TestCanonicalForgetsNothing(t *testing.T) {
	optedOut := []string{
		"Name", "Description", "Origin", "Chain[0]",
		"Source.Mirror.Value",           // transport
		"Source.KeyFile.Value",          // only the bytes count, which the request has
		"Repositories[0].KeyFile.Value", // the same
		"Files[0].Source.Value",         // Data counts
		"Scripts[0].Name.Value", "Scripts[0].File.Value", "Scripts[0].Run.Value",
	}
	base := loadFull(t)
	paths := leaves(reflect.ValueOf(base).Elem(), "")
	if len(paths) < 60 {
		t.Fatalf("only %d leaves: %v", len(paths), paths)
	}
	for _, path := range paths {
		r := loadFull(t)
		if strings.HasPrefix(path, "Source.Key") {
			base.Source.KeyFile.Value, r.Source.KeyFile.Value = "k", "k"
		}
		change(t, r, path)
		same := bytes.Equal(base.Canonical(), r.Canonical()) && slices.Equal(base.Request(), r.Request())
		ignored := slices.Contains(optedOut, path) || strings.HasPrefix(path, "Tests")
		if same != ignored {
			t.Errorf("%s: noticed %t, want %t", path, !same, !ignored)
		}
		base = loadFull(t)
	}
}

// leaves lists the paths of all values below v that are not composed.
func leaves(v reflect.Value, path string) []string {
	if v.Type() == reflect.TypeFor[fault.Pos]() {
		return nil
	}
	switch v.Kind() {
	case reflect.Struct:
		var out []string
		for i := range v.NumField() {
			out = append(out, leaves(v.Field(i), strings.TrimPrefix(path+"."+v.Type().Field(i).Name, "."))...)
		}
		return out
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return []string{path}
		}
		if v.Len() == 0 {
			panic("the full recipe has no " + path)
		}
		var out []string
		for i := range v.Len() {
			out = append(out, leaves(v.Index(i), fmt.Sprintf("%s[%d]", path, i))...)
		}
		return out
	}
	return []string{path}
}

func change(t *testing.T, r *Recipe, path string) {
	t.Helper()
	v := reflect.ValueOf(r).Elem()
	for _, part := range strings.Split(path, ".") {
		name, index, indexed := strings.Cut(part, "[")
		v = v.FieldByName(name)
		for indexed {
			var i int
			fmt.Sscanf(index, "%d", &i)
			v = v.Index(i)
			_, index, indexed = strings.Cut(index, "[")
		}
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(v.String() + "x")
	case reflect.Bool:
		v.SetBool(!v.Bool())
	case reflect.Int, reflect.Int64:
		v.SetInt(v.Int() + 1)
	case reflect.Uint32:
		v.SetUint(v.Uint() + 1)
	case reflect.Map:
		v.SetMapIndex(reflect.ValueOf("NEW"), reflect.ValueOf("1"))
	case reflect.Slice:
		v.SetBytes(append(bytes.Clone(v.Bytes()), 'x'))
	default:
		t.Fatalf("%s: %s", path, v.Kind())
	}
}

func TestCanonicalValues(t *testing.T) {
	values := []any{
		"", "a", []string{}, []string{"a"}, []string{"", "a"}, []string{"a", ""}, []string{"ab"}, []string{"a", "b"},
		map[string]string{}, map[string]string{"a": "b"}, map[string]string{"ab": ""}, true, false, 1, uint32(1), []byte("a"), []byte(nil),
		struct{ A, B string }{"a", ""}, struct{ A, B string }{"", "a"}, struct{ A, C string }{"a", ""},
	}
	for i, a := range values {
		for j, b := range values {
			if bytes.Equal(Canonical(a), Canonical(b)) != (i == j) {
				t.Errorf("%#v and %#v", a, b)
			}
		}
	}
	many := map[string]string{}
	for i := range 50 {
		many[fmt.Sprint(i)] = "x"
	}
	if !bytes.Equal(Canonical(many), Canonical(many)) {
		t.Error("the order of a map is not settled")
	}
}

func TestRequest(t *testing.T) {
	r := loadFull(t)
	r.Repositories = nil
	got := strings.Join(r.Request(), "\n")
	want := `packages.add nginx-light
packages.recommends true
source.arch arm64
source.components main
source.distribution debian
source.insecure a test
source.keys 04B54C3CDCA79751B16BC6B5225629DF75B188BD
source.keys 41587F7DB8C774BCCF131416762F67A0B2C39DE4
source.keys 5E04A1E3223A19A20706E20F9904613D4CCE68C6
source.kind deb
source.pockets release
source.pockets security
source.pockets updates
source.snapshot 2026-09-20T00:00:00Z
source.suite trixie
source.variant minbase`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	changed, err := Parse("full.toml", []byte(strings.Replace(full, `"nginx-light"]`+"\nrec", `"curl"]`+"\nrec", 1)))
	if err != nil {
		t.Fatal(err)
	}
	added, removed := changed.Changed(r.Request())
	if len(added) != 1 || added[0].Line != "packages.add curl" || added[0].Pos.String() != "full.toml:14:8" || fmt.Sprint(removed) != "[packages.add nginx-light]" {
		t.Errorf("added %v, removed %v", added, removed)
	}
	if changed.RequestDigest() == r.RequestDigest() || len(r.RequestDigest()) != 64 {
		t.Error("digest of the request")
	}
}
