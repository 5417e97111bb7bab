// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// dirPacks keeps packs in a directory.
type dirPacks string

func (d dirPacks) path(key string) string            { return filepath.Join(string(d), key) }
func (d dirPacks) Open(key string) (*os.File, error) { return os.Open(d.path(key)) }
func (d dirPacks) Remove(key string) error           { return os.Remove(d.path(key)) }
func (d dirPacks) Create(_ context.Context, key string) (PackFile, error) {
	f, err := os.CreateTemp(string(d), ".new-")
	return &dirPack{f, d.path(key)}, err
}

type dirPack struct {
	f     *os.File
	final string
}

func (p *dirPack) File() *os.File { return p.f }
func (p *dirPack) Commit() (*os.File, error) {
	if err := os.Rename(p.f.Name(), p.final); err != nil {
		return nil, err
	}
	return os.Open(p.final)
}
func (p *dirPack) Close() error {
	os.Remove(p.f.Name())
	return p.f.Close()
}

func packSet() pkgs {
	return pkgs{
		{Name: "one", Replaces: "two", Conffiles: []string{"/etc/one"}, Files: files{
			{Path: "/etc/one", Mode: 0o600, Body: "conf"}, {Path: "/usr/bin/big", Mode: 0o4755, Body: strings.Repeat("0123456789abcdef", 40_000)},
			{Path: "/usr/bin/same", Mode: 0o4755, Hard: "/usr/bin/big"}, {Path: "/usr/l", Link: "bin/big"}, {Path: "/usr/empty"}, {Path: "/usr/x", Body: "one's"},
			{Path: "/var/d", Dir: true, Mode: 0o2775, UID: 3, GID: 4},
		}},
		{Name: "two", Files: files{{Path: "/usr/x", Body: "two's"}, {Path: "/usr/y", Body: "y"}}},
		{Name: "held", Files: files{{Path: "/usr/h", Body: "h"}}, Scripts: map[string]string{"preinst": "#!/bin/sh\ntrue\n"}},
	}
}

// packed installs the set once, cold, and gives the tree and the packs.
func packed(t *testing.T) (tree []string, packs dirPacks) {
	t.Helper()
	plain := newBench(t)
	if err := plain.install(added(plain.items(packSet()), 2)); err != nil {
		t.Fatal(err)
	}
	tree = treeLines(t, plain.dir, notCompared)
	cold := newBench(t)
	packs = dirPacks(t.TempDir())
	cold.packs = packs
	if err := cold.install(added(cold.items(packSet()), 2)); err != nil {
		t.Fatal(err)
	}
	if d := difference(tree, treeLines(t, cold.dir, notCompared)); d != "" {
		t.Errorf("keeping packs changes the tree:\n%s", d)
	}
	if list, _ := os.ReadDir(string(packs)); len(list) != 3 {
		t.Fatalf("%d packs, want 3: %v", len(list), list)
	}
	return tree, packs
}

func TestPacks(t *testing.T) {
	tree, packs := packed(t)
	warm := newBench(t)
	warm.packs = packs
	items := added(warm.items(packSet()), 2)
	for i := range items {
		items[i].Open = func(context.Context) (*os.File, error) {
			t.Errorf("the package %s is read, although there is a pack", items[i].Package.Name)
			return nil, os.ErrNotExist
		}
	}
	if err := warm.install(items); err != nil {
		t.Fatal(err)
	}
	if d := difference(tree, treeLines(t, warm.dir, notCompared)); d != "" {
		t.Errorf("- from packages, + from packs:\n%s", d)
	}
}

// Whatever happened to a pack, the tree is right and somebody is told.
func TestDamagedPacks(t *testing.T) {
	tree, packs := packed(t)
	probe := newBench(t)
	key := packKey(probe.items(packSet())[0].Package)
	good, err := os.ReadFile(packs.path(key))
	if err != nil {
		t.Fatal(err)
	}
	other, err := os.ReadFile(packs.path(packKey(probe.items(packSet())[1].Package)))
	if err != nil {
		t.Fatal(err)
	}
	flip := func(at int) []byte {
		b := bytes.Clone(good)
		b[at] ^= 0x10
		return b
	}
	for name, data := range map[string][]byte{
		"magic":           flip(3),
		"table's offset":  flip(9),
		"table's length":  flip(17),
		"digest":          flip(30),
		"first body":      flip(packBlock),
		"middle":          flip(len(good) / 2),
		"table":           flip(len(good) - 20),
		"cut short":       good[:len(good)-1],
		"longer":          append(bytes.Clone(good), 0),
		"empty":           nil,
		"another package": other,
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(packs.path(key), data, 0o600); err != nil {
				t.Fatal(err)
			}
			b := newBench(t)
			b.packs = packs
			if err := b.install(added(b.items(packSet()), 2)); err != nil {
				t.Fatal(err)
			}
			if d := difference(tree, treeLines(t, b.dir, notCompared)); d != "" {
				t.Errorf("- want, + got:\n%s", d)
			}
			if f := b.fallbacks(); len(f) != 1 {
				t.Errorf("events %q", f)
			}
			if now, err := os.ReadFile(packs.path(key)); err != nil || !bytes.Equal(now, good) {
				t.Error("the pack was not made again")
			}
		})
	}
}

func FuzzParsePack(f *testing.F) {
	var t packTable
	t.text("digest")
	t.number(0)
	t.number(0)
	f.Add(t.b)
	w := newPackWriter(nil)
	u := &unpacked{}
	u.Package.SHA256 = "digest"
	w.entries = []packEntry{{}, {}}
	w.entries[1].Path, w.entries[1].Type, w.entries[1].Size = "usr/x", '-', 4
	f.Add(w.table(u))
	f.Fuzz(func(t *testing.T, table []byte) {
		src, _, err := parsePack(nil, table, 1<<20, "digest")
		if err != nil {
			return
		}
		for _, e := range src.entries {
			if strings.Contains("/"+e.Path+"/", "/../") || e.Type == '-' && (e.offset < 0 || e.Size < 0 || e.offset+e.Size > 1<<20) {
				t.Errorf("entry %+v", e)
			}
		}
	})
}

func FuzzParseTriggers(f *testing.F) {
	f.Add([]byte("# c\ninterest-noawait /usr/share/x\nactivate ldconfig\n"))
	f.Add([]byte("interest /a/../b\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		interests, activations, err := parseTriggers(data)
		for _, x := range append(interests, activations...) {
			if err == nil && x.Name[0] != '/' && strings.ContainsAny(x.Name, "/\x00\n") {
				t.Errorf("trigger %q as a file name", x.Name)
			}
		}
	})
}

func FuzzParseDiversions(f *testing.F) {
	f.Add([]byte("/lib32\n/.lib32.usr-is-merged\nbase-files\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := parseDiversions(data)
		for _, d := range list {
			if err == nil && (!cleanPath(d.From) || !cleanPath(d.To)) {
				t.Errorf("diversion %+v", d)
			}
		}
	})
}
