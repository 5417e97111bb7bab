// SPDX-License-Identifier: Apache-2.0

package xz

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
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
	start := cpuTime(b)
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
	b.ReportMetric(float64((cpuTime(b)-start).Milliseconds())/float64(b.N), "cpu-ms/op")
}

// cpuTime is what the process used so far, which other load on the machine disturbs less than
// the clock.
func cpuTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
