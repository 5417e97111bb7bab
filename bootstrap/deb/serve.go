// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"context"
	"fmt"
	"net"
	"os"
	"path"
	"runtime"
	"slices"
	"sync"

	"github.com/mkmachine/mkmachine/internal/compress"
	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/internal/rootfs"
	archive "github.com/mkmachine/mkmachine/sources/deb"
)

// Serve is the confined helper: it reads packages from descriptors and writes them into
// the tree whose top is its own root directory, until the connection ends. It is the
// entry that runner.Confine starts.
func Serve(conn *net.UnixConn) error {
	root, err := rootfs.Open("/")
	if err != nil {
		return err
	}
	defer root.Close()
	return serve(conn, root)
}

// server is the state of one Serve.
type server struct {
	root    *rootfs.Root
	session *rootfs.Session
	channel channel
	begin   beginRequest
	merged  map[string]bool // "bin": links into usr
	pool    compress.Pool

	mu        sync.Mutex
	pkgs      map[int]*unpacked // by order
	claims    map[string]*claim // by canonical path
	contested []string

	diverted map[string]diversion // by the diverted path, without the leading slash
}

func serve(conn *net.UnixConn, root *rootfs.Root) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s := &server{
		root: root, session: root.NewSession(nil), channel: channel{conn: conn},
		pkgs: map[int]*unpacked{}, claims: map[string]*claim{},
	}
	defer s.close()
	var work sync.WaitGroup
	defer work.Wait()
	workers := make(chan struct{}, runtime.GOMAXPROCS(0))
	for {
		var r request
		files, err := s.channel.receive(&r)
		if isClosed(err) {
			return nil
		}
		if err != nil {
			return err
		}
		r.files = files
		if r.Op != "unpack" && r.Op != "release" {
			work.Wait()
			s.answer(ctx, &r)
			continue
		}
		workers <- struct{}{}
		work.Go(func() {
			s.answer(ctx, &r)
			<-workers
		})
	}
}

func (s *server) close() {
	for _, u := range s.pkgs {
		u.blob.Close()
	}
}

// answer carries a request out and sends the reply.
func (s *server) answer(ctx context.Context, r *request) {
	out := reply{ID: r.ID}
	err := s.handle(ctx, r, &out)
	if err != nil {
		out.Error, out.Class = err.Error(), fault.ClassOf(err)
	}
	// When the peer is gone the next receive says so.
	_ = s.channel.send(out, nil)
}

func (s *server) handle(ctx context.Context, r *request, out *reply) (err error) {
	switch {
	case r.Op == "begin" && r.Begin != nil:
		s.begin = *r.Begin
		return s.layout()
	case r.Op == "unpack" && r.Unpack != nil && len(r.files) > 0:
		out.Facts, err = s.accept(ctx, r.Unpack, r.files)
	case r.Op == "release" && r.Unpack != nil:
		out.Facts, err = s.release(ctx, r.Unpack.Order)
	case r.Op == "settle":
		out.Notes, err = s.finishWave(ctx)
	case r.Op == "commit" && r.Commit != nil:
		return s.commit(r.Commit)
	case r.Op == "divert":
		if err = s.divert(); err == nil {
			out.Notes, err = s.settle(ctx, true)
		}
	case r.Op == "files":
		return s.files(r.Files)
	default:
		closeAll(r.files)
		return fault.New(fault.Internal, "cannot serve request %q", r.Op)
	}
	return err
}

// layout makes the directories and links that have to be there before the first package.
func (s *server) layout() error {
	s.merged = map[string]bool{}
	for _, top := range s.begin.Merged {
		if !slices.Contains(mergeable[:], top) {
			return fault.New(fault.Internal, "cannot merge %q into /usr", top)
		}
		s.merged[top] = true
		err := s.root.MkdirAll("usr/"+top, 0o755, 0, 0)
		if err == nil {
			err = s.root.Symlink("usr/"+top, top, 0, 0)
		}
		if err != nil {
			return err
		}
	}
	for _, p := range []string{"info", "updates", "triggers", "alternatives"} {
		if err := s.root.MkdirAll(admin+"/"+p, 0o755, 0, 0); err != nil {
			return err
		}
	}
	return nil
}

// accept takes a package in and unpacks it, unless it has to wait for its wave.
func (s *server) accept(ctx context.Context, r *unpackRequest, files []*os.File) (*Facts, error) {
	u := &unpacked{Package: r.Package, Order: r.Order, blob: files[0]}
	s.mu.Lock()
	taken := s.pkgs[r.Order] != nil
	if !taken {
		s.pkgs[r.Order] = u
	}
	s.mu.Unlock()
	if taken {
		closeAll(files)
		return nil, fault.New(fault.Internal, "cannot unpack %s: order %d is taken", r.Package.Name, r.Order)
	}
	defer closeAll(files[1:])
	err := s.open(u)
	if u.held = err == nil && r.Hold && u.has("preinst"); err == nil && !u.held {
		err = s.unpack(ctx, u)
	}
	if err != nil {
		return nil, cannotUnpack(u, err)
	}
	return u.facts(), nil
}

func cannotUnpack(u *unpacked, err error) error {
	return fmt.Errorf("cannot unpack %s %s: %w", u.Package.Name, u.Package.Version, err)
}

// open reads the control archive.
func (s *server) open(u *unpacked) error {
	st, err := u.blob.Stat()
	if err != nil {
		return err
	}
	d, err := archive.ReadDeb(u.blob, st.Size(), &archive.DebOptions{Name: path.Base(u.Package.Path), Pool: &s.pool})
	if err != nil {
		return err
	}
	u.src = debSource{d}
	return u.read(d.Control, d.Files, d.Conffiles)
}

// release unpacks a package that was held.
func (s *server) release(ctx context.Context, order int) (*Facts, error) {
	s.mu.Lock()
	u := s.pkgs[order]
	s.mu.Unlock()
	if u == nil || !u.held {
		return nil, fault.New(fault.Internal, "cannot release package %d: it is not held", order)
	}
	u.held = false
	if err := s.unpack(ctx, u); err != nil {
		return nil, cannotUnpack(u, err)
	}
	return u.facts(), nil
}

// finishWave ends the unpacking of a wave: the tree is as dpkg would have left it, but for
// paths in conflict.
func (s *server) finishWave(ctx context.Context) ([]string, error) {
	if err := s.session.Finish(); err != nil {
		return nil, err
	}
	s.session = s.root.NewSession(&rootfs.SessionOptions{KeepDirs: true})
	return s.settle(ctx, false)
}

// files puts small files of the parent's into the tree, or removes them.
func (s *server) files(list []treeFile) error {
	for _, f := range list {
		if !cleanPath(f.Path) {
			return fault.New(fault.Internal, "cannot write %q: not a clean path", f.Path)
		}
		if f.Remove {
			if err := s.removeAll(f.Path); err != nil {
				return err
			}
			continue
		}
		if err := s.put(f.Path, f.Mode, f.Data); err != nil {
			return err
		}
	}
	return nil
}
