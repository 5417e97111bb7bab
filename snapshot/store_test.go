// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/event"
	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/internal/kernel"
	"github.com/mkmachine/mkmachine/internal/kernel/kerneltest"
)

// bed is where a store is tested.
type bed struct {
	backend string
	dir     string
	opts    Options
	events  *recorder
}

type recorder struct {
	mu   sync.Mutex
	list []event.Event
}

func (r *recorder) sink(e event.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, e)
}

func (r *recorder) kinds(k event.Kind) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, e := range r.list {
		if e.Kind == k {
			n++
		}
	}
	return n
}

// backends runs a test on each backend (or on those given), on a file system of its own.
func backends(t *testing.T, test func(t *testing.T, b *bed), some ...string) {
	if len(some) == 0 {
		some = []string{Btrfs, Overlay, Reflink, Copy}
	}
	for _, backend := range some {
		t.Run(backend, func(t *testing.T) { test(t, newBed(t, backend)) })
	}
}

func newBed(t testing.TB, backend string) *bed {
	t.Helper()
	kerneltest.Require(t, kernel.Root)
	var base string
	switch backend {
	case Btrfs:
		base = kerneltest.LoopBtrfs(t)
	case Reflink:
		base = kerneltest.LoopFS(t, "xfs", 1<<30)
	default:
		base = kerneltest.LoopFS(t, "ext4", 1<<30)
	}
	b := &bed{backend: backend, dir: filepath.Join(base, "machines"), events: &recorder{}}
	b.opts = Options{Sink: b.events.sink, LockDir: filepath.Join(t.TempDir(), "locks"), Engine: "test"}
	if backend == Reflink || backend == Copy {
		b.opts.Backend = backend
	}
	if backend == Overlay {
		// What a run leaves behind on this host is not ours to demand.
		s, err := Open(t.Context(), b.dir, &b.opts)
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		if s.Backend() != Overlay {
			kerneltest.Lacks(t, "overlay", s.Reason())
		}
	}
	return b
}

