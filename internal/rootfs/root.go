// SPDX-License-Identifier: Apache-2.0

// Package rootfs writes into a directory that will be somebody else's root.
//
// It owns every path decision: names from archives and recipes are resolved as chroot(2)
// would, by the kernel (openat2 with RESOLVE_IN_ROOT), never lexically, and nothing it
// does leaves the directory handle it started from. Archives are checked twice: names by
// the entry policy, and every operation by the kernel. It never runs programs, never
// mounts, never reads /proc, and works in a confined process as well as outside.
//
// Order per entry: parent, create, owner, mode, xattrs, times; chown clears set-user-id
// bits and capabilities, so it comes first. Directories get owner, mode and times once,
// after the last entry of the last archive, because creating children changes them.
//
//	root, err := rootfs.Open("stage")
//	s := root.NewSession(nil)
//	u := s.NewUnpacker(nil)
//	err = u.Tar(ctx, data)
//	err = errors.Join(err, u.Close())
//	err = s.Finish()
package rootfs

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// Limits on names, in bytes and components, that hold for every path this package takes.
const (
	MaxPath      = 4096
	MaxComponent = 255
	MaxDepth     = 128
)

// Root is an open directory that is, or will be, a root. Its methods take paths inside of
// it: "etc/passwd" and "/etc/passwd" are the same, ".." is refused, symbolic links are
// followed inside the root only. Unless a method says otherwise the last component is not
// followed. It is safe for concurrent use.
type Root struct {
	fd  int
	dev uint64
	// gen counts replacements of directories and symbolic links: what a cache of open
	// directories knows by path is stale after one.
	gen atomic.Uint64
}

// Open opens the directory at path on the host. The path is followed as the host does.
func Open(path string) (*Root, error) {
	fd, err := retry(func() (int, error) {
		return unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, fmt.Errorf("cannot open tree %q: %w", path, err)
	}
	return newRoot(fd)
}

// FromFile makes a Root of a directory that is open already; f stays the caller's.
func FromFile(f *os.File) (*Root, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	runtime.KeepAlive(f)
	if err != nil {
		return nil, fmt.Errorf("cannot open tree %q: %w", f.Name(), err)
	}
	return newRoot(fd)
}

func newRoot(fd int) (*Root, error) {
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		err = unix.ENOTDIR
	}
	if err == nil {
		var probe int
		probe, err = openat2(fd, ".", unix.O_PATH|unix.O_DIRECTORY, unix.RESOLVE_IN_ROOT)
		if err == nil {
			unix.Close(probe)
		}
		if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
			err = fault.Hint(fault.New(fault.Host, "openat2 is not available: %w", err),
				"a kernel of version 5.6 or newer is needed, and a system-call filter must allow openat2")
		}
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("cannot open tree: %w", err)
	}
	return &Root{fd: fd, dev: st.Dev}, nil
}

// Close closes the handle.
func (r *Root) Close() error {
	if r.fd < 0 {
		return nil
	}
	err := unix.Close(r.fd)
	r.fd = -1
	return err
}

// Fd is the open directory, for calls that this package does not make. It stays the Root's.
func (r *Root) Fd() int { return r.fd }

// retryFor bounds how long a resolution that races with renames is repeated.
const retryFor = 2 * time.Second

// openat2 opens path below dir. The kernel answers EAGAIN when a rename anywhere on the
// system made ".." uncertain while it walked; then the walk is repeated for a while.
func openat2(dir int, path string, flags int, resolve uint64) (int, error) {
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: resolve | unix.RESOLVE_NO_MAGICLINKS}
	var deadline time.Time
	for {
		fd, err := unix.Openat2(dir, path, &how)
		switch err {
		case nil:
			return fd, nil
		case unix.EINTR:
		case unix.EAGAIN:
			now := time.Now()
			if deadline.IsZero() {
				deadline = now.Add(retryFor)
			} else if now.After(deadline) {
				return -1, fault.New(fault.State, "path kept changing: %w", err)
			}
		default:
			return -1, err
		}
	}
}

func retry[T any](call func() (T, error)) (T, error) {
	for {
		v, err := call()
		if err != unix.EINTR {
			return v, err
		}
	}
}

// Clean checks a name and returns it without leading and doubled slashes and "."
// components; the root itself is "". Any ".." is an error of class E_PATH, however
// harmless it looks; over-long names are E_LIMIT.
func Clean(name string) (string, error) {
	rest, depth, plain := name, 0, true
	if len(name) > MaxPath {
		return "", fault.New(fault.Limit, "name of %d bytes", len(name))
	}
	if strings.IndexByte(name, 0) >= 0 {
		return "", fault.New(fault.Format, "name %q has a NUL", name)
	}
	rest = strings.TrimPrefix(rest, "./")
	rest = strings.TrimSuffix(rest, "/")
	for part := rest; part != ""; {
		var c string
		var more bool
		c, part, more = strings.Cut(part, "/")
		switch {
		case c == "" || c == ".":
			plain = false
		case c == "..":
			return "", fault.New(fault.Path, "name %q has a \"..\" component", name)
		case len(c) > MaxComponent:
			return "", fault.New(fault.Limit, "name component of %d bytes", len(c))
		default:
			depth++
		}
		if more && part == "" {
			plain = false
		}
	}
	if depth > MaxDepth {
		return "", fault.New(fault.Limit, "name with %d components", depth)
	}
	if plain {
		return rest, nil
	}
	parts := make([]string, 0, depth)
	for c := range strings.SplitSeq(rest, "/") {
		if c != "" && c != "." {
			parts = append(parts, c)
		}
	}
	return strings.Join(parts, "/"), nil
}

// split cuts a clean path into its directory ("" for the root) and last component.
func split(path string) (dir, base string) {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i], path[i+1:]
	}
	return "", path
}

// orDot is path, or "." for the root.
func orDot(path string) string {
	if path == "" {
		return "."
	}
	return path
}

// open opens a clean path, links followed inside the root.
func (r *Root) open(path string, flags int) (int, error) {
	return openat2(r.fd, orDot(path), flags, unix.RESOLVE_IN_ROOT)
}

// parent opens the directory of name and returns it with the last component. The root
// itself has none: that is E_PATH.
func (r *Root) parent(name string) (fd int, base string, err error) {
	path, err := Clean(name)
	if err != nil {
		return -1, "", err
	}
	if path == "" {
		return -1, "", fault.New(fault.Path, "%q is the root itself", name)
	}
	dir, base := split(path)
	fd, err = r.open(dir, unix.O_PATH|unix.O_DIRECTORY)
	return fd, base, err
}

// cannot wraps an error of an operation; a nil error stays nil. What the tree itself
// makes impossible (a file or a dangling link where a directory should be, a loop) gets
// class E_PATH.
func cannot(verb, path string, err error) error {
	if err == nil {
		return nil
	}
	wrapped := fmt.Errorf("cannot %s %q: %w", verb, path, err)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return fault.As(fault.Path, wrapped)
	}
	return wrapped
}
