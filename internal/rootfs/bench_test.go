// SPDX-License-Identifier: Apache-2.0

package rootfs

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"testing"
)

// BenchmarkUnpack unpacks the tar archive named by MKMACHINE_BENCH_TAR below MKMACHINE_BENCH_DIR. On a
// 2-core machine a tree of 159 MB and 7.5k entries is to take at most 0.6 s. The trees are
// removed at the end only: ext4 is slow to use inodes again that were freed a moment ago.
func BenchmarkUnpack(b *testing.B) {
	name := os.Getenv("MKMACHINE_BENCH_TAR")
	if name == "" {
		b.Skip("MKMACHINE_BENCH_TAR names no tar archive")
	}
	data, err := os.ReadFile(name)
	if err != nil {
		b.Fatal(err)
	}
	base, err := os.MkdirTemp(os.Getenv("MKMACHINE_BENCH_DIR"), "unpack")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(base) })
	b.SetBytes(int64(len(data)))
	for n := 0; b.Loop(); n++ {
		dir := fmt.Sprintf("%s/%d", base, n)
		if err := os.Mkdir(dir, 0o755); err != nil {
			b.Fatal(err)
		}
		root, err := Open(dir)
		if err != nil {
			b.Fatal(err)
		}
		s := root.NewSession(nil)
		u := s.NewUnpacker(nil)
		if err := u.Tar(context.Background(), bytes.NewReader(data)); err != nil {
			b.Fatal(err)
		}
		u.Close()
		if err := s.Finish(); err != nil {
			b.Fatal(err)
		}
		root.Close()
	}
}

// BenchmarkTree measures what is done to a whole tree, the one at MKMACHINE_BENCH_TREE. For a
// Debian minbase on 2 cores each is to stay below 0.15 s.
func BenchmarkTree(b *testing.B) {
	dir := os.Getenv("MKMACHINE_BENCH_TREE")
	if dir == "" {
		b.Skip("MKMACHINE_BENCH_TREE names no tree")
	}
	root, err := Open(dir)
	if err != nil {
		b.Fatal(err)
	}
	defer root.Close()
	b.Run("digest", func(b *testing.B) {
		for b.Loop() {
			if _, err := root.Digest(context.Background()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("clamp", func(b *testing.B) {
		for b.Loop() {
			if err := root.Clamp(context.Background(), 1<<40); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("export", func(b *testing.B) {
		for b.Loop() {
			if err := root.ExportTar(context.Background(), io.Discard, nil); err != nil {
				b.Fatal(err)
			}
		}
	})
}
