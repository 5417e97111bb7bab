// SPDX-License-Identifier: Apache-2.0

package rootfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/event"
	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/internal/kernel"
	"github.com/mkmachine/mkmachine/internal/kernel/kerneltest"
)

func tempRoot(t testing.TB) *Root {
	t.Helper()
	r, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// sample makes a tree with one of everything.
func sample(t testing.TB, r *Root) {
	t.Helper()
	must(t,
		r.Chmod("", 0o755),
		r.MkdirAll("usr/bin", 0o755, 0, 0),
		r.MkdirAll("var/mail", 0o2775, 0, 8),
		r.Put("usr/bin/su", 0o4755, 0, 0, []byte("su")),
		r.Put("usr/bin/big", 0o644, 3, 4, bytes.Repeat([]byte("0123456789abcdef"), 20000)),
		r.Link("usr/bin/su", "usr/bin/zu"),
		r.Symlink("usr/bin", "bin", 0, 0),
		r.Put("usr-local", 0o600, 0, 0, nil),
	)
	long := "usr/" + strings.Repeat("x", 120)
	must(t, r.Put(long, 0o644, 0, 0, []byte("long")))
	fd, err := r.open("usr/bin/su", unix.O_RDONLY)
	must(t, err, unix.Mknodat(r.fd, "pipe", unix.S_IFIFO|0o640, 0))
	unix.Close(fd)
	f, err := r.open("usr/bin/big", unix.O_WRONLY)
	must(t, err)
	defer unix.Close(f)
	must(t, unix.Fsetxattr(f, "user.note", []byte("value\x00\x01"), 0))
	var nodes []string
	must(t, r.Walk(t.Context(), "", nil, func(n *Node) error { nodes = append(nodes, n.Path); return nil }))
	for i := len(nodes) - 1; i >= 0; i-- {
		must(t, r.Chtimes(nodes[i], int64(1_000_000_000+i)))
	}
}

func TestCopyAndExportKeepEverything(t *testing.T) {
	kerneltest.Require(t, kernel.Root)
	src, dst, back := tempRoot(t), tempRoot(t), tempRoot(t)
	sample(t, src)
	must(t, Copy(t.Context(), dst, src, nil))
	a, err := src.Manifest(t.Context())
	must(t, err)
	b, err := dst.Manifest(t.Context())
	must(t, err)
	if d := DiffManifests(a, b, 20); d != "" || a.Digest() != b.Digest() {
		t.Errorf("copy differs:\n%s", d)
	}
	var one, two bytes.Buffer
	must(t, src.ExportTar(t.Context(), &one, nil), dst.ExportTar(t.Context(), &two, nil))
	if !bytes.Equal(one.Bytes(), two.Bytes()) {
		t.Error("exports of equal trees differ")
	}
	s := back.NewSession(nil)
	u := s.NewUnpacker(nil)
	must(t, u.Tar(t.Context(), &one), u.Close(), s.Finish())
	c, err := back.Manifest(t.Context())
	must(t, err)
	if d := DiffManifests(a, c, 20); d != "" {
		t.Errorf("export and unpack differ:\n%s", d)
	}
}

func TestCopyReflink(t *testing.T) {
	dir := kerneltest.LoopBtrfs(t)
	for _, d := range []string{"a", "b"} {
		must(t, os.Mkdir(filepath.Join(dir, d), 0o755))
	}
	src, err := Open(filepath.Join(dir, "a"))
	must(t, err)
	defer src.Close()
	dst, err := Open(filepath.Join(dir, "b"))
	must(t, err)
	defer dst.Close()
	sample(t, src)
	must(t, Copy(t.Context(), dst, src, &CopyOptions{Reflink: true}))
	a, _ := src.Digest(t.Context())
	if b, _ := dst.Digest(t.Context()); a != b {
		t.Error("reflink copy differs")
	}
}

func TestDiffManifests(t *testing.T) {
	a := &Manifest{[]Node{{Path: ""}, {Path: "a"}, {Path: "a/b"}, {Path: "c"}}}
	b := &Manifest{[]Node{{Path: ""}, {Path: "a", Info: Info{Mode: 1}}, {Path: "a-b"}, {Path: "c"}}}
	got := DiffManifests(a, b, 10)
	for _, want := range []string{`- "/a" `, `+ "/a" `, `- "/a/b"`, `+ "/a-b"`} {
		if !strings.Contains(got, want) {
			t.Errorf("lacks %q:\n%s", want, got)
		}
	}
	if strings.Contains(got, `"/c"`) || DiffManifests(a, a, 10) != "" {
		t.Errorf("equal nodes are listed:\n%s", got)
	}
	if got := DiffManifests(a, b, 1); !strings.HasSuffix(got, "and 2 more") {
		t.Errorf("limit: %s", got)
	}
}

func TestDigestSeesEverything(t *testing.T) {
	kerneltest.Require(t, kernel.Root)
	r := tempRoot(t)
	sample(t, r)
	seen := map[string]string{}
	look := func(what string) {
		t.Helper()
		d, err := r.Digest(t.Context())
		must(t, err)
		if old, ok := seen[d]; ok {
			t.Errorf("digest after %q is that after %q", what, old)
		}
		seen[d] = what
	}
	look("nothing")
	must(t, r.Chmod("usr-local", 0o601))
	look("mode")
	must(t, r.Chown("usr-local", 1, 0))
	look("owner")
	must(t, r.Chtimes("usr-local", 5))
	look("time")
	must(t, r.Chtimes("bin", 5))
	look("time of a link")
	must(t, r.Put("usr-local", 0o601, 1, 0, []byte("x")), r.Chtimes("usr-local", 5))
	look("content")
	must(t, r.Remove("usr/bin/zu"), r.Put("usr/bin/zu", 0o4755, 0, 0, []byte("su")))
	look("hard link")
	st, _ := r.Lstat("usr/bin/big")
	f, err := r.Open("usr/bin/big")
	must(t, err)
	must(t, unix.Fremovexattr(int(f.Fd()), "user.note"), f.Close())
	look("xattr")
	if st.Size != 320000 {
		t.Errorf("size %d", st.Size)
	}
}

func TestClamp(t *testing.T) {
	kerneltest.Require(t, kernel.Root)
	r := tempRoot(t)
	sample(t, r)
	must(t, r.Put("new", 0o644, 0, 0, nil), r.Symlink("x", "newlink", 0, 0), r.Clamp(t.Context(), 1_000_000_002))
	must(t, r.Walk(t.Context(), "", nil, func(n *Node) error {
		if n.ModTime > 1_000_000_002 || n.ModNano != 0 {
			t.Errorf("%s has time %d.%09d", n.Path, n.ModTime, n.ModNano)
		}
		return nil
	}))
	if st, err := r.Lstat("bin"); err != nil || st.ModTime != 1_000_000_001 {
		t.Errorf("an earlier time changed: %d %v", st.ModTime, err)
	}
}

func TestSparse(t *testing.T) {
	kerneltest.Require(t, kernel.Root)
	r := tempRoot(t)
	s := r.NewSession(nil)
	var sums []string
	u := s.NewUnpacker(&UnpackOptions{Holes: true, SHA256: true, Done: func(e *Entry, sum []byte) { sums = append(sums, fmt.Sprintf("%x", sum)) }})
	body := make([]byte, 1<<20)
	body[500_000] = 1
	pieces := [][]byte{body[:100], body[100:700_000], body[700_000:]}
	next := func() ([]byte, error) {
		if len(pieces) == 0 {
			return nil, io.EOF
		}
		p := pieces[0]
		pieces = pieces[1:]
		return p, nil
	}
	must(t, u.Add(t.Context(), &Entry{Path: "plain", Type: File, Mode: 0o644, Size: 1 << 20}, next))
	data := [][]byte{{1}}
	must(t, u.Add(t.Context(), &Entry{Path: "sparse", Type: File, Mode: 0o644, Size: 1 << 20, Sparse: []Extent{{Offset: 500_000, Length: 1}}},
		func() ([]byte, error) {
			if len(data) == 0 {
				return nil, io.EOF
			}
			d := data[0]
			data = nil
			return d, nil
		}))
	must(t, u.Close(), s.Finish())
	if len(sums) != 2 || sums[0] != sums[1] {
		t.Errorf("sums differ: %q", sums)
	}
	for _, name := range []string{"plain", "sparse"} {
		got, err := r.ReadFile(name, 1<<21)
		must(t, err)
		if !bytes.Equal(got, body) {
			t.Errorf("%s has other content", name)
		}
		var st unix.Stat_t
		must(t, unix.Fstatat(r.fd, name, &st, 0))
		if st.Blocks*512 > 256<<10 {
			t.Errorf("%s has no holes: %d blocks", name, st.Blocks)
		}
	}
}

func TestWriteFile(t *testing.T) {
	kerneltest.Require(t, kernel.Root)
	t.Run("btrfs", func(t *testing.T) { testWriteFile(t, kerneltest.LoopBtrfs(t), "") })
	t.Run("here", func(t *testing.T) { testWriteFile(t, t.TempDir(), "any") })
}

func testWriteFile(t *testing.T, dir, fallback string) {
	body := bytes.Repeat([]byte("block of sixteen"), 1<<16/16*17)
	body = append(body, "tail"...)
	pack := filepath.Join(dir, "pack")
	must(t, os.WriteFile(pack, append(make([]byte, 8192), append(body, make([]byte, 4096)...)...), 0o600))
	f, err := os.Open(pack)
	must(t, err)
	defer f.Close()
	must(t, os.Mkdir(filepath.Join(dir, "tree"), 0o755))
	r, err := Open(filepath.Join(dir, "tree"))
	must(t, err)
	defer r.Close()
	var fallbacks []string
	sp := event.Sink(func(e event.Event) {
		if e.Kind == event.Fallback {
			fallbacks = append(fallbacks, e.Text)
		}
	}).Start("unpack", "")
	s := r.NewSession(&SessionOptions{Span: sp})
	u := s.NewUnpacker(nil)
	for i := range 3 {
		e := &Entry{Path: fmt.Sprint("f", i), Type: File, Mode: 0o640, UID: 1, GID: 2, ModTime: 77, Size: int64(len(body))}
		must(t, u.WriteFile(t.Context(), e, FileRange{f, 8192, int64(len(body))}))
	}
	must(t, u.WriteFile(t.Context(), &Entry{Path: "small", Type: File, Mode: 0o644, Size: 5}, FileRange{f, 8193, 5}))
	must(t, u.WriteFile(t.Context(), &Entry{Path: "empty", Type: File, Mode: 0o644}, FileRange{f, 0, 0}))
	if fallback == "" && len(fallbacks) > 0 || len(fallbacks) > 2 {
		t.Errorf("fallbacks: %q", fallbacks)
	}
	err = u.WriteFile(t.Context(), &Entry{Path: "short", Type: File, Mode: 0o644, Size: 1 << 30}, FileRange{f, 0, 1 << 30})
	if fault.ClassOf(err) != fault.State {
		t.Errorf("a range behind the end: %v", err)
	}
	must(t, u.Close(), s.Finish())
	for i := range 3 {
		got, err := r.ReadFile(fmt.Sprint("f", i), 1<<24)
		must(t, err)
		if !bytes.Equal(got, body) {
			t.Errorf("f%d differs", i)
		}
	}
}

func TestRemoveAllDeep(t *testing.T) {
	// In memory where possible: on a disk the making alone takes many seconds.
	depth := 100_000
	dir, err := os.MkdirTemp("/dev/shm", "deep")
	if err != nil {
		depth, dir = 10_000, t.TempDir()
	}
	defer os.Remove(dir)
	r, err := Open(dir)
	must(t, err)
	defer r.Close()
	fd, err := unix.Dup(r.fd)
	must(t, err)
	for range depth {
		must(t, unix.Mkdirat(fd, "d", 0o755))
		next, err := unix.Openat(fd, "d", unix.O_PATH|unix.O_DIRECTORY, 0)
		must(t, err)
		unix.Close(fd)
		fd = next
	}
	unix.Close(fd)
	must(t, r.RemoveAll("d"))
	if names, err := r.Readdir(""); err != nil || len(names) != 0 {
		t.Errorf("left: %q %v", names, err)
	}
}

func TestRemoveAllReadOnlyAndImmutable(t *testing.T) {
	r := tempRoot(t)
	must(t, r.MkdirAll("a/b/c", 0o755, os.Getuid(), os.Getgid()), r.Put("a/b/c/f", 0, os.Getuid(), os.Getgid(), nil))
	must(t, r.Chmod("a/b/c", 0), r.Chmod("a/b", 0o555))
	must(t, r.RemoveAll("a"), r.RemoveAll("a"), r.RemoveAll("not/there"))

	kerneltest.Require(t, kernel.Root)
	must(t, r.MkdirAll("a/b", 0o755, 0, 0), r.Put("a/b/f", 0o644, 0, 0, nil))
	for _, p := range []string{"a/b/f", "a/b", "a"} {
		fd, err := r.open(p, unix.O_RDONLY)
		must(t, err)
		if err := unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, flagImmutable); err != nil {
			t.Skipf("the file system has no immutable flag: %v", err)
		}
		unix.Close(fd)
	}
	must(t, r.RemoveAll("a"))
}

