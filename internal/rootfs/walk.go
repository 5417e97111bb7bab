// SPDX-License-Identifier: Apache-2.0

package rootfs

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// Node is one file of a tree.
type Node struct {
	Path string // clean; "" is the directory the walk began at
	Info
	Link   string  // of a symbolic link
	Xattrs []Xattr // sorted by name
	// SHA256 of a regular file's content in lower-case hex, where it was asked for.
	SHA256 string
	// First is the path of the first node, in walking order, that is the same file; ""
	// where this is it.
	First string
}

// WalkOptions says what of each node is looked at.
type WalkOptions struct {
	Xattrs bool
	// Except, where set, leaves out a node and everything below it.
	Except func(path string) bool
}

// Walk calls visit for each file below path ("" is the root), a directory before what is in
// it and siblings in byte order. Links are not followed and mounts not crossed (E_STATE).
// The order of calls does not depend on speed: the tree is read first, by several threads.
func (r *Root) Walk(ctx context.Context, path string, o *WalkOptions, visit func(n *Node) error) error {
	if o == nil {
		o = &WalkOptions{}
	}
	nodes, err := r.scan(ctx, path, scanOptions{links: true, xattrs: o.Xattrs, except: o.Except})
	if err != nil {
		return err
	}
	for i := range nodes {
		if err := visit(&nodes[i]); err != nil {
			return err
		}
	}
	return nil
}

type scanOptions struct {
	links  bool
	xattrs bool
	keep   func(xattr string) bool // nil: what an archive may bring
	except func(path string) bool
	// file is called for each regular file with it open for reading, by several threads at once.
	file func(n *Node, fd int) error
	// each is called for everything, with its directory and name, by several threads at once.
	each func(n *Node, dir int, name string) error
}

// scanner reads a tree with several threads: one directory is one job.
type scanner struct {
	o   scanOptions
	ctx context.Context
	top int // where the walk began; everything else is found below it

	mu    sync.Mutex
	cond  *sync.Cond
	jobs  []string // directories to read, newest last
	busy  int
	nodes []Node
	err   error
}

// scan reads the tree and returns its nodes in walking order.
func (r *Root) scan(ctx context.Context, path string, o scanOptions) ([]Node, error) {
	base, err := Clean(path)
	if err != nil {
		return nil, cannot("walk", path, err)
	}
	top, err := r.open(base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return nil, cannot("walk", path, err)
	}
	defer unix.Close(top)
	s := &scanner{o: o, ctx: ctx, top: top}
	s.cond = sync.NewCond(&s.mu)
	if err := s.start(); err != nil {
		return nil, cannot("walk", path, err)
	}
	var wg sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), 8) {
		wg.Go(s.work)
	}
	wg.Wait()
	if s.err != nil {
		return nil, s.err
	}
	slices.SortFunc(s.nodes, func(a, b Node) int { return comparePaths(a.Path, b.Path) })
	firstNames(s.nodes)
	return s.nodes, nil
}

// comparePaths orders paths as a walk meets them: "a", "a/b", "a-b".
func comparePaths(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			switch {
			case a[i] == '/':
				return -1
			case b[i] == '/':
				return 1
			case a[i] < b[i]:
				return -1
			}
			return 1
		}
	}
	return len(a) - len(b)
}

// firstNames finds the hard links.
func firstNames(nodes []Node) {
	seen := map[inode]string{}
	for i := range nodes {
		n := &nodes[i]
		if n.Links < 2 || n.Type == Dir {
			continue
		}
		id := inode{n.Dev, n.Ino}
		if first, ok := seen[id]; ok {
			n.First = first
		} else {
			seen[id] = n.Path
		}
	}
}

func (s *scanner) start() error {
	var n Node
	var st unix.Stat_t
	err := unix.Fstat(s.top, &st)
	if err != nil {
		return err
	}
	n.Info = infoOf(&st)
	if s.o.xattrs {
		if n.Xattrs, err = readXattrs(s.top, s.o.keep); err != nil {
			return err
		}
	}
	if s.o.each != nil {
		if err := s.o.each(&n, s.top, ""); err != nil {
			return err
		}
	}
	s.nodes = append(s.nodes, n)
	s.jobs = append(s.jobs, "")
	return nil
}

