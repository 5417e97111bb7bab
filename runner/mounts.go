// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/runner/spawn"
)

// builder carries out the operations of a plan on the thread that owns the mount namespace.
// Every target is looked up below the new root by the kernel and used by descriptor.
type builder struct {
	plan    *Plan
	base    uint32 // what id 0 of the machine is outside
	userNS  int    // descriptor, or -1
	child   *spawn.Process
	root    int   // descriptor of the attached root mount
	scratch int   // file system that holds what masks and generated files show
	sysfs   int   // of the machine's network namespace, once asked for
	opened  []int // closed at the end
	joined  bool  // the thread stands in the child's other namespaces
	hear    func() error
	placed  *placeholder
}

// apply carries out one operation.
func (b *builder) apply(op Op) error {
	var err error
	switch op.Kind {
	case "root":
		err = b.mountRoot(op)
	case "overlay":
		err = b.mountOverlay(op)
	case "fs":
		err = b.mountFS(op)
	case "node":
		err = b.makeNode(op)
	case "link":
		err = b.in(op.Target, func(dir int, name string) error {
			return errors.Join(unix.Symlinkat(op.Source, dir, name), b.own(dir, name))
		})
	case "dir":
		err = b.in(op.Target, func(dir int, name string) error {
			if err := unix.Mkdirat(dir, name, 0o755); err != nil {
				return err
			}
			return errors.Join(b.own(dir, name), unix.Fchmodat(dir, name, modeOf(op.Options), 0))
		})
	case "copy":
		err = b.copyFile(op)
	case "mask":
		err = b.mask(op)
	case "readonly":
		err = b.readOnly(op)
	case "seal":
		err = b.seal(op)
	case "loopback":
		if err = b.join(); err == nil {
			err = loopbackUp()
		}
	case "sysfs":
		err = b.bindSysfs(op)
	case "bind":
		err = b.bind(op)
	case "resolv":
		err = b.bindResolv(op)
	case "pivot":
		err = pivot(b.root)
	case "hostname":
		if err = b.join(); err == nil {
			err = unix.Sethostname([]byte(op.Target))
		}
	default:
		return fault.New(fault.Internal, "internal error: unknown operation %q", op.Kind)
	}
	if err != nil {
		class := fault.ClassOf(err)
		return fault.As(class, fmt.Errorf("cannot do %s %s: %w", op.Kind, op.Target, err))
	}
	return nil
}

func (b *builder) keep(fd int) int {
	b.opened = append(b.opened, fd)
	return fd
}

func (b *builder) close() error {
	var errs []error
	for _, fd := range b.opened {
		errs = append(errs, unix.Close(fd))
	}
	b.opened = nil
	return errors.Join(errs...)
}

// find opens a path below the new root as a location. Links are not followed anywhere in it:
// a root that has one where a mount point belongs is refused (RFS-01).
func (b *builder) find(target string) (int, error) {
	fd, err := openBelow(b.root, target, unix.O_PATH|unix.O_NOFOLLOW, unix.RESOLVE_NO_SYMLINKS)
	if errors.Is(err, unix.ELOOP) {
		return -1, fault.New(fault.Policy, "%s is a symbolic link in the root, or below one", target)
	}
	return fd, err
}

// openBelow resolves a path inside of root as chroot(2) would.
func openBelow(root int, target string, flags int, resolve uint64) (int, error) {
	how := &unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: resolve | unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	relative := strings.TrimPrefix(path.Clean("/"+target), "/")
	if relative == "" {
		relative = "."
	}
	for tries := 0; ; tries++ {
		fd, err := unix.Openat2(root, relative, how)
		if err != unix.EAGAIN && err != unix.EINTR || tries > 1000 {
			return fd, err
		}
	}
}

// in calls work with the directory of target, and its last name.
func (b *builder) in(target string, work func(dir int, name string) error) error {
	dir, err := b.find(path.Dir(target))
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	return work(dir, path.Base(target))
}

// own gives a new file to the machine's root.
func (b *builder) own(dir int, name string) error {
	return unix.Fchownat(dir, name, int(b.base), int(b.base), unix.AT_SYMLINK_NOFOLLOW)
}

