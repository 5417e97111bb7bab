// SPDX-License-Identifier: Apache-2.0

package rootfs

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// keptOpen is how many directories RemoveAll keeps open on its way down. Deeper ones are
// found again through "..", whose identity is proved before it is used.
const keptOpen = 64

// RemoveAll removes a file or a whole tree below the root. It goes by handle, at any depth,
// never follows a link and never crosses a mount: a mount point inside is E_STATE, and
// what was removed before it stays removed. Immutable files and directories that their
// owner may not write are made writable. What is not there is no error.
func (r *Root) RemoveAll(path string) error {
	dir, base, err := r.parent(path)
	if IsNotExist(err) {
		return nil
	}
	if err != nil {
		return cannot("remove", path, err)
	}
	defer unix.Close(dir)
	defer r.gen.Add(1)
	r.gen.Add(1)
	return cannot("remove", path, removeTree(dir, base))
}

// RemoveContents empties a directory and keeps it; "" is the root itself. A path that is
// no directory (a link is not followed) is E_PATH; what is not there is no error.
func (r *Root) RemoveContents(path string) error {
	clean, err := Clean(path)
	if err != nil {
		return cannot("empty", path, err)
	}
	fd, err := r.open(clean, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if IsNotExist(err) && !errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return cannot("empty", path, err)
	}
	defer unix.Close(fd)
	defer r.gen.Add(1)
	names, err := readNames(fd)
	for _, name := range names {
		if err == nil {
			err = removeTree(fd, name)
		}
	}
	return cannot("empty", path, err)
}

// removing is a directory on the way down.
type removing struct {
	fd   int // -1: closed to save descriptors
	id   inode
	name string
	subs []string // directories in it that are still to be removed
}

// removeTree removes the name in dir, without recursion and with bounded descriptors.
func removeTree(dir int, name string) (err error) {
	isDir, err := unlinkOrDir(dir, name)
	if !isDir || err != nil {
		return err
	}
	stack := []*removing{}
	defer func() {
		for _, l := range stack {
			if l.fd >= 0 {
				unix.Close(l.fd)
			}
		}
	}()
	top, err := enter(dir, name)
	if err != nil || top == nil {
		return err
	}
	stack = append(stack, top)
	for len(stack) > 0 {
		level := stack[len(stack)-1]
		if n := len(level.subs); n > 0 {
			sub := level.subs[n-1]
			level.subs = level.subs[:n-1]
			next, err := enter(level.fd, sub)
			if err != nil {
				return err
			}
			if next == nil {
				continue
			}
			stack = append(stack, next)
			if n := len(stack) - keptOpen; n > 0 && stack[n-1].fd >= 0 && n > 1 {
				unix.Close(stack[n-1].fd)
				stack[n-1].fd = -1
			}
			continue
		}
		parent := dir
		if n := len(stack); n > 1 {
			if stack[n-2].fd < 0 {
				if err := reopen(level.fd, stack[n-2]); err != nil {
					return err
				}
			}
			parent = stack[n-2].fd
		}
		stack = stack[:len(stack)-1]
		unix.Close(level.fd)
		if err := removeDir(parent, level.name); err != nil {
			return err
		}
	}
	return nil
}

// reopen opens the parent of an open directory again and proves that it is the same one.
func reopen(child int, l *removing) error {
	fd, err := unix.Openat(child, "..", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil && (inode{st.Dev, st.Ino}) != l.id {
		err = fault.New(fault.State, "directory %q was moved meanwhile", l.name)
	}
	if err != nil {
		unix.Close(fd)
		return err
	}
	l.fd = fd
	return nil
}

// enter opens a directory, removes everything in it that is no directory, and lists the
// rest. nil means that it is gone.
func enter(dir int, name string) (*removing, error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW
	const resolve = unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_BENEATH
	fd, err := openat2(dir, name, flags, resolve)
	if errors.Is(err, unix.EACCES) && unix.Fchmodat(dir, name, 0o700, unix.AT_SYMLINK_NOFOLLOW) == nil {
		fd, err = openat2(dir, name, flags, resolve)
	}
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, nil
	case errors.Is(err, unix.EXDEV):
		return nil, fault.New(fault.State, "%q is a mount point", name)
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		_, err := unlinkOrDir(dir, name)
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("%q: %w", name, err)
	}
	l := &removing{fd: fd, name: name}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil {
		l.id = inode{st.Dev, st.Ino}
		err = l.unlinkFiles(st.Mode)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return l, nil
}

func (l *removing) unlinkFiles(mode uint32) error {
	if mode&0o300 != 0o300 {
		if err := unix.Fchmod(l.fd, 0o700); err != nil && err != unix.EPERM && err != unix.EROFS {
			return err
		}
	}
	names, err := readNames(l.fd)
	if err != nil {
		return err
	}
	for _, name := range names {
		isDir, err := unlinkOrDir(l.fd, name)
		if err != nil {
			return err
		}
		if isDir {
			l.subs = append(l.subs, name)
		}
	}
	return nil
}

// unlinkOrDir removes a name unless it is a directory.
func unlinkOrDir(dir int, name string) (isDir bool, err error) {
	err = unix.Unlinkat(dir, name, 0)
	if err == unix.EPERM || err == unix.EACCES {
		// Of a directory, or of something immutable.
		if st, serr := lstatat(dir, name); serr == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
			return true, nil
		}
		if makeMutable(dir, name) {
			err = unix.Unlinkat(dir, name, 0)
		}
	}
	switch err {
	case nil, unix.ENOENT:
		return false, nil
	case unix.EISDIR:
		return true, nil
	}
	return false, fmt.Errorf("%q: %w", name, err)
}

func removeDir(dir int, name string) error {
	err := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
	if err == unix.EPERM && makeMutable(dir, name) {
		err = unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
	}
	switch err {
	case nil, unix.ENOENT:
		return nil
	case unix.EBUSY:
		return fault.New(fault.State, "%q is a mount point", name)
	}
	return fmt.Errorf("%q: %w", name, err)
}

// Inode flags of linux/fs.h.
const (
	flagAppend    = 0x20
	flagImmutable = 0x10
)

// makeMutable clears the immutable and append-only flags of the name and of its directory.
// It reports whether that changed something.
func makeMutable(dir int, name string) bool {
	changed := clearFlags(dir)
	st, err := lstatat(dir, name)
	if err != nil {
		return changed
	}
	if t := st.Mode & unix.S_IFMT; t != unix.S_IFREG && t != unix.S_IFDIR {
		return changed
	}
	fd, err := openat2(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, unix.RESOLVE_BENEATH)
	if err != nil {
		return changed
	}
	defer unix.Close(fd)
	return clearFlags(fd) || changed
}

func clearFlags(fd int) bool {
	flags, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
	if err != nil || flags&(flagAppend|flagImmutable) == 0 {
		return false
	}
	return unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, flags&^(flagAppend|flagImmutable)) == nil
}
