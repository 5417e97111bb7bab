// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"errors"
	"net"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// Serve is the confined helper: it reads packages from descriptors and writes them into
// the tree whose top is its own root directory, until the connection ends. It is the
// entry that runner.Confine starts.
func Serve(conn *net.UnixConn) error {
	fd, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fault.New(fault.Failed, "cannot open the tree: %w", err)
	}
	defer unix.Close(fd)
	return serve(conn, fd)
}

// server is the state of one Serve.
type server struct {
	root    *tree
	channel channel
	begin   beginRequest
	merged  map[string]bool // "/bin": links into /usr

	mu     sync.Mutex
	claims map[string]*claim
	pkgs   map[int]*unpacked // by order

	diverted map[string]diversion // by the path that is diverted
	bufs     sync.Pool
}

func serve(conn *net.UnixConn, root int) error {
	s := &server{
		root:    &tree{fd: root, dirs: map[string]int{}},
		channel: channel{conn: conn},
		claims:  map[string]*claim{},
		pkgs:    map[int]*unpacked{},
		bufs:    sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }},
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
			s.answer(&r)
			continue
		}
		workers <- struct{}{}
		work.Go(func() {
			s.answer(&r)
			<-workers
		})
	}
}

func (s *server) close() {
	s.root.close()
	for _, u := range s.pkgs {
		u.deb.Close()
	}
}

// answer carries a request out and sends the reply.
func (s *server) answer(r *request) {
	out := reply{ID: r.ID}
	err := s.handle(r, &out)
	if err != nil {
		out.Error, out.Class = err.Error(), fault.ClassOf(err)
	}
	// When the peer is gone the next receive says so.
	_ = s.channel.send(out, nil)
}

func (s *server) handle(r *request, out *reply) (err error) {
	switch {
	case r.Op == "begin" && r.Begin != nil:
		s.begin = *r.Begin
		return s.layout()
	case r.Op == "unpack" && r.Unpack != nil && len(r.files) > 0:
		out.Facts, err = s.unpackRequest(r.Unpack, r.files)
	case r.Op == "release" && r.Unpack != nil:
		out.Facts, err = s.release(r.Unpack.Order)
	case r.Op == "settle":
		out.Notes, err = s.settle()
	case r.Op == "commit" && r.Commit != nil:
		return s.commit(r.Commit)
	case r.Op == "divert":
		out.Notes, err = s.divert()
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
		s.merged["/"+top] = true
		if _, err := s.root.dir("/usr/" + top); err != nil {
			return err
		}
		a := attributes{MTime: s.begin.Date * 1e9}
		if err := s.root.symlink("/"+top, "usr/"+top, a); err != nil {
			return err
		}
	}
	for _, p := range []string{"/var/lib/dpkg/info", "/var/lib/dpkg/updates", "/var/lib/dpkg/triggers", "/var/lib/dpkg/alternatives"} {
		if _, err := s.root.dir(p); err != nil {
			return err
		}
	}
	return nil
}

func (s *server) unpackRequest(r *unpackRequest, files []*os.File) (*Facts, error) {
	f := files[0]
	u := &unpacked{Package: r.Package, Order: r.Order, deb: f}
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
	closeAll(files[1:])
	t := s.root.dup()
	defer t.close()
	buf := s.bufs.Get().(*[]byte)
	defer s.bufs.Put(buf)
	members, data, err := readDeb(f)
	if err == nil {
		err = u.readControl(members)
	}
	if err == nil {
		err = s.unpack(u, t, data, *buf)
	}
	if err != nil {
		return nil, fault.As(fault.ClassOf(err), errors.Join(fault.New(fault.ClassOf(err), "cannot unpack %s %s: %w", r.Package.Name, r.Package.Version, err)))
	}
	return u.facts(), nil
}

func (s *server) release(order int) (*Facts, error) { return nil, nil }

// files puts small files of the parent's into the tree, or removes them.
func (s *server) files(list []treeFile) error {
	for _, f := range list {
		if !cleanPath(f.Path) {
			return fault.New(fault.Internal, "cannot write %q: not a clean path", f.Path)
		}
		if f.Remove {
			if err := s.root.removeAll(f.Path); err != nil {
				return fault.New(fault.Failed, "cannot remove %q: %w", f.Path, err)
			}
			continue
		}
		if err := s.put(f.Path, f.Mode, f.Data); err != nil {
			return err
		}
	}
	return nil
}