func modeOf(options []string) uint32 {
	for _, o := range options {
		if text, ok := strings.CutPrefix(o, "mode="); ok {
			mode, _ := strconv.ParseUint(text, 8, 32)
			return uint32(mode)
		}
	}
	return 0o755
}

// attributes separates mount attributes from the options of a file system.
func attributes(options []string) (attr uint64, rest []string) {
	for _, o := range options {
		switch o {
		case "nosuid":
			attr |= unix.MOUNT_ATTR_NOSUID
		case "nodev":
			attr |= unix.MOUNT_ATTR_NODEV
		case "noexec":
			attr |= unix.MOUNT_ATTR_NOEXEC
		case "ro":
			attr |= unix.MOUNT_ATTR_RDONLY
		case "idmap":
			attr |= unix.MOUNT_ATTR_IDMAP
		default:
			rest = append(rest, o)
		}
	}
	return attr, rest
}

// restrict sets the attributes of a detached mount.
func (b *builder) restrict(tree int, attr uint64) error {
	a := &unix.MountAttr{Attr_set: attr, Propagation: unix.MS_PRIVATE}
	if attr&unix.MOUNT_ATTR_IDMAP != 0 {
		a.Userns_fd = uint64(b.userNS)
	}
	err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, a)
	if err == unix.EINVAL && attr&unix.MOUNT_ATTR_IDMAP != 0 {
		return fault.Hint(fault.New(fault.Host, "cannot map ids: the file system does not support it"),
			"keep machines on ext4, btrfs, xfs or tmpfs, or run it trusted")
	}
	return err
}

