// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"fmt"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/fault"
)

func (b *builder) mountRoot(op Op) error {
	m := b.plan.Machine
	dir, name := unix.AT_FDCWD, m.Root
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if m.RootFD > 0 {
		dir, name, flags = m.RootFD, "", flags|unix.AT_EMPTY_PATH
	}
	tree, err := unix.OpenTree(dir, name, flags)
	if err != nil {
		return fmt.Errorf("cannot open %q: %w", m.Root, err)
	}
	b.keep(tree)
	return b.attachRoot(tree, op)
}

func (b *builder) attachRoot(tree int, op Op) error {
	var st unix.Stat_t
	if err := unix.Fstat(tree, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return fault.New(fault.Config, "the root is not a directory")
	}
	attr, _ := attributes(op.Options)
	// The root stays writable until all mount points are there.
	if err := b.restrict(tree, attr&^unix.MOUNT_ATTR_RDONLY); err != nil {
		return err
	}
	b.root = tree
	return unix.MoveMount(tree, "", unix.AT_FDCWD, "/", unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// mountOverlay makes the root of layers. Overlayfs cannot be id-mapped itself; its layers can.
func (b *builder) mountOverlay(op Op) error {
	o := b.plan.Machine.Overlay
	attr, _ := attributes(op.Options)
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return err
	}
	b.keep(fs)
	layer := func(key, dir string, extra uint64) error {
		tree, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
		if err != nil {
			return fmt.Errorf("cannot open layer %q: %w", dir, err)
		}
		b.keep(tree)
		if err := b.restrict(tree, attr&unix.MOUNT_ATTR_IDMAP|unix.MOUNT_ATTR_NODEV|extra); err != nil {
			return fmt.Errorf("cannot use layer %q: %w", dir, err)
		}
		if err := setLayer(fs, key, tree); err != nil {
			return fmt.Errorf("cannot use layer %q: %w", dir, err)
		}
		return nil
	}
	for _, dir := range o.Lower {
		if err := layer("lowerdir+", dir, unix.MOUNT_ATTR_RDONLY); err != nil {
			return err
		}
	}
	if o.Upper != "" {
		// Work and upper directory must lie on the same mount.
		if err := b.upper(fs, o, attr); err != nil {
			return err
		}
	}
	// Overlayfs creates files in its layers as whoever mounted it (overlayfs.rst, "Permission
	// model"). On a mapped layer the host's root has no id to create them with, and the kernel
	// would quietly make the overlay read-only; so the machine's root mounts it, with the
	// capabilities that go with file system id 0 taken again.
	err = b.asOwner(func() error {
		if err := raiseCaps(); err != nil {
			return err
		}
		return unix.FsconfigCreate(fs)
	})
	if err != nil {
		return fmt.Errorf("%w%s", err, kernelLog(fs))
	}
	tree, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%w%s", err, kernelLog(fs))
	}
	b.keep(tree)
	var st unix.Statfs_t
	if err := unix.Fstatfs(tree, &st); err != nil {
		return err
	}
	if o.Upper != "" && st.Flags&unix.ST_RDONLY != 0 {
		// The kernel tries the upper layer by creating something in it.
		if full(o.Upper) {
			err := fault.New(fault.Failed, "the kernel made the overlay read-only: %w on the file system of %s", unix.ENOSPC, o.Upper)
			return fault.Hint(err, "free space there: mkmachine clean, or mkmachine remove NAME")
		}
		return fault.New(fault.Failed, "the kernel made the overlay read-only; its log says why")
	}
	op.Options = remove(op.Options, "idmap")
	return b.attachRoot(tree, op)
}

// raiseCaps makes the calling thread's permitted capabilities effective.
func raiseCaps() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("cannot read capabilities: %w", err)
	}
	for i := range data {
		data[i].Effective = data[i].Permitted
	}
	if err := unix.Capset(&header, &data[0]); err != nil {
		return fmt.Errorf("cannot raise capabilities: %w", err)
	}
	return nil
}

// upper adds the writable layer. The kernel wants its two directories on the same mount, so a
// clone of the directory above both is mapped, and they are opened through it.
func (b *builder) upper(fs int, o *Overlay, attr uint64) error {
	above := commonDir(o.Upper, o.Work)
	tree, err := unix.OpenTree(unix.AT_FDCWD, above, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return fmt.Errorf("cannot open layer %q: %w", above, err)
	}
	b.keep(tree)
	if err := b.restrict(tree, attr&unix.MOUNT_ATTR_IDMAP|unix.MOUNT_ATTR_NODEV); err != nil {
		return fmt.Errorf("cannot use layer %q: %w", o.Upper, err)
	}
	for _, l := range [][2]string{{"upperdir", o.Upper}, {"workdir", o.Work}} {
		dir, err := openBelow(tree, strings.TrimPrefix(l[1], above), unix.O_PATH|unix.O_DIRECTORY, unix.RESOLVE_NO_SYMLINKS)
		if err != nil {
			return fmt.Errorf("cannot open layer %q: %w", l[1], err)
		}
		b.keep(dir)
		if err := setLayer(fs, l[0], dir); err != nil {
			return fmt.Errorf("cannot use layer %q: %w", l[1], err)
		}
	}
	return nil
}

// setLayer gives overlayfs a directory by descriptor.
func setLayer(fs int, key string, dir int) error {
	err := unix.FsconfigSetFd(fs, key, dir)
	if err == unix.EINVAL || err == unix.EBADF { // before Linux 6.13 layers are paths
		err = unix.FsconfigSetString(fs, key, "/proc/self/fd/"+strconv.Itoa(dir))
	}
	if err != nil {
		return fmt.Errorf("%w%s", err, kernelLog(fs))
	}
	return nil
}

func commonDir(a, b string) string {
	for a = path.Dir(path.Clean(a)); a != "/" && !strings.HasPrefix(path.Clean(b), a+"/"); {
		a = path.Dir(a)
	}
	return a
}

func remove(list []string, item string) []string {
	var out []string
	for _, e := range list {
		if e != item {
			out = append(out, e)
		}
	}
	return out
}

// full says whether a file system has no room for another directory.
func full(path string) bool {
	var fs unix.Statfs_t
	if unix.Statfs(path, &fs) != nil {
		return false
	}
	// Blocks that are kept for the root of the host are none for that of the machine.
	return fs.Bavail < 16 || fs.Files > 0 && fs.Ffree == 0
}
