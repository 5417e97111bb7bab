// SPDX-License-Identifier: Apache-2.0

package rootfs

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/internal/kernel"
	"github.com/mkmachine/mkmachine/internal/kernel/kerneltest"
)

// world is a directory with a root to write into and canaries beside it.
type world struct {
	dir    string
	canary string
	before map[string]string
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{dir: t.TempDir()}
	w.canary = filepath.Join(w.dir, "outside", "canary")
	for _, d := range []string{"root", "outside/dir", "etc"} {
		if err := os.MkdirAll(filepath.Join(w.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"outside/canary", "outside/dir/passwd", "etc/passwd", "etc/shadow", "canary"} {
		if err := os.WriteFile(filepath.Join(w.dir, f), []byte("host: "+f), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	w.before = w.look(t)
	return w
}

func (w *world) root(t testing.TB) *Root {
	t.Helper()
	r, err := Open(filepath.Join(w.dir, "root"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// look records everything beside the root: content, mode, owner, times, link counts, inodes.
func (w *world) look(t testing.TB) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.Walk(w.dir, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(w.dir, path)
		if rel == "root" {
			return filepath.SkipDir
		}
		st := info.Sys().(*syscall.Stat_t)
		var data []byte
		if info.Mode().IsRegular() {
			if data, err = os.ReadFile(path); err != nil {
				return err
			}
		}
		out[rel] = strings.Join([]string{info.Mode().String(), info.ModTime().String(), string(data),
			itoa(st.Ino), itoa(uint64(st.Nlink)), itoa(uint64(st.Uid)), itoa(uint64(st.Gid))}, "|")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func itoa(n uint64) string { return strconv.FormatUint(n, 10) }

// unharmed fails the test when anything outside of the root changed.
func (w *world) unharmed(t testing.TB) {
	t.Helper()
	after := w.look(t)
	for path, was := range w.before {
		if after[path] != was {
			t.Errorf("outside of the root %s changed:\n was %s\n is  %s", path, was, after[path])
		}
		delete(after, path)
	}
	for path := range after {
		t.Errorf("outside of the root %s appeared", path)
	}
}

func (w *world) setup(t testing.TB, r *Root, lines [][]string) {
	t.Helper()
	for _, l := range lines {
		var err error
		switch l[0] {
		case "dir":
			err = r.MkdirAll(l[1], 0o755, os.Getuid(), os.Getgid())
		case "symlink":
			target := strings.NewReplacer("CANARYDIR", filepath.Dir(w.canary), "CANARY", w.canary).Replace(l[2])
			err = r.Symlink(target, l[1], os.Getuid(), os.Getgid())
		default:
			t.Fatalf("unknown setup %q", l)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func (v *vector) run(t testing.TB, trustNames bool) (*Root, *world, error) {
	t.Helper()
	w := newWorld(t)
	r := w.root(t)
	w.setup(t, r, v.setup)
	s := r.NewSession(nil)
	o := v.options
	u := s.NewUnpacker(&o)
	u.pol.trustNames = trustNames
	err := u.Tar(context.Background(), bytes.NewReader(v.tar))
	u.Close()
	if ferr := s.Finish(); ferr != nil && err == nil {
		err = ferr
	}
	return r, w, err
}

func needRoot(t testing.TB) {
	t.Helper()
	kerneltest.Require(t, kernel.Root) // owners of files are set
}

func TestHostileArchives(t *testing.T) {
	needRoot(t)
	for _, v := range loadVectors(t) {
		t.Run(v.name, func(t *testing.T) {
			r, w, err := v.run(t, false)
			w.unharmed(t)
			switch {
			case v.expect == "ok" && err != nil:
				t.Fatalf("got error %v", err)
			case v.expect != "ok" && err == nil:
				t.Fatalf("no error, want %s", v.expect)
			case v.expect != "ok" && fault.ClassOf(err) != fault.Class(v.expect):
				t.Fatalf("got class %s (%v), want %s", fault.ClassOf(err), err, v.expect)
			}
			if err != nil && strings.ContainsAny(err.Error(), "\n\r\x1b\u202e") {
				t.Errorf("error text has control characters: %q", err.Error())
			}
			tree, terr := r.Tree(context.Background())
			if terr != nil {
				t.Fatal(terr)
			}
			for _, line := range v.has {
				if !strings.Contains("\n"+tree, "\n"+line) {
					t.Errorf("tree lacks %q:\n%s", line, tree)
				}
			}
			for _, line := range v.hasNot {
				if strings.Contains("\n"+tree, "\n"+line+" ") {
					t.Errorf("tree has %q:\n%s", line, tree)
				}
			}
			if err := r.RemoveContents(""); err != nil {
				t.Errorf("cannot clean up: %v", err)
			}
		})
	}
}

// The second wall: with the checks of names off, the kernel alone keeps entries inside.
func TestHostileArchivesSecondWall(t *testing.T) {
	needRoot(t)
	for _, v := range loadVectors(t) {
		if strings.HasPrefix(v.name, "tar-25") || strings.HasPrefix(v.name, "tar-33") {
			continue // limits, not paths: without them the directories are simply made
		}
		t.Run(v.name, func(t *testing.T) {
			_, w, _ := v.run(t, true)
			w.unharmed(t)
		})
	}
}

func FuzzUnpack(f *testing.F) {
	for _, v := range loadVectors(f) {
		if len(v.tar) < 1<<16 {
			f.Add(v.tar)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		needRoot(t)
		w := newWorld(t)
		r := w.root(t)
		s := r.NewSession(nil)
		u := s.NewUnpacker(&UnpackOptions{MaxSize: 1 << 24, MaxEntries: 1000, SHA256: true, Holes: true})
		err := u.Tar(context.Background(), bytes.NewReader(data))
		u.Close()
		if ferr := s.Finish(); ferr != nil && err == nil {
			t.Errorf("unpacked but not finished: %v", ferr)
		}
		if fault.ClassOf(err) == fault.Internal {
			t.Errorf("internal error: %v", err)
		}
		w.unharmed(t)
		if err := r.RemoveContents(""); err != nil {
			t.Errorf("cannot clean up: %v", err)
		}
	})
}