func attach(tree, target int) error {
	return unix.MoveMount(tree, "", target, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// kernelLog gives what the kernel has to say about a failed file system context.
func kernelLog(fs int) string {
	buffer := make([]byte, 1024)
	var out []string
	for range 8 {
		n, err := unix.Read(fs, buffer)
		if err != nil || n <= 2 {
			break
		}
		out = append(out, strings.TrimSpace(string(buffer[2:n])))
	}
	if len(out) == 0 {
		return ""
	}
	return " (" + strings.Join(out, "; ") + ")"
}

// mountFS mounts a kernel file system on a directory, which is made where the root lacks it.
func (b *builder) mountFS(op Op) error {
	if op.Source == "mqueue" || op.Source == "cgroup2" {
		if err := b.join(); err != nil {
			return err
		}
	}
	attr, options := attributes(op.Options)
	var tree int
	var err error
	switch op.Source {
	case "tmpfs":
		tree, err = b.newFS("tmpfs", attr, append(options, "uid="+b.id(0), "gid="+b.id(0))...)
	case "devpts":
		for i, o := range options {
			if gid, ok := strings.CutPrefix(o, "gid="); ok {
				n, _ := strconv.ParseUint(gid, 10, 16)
				options[i] = "gid=" + b.id(uint32(n))
			}
		}
		tree, err = b.newFS("devpts", attr, options...)
	case "proc":
		tree, err = b.newProc(attr)
	default:
		tree, err = b.newFS(op.Source, attr, options...)
	}
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	target, err := b.mountPoint(op.Target, unix.S_IFDIR)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	return attach(tree, target)
}

func (b *builder) id(n uint32) string { return strconv.FormatUint(uint64(b.base+n), 10) }

// newFS makes a detached mount of a new file system.
func (b *builder) newFS(kind string, attr uint64, options ...string) (int, error) {
	fs, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fault.As(fault.Host, err)
	}
	defer unix.Close(fs)
	for _, o := range options {
		key, value, hasValue := strings.Cut(o, "=")
		if hasValue {
			err = unix.FsconfigSetString(fs, key, value)
		} else {
			err = unix.FsconfigSetFlag(fs, key)
		}
		if err != nil {
			return -1, fmt.Errorf("cannot set %s: %w%s", o, err, kernelLog(fs))
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("%w%s", err, kernelLog(fs))
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, int(attr))
}

// mountPoint opens a directory or regular file of the root, made where it is missing.
func (b *builder) mountPoint(target string, kind uint32) (int, error) {
	fd, err := b.find(target)
	if errors.Is(err, unix.ENOENT) {
		if err := b.asOwner(func() error { return b.makePoint(target, kind) }); err != nil {
			return -1, fmt.Errorf("cannot make the mount point: %w", err)
		}
		fd, err = b.find(target)
	}
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return -1, err
	}
	if st.Mode&unix.S_IFMT != kind {
		unix.Close(fd)
		return -1, fault.New(fault.Policy, "%s in the root is not of the kind that it should be (mode %#o)", target, st.Mode)
	}
	return fd, nil
}

// makePoint makes a directory, or an empty file, and the directories above it.
func (b *builder) makePoint(target string, kind uint32) error {
	dir, err := openBelow(b.root, "/", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	names := strings.Split(strings.Trim(path.Clean(target), "/"), "/")
	for i, name := range names {
		if i == len(names)-1 && kind == unix.S_IFREG {
			fd, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
			unix.Close(dir)
			if err != nil {
				return err
			}
			return unix.Close(fd)
		}
		if err := unix.Mkdirat(dir, name, 0o755); err != nil && err != unix.EEXIST {
			unix.Close(dir)
			return err
		}
		next, err := unix.Openat(dir, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		unix.Close(dir)
		if err != nil {
			return err
		}
		dir = next
	}
	return unix.Close(dir)
}

// asOwner does work on files as the machine's root: on an id-mapped mount the host's own ids
// do not exist. Only this thread changes.
func (b *builder) asOwner(work func() error) error {
	if b.base == 0 {
		return work()
	}
	setFS := func(uid, gid uint32) {
		_, _, _ = unix.RawSyscall(unix.SYS_SETFSGID, uintptr(gid), 0, 0)
		_, _, _ = unix.RawSyscall(unix.SYS_SETFSUID, uintptr(uid), 0, 0)
	}
	setFS(b.base, b.base)
	defer setFS(0, 0)
	return work()
}

func (b *builder) makeNode(op Op) error {
	var major, minor uint32
	if _, err := fmt.Sscanf(op.Options[0], "c%d:%d", &major, &minor); err != nil {
		return err
	}
	return b.in(op.Target, func(dir int, name string) error {
		err := unix.Mknodat(dir, name, unix.S_IFCHR|0o666, int(unix.Mkdev(major, minor)))
		if err == nil {
			return errors.Join(b.own(dir, name), unix.Fchmodat(dir, name, modeOf(op.Options), 0))
		}
		if err != unix.EPERM {
			return err
		}
		// In a container of somebody else's, nodes cannot be made; those of the host can be shown.
		return b.bindNode(op.Target, name, major, minor)
	})
}

func (b *builder) bindNode(target, name string, major, minor uint32) error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, "/dev/"+name, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	var st unix.Stat_t
	if err := unix.Fstat(tree, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(major, minor) {
		return fault.New(fault.Host, "/dev/%s of the host is not device %d:%d", name, major, minor)
	}
	if err := b.restrict(tree, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC); err != nil {
		return err
	}
	point, err := b.mountPoint(target, unix.S_IFREG)
	if err != nil {
		return err
	}
	defer unix.Close(point)
	return attach(tree, point)
}

// copyFile makes a small read-only file with what a file of the host says now.
func (b *builder) copyFile(op Op) error {
	file, err := os.Open(op.Source)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	data, err := io.ReadAll(io.LimitReader(file, 4096))
	file.Close()
	if err != nil {
		return err
	}
	return b.in(op.Target, func(dir int, name string) error { return b.put(dir, name, data, 0o444) })
}

func (b *builder) put(dir int, name string, data []byte, mode uint32) error {
	fd, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for len(data) > 0 {
		n, err := unix.Write(fd, data)
		if err != nil {
			return err
		}
		data = data[n:]
	}
	return errors.Join(unix.Fchmod(fd, mode), unix.Fchown(fd, int(b.base), int(b.base)))
}

// joinLink is where a link that stands at target points, as an absolute path below the root.
func joinLink(target, link string) string {
	if path.IsAbs(link) {
		return path.Clean(link)
	}
	return path.Join(path.Dir(target), link)
}
