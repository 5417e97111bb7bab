// SPDX-License-Identifier: Apache-2.0

package xz

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// benchFiles takes data.tar.xz out of the packages below the directory MKMACHINE_BENCH_POOL,
// at most 64 MiB of them.
func benchFiles(b *testing.B) (files [][]byte) {
	dir := os.Getenv("MKMACHINE_BENCH_POOL")
	if dir == "" {
		b.Skip("needs MKMACHINE_BENCH_POOL, a directory of .deb files")
	}
	total := 0
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".deb" || total > 64<<20 {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if data = arMember(data, "data.tar.xz"); data != nil {
			files = append(files, data)
			total += len(data)
		}
		return nil
	})
	if err != nil || len(files) == 0 {
		b.Fatalf("%d files, %v", len(files), err)
	}
	return files
}

// arMember finds a member of an intact ar archive.
func arMember(data []byte, name string) []byte {
	for at := 8; at+60 <= len(data); {
		size, err := strconv.Atoi(strings.TrimSpace(string(data[at+48 : at+58])))
		if err != nil || at+60+size > len(data) {
			return nil
		}
		if strings.TrimRight(string(data[at:at+16]), " /") == name {
			return data[at+60 : at+60+size]
		}
		at += 60 + size + size&1
	}
	return nil
}

// BenchmarkProgram is xz(1) over the same files, one process for all.
func BenchmarkProgram(b *testing.B) {
	files := benchFiles(b)
	path, err := exec.LookPath("xz")
	if err != nil {
		b.Skip("needs the program xz")
	}
	var used time.Duration
	for b.Loop() {
		cmd := exec.Command(path, "-dc")
		cmd.Stdin = bytes.NewReader(bytes.Join(files, nil))
		var n counter
		cmd.Stdout = &n
		if err := cmd.Run(); err != nil {
			b.Fatal(err)
		}
		used += cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
		b.SetBytes(int64(n))
	}
	b.ReportMetric(float64(used.Milliseconds())/float64(b.N), "cpu-ms/op")
}

type counter int64

func (c *counter) Write(p []byte) (int, error) { *c += counter(len(p)); return len(p), nil }

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