func TestRemoveAllStopsAtMounts(t *testing.T) {
	kerneltest.Require(t, kernel.Root)
	w := newWorld(t)
	r := w.root(t)
	must(t, r.MkdirAll("a/mnt", 0o755, 0, 0))
	target := filepath.Join(w.dir, "root", "a", "mnt")
	must(t, unix.Mount(filepath.Join(w.dir, "outside"), target, "", unix.MS_BIND, ""))
	defer unix.Unmount(target, unix.MNT_DETACH)
	if err := r.RemoveAll("a"); fault.ClassOf(err) != fault.State {
		t.Errorf("got %v", err)
	}
	if err := r.Walk(t.Context(), "", nil, func(*Node) error { return nil }); fault.ClassOf(err) != fault.State {
		t.Errorf("walk: got %v", err)
	}
	must(t, unix.Unmount(target, 0))
	w.unharmed(t)
}

// Directories that several archives ship come out the same in every order of work.
func TestSessionIsDeterministic(t *testing.T) {
	kerneltest.Require(t, kernel.Root)
	archives := make([][]byte, 6)
	for i := range archives {
		var b tarBuilder
		lines := [][]string{
			{"dir", "shared", fmt.Sprintf("mode=07%d5", i+1), fmt.Sprintf("uid=%d", i), fmt.Sprintf("mtime=%d", 1000+i)},
			{"file", "shared/same", fmt.Sprintf("data=from %d", i), fmt.Sprintf("mode=06%d0", i)},
			{"symlink", "shared/link", fmt.Sprintf("to-%d", i)},
			{"file", fmt.Sprintf("shared/own-%d", i), "data=x"},
			{"file", fmt.Sprintf("implied/by/%d", i), "data=x"},
		}
		for _, l := range lines {
			must(t, b.line(l))
		}
		archives[i] = b.finish()
	}
	for _, first := range []bool{false, true} {
		var want string
		for round := range 20 {
			r := tempRoot(t)
			s := r.NewSession(&SessionOptions{FirstWins: first})
			errs := make(chan error)
			for i, a := range archives {
				go func() {
					u := s.NewUnpacker(&UnpackOptions{Order: i})
					errs <- errors.Join(u.Tar(context.Background(), bytes.NewReader(a)), u.Close())
				}()
			}
			for range archives {
				must(t, <-errs)
			}
			must(t, s.Finish())
			if n := len(s.Overlaps()); n < 10 {
				t.Errorf("%d overlaps", n)
			}
			for _, p := range []string{"implied/by", "implied", ""} {
				must(t, r.Chtimes(p, 1))
			}
			m, err := r.Manifest(t.Context())
			must(t, err)
			var text bytes.Buffer
			must(t, m.Format(&text))
			if round == 0 {
				want = text.String()
			} else if text.String() != want {
				t.Fatalf("round %d differs:\n%s\nfirst was:\n%s", round, text.String(), want)
			}
		}
		winner := "to-5"
		if first {
			winner = "to-0"
		}
		for _, part := range []string{`link="` + winner + `"`, `"/shared" d 0715 0 0 - 1005`} {
			if !strings.Contains(want, part) {
				t.Errorf("lacks %q:\n%s", part, want)
			}
		}
	}
}

