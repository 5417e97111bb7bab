// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"github.com/mkmachine/mkmachine/internal/event"
	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/sources"
)

// Script runs a program inside the tree as root and waits for it, with exactly this
// environment and / as its directory. A nil error is exit status 0. What the program
// prints, on both channels, goes to output, also while it runs.
type Script func(ctx context.Context, argv, env []string, output io.Writer) error

// Spawn starts the confined helper (Serve) with the stage as its root. wait gives what
// became of it after conn is closed.
type Spawn func(ctx context.Context) (conn *net.UnixConn, wait func() error, err error)

// Packs keeps unpacked packages by key. *cas.Cache, bound to a kind, is the real one.
type Packs interface {
	// Open returns a pack for reading; any error means that there is none to use.
	Open(key string) (*os.File, error)
	// Create starts a pack; an error means that none is to be made.
	Create(ctx context.Context, key string) (PackFile, error)
	// Remove deletes a damaged pack.
	Remove(key string) error
}

// PackFile is a pack being made. Close without Commit throws it away.
type PackFile interface {
	File() *os.File
	Commit() (*os.File, error)
	Close() error
}

// Options say what tree is made. Arch and Script are required.
type Options struct {
	Arch    string   // the tree's own architecture: amd64
	Foreign []string // further architectures whose packages are installed
	Merged  []string // top directories that are links into /usr, see MergedUsr
	Date    int64    // the tree's clock, seconds since 1970: SOURCE_DATE_EPOCH of scripts
	Script  Script
	Packs   Packs       // nil: every package is decoded
	Span    *event.Span // parent of all spans; may be nil
}

// Item is a package to install.
type Item struct {
	Package sources.Package
	// Order is the place in install order; each Item has its own.
	Order int
	// Open gives the verified .deb at offset 0; the Installer closes it. It is not called
	// when a pack is used, and more than once when the fast way is left.
	Open func(ctx context.Context) (*os.File, error)
}

// Installer makes a tree out of packages: Start, Unpack for each, Configure, Close. It is
// the trusted side; it never reads a package itself.
type Installer struct {
	opt     Options
	channel channel
	wait    func() error

	mu      sync.Mutex
	last    uint64
	pending map[uint64]chan reply
	failed  error
	facts   []*Facts
	items   map[int]Item
	keep    map[int]PackFile // of held packages
}

// Start spawns the helper and makes the tree's first directories and links.
func Start(ctx context.Context, spawn Spawn, opt Options) (*Installer, error) {
	conn, wait, err := spawn(ctx)
	if err != nil {
		return nil, err
	}
	in := &Installer{
		opt: opt, channel: channel{conn: conn}, wait: wait,
		pending: map[uint64]chan reply{}, items: map[int]Item{}, keep: map[int]PackFile{},
	}
	go in.replies()
	_, err = in.call(ctx, request{Op: "begin", Begin: &beginRequest{Arch: opt.Arch, Foreign: opt.Foreign, Merged: opt.Merged, Date: opt.Date}})
	if err != nil {
		return nil, errors.Join(err, in.Close())
	}
	return in, nil
}

// Close ends the helper and waits for it.
func (in *Installer) Close() error {
	for _, p := range in.keep {
		p.Close()
	}
	in.channel.conn.Close()
	return in.wait()
}

