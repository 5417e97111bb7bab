// SPDX-License-Identifier: Apache-2.0

package rootfs

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// Info is what lstat knows of a file.
type Info struct {
	Type     Type
	Mode     uint32 // 07777
	UID, GID int
	Size     int64
	Links    uint64
	Dev, Ino uint64
	// ModTime in seconds since 1970, and the nanoseconds behind it.
	ModTime      int64
	ModNano      int64
	Major, Minor uint32 // of devices
}

func infoOf(st *unix.Stat_t) Info {
	i := Info{Mode: st.Mode & 0o7777, UID: int(st.Uid), GID: int(st.Gid), Size: st.Size, Links: uint64(st.Nlink),
		Dev: st.Dev, Ino: st.Ino, ModTime: st.Mtim.Sec, ModNano: st.Mtim.Nsec}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		i.Type = File
	case unix.S_IFDIR:
		i.Type = Dir
	case unix.S_IFLNK:
		i.Type = Symlink
	case unix.S_IFCHR:
		i.Type = Char
	case unix.S_IFBLK:
		i.Type = Block
	case unix.S_IFIFO:
		i.Type = Fifo
	case unix.S_IFSOCK:
		i.Type = Socket
	}
	if i.Type == Char || i.Type == Block {
		i.Major, i.Minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
	}
	return i
}

// IsNotExist reports whether err says that a file, or a directory on the way to it, is missing.
func IsNotExist(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR)
}

// Lstat describes a file, a link itself.
func (r *Root) Lstat(path string) (Info, error) {
	return r.stat("look at", path, unix.O_NOFOLLOW)
}

// Stat describes what a path leads to, links followed inside the root.
func (r *Root) Stat(path string) (Info, error) { return r.stat("look at", path, 0) }

func (r *Root) stat(verb, path string, flags int) (Info, error) {
	clean, err := Clean(path)
	if err != nil {
		return Info{}, cannot(verb, path, err)
	}
	fd, err := r.open(clean, unix.O_PATH|flags)
	if err != nil {
		return Info{}, cannot(verb, path, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return Info{}, cannot(verb, path, err)
	}
	return infoOf(&st), nil
}

// Readlink is the text of a symbolic link.
func (r *Root) Readlink(path string) (string, error) {
	dir, base, err := r.parent(path)
	if err != nil {
		return "", cannot("read link", path, err)
	}
	defer unix.Close(dir)
	target, err := readlinkat(dir, base)
	return target, cannot("read link", path, err)
}

// Open opens a regular file for reading, links followed inside the root. Anything else is
// E_PATH: no device, FIFO or socket of a tree is ever opened.
func (r *Root) Open(path string) (*os.File, error) {
	fd, _, err := r.openFile(path)
	if err != nil {
		return nil, cannot("open", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

func (r *Root) openFile(path string) (int, *unix.Stat_t, error) {
	clean, err := Clean(path)
	if err != nil {
		return -1, nil, err
	}
	// Look before opening: opening a device may do something.
	probe, err := r.open(clean, unix.O_PATH)
	if err != nil {
		return -1, nil, err
	}
	var st unix.Stat_t
	err = unix.Fstat(probe, &st)
	unix.Close(probe)
	if err == nil {
		err = mustBeFile(&st)
	}
	if err != nil {
		return -1, nil, err
	}
	fd, err := r.open(clean, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return -1, nil, err
	}
	if err = unix.Fstat(fd, &st); err == nil {
		err = mustBeFile(&st)
	}
	if err != nil {
		unix.Close(fd)
		return -1, nil, err
	}
	return fd, &st, nil
}

func mustBeFile(st *unix.Stat_t) error {
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fault.New(fault.Path, "not a regular file")
	}
	return nil
}

// ReadFile reads a regular file of at most limit bytes, links followed inside the root.
func (r *Root) ReadFile(path string, limit int64) ([]byte, error) {
	fd, st, err := r.openFile(path)
	if err != nil {
		return nil, cannot("read", path, err)
	}
	defer unix.Close(fd)
	data := make([]byte, 0, min(st.Size, limit)+1)
	for {
		if len(data) == cap(data) {
			data = append(data, 0)[:len(data)]
		}
		n, err := unix.Read(fd, data[len(data):cap(data)])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, cannot("read", path, err)
		}
		if n == 0 {
			return data, nil
		}
		if data = data[:len(data)+n]; int64(len(data)) > limit {
			return nil, cannot("read", path, fault.New(fault.Limit, "more than %d bytes", limit))
		}
	}
}

// Readdir lists the names in a directory, sorted; links on the way are followed inside the root.
func (r *Root) Readdir(path string) ([]string, error) {
	clean, err := Clean(path)
	if err != nil {
		return nil, cannot("list", path, err)
	}
	fd, err := r.open(clean, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, cannot("list", path, err)
	}
	defer unix.Close(fd)
	names, err := readNames(fd)
	if err != nil {
		return nil, fmt.Errorf("cannot list %q: %w", path, err)
	}
	return names, nil
}
