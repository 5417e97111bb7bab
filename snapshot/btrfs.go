// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"github.com/dennwc/btrfs"
	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// Creation of subvolumes and their flags go through dennwc/btrfs. The rest is here because
// that library puts a snapshot inside an existing target, hides error numbers, and has no
// deletion by id, no relative listing and no way to wake the cleaner.

// ioctl numbers and layouts of linux/btrfs.h.
const (
	iocSync        = 0x9408
	iocSnapCreate2 = 0x50009417
	iocDestroy2    = 0x5000943f
	iocFsInfo      = 0x8400941f
	iocSubvolInfo  = 0x81f8943c
	iocRootRef     = 0xd000943d
	iocInoLookup   = 0xd000943e

	subvolReadOnly = 1 << 1
	subvolByID     = 1 << 4

	// subvolumeIno is the inode number of the top directory of every subvolume.
	subvolumeIno = 256
)

type volArgs2 struct {
	fd      int64
	transid uint64
	flags   uint64
	unused  [4]uint64
	name    [4040]byte // or the 64-bit id of a subvolume
}

type timespec struct {
	sec  uint64
	nsec uint32
	_    uint32
}

type subvolInfo struct {
	treeid                                 uint64
	name                                   [256]byte
	parentID, dirID, generation, flags     uint64
	uuid, parentUUID, receivedUUID         [16]byte
	ctransid, otransid, stransid, rtransid uint64
	ctime, otime, stime, rtime             timespec
	_                                      [8]uint64
}

type rootRefs struct {
	minTree uint64
	refs    [255]struct{ tree, dir uint64 }
	n       uint8
	_       [7]uint8
}

type inoLookup struct {
	dir, tree uint64
	name      [256]byte
	path      [3824]byte
}

