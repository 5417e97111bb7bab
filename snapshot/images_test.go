// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/event"
	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/internal/kernel"
	"github.com/mkmachine/mkmachine/internal/kernel/kerneltest"
	"github.com/mkmachine/mkmachine/internal/rootfs"
)

func TestCheckName(t *testing.T) {
	for _, name := range []string{"a", "debian-stable", "web1", "a.b", "debian-12.5", "0", strings.Repeat("a", 63), "x1.y-2.z3"} {
		if err := CheckName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"", ".", "..", "/", "*", "-", "-rf", "a-", ".a", "a.", "a..b", "a/b", "../a", "A", "Web", "a b", "a\n", "a\x00", "a\x1b[0m",
		"ä", "a_b", "locks", "propagate", "a.raw", "a.nspawn", "a.service", "a.mount", "a.mstack", "a.v", "a.lck", ".host", ".mkmachine",
		strings.Repeat("a", 65), strings.Repeat("a.", 40) + "a", "a.-b", "a.b-"} {
		if err := CheckName(name); fault.ClassOf(err) != fault.Config {
			t.Errorf("%q: %v, want E_CONFIG", name, err)
		}
	}
}

func TestRemoveRefusesBadNames(t *testing.T) {
	b := newBed(t, Overlay)
	s := b.open(t)
	b.publish(t, s, "debian", "one", false)
	for _, names := range [][]string{{}, {""}, {"."}, {".."}, {"/"}, {"*"}, {"debian/../debian"}, {"-rf"}, {stateDir}, {"debian", ""}} {
		if err := s.Remove(t.Context(), names...); fault.ClassOf(err) != fault.Config {
			t.Errorf("remove %q: %v, want E_CONFIG", names, err)
		}
	}
	if err := s.Remove(t.Context(), "debian", "nothing"); fault.ClassOf(err) != fault.State || len(fault.Hints(err)) == 0 {
		t.Errorf("remove of what is not there: %v", err)
	}
	b.wantClean(t, s, "debian")
}

