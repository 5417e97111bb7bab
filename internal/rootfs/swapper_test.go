// SPDX-License-Identifier: Apache-2.0

package rootfs

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/kernel"
	"github.com/mkmachine/mkmachine/internal/kernel/kerneltest"
)

// swapFor is how long each operation runs against the swapper: 2 s of wall time for all of
// them by default, MKMACHINE_SWAPPER (a duration) for each.
func swapFor(t *testing.T, operations int) time.Duration {
	if s := os.Getenv("MKMACHINE_SWAPPER"); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	return 2 * time.Second / time.Duration(operations)
}

// swap replaces the components of usr/share/doc/x by links that lead outside, by files and
// back, as fast as it can, on two threads per processor, until the context ends. It stands
// inside the root as a hostile process there would: it makes links to the outside, but never
// goes through one itself.
func swap(ctx context.Context, t testing.TB, w *world, wg *sync.WaitGroup) *atomic.Int64 {
	var count atomic.Int64
	root, err := unix.Open(filepath.Join(w.dir, "root"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	t.Cleanup(func() { unix.Close(root) })
	outside := filepath.Join(w.dir, "outside")
	targets := []string{outside, "../../../../../../../.." + outside, "..", "../..", w.dir, w.canary}
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS}
	parents := []string{".", "usr", "usr/share", "usr/share/doc"}
	names := []string{"usr", "share", "doc", "x"}
	for worker := range 2 * runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for i := worker; ctx.Err() == nil; i++ {
				dir, err := unix.Openat2(root, parents[i%4], &how)
				if err != nil {
					continue
				}
				name, aside := names[i%4], fmt.Sprintf(".aside-%d", worker)
				switch {
				case unix.Renameat(dir, name, root, aside) != nil:
					unix.Mkdirat(dir, name, 0o755)
				case i%3 == 0:
					if fd, err := unix.Openat(dir, name, unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644); err == nil {
						unix.Close(fd)
					}
				default:
					unix.Symlinkat(targets[i%len(targets)], dir, name)
				}
				runtime.Gosched()
				unix.Unlinkat(dir, name, 0)
				unix.Renameat(root, aside, dir, name)
				unix.Unlinkat(root, aside, 0)
				unix.Unlinkat(root, aside, unix.AT_REMOVEDIR)
				unix.Close(dir)
				count.Add(1)
			}
		})
	}
	return &count
}

// Every operation is run against somebody who changes the path under its feet. Whether it
// succeeds is luck; that nothing outside changes is not.
func TestSwapper(t *testing.T) {
	kerneltest.Require(t, kernel.Root)
	const path = "usr/share/doc/x"
	var b tarBuilder
	for _, l := range [][]string{
		{"dir", "usr", "mode=0700"}, {"dir", "usr/share"}, {"file", path, "data=pwned"}, {"symlink", path, "y"},
		{"hardlink", "usr/share/doc/h", path}, {"fifo", "usr/share/doc/p"}, {"file", "usr/share/doc/passwd", "data=pwned"},
		{"file", "usr/share/doc/canary", "data=pwned"}, {"dir", "usr/share/doc/dir", "mode=0700", "uid=7"},
	} {
		must(t, b.line(l))
	}
	archive := b.finish()
	operations := map[string]func(r *Root){
		"unpack": func(r *Root) {
			s := r.NewSession(nil)
			u := s.NewUnpacker(nil)
			u.Tar(t.Context(), bytes.NewReader(archive))
			u.Close()
			s.Finish()
		},
		"put":     func(r *Root) { r.Put("usr/share/doc/canary", 0o600, 1, 1, []byte("pwned")) },
		"symlink": func(r *Root) { r.Symlink("pwned", "usr/share/doc/canary", 1, 1) },
		"link":    func(r *Root) { r.Link("usr/share/doc/x", "usr/share/doc/canary") },
		"mkdir":   func(r *Root) { r.MkdirAll("usr/share/doc/dir/sub", 0o700, 1, 1) },
		"chmod":   func(r *Root) { r.Chmod("usr/share/doc/canary", 0o777); r.Chmod("usr/share/doc", 0o711) },
		"chown":   func(r *Root) { r.Chown("usr/share/doc/canary", 5, 5) },
		"chtimes": func(r *Root) { r.Chtimes("usr/share/doc/canary", 5) },
		"remove":  func(r *Root) { r.Remove("usr/share/doc/canary") },
		"removeall": func(r *Root) {
			r.RemoveAll("usr/share/doc/dir")
			r.RemoveAll("usr/share")
			r.RemoveContents("usr/share")
		},
		"rename": func(r *Root) { r.Rename("usr/share/doc/canary", "usr/share/doc/gone") },
		"clamp":  func(r *Root) { r.Clamp(t.Context(), 5) },
		"read": func(r *Root) {
			if d, _ := r.ReadFile("usr/share/doc/canary", 1000); bytes.HasPrefix(d, []byte("host:")) {
				t.Error("read a file of the host")
			}
		},
		"manifest": func(r *Root) {
			m, err := r.Manifest(t.Context())
			if err != nil {
				return
			}
			for _, n := range m.Nodes {
				if filepath.Base(n.Path) == "shadow" {
					t.Error("walked into the host")
				}
			}
		},
	}
	for name, op := range operations {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			r := w.root(t)
			must(t, r.MkdirAll("usr/share/doc", 0o755, 0, 0))
			ctx, cancel := context.WithTimeout(t.Context(), swapFor(t, len(operations)))
			defer cancel()
			var wg sync.WaitGroup
			swaps := swap(ctx, t, w, &wg)
			runs := 0
			for ; ctx.Err() == nil; runs++ {
				op(r)
			}
			wg.Wait()
			if runs == 0 || swaps.Load() == 0 {
				t.Errorf("%d runs against %d swaps", runs, swaps.Load())
			}
			w.unharmed(t)
		})
	}
}