func ioctl(f *os.File, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// openDir opens a directory, never through a link at its end.
func openDir(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

// isSubvolume says whether path is the top of a btrfs subvolume; links are not followed.
func isSubvolume(path string) bool {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR || st.Ino != subvolumeIno {
		return false
	}
	return onBtrfs(path)
}

func onBtrfs(path string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(path, &fs) == nil && fs.Type == unix.BTRFS_SUPER_MAGIC
}

type fsInfo struct {
	maxID, devices uint64
	fsid           [16]byte
	_              [124]uint64
}

// sameBtrfs says whether two directories are on one btrfs. Neither st_dev nor the id of
// statfs(2) tell: both differ between subvolumes.
func sameBtrfs(a, b string) bool {
	var ids [2][16]byte
	for i, path := range []string{a, b} {
		f, err := openDir(path)
		if err != nil {
			return false
		}
		var info fsInfo
		err = ioctl(f, iocFsInfo, unsafe.Pointer(&info))
		f.Close()
		if err != nil {
			return false
		}
		ids[i] = info.fsid
	}
	return ids[0] == ids[1]
}

// subvolume is what the kernel knows of a subvolume.
type subvolume struct {
	id       uint64
	uuid     string // 32 hex digits; the identity that a rename keeps
	parent   string // uuid of what it is a snapshot of, or all zeros
	readOnly bool
	created  time.Time
}

func subvolumeInfo(f *os.File) (subvolume, error) {
	var info subvolInfo
	if err := ioctl(f, iocSubvolInfo, unsafe.Pointer(&info)); err != nil {
		return subvolume{}, fmt.Errorf("cannot read subvolume %s: %w", f.Name(), err)
	}
	return subvolume{
		id: info.treeid, uuid: hex.EncodeToString(info.uuid[:]), parent: hex.EncodeToString(info.parentUUID[:]),
		readOnly: info.flags&1 != 0, // BTRFS_ROOT_SUBVOL_RDONLY, the flag on disk
		created:  time.Unix(int64(info.otime.sec), int64(info.otime.nsec)),
	}, nil
}

// nested lists the subvolumes directly below the directory f, as paths relative to it.
// Subvolumes inside those are not listed. A directory that is not on btrfs has none.
func nested(f *os.File) ([]string, error) {
	var out []string
	args := rootRefs{}
	for {
		err := ioctl(f, iocRootRef, unsafe.Pointer(&args))
		if err == unix.ENOTTY {
			return nil, nil // not btrfs
		}
		if err != nil && err != unix.EOVERFLOW {
			return nil, fmt.Errorf("cannot list subvolumes of %s: %w", f.Name(), err)
		}
		for i := range int(args.n) {
			look := inoLookup{dir: args.refs[i].dir, tree: args.refs[i].tree}
			// Fails for a subvolume of the same file system that is not below f.
			if ioctl(f, iocInoLookup, unsafe.Pointer(&look)) == nil {
				out = append(out, filepath.Join(cString(look.path[:]), cString(look.name[:])))
			}
		}
		if err == nil || args.n == 0 {
			return out, nil
		}
		args = rootRefs{minTree: args.refs[args.n-1].tree + 1}
	}
}

func cString(b []byte) string {
	s, _, _ := strings.Cut(string(b), "\x00")
	return s
}

func createSubvolume(path string) error {
	if err := btrfs.CreateSubVolume(path); err != nil {
		return fmt.Errorf("cannot create subvolume %s: %w", path, err)
	}
	return os.Chmod(path, 0o755) // the kernel applied our umask
}

// snapshotTree makes dst a snapshot of src, the subvolumes inside it too. dst must not exist.
func snapshotTree(ctx context.Context, src, dst string, readOnly bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	from, err := openDir(src)
	if err != nil {
		return fmt.Errorf("cannot snapshot %s: %w", src, err)
	}
	defer from.Close()
	inner, err := nested(from)
	if err != nil {
		return err
	}
	if err := snapshotOne(from, dst, readOnly && len(inner) == 0); err != nil {
		return err
	}
	for _, rel := range inner {
		target := filepath.Join(dst, rel)
		// The kernel leaves an empty directory where a nested subvolume was.
		if err := os.Remove(target); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("cannot snapshot subvolume %s: %w", filepath.Join(src, rel), err)
		}
		if err := snapshotTree(ctx, filepath.Join(src, rel), target, readOnly); err != nil {
			return err
		}
	}
	if readOnly && len(inner) > 0 {
		return setSubvolumeReadOnly(dst, true)
	}
	return nil
}

func snapshotOne(from *os.File, dst string, readOnly bool) error {
	parent, err := openDir(filepath.Dir(dst))
	if err != nil {
		return fmt.Errorf("cannot snapshot %s: %w", from.Name(), err)
	}
	defer parent.Close()
	args := volArgs2{fd: int64(from.Fd())}
	if readOnly {
		args.flags = subvolReadOnly
	}
	copy(args.name[:len(args.name)-1], filepath.Base(dst))
	if err := ioctl(parent, iocSnapCreate2, unsafe.Pointer(&args)); err != nil {
		return fmt.Errorf("cannot snapshot %s as %s: %w", from.Name(), dst, err)
	}
	return nil
}

func setSubvolumeReadOnly(path string, readOnly bool) error {
	fs, err := btrfs.Open(path, true)
	if err != nil {
		return fmt.Errorf("cannot open subvolume %s: %w", path, err)
	}
	defer fs.Close()
	flags, err := fs.GetFlags()
	if err != nil {
		return fmt.Errorf("cannot read the flags of %s: %w", path, err)
	}
	if flags.ReadOnly() == readOnly {
		return nil
	}
	if err := fs.SetFlags(flags ^ btrfs.SubvolReadOnly); err != nil {
		return fmt.Errorf("cannot change the flags of %s: %w", path, err)
	}
	return nil
}

// removeSubvolume deletes the subvolume at path and those inside it, children first, each by
// the id that was read from an open descriptor. Freeing the space happens in the background.
func removeSubvolume(ctx context.Context, path string) error {
	f, err := openDir(path)
	if err != nil {
		return fmt.Errorf("cannot remove subvolume %s: %w", path, err)
	}
	defer f.Close()
	info, err := subvolumeInfo(f)
	if err != nil {
		return err
	}
	inner, err := nested(f)
	if err != nil {
		return err
	}
	if len(inner) > 0 && info.readOnly {
		if err := setSubvolumeReadOnly(path, false); err != nil {
			return err
		}
	}
	for _, rel := range inner {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := removeSubvolume(ctx, filepath.Join(path, rel)); err != nil {
			return err
		}
	}
	parent, err := openDir(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("cannot remove subvolume %s: %w", path, err)
	}
	defer parent.Close()
	args := volArgs2{flags: subvolByID}
	*(*uint64)(unsafe.Pointer(&args.name)) = info.id
	if err := ioctl(parent, iocDestroy2, unsafe.Pointer(&args)); err != nil {
		err = fmt.Errorf("cannot remove subvolume %s: %w", path, err)
		if errors.Is(err, unix.EBUSY) {
			return fault.Hint(fault.As(fault.State, err), "findmnt %s", path)
		}
		return err
	}
	return nil
}

// wakeCleaner commits the running transaction, which makes btrfs start to free deleted
// subvolumes at once instead of up to half a minute later.
func wakeCleaner(dir *os.File) error {
	if err := ioctl(dir, iocSync, nil); err != nil {
		return fmt.Errorf("cannot sync %s: %w", dir.Name(), err)
	}
	return nil
}