// TestForeign works with images that other tools made.
func TestForeign(t *testing.T) {
	backends(t, func(t *testing.T, b *bed) {
		ctx := t.Context()
		s := b.open(t)
		for _, name := range []string{"TEST_x.y", "plain"} {
			if err := os.Mkdir(filepath.Join(b.dir, name), 0o755); err != nil {
				t.Fatal(err)
			}
			fill(t, filepath.Join(b.dir, name), "foreign")
		}
		write(t, filepath.Join(b.dir, "disk.raw"), "not really")
		write(t, filepath.Join(b.dir, "notes.txt"), "no image")
		if err := os.Mkdir(filepath.Join(b.dir, ".#mkmachine-foo"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("plain", filepath.Join(b.dir, "link")); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("nowhere", filepath.Join(b.dir, "dangling")); err != nil {
			t.Fatal(err)
		}
		imgs, err := s.Images()
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, i := range imgs {
			got = append(got, i.Name+":"+string(i.Kind)+":"+string(i.Role))
			if i.Meta != nil || i.Created.IsZero() {
				t.Errorf("%s: meta %v, created %v", i.Name, i.Meta, i.Created)
			}
		}
		want := []string{"TEST_x.y:directory:machine", "disk:raw:machine", "link:directory:machine", "plain:directory:machine"}
		if !slices.Equal(got, want) {
			t.Errorf("images %q, want %q", got, want)
		}
		if _, err := s.Clone(ctx, "plain", "web", nil); err != nil {
			t.Fatal(err)
		}
		if b.backend != Reflink && b.events.kinds(event.Fallback) == 0 {
			t.Error("a copy of all files was not said aloud")
		}
		for _, source := range []string{"web", filepath.Join(b.dir, "plain")} {
			l, err := s.Ephemeral(ctx, source, nil)
			if err != nil {
				t.Fatal(err)
			}
			if got := readText(t, inside(t, l.Tree)); got != "foreign" {
				t.Errorf("text %q", got)
			}
			if err := l.Close(ctx); err == nil && l.Tree.Dir == "" {
				continue // unmounted at the end of the test
			} else if err != nil {
				t.Error(err)
			}
		}
		st, err := s.NewStage(ctx, "")
		if err != nil {
			t.Fatal(err)
		}
		defer st.Discard(ctx)
		for _, name := range []string{"plain", "disk", "web"} {
			if _, err := st.Publish(ctx, name, Meta{}, true); fault.ClassOf(err) != fault.State {
				t.Errorf("a template took the place of %s: %v", name, err)
			}
		}
		if err := s.SetReadOnly(ctx, "plain", true); err != nil {
			t.Fatal(err)
		}
		if err := s.Rename(ctx, "plain", "fixed"); err != nil {
			t.Fatal(err)
		}
		if img, err := s.Image("fixed"); err != nil || !img.ReadOnly {
			t.Errorf("%+v, %v", img, err)
		}
		if err := s.Remove(ctx, "fixed", "TEST_x.y", "disk", "web"); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Clean(ctx, &CleanOptions{Layers: true}); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{".#mkmachine-foo", "notes.txt", "link"} {
			if _, err := os.Lstat(filepath.Join(b.dir, name)); err != nil {
				t.Errorf("a foreign file went away: %v", err)
			}
		}
	})
}

// TestNested copies and removes subvolumes inside subvolumes, read-only ones too.
func TestNested(t *testing.T) {
	b := newBed(t, Btrfs)
	kerneltest.Leaks(t)
	ctx := t.Context()
	s := b.open(t)
	st, err := s.NewStage(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	fill(t, st.Dir(), "nested")
	for _, d := range []string{"var", "var/inner", "var/inner/deep"} {
		if err := createSubvolume(filepath.Join(st.Dir(), d)); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(st.Dir(), "var/inner/deep/file"), "deep")
	if err := setSubvolumeReadOnly(filepath.Join(st.Dir(), "var/inner"), true); err != nil {
		t.Fatal(err)
	}
	if _, err := st.Publish(ctx, "debian", Meta{}, false); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Clone(ctx, "debian", "web", nil); err != nil {
		t.Fatal(err)
	}
	deep := filepath.Join(b.dir, "web/var/inner/deep")
	if !isSubvolume(deep) {
		t.Error("a nested subvolume was not cloned")
	}
	write(t, filepath.Join(deep, "file"), "changed")
	if data, err := os.ReadFile(filepath.Join(b.dir, "debian/var/inner/deep/file")); err != nil || string(data) != "deep" {
		t.Errorf("the template has %q, %v", data, err)
	}
	if err := setSubvolumeReadOnly(filepath.Join(b.dir, "web/var"), true); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(ctx, "web", "debian"); err != nil {
		t.Fatal(err)
	}
	b.wantClean(t, s)
}

func TestVerifyAndExport(t *testing.T) {
	sums := map[string][]byte{}
	backends(t, func(t *testing.T, b *bed) {
		kerneltest.Leaks(t)
		ctx := t.Context()
		s := b.open(t)
		st, err := s.NewStage(ctx, "")
		if err != nil {
			t.Fatal(err)
		}
		fill(t, st.Dir(), "one")
		root, err := rootfs.Open(st.Dir())
		if err != nil {
			t.Fatal(err)
		}
		if err := root.Clamp(ctx, 1_000_000_000); err != nil {
			t.Fatal(err)
		}
		m, err := root.Manifest(ctx)
		root.Close()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := st.Publish(ctx, "debian", Meta{Manifest: m.Digest(), Recipe: "debian"}, false); err != nil {
			t.Fatal(err)
		}
		if r, err := s.Verify(ctx, "debian"); err != nil || !r.OK {
			t.Errorf("verify: %+v, %v", r, err)
		}
		var archive bytes.Buffer
		if err := s.Export(ctx, "debian", &archive, "tar"); err != nil {
			t.Fatal(err)
		}
		sums[b.backend] = archive.Bytes()
		for other, data := range sums {
			if !bytes.Equal(data, archive.Bytes()) {
				t.Errorf("the archive differs from that of %s", other)
			}
		}
		if _, err := s.Clone(ctx, "debian", "web", nil); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Verify(ctx, "web"); fault.ClassOf(err) != fault.State {
			t.Errorf("verify of a machine: %v", err)
		}
		var machine bytes.Buffer
		if err := s.Export(ctx, "web", &machine, "tar"); err != nil {
			t.Fatal(err)
		}
		if names(t, &machine) != names(t, bytes.NewReader(archive.Bytes())) {
			t.Error("the archive of a clone has other names")
		}
		if err := s.Export(ctx, "web", io.Discard, "zip"); fault.ClassOf(err) != fault.Config {
			t.Errorf("export as zip: %v", err)
		}
		tamper(t, filepath.Join(b.dir, "debian"))
		if r, err := s.Verify(ctx, "debian"); fault.ClassOf(err) != fault.Verify || r.OK {
			t.Errorf("verify of a changed template: %+v, %v", r, err)
		}
	})
}

// tamper changes a file in a template as an administrator could.
func tamper(t *testing.T, dir string) {
	t.Helper()
	if isSubvolume(dir) {
		if err := setSubvolumeReadOnly(dir, false); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(dir, "etc/shadow"), "root::\n")
}

func names(t *testing.T, r io.Reader) string {
	t.Helper()
	var out []string
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return strings.Join(out, "\n")
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, h.Name)
	}
}

func TestPublishLayer(t *testing.T) {
	backends(t, func(t *testing.T, b *bed) {
		ctx := t.Context()
		s := b.open(t)
		st, err := s.NewStage(ctx, "")
		if err != nil {
			t.Fatal(err)
		}
		fill(t, st.Dir(), "layer")
		if err := st.SaveLayer(ctx, "k1", LayerMeta{}); err != nil {
			t.Fatal(err)
		}
		if err := st.Discard(ctx); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"one", "two"} {
			img, err := s.PublishLayer(ctx, "k1", name, Meta{Recipe: name}, false)
			if err != nil {
				t.Fatal(err)
			}
			if img.Meta == nil || img.Meta.Recipe != name || img.Role != Template {
				t.Errorf("%+v", img)
			}
		}
		if _, err := s.PublishLayer(ctx, "k1", "one", Meta{Recipe: "again"}, true); err != nil {
			t.Fatal(err)
		}
		if _, err := s.PublishLayer(ctx, "k2", "one", Meta{}, true); fault.ClassOf(err) != fault.State {
			t.Errorf("a layer that is not there: %v", err)
		}
		if err := s.Remove(ctx, "one"); err != nil {
			t.Fatal(err)
		}
		if img, err := s.Image("two"); err != nil || img.Meta == nil || img.Meta.Recipe != "two" {
			t.Errorf("%+v, %v", img, err)
		}
		if _, err := s.Clean(ctx, &CleanOptions{Layers: true, LayersUnused: time.Hour}); err != nil || !s.HasLayer("k1") {
			t.Errorf("a layer in use was cleaned (%v)", err)
		}
		if _, err := s.Clean(ctx, &CleanOptions{Layers: true}); err != nil {
			t.Fatal(err)
		}
		if got := b.text(t, s, "two"); got != "layer" {
			t.Errorf("text %q", got)
		}
		b.wantClean(t, s, "two")
	})
}