func TestReadRefusesWhatIsNoFile(t *testing.T) {
	r := tempRoot(t)
	must(t, r.Put("big", 0o644, os.Getuid(), os.Getgid(), make([]byte, 100)), unix.Mknodat(r.fd, "pipe", unix.S_IFIFO|0o644, 0),
		r.Symlink("../../../../big", "link", os.Getuid(), os.Getgid()), r.Symlink("/proc/self/root/etc/passwd", "magic", os.Getuid(), os.Getgid()))
	if _, err := r.ReadFile("big", 99); fault.ClassOf(err) != fault.Limit {
		t.Errorf("limit: %v", err)
	}
	if d, err := r.ReadFile("link", 100); err != nil || len(d) != 100 {
		t.Errorf("link: %d %v", len(d), err)
	}
	for _, p := range []string{"pipe", "/"} {
		if _, err := r.ReadFile(p, 100); fault.ClassOf(err) != fault.Path {
			t.Errorf("%s: %v", p, err)
		}
	}
	if _, err := r.ReadFile("magic", 100); !IsNotExist(err) {
		t.Errorf("magic: %v", err)
	}
	if _, err := r.ReadFile("../x", 100); fault.ClassOf(err) != fault.Path {
		t.Errorf("..: %v", err)
	}
}

func TestClean(t *testing.T) {
	for in, want := range map[string]string{"": "", "/": "", ".": "", "./": "", "a": "a", "/a//b/./c/": "a/b/c", "./a/": "a", "...": "...", "a/..b": "a/..b"} {
		if got, err := Clean(in); err != nil || got != want {
			t.Errorf("Clean(%q) = %q, %v, want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"..", "a/..", "../a", "a/../b", "/.."} {
		if _, err := Clean(in); fault.ClassOf(err) != fault.Path {
			t.Errorf("Clean(%q): %v", in, err)
		}
	}
}
