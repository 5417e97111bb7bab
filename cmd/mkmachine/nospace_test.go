// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/kernel/kerneltest"
)

// TestNoSpace fills file systems: the command says which one and what to do, what was there
// before is whole, and with room the command works.
func TestNoSpace(t *testing.T) {
	cache := filepath.Join(t.TempDir(), "cache")
	for _, c := range []struct {
		kind string
		size int64
		free []int64 // MiB that are left
	}{{"btrfs", 640, []int64{60, 8, 0}}, {"ext4", 512, []int64{80, 8, 0}}} {
		t.Run(c.kind, func(t *testing.T) {
			h := newHost(t, smallFS(t, c.kind, c.size<<20), cache)
			h.build("--name", h.template, "old.toml")
			h.ok("clean", "--layers", "--downloads", "--unused", "0s")
			old := h.digest()
			for _, free := range c.free {
				ballast := fill(t, filepath.Dir(h.machines), free<<20)
				for _, args := range [][]string{{"build", "--rebuild", "--name", h.template, "new.toml"}, {"run", "-x", h.template, "--", "dd", "if=/dev/zero", "of=/big", "bs=1M"}} {
					o := h.command(args...)
					if o.code != 1 && (args[0] != "run" || o.code != exitOwnFailure) || !strings.Contains(strings.ToLower(o.stderr), "no space left") {
						t.Errorf("%d MiB free: %v: exit %d\n%s", free, args, o.code, o.stderr)
					}
					if args[0] == "build" && (!strings.Contains(o.stderr, h.machines) || !strings.Contains(o.stderr, "hint:")) {
						t.Errorf("%d MiB free: no file system or no hint\n%s", free, o.stderr)
					}
				}
				if h.digest() != old {
					t.Error("another template is published")
				}
				h.ok("verify", h.template)
				h.wantNothing(fmt.Sprintf("%d MiB free", free))
				if err := os.Remove(ballast); err != nil {
					t.Fatal(err)
				}
				settle(t, h.machines)
			}
			h.build("--rebuild", "--name", h.template, "new.toml")
			h.wantNothing("with room")
		})
	}
	t.Run("cache", func(t *testing.T) {
		h := newHost(t, smallFS(t, "ext4", 1<<30), cache)
		small := smallFS(t, "ext4", 64<<20)
		h.cache = filepath.Join(small, "cache")
		for _, free := range []int64{20, 2, 0} {
			ballast := fill(t, small, free<<20)
			o := h.command("build", "--name", h.template, "old.toml")
			if o.code != 1 || !strings.Contains(o.stderr, "no space left") || !strings.Contains(o.stderr, h.cache) || !strings.Contains(o.stderr, "--cache DIR") {
				t.Errorf("%d MiB free: exit %d\n%s", free, o.code, o.stderr)
			}
			if _, ok := h.images()[h.template]; ok {
				t.Error("a template is published")
			}
			h.wantNothing("full cache")
			if err := os.Remove(ballast); err != nil {
				t.Fatal(err)
			}
		}
		h.cache = cache
		h.build("--name", h.template, "old.toml")
	})
}

func settle(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		t.Fatal(err)
	}
}

// fill makes a file that leaves so many bytes free, and gives its path.
func fill(t *testing.T, dir string, free int64) string {
	t.Helper()
	settle(t, dir)
	path := filepath.Join(dir, "ballast")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 1<<20)
	for i := range block {
		block[i] = byte(i * i >> 8) // no two file systems take it for a hole
	}
	for {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			t.Fatal(err)
		}
		left := int64(st.Bavail)*st.Bsize - free
		if left <= 0 {
			break
		}
		if _, err := f.Write(block[:min(left, int64(len(block)))]); err != nil {
			break
		}
		if st.Bavail%16 == 0 {
			_ = f.Sync() // btrfs counts what is on the disk
		}
	}
	_ = f.Sync()
	return path
}

// smallFS is a file system whose test must leave nothing.
func smallFS(t *testing.T, kind string, size int64) string {
	t.Helper()
	kerneltest.Leaks(t)
	return kerneltest.LoopFS(t, kind, size)
}