func TestMachinesDirectory(t *testing.T) {
	kerneltest.Require(t, kernel.Root)
	base := t.TempDir()
	mk := func(name string, mode os.FileMode) string {
		t.Helper()
		p := filepath.Join(base, name)
		if err := errors.Join(os.MkdirAll(p, 0o755), os.Chmod(p, mode)); err != nil {
			t.Fatal(err)
		}
		return p
	}
	link := filepath.Join(base, "link")
	if err := os.Symlink(mk("real", 0o700), link); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(mk("used", 0o700), "x"), "")
	os.Chmod(filepath.Join(base, "used"), 0o755)
	write(t, filepath.Join(base, "file"), "")
	owned := mk("owned", 0o700)
	if err := os.Chown(owned, 1000, 1000); err != nil {
		t.Fatal(err)
	}
	mk("open", 0o777)
	mk("sticky", 0o777|os.ModeSticky)
	for _, c := range []struct {
		name, dir string
		want      fault.Class
	}{
		{"empty name", "", fault.Config},
		{"symbolic link", link, fault.Policy},
		{"file", filepath.Join(base, "file"), fault.Config},
		{"world-writable parent", filepath.Join(base, "open/machines"), fault.Policy},
		{"sticky parent", filepath.Join(base, "sticky/machines"), fault.Policy},
		{"open to others and used", filepath.Join(base, "used"), fault.Policy},
		{"owned by a user", owned, fault.Policy},
		{"below a user's", filepath.Join(owned, "machines"), fault.Policy},
	} {
		s, err := Open(t.Context(), c.dir, nil)
		if err == nil {
			s.Close()
		}
		if fault.ClassOf(err) != c.want || err == nil {
			t.Errorf("%s: %v, want %s", c.name, err, c.want)
		}
	}
	empty := mk("empty", 0o755)
	s, err := Open(t.Context(), empty, nil)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	if st, err := os.Stat(empty); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("an empty directory was not closed to others: %v, %v", st.Mode(), err)
	}
}

