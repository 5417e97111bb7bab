// SPDX-License-Identifier: Apache-2.0

package xz

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// benchFiles reads the .xz files of the directory MKMACHINE_BENCH_XZ.
func benchFiles(b *testing.B) (files [][]byte) {
	dir := os.Getenv("MKMACHINE_BENCH_XZ")
	if dir == "" {
		b.Skip("needs MKMACHINE_BENCH_XZ, a directory of .xz files")
	}
	names, err := filepath.Glob(filepath.Join(dir, "*.xz"))
	if err != nil {
		b.Fatal(err)
	}
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			b.Fatal(err)
		}
		files = append(files, data)
	}
	return files
}

func BenchmarkWriteTo(b *testing.B) {
	files := benchFiles(b)
	z, err := NewReader(bytes.NewReader(nil), nil)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		var n int64
		for _, f := range files {
			if err := z.Reset(bytes.NewReader(f)); err != nil {
				b.Fatal(err)
			}
			m, err := z.WriteTo(io.Discard)
			if err != nil {
				b.Fatal(err)
			}
			n += m
		}
		b.SetBytes(n)
	}
}