// Unpack writes one package into the tree. Calls may run at the same time and in any
// order; what they make of the tree does not depend on it. An added package with a preinst
// is only read; Configure unpacks it when its turn comes.
func (in *Installer) Unpack(ctx context.Context, item Item) error {
	span := in.opt.Span.Start("unpack", item.Package.Name)
	facts, err := in.unpack(ctx, span, item)
	span.End(err)
	if err != nil {
		return err
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.facts = append(in.facts, facts)
	in.items[item.Order] = item
	return nil
}

func (in *Installer) unpack(ctx context.Context, span *event.Span, item Item) (*Facts, error) {
	p := item.Package
	r := unpackRequest{Package: p, Order: item.Order, Hold: p.Phase == sources.PhaseAdded}
	if in.opt.Packs == nil || p.SHA256 == "" {
		return in.unpackDeb(ctx, span, item, r, nil)
	}
	key := packKey(p)
	if f, err := in.opt.Packs.Open(key); err == nil {
		r.Pack = true
		out, err := in.call(ctx, request{Op: "unpack", Unpack: &r, files: []*os.File{f}})
		f.Close()
		if fault.ClassOf(err) != fault.Verify || err == nil {
			return out.Facts, err
		}
		span.Fallback(fmt.Sprintf("the kept copy cannot be used, the package is unpacked again: %v", err))
		if err := in.opt.Packs.Remove(key); err != nil {
			return nil, err
		}
		r.Pack = false
	}
	pack, err := in.opt.Packs.Create(ctx, key)
	if ctx.Err() != nil {
		if err == nil {
			pack.Close()
		}
		return nil, ctx.Err()
	}
	if err != nil {
		span.Debug(fmt.Sprintf("no copy is kept: %v", err))
		pack = nil
	}
	return in.unpackDeb(ctx, span, item, r, pack)
}

// packKey names a package's pack in the cache.
func packKey(p sources.Package) string { return PackVersion + "-" + p.SHA256 }

func (in *Installer) unpackDeb(ctx context.Context, span *event.Span, item Item, r unpackRequest, pack PackFile) (*Facts, error) {
	blob, err := item.Open(ctx)
	if err != nil {
		if pack != nil {
			pack.Close()
		}
		return nil, err
	}
	defer blob.Close()
	files := []*os.File{blob}
	if r.Keep = pack != nil; r.Keep {
		files = append(files, pack.File())
	}
	out, err := in.call(ctx, request{Op: "unpack", Unpack: &r, files: files})
	if pack == nil {
		return out.Facts, err
	}
	if err == nil && out.Facts.Held {
		in.mu.Lock()
		in.keep[item.Order] = pack
		in.mu.Unlock()
		return out.Facts, nil
	}
	in.finishPack(span, pack, out.Facts)
	return out.Facts, err
}

// finishPack publishes a complete pack. Without one the next build decodes again; that is
// worth a word, not a failure.
func (in *Installer) finishPack(span *event.Span, pack PackFile, facts *Facts) {
	defer pack.Close()
	if facts == nil {
		return
	}
	if !facts.Packed {
		span.Warn("no copy of the unpacked package is kept: " + facts.PackError)
		return
	}
	f, err := pack.Commit()
	if err != nil {
		span.Warn(fmt.Sprintf("no copy of the unpacked package is kept: %v", err))
		return
	}
	f.Close()
}

// release unpacks held packages, in parallel.
func (in *Installer) release(ctx context.Context, list []*Facts) error {
	var work sync.WaitGroup
	errs := make([]error, len(list))
	for i, f := range list {
		if !f.Held {
			continue
		}
		f.Held = false
		work.Go(func() {
			span := in.opt.Span.Start("unpack", f.Name)
			out, err := in.call(ctx, request{Op: "release", Unpack: &unpackRequest{Order: f.Order}})
			in.mu.Lock()
			pack := in.keep[f.Order]
			delete(in.keep, f.Order)
			in.mu.Unlock()
			if pack != nil {
				in.finishPack(span, pack, out.Facts)
			}
			span.End(err)
			errs[i] = err
		})
	}
	work.Wait()
	return errors.Join(errs...)
}

// WriteFiles puts configuration into the tree; see Apt.
func (in *Installer) WriteFiles(ctx context.Context, files []File) error {
	var r request
	r.Op = "files"
	for _, f := range files {
		r.Files = append(r.Files, treeFile{Path: f.Path, Mode: f.Mode, Data: f.Data})
	}
	_, err := in.call(ctx, r)
	return err
}

// File is a small file for the tree, owned by root.
type File struct {
	Path string // absolute
	Mode uint32 // permission bits
	Data []byte
}

func (in *Installer) replies() {
	for {
		var r reply
		_, err := in.channel.receive(&r)
		in.mu.Lock()
		if err != nil {
			in.failed = fault.New(fault.Failed, "cannot unpack: the unpacking process ended: %w", err)
			for id, ch := range in.pending {
				ch <- reply{Error: in.failed.Error(), Class: fault.Failed}
				delete(in.pending, id)
			}
			in.mu.Unlock()
			return
		}
		if ch := in.pending[r.ID]; ch != nil {
			delete(in.pending, r.ID)
			ch <- r
		}
		in.mu.Unlock()
	}
}

// call sends a request and waits for its reply. Notes in it become fallback events.
func (in *Installer) call(ctx context.Context, r request) (reply, error) {
	ch := make(chan reply, 1)
	in.mu.Lock()
	if in.failed != nil {
		defer in.mu.Unlock()
		return reply{}, in.failed
	}
	in.last++
	r.ID = in.last
	in.pending[r.ID] = ch
	in.mu.Unlock()
	if err := in.channel.send(r, r.files); err != nil {
		return reply{}, fault.New(fault.Failed, "cannot reach the unpacking process: %w", err)
	}
	select {
	case <-ctx.Done():
		return reply{}, ctx.Err()
	case out := <-ch:
		for _, n := range out.Notes {
			in.opt.Span.Fallback(n)
		}
		if out.Error == "" {
			return out, nil
		}
		err := fault.As(out.Class, out.cause())
		for _, h := range out.Hints {
			err = fault.Hint(err, "%s", h)
		}
		return reply{}, err
	}
}