func (b *bed) open(t testing.TB) *Store {
	t.Helper()
	s, err := Open(t.Context(), b.dir, &b.opts)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	if s.Backend() != b.backend {
		t.Fatalf("backend %s (%s), want %s", s.Backend(), s.Reason(), b.backend)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// fill makes a small tree with one of everything that is hard to copy.
func fill(t testing.TB, dir string, text string) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"etc", "usr", "usr/bin", "dev", "tmp", "root"} {
		must(os.Mkdir(filepath.Join(dir, d), 0o755))
	}
	write := func(name, text string, mode os.FileMode) {
		t.Helper()
		must(os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
		must(os.Chmod(filepath.Join(dir, name), mode))
	}
	write("etc/os-release", "ID=test\nTEXT="+text+"\n", 0o644)
	write("etc/hostname", "localhost\n", 0o644)
	write("etc/machine-id", "", 0o444)
	write("etc/shadow", "root:*:\n", 0o640)
	write("usr/bin/su", "#!/bin/sh\n", 0o755|os.ModeSetuid)
	must(os.Chown(filepath.Join(dir, "etc/shadow"), 0, 42))
	must(os.Link(filepath.Join(dir, "usr/bin/su"), filepath.Join(dir, "usr/bin/su2")))
	must(os.Symlink("usr/bin", filepath.Join(dir, "bin")))
	must(unix.Mknod(filepath.Join(dir, "dev/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(unix.Mkfifo(filepath.Join(dir, "tmp/pipe"), 0o600))
	must(unix.Setxattr(filepath.Join(dir, "usr/bin/su2"), "user.note", []byte("kept"), 0))
	must(os.Chmod(filepath.Join(dir, "tmp"), 0o777|os.ModeSticky))
}

func (b *bed) publish(t testing.TB, s *Store, name, text string, replace bool) *Image {
	t.Helper()
	st, err := s.NewStage(t.Context(), "")
	if err != nil {
		t.Fatalf("stage: %v", err)
	}
	defer st.Discard(context.Background())
	fill(t, st.Dir(), text)
	img, err := st.Publish(t.Context(), name, Meta{Recipe: name, Verified: "signed"}, replace)
	if err != nil {
		t.Fatalf("publish: %v", err)
	}
	return img
}

// text reads which version of a tree an image is.
func (b *bed) text(t testing.TB, s *Store, name string) string {
	t.Helper()
	dir, release, err := s.Mount(t.Context(), name)
	if err != nil {
		t.Fatalf("mount %s: %v", name, err)
	}
	defer release()
	return readText(t, dir)
}

func readText(t testing.TB, dir string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "etc/os-release"))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(data), "TEXT=")
	return strings.TrimSpace(after)
}

// inside gives a directory in which the tree of a lease can be read and written.
func inside(t testing.TB, tree Tree) string {
	t.Helper()
	m, err := tree.mount(false)
	if err != nil {
		t.Fatalf("mount: %v", err)
	}
	t.Cleanup(func() { m.Close() })
	return procDir(m)
}

// wantClean fails if the store holds anything but the named images and their trees.
func (b *bed) wantClean(t testing.TB, s *Store, names ...string) {
	t.Helper()
	var got []string
	imgs, err := s.Images()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range imgs {
		got = append(got, i.Name)
	}
	if !slices.Equal(got, names) {
		t.Errorf("images %q, want %q", got, names)
	}
	all, _ := entryNames(b.dir)
	for _, n := range all {
		if strings.HasPrefix(n, ".") && n != stateDir {
			t.Errorf("left behind: %s", n)
		}
	}
	journal, _ := entryNames(s.state("journal"))
	if len(journal) > 0 {
		t.Errorf("journal not empty: %q", journal)
	}
	refs, err := s.references()
	if err != nil {
		t.Fatal(err)
	}
	trees, _ := entryNames(s.state("trees"))
	for _, id := range trees {
		if !refs[id] {
			t.Errorf("tree without reference: %s", id)
		}
	}
	if n, err := s.sweepRecords(); err != nil || n != 0 {
		t.Errorf("%d records without a tree (%v)", n, err)
	}
	locks, _ := entryNames(b.opts.LockDir)
	if len(locks) > 0 {
		t.Errorf("locks left: %q", locks)
	}
}

func TestPublish(t *testing.T) {
	backends(t, func(t *testing.T, b *bed) {
		kerneltest.Leaks(t)
		s := b.open(t)
		img := b.publish(t, s, "debian", "one", false)
		if img.Role != Template || !img.ReadOnly || img.Meta == nil || img.Meta.Verified != "signed" {
			t.Errorf("image %+v, meta %+v", img, img.Meta)
		}
		if got := b.text(t, s, "debian"); got != "one" {
			t.Errorf("text %q", got)
		}
		// The path in the machines directory is the tree: that is what machinectl uses.
		if got := readText(t, filepath.Join(b.dir, "debian")); got != "one" {
			t.Errorf("text %q", got)
		}
		if err := os.WriteFile(filepath.Join(b.dir, "debian", "x"), nil, 0o644); err == nil {
			t.Error("a template could be written to")
		}
		st, err := s.NewStage(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		fill(t, st.Dir(), "two")
		if _, err := st.Publish(t.Context(), "debian", Meta{}, false); fault.ClassOf(err) != fault.State {
			t.Errorf("publish over a template: %v", err)
		}
		if _, err := st.Publish(t.Context(), "debian", Meta{}, true); err != nil {
			t.Fatalf("replace: %v", err)
		}
		if got := b.text(t, s, "debian"); got != "two" {
			t.Errorf("text %q", got)
		}
		b.wantClean(t, s, "debian")
		if err := s.Remove(t.Context(), "debian"); err != nil {
			t.Fatal(err)
		}
		b.wantClean(t, s)
	})
}

func TestLayers(t *testing.T) {
	backends(t, func(t *testing.T, b *bed) {
		ctx := t.Context()
		s := b.open(t)
		st, err := s.NewStage(ctx, "")
		if err != nil {
			t.Fatal(err)
		}
		fill(t, st.Dir(), "base")
		if err := st.SaveLayer(ctx, "aa11", LayerMeta{Text: "base"}); err != nil {
			t.Fatal(err)
		}
		if !s.HasLayer("aa11") || s.HasLayer("bb22") {
			t.Error("HasLayer is wrong")
		}
		write(t, filepath.Join(st.Dir(), "etc/os-release"), "TEXT=final")
		if err := st.SaveLayer(ctx, "bb22", LayerMeta{Final: true}); err != nil {
			t.Fatal(err)
		}
		if _, err := st.Publish(ctx, "web", Meta{Layers: []string{"aa11", "bb22"}}, false); err != nil {
			t.Fatal(err)
		}
		for key, want := range map[string]string{"aa11": "base", "bb22": "final"} {
			st, err := s.NewStage(ctx, key)
			if err != nil {
				t.Fatal(err)
			}
			if got := readText(t, st.Dir()); got != want {
				t.Errorf("stage from %s has %q, want %q", key, got, want)
			}
			write(t, filepath.Join(st.Dir(), "new"), "writable")
			if err := st.Discard(ctx); err != nil {
				t.Fatal(err)
			}
		}
		// A template that is also a layer: removing one keeps the other.
		if err := s.Remove(ctx, "web"); err != nil {
			t.Fatal(err)
		}
		if !s.HasLayer("bb22") {
			t.Error("the layer went away with the template")
		}
		if _, err := s.NewStage(ctx, "cc33"); fault.ClassOf(err) != fault.State {
			t.Errorf("stage from nothing: %v", err)
		}
		r, err := s.Clean(ctx, &CleanOptions{Layers: true})
		if err != nil || len(r.Layers) != 2 || r.Trees != 0 {
			t.Errorf("clean: %+v, %v", r, err)
		}
		b.wantClean(t, s)
	})
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestClone(t *testing.T) {
	backends(t, func(t *testing.T, b *bed) {
		kerneltest.Leaks(t)
		ctx := t.Context()
		s := b.open(t)
		b.publish(t, s, "debian", "one", false)
		write(t, filepath.Join(b.dir, "debian.nspawn"), "[Exec]\nBoot=no\n")
		img, err := s.Clone(ctx, "debian", "web", nil)
		if err != nil {
			t.Fatal(err)
		}
		if img.Role != Machine || img.ReadOnly || img.Meta == nil || img.Meta.Source != "debian" || img.Meta.Verified != "signed" {
			t.Errorf("image %+v, meta %+v", img, img.Meta)
		}
		if _, err := os.Stat(filepath.Join(b.dir, "web.nspawn")); err != nil {
			t.Error(err)
		}
		l, err := s.Use(ctx, "web", false)
		if err != nil {
			t.Fatal(err)
		}
		root := inside(t, l.Tree)
		write(t, filepath.Join(root, "etc/os-release"), "TEXT=changed")
		if err := os.Remove(filepath.Join(root, "etc/shadow")); err != nil {
			t.Error(err)
		}
		if err := os.Rename(filepath.Join(root, "usr"), filepath.Join(root, "usr.old")); err != nil {
			t.Error(err)
		}
		var st unix.Stat_t
		if err := unix.Lstat(root+"/usr.old/bin/su", &st); err != nil || st.Mode&0o7777 != 0o4755 || st.Nlink != 2 {
			t.Errorf("su: %v, mode %o, %d links", err, st.Mode, st.Nlink)
		}
		if _, err := s.Use(ctx, "web", false); fault.ClassOf(err) != fault.State {
			t.Errorf("a second use: %v", err)
		}
		if err := s.Remove(ctx, "web"); fault.ClassOf(err) != fault.State {
			t.Errorf("remove of a running machine: %v", err)
		}
		if err := s.Rename(ctx, "web", "web2"); fault.ClassOf(err) != fault.State {
			t.Errorf("rename of a running machine: %v", err)
		}
		if err := l.Close(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Clone(ctx, "web", "web2", nil); err != nil {
			t.Fatalf("clone of a clone: %v", err)
		}
		// The template can go and its clones stay whole.
		if err := s.Remove(ctx, "debian"); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"web", "web2"} {
			if got := b.text(t, s, name); got != "changed" {
				t.Errorf("%s has %q", name, got)
			}
			dir, release, err := s.Mount(ctx, name)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := os.Lstat(dir + "/etc/shadow"); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s: a removed file is back: %v", name, err)
			}
			if _, err := os.Lstat(dir + "/usr.old/bin/su2"); err != nil {
				t.Error(err)
			}
			release()
		}
		if err := s.Rename(ctx, "web2", "db"); err != nil {
			t.Fatal(err)
		}
		if img, err := s.Image("db"); err != nil || img.Meta == nil || img.Meta.Name != "db" {
			t.Errorf("renamed: %+v %v", img, err)
		}
		if err := s.Remove(ctx, "web", "db"); err != nil {
			t.Fatal(err)
		}
		b.wantClean(t, s)
		if left, _ := filepath.Glob(filepath.Join(b.dir, "*.nspawn")); len(left) > 0 {
			t.Errorf("left: %q", left)
		}
	})
}

func TestEphemeral(t *testing.T) {
	backends(t, func(t *testing.T, b *bed) {
		kerneltest.Leaks(t)
		ctx := t.Context()
		s := b.open(t)
		b.publish(t, s, "debian", "one", false)
		if _, err := s.Clone(ctx, "debian", "web", nil); err != nil {
			t.Fatal(err)
		}
		var leases []*Lease
		for _, source := range []string{"debian", "debian", "web", filepath.Join(b.dir, "debian")} {
			l, err := s.Ephemeral(ctx, source, nil)
			if err != nil {
				t.Fatalf("ephemeral of %s: %v", source, err)
			}
			write(t, filepath.Join(inside(t, l.Tree), "etc/os-release"), "TEXT=thrown away")
			leases = append(leases, l)
		}
		if err := s.Remove(ctx, "debian"); err != nil {
			t.Fatalf("remove of a template in use: %v", err)
		}
		for _, l := range leases {
			if got := readText(t, inside(t, l.Tree)); got != "thrown away" {
				t.Errorf("text %q", got)
			}
		}
		for _, l := range leases {
			if err := l.Close(ctx); err != nil {
				t.Error(err)
			}
		}
		if got := b.text(t, s, "web"); got != "one" {
			t.Errorf("the source has %q", got)
		}
		if err := s.Remove(ctx, "web"); err != nil {
			t.Fatal(err)
		}
		// What was in use when it was removed is collected by whoever opens next.
		s = b.open(t)
		b.wantClean(t, s)
	})
}

func TestReadOnly(t *testing.T) {
	backends(t, func(t *testing.T, b *bed) {
		ctx := t.Context()
		s := b.open(t)
		b.publish(t, s, "debian", "one", false)
		if err := s.SetReadOnly(ctx, "debian", false); fault.ClassOf(err) != fault.State {
			t.Errorf("a template became writable: %v", err)
		}
		if _, err := s.Clone(ctx, "debian", "frozen", &CloneOptions{ReadOnly: true}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Clone(ctx, "debian", "web", nil); err != nil {
			t.Fatal(err)
		}
		l, err := s.Use(ctx, "web", false)
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(inside(t, l.Tree), "etc/os-release"), "TEXT=changed")
		l.Close(ctx)
		for range 2 { // a second time changes nothing
			if err := s.SetReadOnly(ctx, "web", true); err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range []string{"web", "frozen"} {
			if img, err := s.Image(name); err != nil || !img.ReadOnly {
				t.Errorf("%s: %+v, %v", name, img, err)
			}
			if _, err := s.Use(ctx, name, false); fault.ClassOf(err) != fault.State {
				t.Errorf("%s was used writable: %v", name, err)
			}
			a, err := s.Use(ctx, name, true)
			if err != nil {
				t.Fatal(err)
			}
			again, err := s.Use(ctx, name, true)
			if err != nil {
				t.Errorf("a second reader: %v", err)
			}
			again.Close(ctx)
			a.Close(ctx)
		}
		if got := b.text(t, s, "web"); got != "changed" {
			t.Errorf("read-only it has %q", got)
		}
		if _, err := s.Clone(ctx, "web", "thawed", nil); err != nil {
			t.Fatalf("clone of a read-only machine: %v", err)
		}
		for range 2 {
			if err := s.SetReadOnly(ctx, "web", false); err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range []string{"web", "thawed"} {
			l, err := s.Use(ctx, name, false)
			if err != nil {
				t.Fatal(err)
			}
			root := inside(t, l.Tree)
			if got := readText(t, root); got != "changed" {
				t.Errorf("%s has %q", name, got)
			}
			write(t, filepath.Join(root, "new"), "writable")
			l.Close(ctx)
		}
		if err := s.Remove(ctx, "debian", "frozen", "web", "thawed"); err != nil {
			t.Fatal(err)
		}
		b.wantClean(t, s)
	})
}
