// SPDX-License-Identifier: Apache-2.0

package rootfs

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// Put writes a regular file: the new content appears whole or not at all, and whatever had
// the name before (a link is not followed) is replaced, unless it is a directory. The
// parent must exist.
func (r *Root) Put(path string, mode uint32, uid, gid int, data []byte) error {
	dir, base, err := r.parent(path)
	if err != nil {
		return cannot("write", path, err)
	}
	defer unix.Close(dir)
	return cannot("write", path, r.put(dir, base, mode, uid, gid, data))
}

func (r *Root) put(dir int, base string, mode uint32, uid, gid int, data []byte) error {
	var fd int
	tmp, err := tempName(func(name string) (err error) {
		fd, err = unix.Openat(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		return err
	})
	if err != nil {
		return err
	}
	if err = pwriteAll(fd, data, 0); err == nil {
		if err = unix.Fchown(fd, uid, gid); err == nil {
			err = unix.Fchmod(fd, mode&0o7777)
		}
	}
	if cerr := unix.Close(fd); err == nil && cerr != unix.EINTR {
		err = cerr
	}
	return r.replace(dir, tmp, base, err)
}

// replace gives the temporary file its name, or removes it where err is set.
func (r *Root) replace(dir int, tmp, base string, err error) error {
	if err == nil {
		if st, serr := lstatat(dir, base); serr == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK {
			defer r.gen.Add(1)
		}
		err = unix.Renameat2(dir, tmp, dir, base, 0)
	}
	if err != nil {
		err = errors.Join(err, unix.Unlinkat(dir, tmp, 0))
	}
	return err
}

// tempName calls create with names until one is free.
func tempName(create func(name string) error) (string, error) {
	for i := 0; ; i++ {
		name := fmt.Sprintf(".mkmachine-new-%d", i)
		err := create(name)
		if err == nil {
			return name, nil
		}
		if (err != unix.EEXIST || i >= 10_000) && err != unix.EINTR {
			return "", err
		}
	}
}

// Symlink makes a symbolic link, replacing what had the name unless it is a directory.
func (r *Root) Symlink(target, path string, uid, gid int) error {
	if target == "" || len(target) >= MaxPath {
		return cannot("link", path, fault.New(fault.Path, "bad target %q", target))
	}
	dir, base, err := r.parent(path)
	if err != nil {
		return cannot("link", path, err)
	}
	defer unix.Close(dir)
	tmp, err := tempName(func(name string) error { return unix.Symlinkat(target, dir, name) })
	if err != nil {
		return cannot("link", path, err)
	}
	err = unix.Fchownat(dir, tmp, uid, gid, unix.AT_SYMLINK_NOFOLLOW)
	return cannot("link", path, r.replace(dir, tmp, base, err))
}

// Link makes path another name of the file target, replacing what had the name unless it is
// a directory. The last component of target is not followed.
func (r *Root) Link(target, path string) error {
	from, name, err := r.parent(target)
	if err != nil {
		return cannot("link to", target, err)
	}
	defer unix.Close(from)
	dir, base, err := r.parent(path)
	if err != nil {
		return cannot("link", path, err)
	}
	defer unix.Close(dir)
	tmp, err := tempName(func(tmp string) error { return unix.Linkat(from, name, dir, tmp, 0) })
	if err != nil {
		return cannot("link", path, err)
	}
	if err := r.replace(dir, tmp, base, nil); err != nil {
		return cannot("link", path, err)
	}
	// rename(2) does nothing where both names are one file already.
	if err := unix.Unlinkat(dir, tmp, 0); err != nil && err != unix.ENOENT {
		return cannot("link", path, err)
	}
	return nil
}

// Mkdir makes a directory. One that exists, behind a link too, keeps its owner and mode;
// made says whether it was made. The parent must exist.
func (r *Root) Mkdir(path string, mode uint32, uid, gid int) (made bool, err error) {
	dir, base, err := r.parent(path)
	if err != nil {
		return false, cannot("make directory", path, err)
	}
	defer unix.Close(dir)
	made, err = r.mkdir(dir, base, path, mode, uid, gid)
	return made, cannot("make directory", path, err)
}

func (r *Root) mkdir(dir int, base, path string, mode uint32, uid, gid int) (bool, error) {
	err := unix.Mkdirat(dir, base, 0o700)
	if err == unix.EEXIST {
		clean, err := Clean(path)
		if err != nil {
			return false, err
		}
		fd, err := r.open(clean, unix.O_PATH|unix.O_DIRECTORY)
		if err == nil {
			unix.Close(fd)
		}
		return false, err
	}
	if err != nil {
		return false, err
	}
	fd, err := openat2(dir, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, unix.RESOLVE_BENEATH)
	if err != nil {
		return true, err
	}
	defer unix.Close(fd)
	if err := unix.Fchown(fd, uid, gid); err != nil {
		return true, err
	}
	return true, unix.Fchmod(fd, mode&0o7777)
}

// MkdirAll makes a directory and its missing parents, all with the same owner and mode.
func (r *Root) MkdirAll(path string, mode uint32, uid, gid int) error {
	clean, err := Clean(path)
	if err != nil {
		return cannot("make directory", path, err)
	}
	if clean == "" {
		return nil
	}
	if fd, err := r.open(clean, unix.O_PATH|unix.O_DIRECTORY); err == nil {
		unix.Close(fd)
		return nil
	}
	for i := 0; i <= len(clean); i++ {
		if i < len(clean) && clean[i] != '/' {
			continue
		}
		if _, err := r.Mkdir(clean[:i], mode, uid, gid); err != nil {
			return err
		}
	}
	return nil
}

// Chmod changes the mode of a file or directory. A symbolic link as last component is E_PATH.
func (r *Root) Chmod(path string, mode uint32) error {
	fd, err := r.openReal(path)
	if err != nil {
		return cannot("change mode of", path, err)
	}
	defer unix.Close(fd)
	return cannot("change mode of", path, unix.Fchmod(fd, mode&0o7777))
}

// Chown changes the owner; of a symbolic link, of the link itself.
func (r *Root) Chown(path string, uid, gid int) error {
	clean, err := Clean(path)
	if err == nil && clean == "" {
		return cannot("change owner of", path, unix.Fchown(r.fd, uid, gid))
	}
	dir, base, err := r.parent(path)
	if err != nil {
		return cannot("change owner of", path, err)
	}
	defer unix.Close(dir)
	return cannot("change owner of", path, unix.Fchownat(dir, base, uid, gid, unix.AT_SYMLINK_NOFOLLOW))
}

// Chtimes sets both times, in seconds since 1970; of a symbolic link, of the link itself.
func (r *Root) Chtimes(path string, secs int64) error {
	clean, err := Clean(path)
	if err == nil && clean == "" {
		return cannot("set time of", path, futimes(r.fd, secs))
	}
	dir, base, err := r.parent(path)
	if err != nil {
		return cannot("set time of", path, err)
	}
	defer unix.Close(dir)
	return cannot("set time of", path, lutimes(dir, base, secs))
}

// Rename gives a file another name, replacing what had it.
func (r *Root) Rename(from, to string) error {
	old, name, err := r.parent(from)
	if err != nil {
		return cannot("rename", from, err)
	}
	defer unix.Close(old)
	dir, base, err := r.parent(to)
	if err != nil {
		return cannot("rename to", to, err)
	}
	defer unix.Close(dir)
	r.gen.Add(1)
	err = unix.Renameat2(old, name, dir, base, 0)
	r.gen.Add(1)
	return cannot("rename", from, err)
}

// Remove removes a file, a link or an empty directory. What is not there is no error.
func (r *Root) Remove(path string) error {
	dir, base, err := r.parent(path)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return cannot("remove", path, err)
	}
	defer unix.Close(dir)
	r.gen.Add(1)
	defer r.gen.Add(1)
	err = unix.Unlinkat(dir, base, 0)
	if err == unix.EISDIR {
		err = unix.Unlinkat(dir, base, unix.AT_REMOVEDIR)
	}
	if err == unix.ENOENT {
		return nil
	}
	return cannot("remove", path, err)
}

// openReal opens a file or directory for reading without following a last link and
// without waiting for a FIFO.
func (r *Root) openReal(path string) (int, error) {
	clean, err := Clean(path)
	if err != nil {
		return -1, err
	}
	return r.open(clean, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY)
}
