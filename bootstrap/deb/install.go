// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"context"
	"io"
	"net"
	"os"
	"sync"

	"github.com/mkmachine/mkmachine/internal/event"
	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/sources"
)

// Script runs a program inside the tree and waits for it. A nil error is exit status 0.
// What it prints goes to output.
type Script func(ctx context.Context, argv, env []string, output io.Writer) error

// Spawn starts the confined helper (Serve) with the stage as its root.
type Spawn func(ctx context.Context) (conn *net.UnixConn, wait func() error, err error)

// Options say what tree is made. Arch is required.
type Options struct {
	Arch    string   // the tree's own architecture
	Foreign []string // further ones whose packages may be installed
	Merged  []string // see MergedUsr
	Date    int64    // the tree's clock, seconds since 1970
	Script  Script
	Span    *event.Span
}

// Installer is the parent side.
type Installer struct {
	opt     Options
	channel channel
	wait    func() error

	mu      sync.Mutex
	last    uint64
	pending map[uint64]chan reply
	failed  error

	facts []*Facts
}

// Start spawns the helper and prepares the tree.
func Start(ctx context.Context, spawn Spawn, opt Options) (*Installer, error) {
	conn, wait, err := spawn(ctx)
	if err != nil {
		return nil, err
	}
	in := &Installer{opt: opt, channel: channel{conn: conn}, wait: wait, pending: map[uint64]chan reply{}}
	go in.replies()
	_, err = in.call(ctx, request{Op: "begin", Begin: &beginRequest{Arch: opt.Arch, Foreign: opt.Foreign, Merged: opt.Merged, Date: opt.Date}})
	if err != nil {
		in.Close()
		return nil, err
	}
	return in, nil
}

// Close ends the helper.
func (in *Installer) Close() error {
	in.channel.conn.Close()
	return in.wait()
}

func (in *Installer) replies() {
	for {
		var r reply
		_, err := in.channel.receive(&r)
		in.mu.Lock()
		if err != nil {
			in.failed = fault.New(fault.Failed, "the unpacking process ended early: %w", err)
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

// call sends a request and waits for its reply.
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
		if out.Error != "" {
			return out, fault.New(out.Class, "%s", out.Error)
		}
		return out, nil
	}
}

// Unpack writes one package into the tree. blob is its verified .deb at offset 0; it stays
// the caller's. Calls may run at the same time, in any order; order is the package's place
// in the lock.
func (in *Installer) Unpack(ctx context.Context, order int, p sources.Package, blob *os.File) error {
	out, err := in.call(ctx, request{Op: "unpack", Unpack: &unpackRequest{Package: p, Order: order}, files: []*os.File{blob}})
	if err != nil {
		return err
	}
	in.mu.Lock()
	in.facts = append(in.facts, out.Facts)
	in.mu.Unlock()
	return nil
}
