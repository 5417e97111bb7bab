// SPDX-License-Identifier: Apache-2.0

package rootfs

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// setMeta gives an open file its owner, mode, xattrs and time, in the order that keeps
// set-user-id bits and capabilities.
func setMeta(fd int, e *Entry) error {
	if err := unix.Fchown(fd, e.UID, e.GID); err != nil {
		return fmt.Errorf("owner %d:%d: %w", e.UID, e.GID, err)
	}
	if err := unix.Fchmod(fd, e.Mode); err != nil {
		return fmt.Errorf("mode %o: %w", e.Mode, err)
	}
	if err := setXattrs(fd, e.Xattrs); err != nil {
		return err
	}
	return futimes(fd, e.ModTime)
}

// lsetMeta does the same for a symbolic link, which has no mode and no attributes of ours.
func lsetMeta(dir int, base string, e *Entry) error {
	if err := unix.Fchownat(dir, base, e.UID, e.GID, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("owner %d:%d: %w", e.UID, e.GID, err)
	}
	return lutimes(dir, base, e.ModTime)
}

func setXattrs(fd int, xattrs []Xattr) error {
	for _, x := range xattrs {
		err := unix.Fsetxattr(fd, x.Name, x.Value, 0)
		if errors.Is(err, unix.EOPNOTSUPP) {
			return fault.New(fault.Host, "attribute %q: the file system does not keep it: %w", x.Name, err)
		}
		if err != nil {
			return fmt.Errorf("attribute %q: %w", x.Name, err)
		}
	}
	return nil
}

// futimes sets both times of an open file, in seconds since 1970.
func futimes(fd int, secs int64) error { return futimesNano(fd, secs, 0) }

func futimesNano(fd int, secs, nano int64) error {
	t := [2]unix.Timespec{{Sec: secs, Nsec: nano}, {Sec: secs, Nsec: nano}}
	// A null path means the descriptor itself: futimens(3), for which x/sys has no call.
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&t)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// lutimes sets both times of a name, never of what a link points to.
func lutimes(dir int, base string, secs int64) error {
	t := unix.Timespec{Sec: secs}
	return unix.UtimesNanoAt(dir, base, []unix.Timespec{t, t}, unix.AT_SYMLINK_NOFOLLOW)
}

func lstatat(dir int, base string) (unix.Stat_t, error) {
	var st unix.Stat_t
	err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	return st, err
}

func readlinkat(dir int, base string) (string, error) {
	buf := make([]byte, 256)
	for {
		n, err := unix.Readlinkat(dir, base, buf)
		if err != nil {
			return "", err
		}
		if n < len(buf) {
			return string(buf[:n]), nil
		}
		buf = make([]byte, 2*len(buf))
	}
}