func TestReadOnlyFileSystem(t *testing.T) {
	kerneltest.Require(t, kernel.Root)
	dir := kerneltest.LoopFS(t, "ext4", 64<<20)
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), filepath.Join(dir, "machines"), nil); fault.ClassOf(err) != fault.Host {
		t.Errorf("a read-only file system: %v", err)
	}
	if _, err := Open(t.Context(), dir, nil); fault.ClassOf(err) != fault.Host {
		t.Errorf("a read-only file system: %v", err)
	}
}

func TestLookOnly(t *testing.T) {
	s, err := Open(t.Context(), filepath.Join(t.TempDir(), "nothing"), &Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	if imgs, err := s.Images(); err != nil || len(imgs) > 0 {
		t.Errorf("%v, %v", imgs, err)
	}
	if _, err := s.Image("x"); fault.ClassOf(err) != fault.State {
		t.Error(err)
	}
	if err := s.Remove(t.Context(), "x"); err == nil {
		t.Error("removed from a store that only looks")
	}
	b := newBed(t, Overlay)
	w := b.open(t)
	b.publish(t, w, "debian", "one", false)
	opts := b.opts
	opts.ReadOnly = true
	s, err = Open(t.Context(), b.dir, &opts)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if img, err := s.Image("debian"); err != nil || img.Meta == nil || s.Backend() != Overlay {
		t.Errorf("%+v, %v, %s", img, err, s.Backend())
	}
	if err := s.Export(t.Context(), "debian", io.Discard, "tar"); err != nil {
		t.Error(err)
	}
}

func TestBackendChoice(t *testing.T) {
	b := newBed(t, Overlay)
	b.open(t)
	for want, class := range map[string]fault.Class{Btrfs: fault.Host, Reflink: fault.Host, "zfs": fault.Config} {
		opts := b.opts
		opts.Backend = want
		if _, err := Open(t.Context(), b.dir, &opts); fault.ClassOf(err) != class {
			t.Errorf("backend %s: %v, want %s", want, err, class)
		}
	}
}

// TestOnOverlay: an overlay cannot carry the upper layer of another; that is said.
func TestOnOverlay(t *testing.T) {
	b := newBed(t, Overlay)
	base := filepath.Dir(b.dir)
	tree := Tree{Lower: []string{filepath.Join(base, "l")}, Upper: filepath.Join(base, "u"), Work: filepath.Join(base, "w")}
	merged := filepath.Join(base, "merged")
	for _, d := range []string{tree.Lower[0], tree.Upper, tree.Work, merged} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	m, err := tree.mount(false)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := unix.MoveMount(int(m.Fd()), "", unix.AT_FDCWD, merged, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(merged, unix.MNT_DETACH)
	opts := b.opts
	s, err := Open(t.Context(), filepath.Join(merged, "machines"), &opts)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.Backend() != Copy || !strings.Contains(s.Reason(), "overlay") {
		t.Errorf("backend %s: %s", s.Backend(), s.Reason())
	}
	img := b.publish(t, s, "debian", "one", false)
	if img == nil {
		t.Fatal("nothing published")
	}
	if _, err := s.Clone(t.Context(), "debian", "web", nil); err != nil {
		t.Fatal(err)
	}
}

func TestPool(t *testing.T) {
	kerneltest.Require(t, kernel.Root, kernel.Loop)
	kerneltest.Program(t, "mkfs.btrfs")
	base := t.TempDir()
	kerneltest.Leaks(t, base)
	ctx := t.Context()
	dir := filepath.Join(base, "machines")
	if p, err := PoolStatus(ctx, dir); err != nil || p.Exists {
		t.Errorf("%+v, %v", p, err)
	}
	if _, err := CreatePool(ctx, dir, 1<<20); fault.ClassOf(err) != fault.Config {
		t.Errorf("a tiny pool: %v", err)
	}
	if _, err := CreatePool(ctx, dir, 1<<50); fault.ClassOf(err) != fault.Host {
		t.Errorf("a pool larger than the disk: %v", err)
	}
	p, err := CreatePool(ctx, dir, 512<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	if !p.Mounted || p.Size != 512<<20 || p.Free <= 0 || p.Device == "" {
		t.Errorf("%+v", p)
	}
	if _, err := CreatePool(ctx, dir, 512<<20); fault.ClassOf(err) != fault.State {
		t.Errorf("a second pool: %v", err)
	}
	opts := &Options{LockDir: filepath.Join(base, "locks")}
	s, err := Open(ctx, dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	if s.Backend() != Btrfs {
		t.Errorf("backend %s", s.Backend())
	}
	s.Close()
	// After a restart of the host nothing is mounted; Open does it.
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(ctx, dir, opts); err != nil {
		t.Fatal(err)
	}
	if s.Backend() != Btrfs {
		t.Errorf("backend %s", s.Backend())
	}
	s.Close()
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
}

// TestNspawnLocks: neither tool starts what the other one runs.
func TestNspawnLocks(t *testing.T) {
	nspawn := kerneltest.Program(t, "systemd-nspawn")
	backends(t, func(t *testing.T, b *bed) {
		ctx := t.Context()
		b.opts.LockDir = "" // the real one
		s := b.open(t)
		st, err := s.NewStage(ctx, "")
		if err != nil {
			t.Fatal(err)
		}
		fill(t, st.Dir(), "one")
		sleeper(t, filepath.Join(st.Dir(), "usr/bin/sleeper"))
		// systemd-nspawn would make these, which it cannot in an immutable directory.
		for _, d := range []string{"var", "proc", "sys", "run", "dev/pts"} {
			if err := os.Mkdir(filepath.Join(st.Dir(), d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := st.Publish(ctx, "debian", Meta{}, false); err != nil {
			t.Fatal(err)
		}
		name := "web"
		if _, err := s.Clone(ctx, "debian", name, nil); err != nil {
			t.Fatal(err)
		}
		if img, err := s.Image(name); err != nil || img.Kind == Stack {
			// This systemd-nspawn does not know stacks: it runs the template's tree.
			name = "debian"
		}
		l, err := s.Use(ctx, name, name == "debian")
		if err != nil {
			t.Fatal(err)
		}
		args := []string{"--quiet", "--register=no", "--keep-unit", "--kill-signal=SIGKILL", "--directory=" + filepath.Join(b.dir, name)}
		out, err := exec.Command(nspawn, append(args, "/usr/bin/sleeper", "0")...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "busy") {
			t.Errorf("systemd-nspawn ran what we run: %v, %s", err, out)
		}
		if err := l.Close(ctx); err != nil {
			t.Fatal(err)
		}
		// With a pipe for the payload's input; the deadline kills it if that does not end it.
		limit, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		cmd := exec.CommandContext(limit, nspawn, append([]string{"--pipe"}, append(args, "/usr/bin/sleeper", "hold")...)...)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		said, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		stop := func() { in.Close(); cmd.Wait() }
		defer stop()
		if _, err := io.ReadFull(said, make([]byte, 3)); err != nil {
			t.Fatalf("systemd-nspawn does not run: %v", err)
		}
		if l, err := s.Use(ctx, name, true); fault.ClassOf(err) != fault.State {
			t.Errorf("we ran what systemd-nspawn runs: %v", err)
			l.Close(ctx)
		}
		if err := s.Remove(ctx, name); fault.ClassOf(err) != fault.State {
			t.Errorf("we removed what systemd-nspawn runs: %v", err)
		}
		stop()
		if err := s.Remove(context.WithoutCancel(ctx), name); err != nil {
			t.Error(err)
		}
	}, Btrfs, Overlay, Copy)
}

// sleeper builds a static program that says "up" and waits for the end of its input.
func sleeper(t *testing.T, path string) {
	t.Helper()
	src := filepath.Join(t.TempDir(), "main.go")
	write(t, src, `package main
import ("io"; "os")
func main() { if os.Args[1] == "hold" { os.Stdout.WriteString("up\n"); io.Copy(io.Discard, os.Stdin) } }
`)
	cmd := exec.Command(kerneltest.Program(t, "go"), "build", "-o", path, src)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}
