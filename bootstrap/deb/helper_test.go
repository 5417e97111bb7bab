// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/event"
	"github.com/mkmachine/mkmachine/internal/kernel"
	"github.com/mkmachine/mkmachine/internal/kernel/kerneltest"
	"github.com/mkmachine/mkmachine/internal/rootfs"
	"github.com/mkmachine/mkmachine/sources"
	"github.com/mkmachine/mkmachine/sources/sourcetest"
)

// inProcess runs the helper as a goroutine on a directory, not confined.
func inProcess(t *testing.T, dir string) Spawn {
	return func(context.Context) (*net.UnixConn, func() error, error) {
		ours, theirs := socketPair(t)
		root, err := rootfs.Open(dir)
		if err != nil {
			return nil, nil, err
		}
		done := make(chan error, 1)
		go func() {
			err := serve(theirs, root)
			theirs.Close()
			root.Close()
			done <- err
		}()
		return ours, func() error { return <-done }, nil
	}
}

func socketPair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = c.(*net.UnixConn)
	}
	return ends[0], ends[1]
}

// bench is a tree being made in a test: the packages, and what the tree's programs do.
type bench struct {
	t      *testing.T
	dir    string
	debs   string
	merged []string
	packs  Packs
	// script stands for the programs of the tree; nil: all succeed and do nothing.
	script func(argv, env []string) error
	// shuffle is the order in which packages are handed over; nil: install order.
	shuffle []int

	mu     sync.Mutex
	ran    []string // argv of each program, joined
	events []event.Event
}

func newBench(t *testing.T) *bench {
	t.Helper()
	kerneltest.Require(t, kernel.Root)
	return &bench{t: t, dir: t.TempDir(), debs: t.TempDir(), merged: []string{"bin", "sbin", "lib", "lib64"}}
}

// items builds packages; the order is the install order.
func (b *bench) items(packages []sourcetest.Package) []Item {
	b.t.Helper()
	var out []Item
	for i, p := range packages {
		if p.Version == "" {
			p.Version = "1.0"
		}
		if p.Arch == "" {
			p.Arch = "amd64"
		}
		data, err := p.Build()
		if err != nil {
			b.t.Fatal(err)
		}
		out = append(out, b.item(i, sources.Package{Name: p.Name, Version: p.Version, Arch: p.Arch, Phase: sources.PhaseRequired}, data))
	}
	return out
}

func (b *bench) item(order int, p sources.Package, data []byte) Item {
	b.t.Helper()
	sum := sha256.Sum256(data)
	p.SHA256, p.Size = hex.EncodeToString(sum[:]), int64(len(data))
	p.Path = fmt.Sprintf("%02d_%s.deb", order, p.Name)
	at := filepath.Join(b.debs, p.Path)
	if err := os.WriteFile(at, data, 0o600); err != nil {
		b.t.Fatal(err)
	}
	return Item{Package: p, Order: order, Open: func(context.Context) (*os.File, error) { return os.Open(at) }}
}

func (b *bench) sink(e event.Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.events = append(b.events, e)
}

// fallbacks are the texts of all Fallback events.
func (b *bench) fallbacks() []string {
	var out []string
	for _, e := range b.events {
		if e.Kind == event.Fallback {
			out = append(out, e.Text)
		}
	}
	return out
}

// install makes the tree and returns the first error.
func (b *bench) install(items []Item) (err error) {
	ctx := context.Background()
	run := func(_ context.Context, argv, env []string, _ io.Writer) error {
		b.ran = append(b.ran, strings.Join(argv, " "))
		if b.script == nil {
			return nil
		}
		return b.script(argv, env)
	}
	in, err := Start(ctx, inProcess(b.t, b.dir), Options{
		Arch: "amd64", Merged: b.merged, Date: 1_750_000_000, Script: run, Packs: b.packs,
		Span: event.Sink(b.sink).Start("install", ""),
	})
	if err != nil {
		return err
	}
	defer func() {
		if cerr := in.Close(); err == nil {
			err = cerr
		}
	}()
	order := b.shuffle
	if order == nil {
		for i := range items {
			order = append(order, i)
		}
	}
	var work sync.WaitGroup
	errs := make([]error, len(items))
	for n, i := range order {
		work.Go(func() { errs[i] = in.Unpack(ctx, items[i]) })
		if b.shuffle != nil && n%2 == 0 {
			time.Sleep(time.Millisecond) // lets the order show, without making it strict
		}
	}
	work.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return in.Configure(ctx)
}

// read gives a file of the tree, "" when there is none.
func (b *bench) read(path string) string {
	b.t.Helper()
	data, err := os.ReadFile(filepath.Join(b.dir, path))
	if err != nil && !os.IsNotExist(err) {
		b.t.Fatal(err)
	}
	return string(data)
}

// treeLines describes a tree: one line for each path with kind, mode, owner and content.
func treeLines(t *testing.T, dir string, skip func(path string) bool) []string {
	t.Helper()
	var out []string
	links := map[uint64]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		rel := strings.TrimPrefix(path, dir)
		if err != nil || rel == "" || skip(rel) {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		line := fmt.Sprintf("%s %o %d:%d", rel, st.Mode, st.Uid, st.Gid)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFLNK:
			text, _ := os.Readlink(path)
			line += " -> " + text
		case unix.S_IFREG:
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %q", data)
			if first, ok := links[st.Ino]; ok {
				line += " same as " + first
			} else if st.Nlink > 1 {
				links[st.Ino] = rel
			}
		}
		out = append(out, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(out)
	return out
}

// difference lists lines that only one side has.
func difference(a, b []string) string {
	var out strings.Builder
	for _, l := range a {
		if !slices.Contains(b, l) {
			out.WriteString("- " + l + "\n")
		}
	}
	for _, l := range b {
		if !slices.Contains(a, l) {
			out.WriteString("+ " + l + "\n")
		}
	}
	return out.String()
}
