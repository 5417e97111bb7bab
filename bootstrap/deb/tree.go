// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"io"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// tree writes below one directory handle, resolving links as chroot(2) would.
// It is used by one goroutine; dup makes another for a second one.
type tree struct {
	fd   int
	dirs map[string]int // open directories by path
}

const openDirs = 64

func (t *tree) dup() *tree { return &tree{fd: t.fd, dirs: map[string]int{}} }

func (t *tree) close() {
	for _, fd := range t.dirs {
		unix.Close(fd)
	}
	clear(t.dirs)
}

// dir opens a directory, making it and its parents when missing.
func (t *tree) dir(p string) (int, error) {
	if p == "/" || p == "" {
		return t.fd, nil
	}
	if fd, ok := t.dirs[p]; ok {
		return fd, nil
	}
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := t.openat2(strings.TrimPrefix(p, "/"), &how)
	if err == unix.ENOENT {
		parent, perr := t.dir(path.Dir(p))
		if perr != nil {
			return -1, perr
		}
		if err := unix.Mkdirat(parent, path.Base(p), 0o755); err != nil && err != unix.EEXIST {
			return -1, fault.New(fault.Failed, "cannot make directory %q: %w", p, err)
		}
		fd, err = t.openat2(strings.TrimPrefix(p, "/"), &how)
	}
	if err != nil {
		return -1, fault.New(fault.Path, "cannot open directory %q: %w", p, err)
	}
	if len(t.dirs) >= openDirs {
		t.close()
	}
	t.dirs[p] = fd
	return fd, nil
}

func (t *tree) openat2(p string, how *unix.OpenHow) (int, error) {
	for range 64 {
		fd, err := unix.Openat2(t.fd, p, how)
		if err != unix.EAGAIN && err != unix.EINTR {
			return fd, err
		}
	}
	return -1, unix.EAGAIN
}

func (t *tree) at(p string) (int, string, error) {
	fd, err := t.dir(path.Dir(p))
	return fd, path.Base(p), err
}

type attributes struct {
	Mode     uint32
	UID, GID int
	MTime    int64 // nanoseconds since 1970
}

func (t *tree) attributes(dir int, base string, a attributes, link bool) error {
	if a.UID != 0 || a.GID != 0 {
		if err := unix.Fchownat(dir, base, a.UID, a.GID, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
	}
	if !link {
		if err := unix.Fchmodat(dir, base, a.Mode, 0); err != nil {
			return err
		}
	}
	ts := unix.NsecToTimespec(a.MTime)
	return unix.UtimesNanoAt(dir, base, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

func (t *tree) file(p string, a attributes, r io.Reader, buf []byte) error {
	dir, base, err := t.at(p)
	if err != nil {
		return err
	}
	flags := unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(dir, base, flags, 0o600)
	if err == unix.EEXIST {
		if err = t.removeAt(dir, base); err == nil {
			fd, err = unix.Openat(dir, base, flags, 0o600)
		}
	}
	if err != nil {
		return fault.New(fault.Failed, "cannot create %q: %w", p, err)
	}
	defer unix.Close(fd)
	for {
		n, rerr := r.Read(buf)
		for b := buf[:n]; len(b) > 0; {
			w, err := unix.Write(fd, b)
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				return fault.New(fault.Failed, "cannot write %q: %w", p, err)
			}
			b = b[w:]
		}
		if rerr == io.EOF {
			break
		}
		if rerr != nil {
			return rerr
		}
	}
	if a.UID != 0 || a.GID != 0 {
		err = unix.Fchown(fd, a.UID, a.GID)
	}
	if err == nil {
		err = unix.Fchmod(fd, a.Mode)
	}
	if err == nil {
		ts := unix.NsecToTimespec(a.MTime)
		err = unix.UtimesNanoAt(dir, base, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err != nil {
		return fault.New(fault.Failed, "cannot set attributes of %q: %w", p, err)
	}
	return nil
}

func (t *tree) removeAt(dir int, base string) error {
	err := unix.Unlinkat(dir, base, 0)
	if err == unix.EISDIR {
		err = unix.Unlinkat(dir, base, unix.AT_REMOVEDIR)
	}
	return err
}

func (t *tree) symlink(p, target string, a attributes) error {
	dir, base, err := t.at(p)
	if err != nil {
		return err
	}
	err = unix.Symlinkat(target, dir, base)
	if err == unix.EEXIST {
		if err = t.removeAt(dir, base); err == nil {
			err = unix.Symlinkat(target, dir, base)
		}
	}
	if err == nil {
		err = t.attributes(dir, base, a, true)
	}
	if err != nil {
		return fault.New(fault.Failed, "cannot link %q: %w", p, err)
	}
	return nil
}

func (t *tree) link(p, target string) error {
	dir, base, err := t.at(p)
	if err != nil {
		return err
	}
	tdir, tbase, err := t.at(target)
	if err != nil {
		return err
	}
	err = unix.Linkat(tdir, tbase, dir, base, 0)
	if err == unix.EEXIST {
		if err = t.removeAt(dir, base); err == nil {
			err = unix.Linkat(tdir, tbase, dir, base, 0)
		}
	}
	if err != nil {
		return fault.New(fault.Failed, "cannot link %q to %q: %w", p, target, err)
	}
	return nil
}

func (t *tree) rename(from, to string) error {
	fdir, fbase, err := t.at(from)
	if err != nil {
		return err
	}
	tdir, tbase, err := t.at(to)
	if err != nil {
		return err
	}
	return unix.Renameat(fdir, fbase, tdir, tbase)
}

func (t *tree) lstat(p string) (unix.Stat_t, error) {
	var st unix.Stat_t
	dir, base, err := t.at(p)
	if err == nil {
		err = unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	}
	return st, err
}

func (t *tree) readlink(p string) (string, error) {
	dir, base, err := t.at(p)
	if err != nil {
		return "", err
	}
	buf := make([]byte, 4096)
	n, err := unix.Readlinkat(dir, base, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

func (t *tree) read(p string) ([]byte, error) {
	how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := t.openat2(strings.TrimPrefix(p, "/"), &how)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), p)
	defer f.Close()
	return io.ReadAll(f)
}

func (t *tree) removeAll(p string) error {
	dir, base, err := t.at(p)
	if err != nil {
		return err
	}
	return removeTree(dir, base)
}

func removeTree(dir int, base string) error {
	err := unix.Unlinkat(dir, base, 0)
	if err != unix.EISDIR {
		if err == unix.ENOENT {
			return nil
		}
		return err
	}
	fd, err := unix.Openat(dir, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), base)
	names, err := f.Readdirnames(-1)
	for _, n := range names {
		if err == nil {
			err = removeTree(fd, n)
		}
	}
	f.Close()
	if err != nil {
		return err
	}
	return unix.Unlinkat(dir, base, unix.AT_REMOVEDIR)
}

func (t *tree) directory(p string, a attributes) error {
	fd, err := t.dir(p)
	if err != nil {
		return err
	}
	// fd is only a path handle: reach the directory through it.
	if a.UID != 0 || a.GID != 0 {
		if err := unix.Fchownat(fd, "", a.UID, a.GID, unix.AT_EMPTY_PATH); err != nil {
			return err
		}
	}
	if err := unix.Fchmodat(fd, ".", a.Mode, 0); err != nil {
		return err
	}
	ts := unix.NsecToTimespec(a.MTime)
	return unix.UtimesNanoAt(fd, ".", []unix.Timespec{ts, ts}, 0)
}