func (s *scanner) work() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		for len(s.jobs) == 0 && s.busy > 0 && s.err == nil {
			s.cond.Wait()
		}
		if s.err != nil || len(s.jobs) == 0 {
			s.cond.Broadcast()
			return
		}
		dir := s.jobs[len(s.jobs)-1]
		s.jobs = s.jobs[:len(s.jobs)-1]
		s.busy++
		s.mu.Unlock()
		nodes, subs, err := s.read(dir)
		s.mu.Lock()
		s.busy--
		if err != nil && s.err == nil {
			s.err = err
		}
		s.nodes = append(s.nodes, nodes...)
		s.jobs = append(s.jobs, subs...)
		s.cond.Broadcast()
	}
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// read lists one directory, given relative to the start.
func (s *scanner) read(dir string) (nodes []Node, subs []string, err error) {
	if err := s.ctx.Err(); err != nil {
		return nil, nil, err
	}
	if len(dir) >= MaxPath {
		return nil, nil, cannot("walk", dir, fault.New(fault.Limit, "path of %d bytes", len(dir)))
	}
	const resolve = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_SYMLINKS
	fd, err := openat2(s.top, orDot(dir), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, resolve)
	if errors.Is(err, unix.EXDEV) {
		err = fault.New(fault.State, "it is a mount point")
	}
	if err != nil {
		return nil, nil, cannot("walk", dir, err)
	}
	defer unix.Close(fd)
	names, err := readNames(fd)
	if err != nil {
		return nil, nil, cannot("walk", dir, err)
	}
	nodes = make([]Node, 0, len(names))
	for _, name := range names {
		n := Node{Path: join(dir, name)}
		if s.o.except != nil && s.o.except(n.Path) {
			continue
		}
		if err := s.node(&n, fd, name); err != nil {
			return nil, nil, cannot("walk", n.Path, err)
		}
		if n.Type == Dir {
			subs = append(subs, n.Path)
		}
		nodes = append(nodes, n)
	}
	return nodes, subs, nil
}

func (s *scanner) node(n *Node, dir int, name string) error {
	st, err := lstatat(dir, name)
	if err != nil {
		return err
	}
	n.Info = infoOf(&st)
	if n.Type == Symlink && s.o.links {
		if n.Link, err = readlinkat(dir, name); err != nil {
			return err
		}
	}
	want := n.Type == Dir && s.o.xattrs || n.Type == File && (s.o.xattrs || s.o.file != nil)
	if want {
		flags := unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC
		fd, err := retry(func() (int, error) { return unix.Openat(dir, name, flags, 0) })
		if err != nil {
			return err
		}
		err = s.opened(n, fd)
		unix.Close(fd)
		if err != nil {
			return err
		}
	}
	if s.o.each != nil {
		return s.o.each(n, dir, name)
	}
	return nil
}

func (s *scanner) opened(n *Node, fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Ino != n.Ino || st.Dev != n.Dev {
		return fault.New(fault.State, "changed while it was looked at")
	}
	var err error
	if s.o.xattrs {
		if n.Xattrs, err = readXattrs(fd, s.o.keep); err != nil {
			return err
		}
	}
	if n.Type == File && s.o.file != nil {
		return s.o.file(n, fd)
	}
	return nil
}

// readXattrs reads the attributes that keep wants; nil means those that belong to a tree:
// what an archive may bring, not what a host adds (security.selinux, trusted.*).
func readXattrs(fd int, keep func(string) bool) ([]Xattr, error) {
	var small [256]byte
	list := small[:]
	n, err := unix.Flistxattr(fd, list)
	for err == unix.ERANGE {
		if n, err = unix.Flistxattr(fd, nil); err == nil {
			list = make([]byte, n+256)
			n, err = unix.Flistxattr(fd, list)
		}
	}
	if err == unix.EOPNOTSUPP || err == nil && n == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []Xattr
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		if keep == nil && !keptXattr(name) || keep != nil && !keep(name) {
			continue
		}
		value := make([]byte, 256)
		m, err := unix.Fgetxattr(fd, name, value)
		if err == unix.ERANGE {
			value = make([]byte, 64<<10)
			m, err = unix.Fgetxattr(fd, name, value)
		}
		if err == unix.ENODATA {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, Xattr{Name: name, Value: value[:m:m]})
	}
	slices.SortFunc(out, func(a, b Xattr) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

func keptXattr(name string) bool {
	return name == xattrCapability || name == xattrACL || name == xattrDefaultACL || strings.HasPrefix(name, "user.")
}
