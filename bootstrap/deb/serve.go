// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"context"
	"errors"
	"net"
	"os"
	"path"
	"runtime"
	"slices"
	"sync"

	"github.com/mkmachine/mkmachine/internal/compress"
	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/internal/rootfs"
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
		out.Error, out.Class, out.Hints = err.Error(), fault.ClassOf(err), fault.Hints(err)
		_ = errors.As(err, &out.Errno) // 0 when the kernel has no part in it
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
	case r.Op == "withdraw" && r.Commit != nil:
		return s.withdraw(r.Commit.Packages)
	case r.Op == "place" && len(r.files) == 1 && len(r.Files) == 1:
		defer closeAll(r.files)
		return s.place(ctx, r.Files[0], r.files[0])
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
	want := 1
	if r.Keep {
		want = 2
	}
	if len(files) != want {
		closeAll(files)
		return nil, fault.New(fault.Internal, "cannot unpack %s: %d descriptors came with it", r.Package.Name, len(files))
	}
	u, err := s.enter(r, files[0])
	if err != nil {
		closeAll(files)
		return nil, err
	}
	if r.Pack {
		err = s.openPack(u)
	} else {
		err = s.openDeb(u)
	}
	if r.Keep {
		if d, ok := u.src.(*debSource); ok && err == nil {
			d.pack = newPackWriter(files[1])
		} else {
			files[1].Close()
		}
	}
	if u.held = err == nil && r.Hold && u.runs("preinst"); u.held {
		return u.facts(), nil
	}
	if err == nil {
		err = s.unpack(ctx, u)
	}
	return s.finish(u, err)
}

// finish ends the unpacking of a package, and of its pack.
func (s *server) finish(u *unpacked, err error) (*Facts, error) {
	d, _ := u.src.(*debSource)
	if d == nil || d.pack == nil {
		if err != nil {
			return nil, cannotUnpack(u, err)
		}
		return u.facts(), nil
	}
	defer func() {
		d.pack.f.Close()
		d.pack = nil
	}()
	if err != nil {
		return nil, cannotUnpack(u, err)
	}
	facts := u.facts()
	if err := d.pack.finish(u); err != nil {
		facts.PackError = err.Error()
	}
	facts.Packed = facts.PackError == ""
	return facts, nil
}

// enter registers a package, or gives one whose pack was no good its .deb.
func (s *server) enter(r *unpackRequest, blob *os.File) (*unpacked, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if u := s.pkgs[r.Order]; u != nil {
		if u.src != nil || u.Package != r.Package {
			return nil, fault.New(fault.Internal, "cannot unpack %s: order %d is taken", r.Package.Name, r.Order)
		}
		u.blob.Close()
		u.blob = blob
		return u, nil
	}
	u := &unpacked{Package: r.Package, Order: r.Order, blob: blob}
	s.pkgs[r.Order] = u
	return u, nil
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
	return s.finish(u, s.unpack(ctx, u))
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
		err := s.root.MkdirAll(path.Dir(f.Path), 0o755, 0, 0)
		if err == nil {
			err = s.put(f.Path, f.Mode, f.Data)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// place copies a whole file into the tree.
func (s *server) place(ctx context.Context, f treeFile, from *os.File) error {
	p, err := rootfs.Clean(f.Path)
	if err != nil {
		return err
	}
	st, err := from.Stat()
	if err == nil {
		err = s.root.MkdirAll(path.Dir(p), 0o755, 0, 0)
	}
	if err != nil {
		return err
	}
	w := s.root.NewSession(&rootfs.SessionOptions{KeepDirs: true}).NewUnpacker(nil)
	defer w.Close()
	e := &rootfs.Entry{Path: p, Type: rootfs.File, Mode: f.Mode, Size: st.Size(), ModTime: s.begin.Date}
	return w.WriteFile(ctx, e, rootfs.FileRange{File: from, Size: st.Size()})
}
