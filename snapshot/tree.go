// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/event"
	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/internal/rootfs"
)

// identify names the tree at path independent of where it is: a subvolume by its UUID, any
// other file by inode number and time of birth, so that a reused number is not mistaken for
// it. Links are not followed. The error is os.ErrNotExist where nothing is there.
func identify(path string) (string, error) {
	if isSubvolume(path) {
		f, err := openDir(path)
		if err != nil {
			return "", err
		}
		defer f.Close()
		info, err := subvolumeInfo(f)
		return "subvolume-" + info.uuid, err
	}
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_INO|unix.STATX_BTIME, &st); err != nil {
		return "", fmt.Errorf("cannot identify %s: %w", path, err)
	}
	return fmt.Sprintf("inode-%d-%d.%09d", st.Ino, st.Btime.Sec, st.Btime.Nsec), nil
}

// createTree makes an empty writable tree at path.
func (s *Store) createTree(path string) error {
	if s.backend == Btrfs {
		return s.full(createSubvolume(path))
	}
	if err := os.Mkdir(path, 0o755); err != nil {
		return s.full(err)
	}
	return os.Chmod(path, 0o755)
}

// copyTree makes dst, which must not exist, a copy of the directory or subvolume src.
func (s *Store) copyTree(ctx context.Context, src, dst string, readOnly bool) error {
	if s.backend == Btrfs && isSubvolume(src) && sameBtrfs(src, s.dir) {
		return s.full(snapshotTree(ctx, src, dst, readOnly))
	}
	sp := s.sink.Start("copy", filepath.Base(src))
	switch s.backend {
	case Copy, Overlay:
		sp.Fallback("every file is copied: " + s.reason)
	case Btrfs:
		sp.Fallback("every file is copied: " + src + " is not a subvolume of the file system of " + s.dir)
	}
	err := s.createTree(dst)
	if err == nil {
		err = s.full(copyDir(ctx, src, dst, sp))
	}
	sp.End(err)
	if err != nil {
		return err
	}
	if readOnly {
		return setTreeReadOnly(dst, true)
	}
	return nil
}

// fsImmutable is FS_IMMUTABLE_FL of linux/fs.h.
const fsImmutable = 0x10

// setTreeReadOnly marks a tree as read-only in the way that systemd-nspawn does: the flag of
// a subvolume, or the immutable attribute of the top directory. The latter guards the top
// level only and does not exist everywhere; the record of an image says the rest.
func setTreeReadOnly(path string, readOnly bool) error {
	if isSubvolume(path) {
		return setSubvolumeReadOnly(path, readOnly)
	}
	err := changeAttributes(path, readOnly)
	if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPERM) {
		return nil
	}
	return err
}

func changeAttributes(path string, immutable bool) error {
	f, err := openDir(path)
	if err != nil {
		return err
	}
	defer f.Close()
	flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil {
		return fmt.Errorf("cannot read the attributes of %s: %w", path, err)
	}
	want := flags &^ fsImmutable
	if immutable {
		want |= fsImmutable
	}
	if want == flags {
		return nil
	}
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(want)); err != nil {
		return fmt.Errorf("cannot change the attributes of %s: %w", path, err)
	}
	return nil
}

// treeReadOnly reads the mark that setTreeReadOnly sets.
func treeReadOnly(path string) bool {
	f, err := openDir(path)
	if err != nil {
		return false
	}
	defer f.Close()
	if isSubvolume(path) {
		info, err := subvolumeInfo(f)
		return err == nil && info.readOnly
	}
	flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	return err == nil && flags&fsImmutable != 0
}

// removeTree removes what is at path, a subvolume, a directory or a file, with everything in
// it. It refuses to go into another mount, because that is not part of the tree.
func removeTree(ctx context.Context, path string) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return fmt.Errorf("cannot remove %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return os.Remove(path)
	}
	if isSubvolume(path) {
		return removeSubvolume(ctx, path)
	}
	if onBtrfs(path) {
		if err := removeNested(ctx, path); err != nil {
			return err
		}
	}
	parent, err := rootfs.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer parent.Close()
	if err := parent.RemoveAll(filepath.Base(path)); err != nil {
		return fault.Hint(err, "findmnt -R %s", path)
	}
	return nil
}

// removeNested removes the subvolumes inside a plain directory.
func removeNested(ctx context.Context, path string) error {
	f, err := openDir(path)
	if err != nil {
		return fmt.Errorf("cannot remove %s: %w", path, err)
	}
	defer f.Close()
	inner, err := nested(f)
	if err != nil {
		return err
	}
	for _, rel := range inner {
		if err := removeSubvolume(ctx, filepath.Join(path, rel)); err != nil {
			return err
		}
	}
	return nil
}

// copyDir copies the tree src into dst, an empty directory.
func copyDir(ctx context.Context, src, dst string, sp *event.Span) error {
	from, err := rootfs.Open(src)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := rootfs.Open(dst)
	if err != nil {
		return err
	}
	defer to.Close()
	return rootfs.Copy(ctx, to, from, &rootfs.CopyOptions{Span: sp})
}

// copyTop gives the directory dst the metadata of the directory src: owner, mode, attributes,
// times, in the order in which the kernel does not take back what was set before.
func copyTop(src, dst *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(src.Fd()), &st); err != nil {
		return err
	}
	fd := int(dst.Fd())
	if err := errors.Join(unix.Fchown(fd, int(st.Uid), int(st.Gid)), unix.Fchmod(fd, st.Mode&0o7777)); err != nil {
		return err
	}
	list := make([]byte, 1<<16) // XATTR_LIST_MAX
	n, err := unix.Flistxattr(int(src.Fd()), list)
	if err != nil && err != unix.EOPNOTSUPP {
		return err
	}
	for name := range strings.SplitSeq(strings.TrimRight(string(list[:max(n, 0)]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 1<<16) // XATTR_SIZE_MAX
		n, err := unix.Fgetxattr(int(src.Fd()), name, value)
		if err == nil {
			err = unix.Fsetxattr(fd, name, value[:n], 0)
		}
		if err != nil {
			return fmt.Errorf("attribute %s: %w", name, err)
		}
	}
	return unix.UtimesNanoAt(fd, ".", []unix.Timespec{st.Atim, st.Mtim}, 0)
}
