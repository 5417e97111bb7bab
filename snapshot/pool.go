// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/internal/undo"
)

// A pool is a file with a btrfs in it, mounted on the machines directory. Its usual name,
// DIR.raw, is the one that systemd's var-lib-machines.mount mounts when the host starts;
// Open mounts it where that has not happened.

// minPool is the least size of a pool in bytes: below it btrfs mixes data and metadata, and
// no distribution fits.
const minPool = 512 << 20

// PoolFile is the file of the pool for a machines directory.
func PoolFile(dir string) string { return filepath.Clean(dir) + ".raw" }

// Pool is the state of a pool. Sizes are bytes.
type Pool struct {
	Dir     string `json:"dir"`
	File    string `json:"file"`
	Exists  bool   `json:"exists"`
	Mounted bool   `json:"mounted"`
	Device  string `json:"device,omitempty"`
	Size    int64  `json:"size"`
	Free    int64  `json:"free"` // -1 while it is not mounted
}

// PoolStatus looks at the pool of a machines directory.
func PoolStatus(_ context.Context, dir string) (Pool, error) {
	p := Pool{Dir: dir, File: PoolFile(dir), Free: -1}
	st, err := os.Stat(p.File)
	if errors.Is(err, os.ErrNotExist) {
		return p, nil
	}
	if err != nil {
		return p, fault.New(fault.Host, "cannot look at the pool: %w", err)
	}
	p.Exists, p.Size = true, st.Size()
	if p.Device = loopOf(p.File); p.Device == "" || !onBtrfs(dir) || !mountPoint(dir) {
		return p, nil
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return p, fault.New(fault.Host, "cannot look at the pool: %w", err)
	}
	p.Mounted, p.Free = true, int64(fs.Bavail)*fs.Bsize
	return p, nil
}

// loopOf is the loop device that a file is attached to, or "".
func loopOf(file string) string {
	loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file") // the pattern is a constant
	for _, l := range loops {
		if data, err := os.ReadFile(l); err == nil && strings.TrimSuffix(string(data), "\n") == file {
			return "/dev/" + filepath.Base(filepath.Dir(filepath.Dir(l)))
		}
	}
	return ""
}

func mountPoint(dir string) bool {
	var a, b unix.Statx_t
	return unix.Statx(unix.AT_FDCWD, dir, 0, unix.STATX_MNT_ID, &a) == nil &&
		unix.Statx(unix.AT_FDCWD, filepath.Dir(filepath.Clean(dir)), 0, unix.STATX_MNT_ID, &b) == nil && a.Mnt_id != b.Mnt_id
}

// CreatePool makes a btrfs of size bytes in a file and mounts it on the machines directory
// dir, which must be empty. The space is taken from the file system at once, so that the pool
// cannot run out of room that it was promised. There is no maker of btrfs in Go: this is the
// one place that runs a program, mkfs.btrfs.
func CreatePool(ctx context.Context, dir string, size int64) (_ Pool, err error) {
	fail := func(c fault.Class, err error) (Pool, error) {
		return Pool{}, fault.New(c, "cannot create a pool for %s: %w", dir, err)
	}
	if os.Geteuid() != 0 {
		return fail(fault.Host, errors.New("this needs root"))
	}
	if size < minPool {
		return fail(fault.Config, fmt.Errorf("%d MiB are less than %d MiB", size>>20, minPool>>20))
	}
	if onBtrfs(dir) {
		return fail(fault.State, errors.New("it is on btrfs already"))
	}
	mkfs, err := findProgram("mkfs.btrfs")
	if err != nil {
		return Pool{}, fault.Hint(fault.New(fault.Host, "cannot create a pool for %s: %w", dir, err), "install btrfs-progs")
	}
	if err := prepareDir(dir); err != nil {
		return Pool{}, err
	}
	if names, err := entryNames(dir); err != nil || len(names) > 0 {
		return Pool{}, fault.Hint(fault.New(fault.State, "cannot create a pool for %s: it is not empty", dir),
			"the pool would hide what is there: move it away first")
	}
	var u undo.Stack
	defer u.Run(&err)
	file := PoolFile(dir)
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_CLOEXEC, 0o600)
	if errors.Is(err, os.ErrExist) {
		return fail(fault.State, err)
	}
	if err != nil {
		return fail(fault.Host, err)
	}
	u.Add(func() error { return os.Remove(file) })
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err != nil {
		return fail(fault.Host, fmt.Errorf("cannot take %d MiB from its file system: %w", size>>20, err))
	}
	if out, err := exec.CommandContext(ctx, mkfs, "-q", "-L", "mkmachine", file).CombinedOutput(); err != nil {
		return fail(fault.Host, fmt.Errorf("mkfs.btrfs: %w: %s", err, strings.TrimSpace(string(out))))
	}
	if err := AttachPool(ctx, dir); err != nil {
		return Pool{}, err
	}
	u.Keep()
	return PoolStatus(ctx, dir)
}

// findProgram looks where administrators' programs are, which is not in every user's PATH.
func findProgram(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if p, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s is not installed", name)
}

// AttachPool mounts the pool of a machines directory. The loop device goes away with the mount.
func AttachPool(_ context.Context, dir string) error {
	file := PoolFile(dir)
	fail := func(err error) error { return fault.New(fault.Host, "cannot mount the pool %s: %w", file, err) }
	f, err := os.OpenFile(file, os.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail(err)
	}
	defer f.Close()
	device, err := attachLoop(f)
	if err != nil {
		return fail(err)
	}
	defer device.Close() // from the mount on, the mount holds it
	if err := unix.Mount(device.Name(), dir, "btrfs", unix.MS_NODEV|unix.MS_NOATIME, ""); err != nil {
		return fail(err)
	}
	return os.Chmod(dir, 0o700) // the root directory of a new btrfs is open to all
}

// attachLoop makes a file a block device that vanishes with its last user.
func attachLoop(f *os.File) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	for range 64 { // others take free devices, too
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("no loop device is free: %w", err)
		}
		device, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		config := unix.LoopConfig{Fd: uint32(f.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}}
		copy(config.Info.File_name[:len(config.Info.File_name)-1], f.Name())
		if err = unix.IoctlLoopConfigure(int(device.Fd()), &config); err == nil {
			return device, nil
		}
		device.Close()
		if err != unix.EBUSY {
			return nil, fmt.Errorf("cannot set up %s: %w", device.Name(), err)
		}
	}
	return nil, errors.New("no loop device is free")
}

// mountPool mounts the pool of a machines directory that has one and is not in use without it.
func mountPool(ctx context.Context, dir string) error {
	file := PoolFile(dir)
	st, err := os.Lstat(file)
	if err != nil || !st.Mode().IsRegular() || mountPoint(dir) {
		return nil
	}
	if _, err := os.Lstat(filepath.Join(dir, stateDir)); err == nil {
		return nil
	}
	if names, err := entryNames(dir); err != nil || len(names) > 0 || !btrfsFile(file) {
		return nil // an image that happens to lie there, or a directory in use
	}
	return AttachPool(ctx, dir)
}

// btrfsFile says whether a file begins like a btrfs: its magic is 64 bytes into the first superblock.
func btrfsFile(file string) bool {
	f, err := os.Open(file)
	if err != nil {
		return false
	}
	defer f.Close()
	magic := make([]byte, 8)
	_, err = f.ReadAt(magic, 64<<10+64)
	return err == nil && string(magic) == "_BHRfS_M"
}
