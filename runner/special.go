// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/runner/spawn"
)

// join moves the thread into the child's network, ipc, host name and cgroup namespaces, where
// file systems that show them must be mounted. The child has made its cgroup namespace by then.
func (b *builder) join() error {
	if b.joined {
		return nil
	}
	if err := b.hear(); err != nil {
		return err
	}
	namespaces := unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP
	if b.plan.Machine.Network == Loopback {
		namespaces |= unix.CLONE_NEWNET
	}
	if err := unix.Setns(b.child.PidFD, namespaces); err != nil {
		return fmt.Errorf("cannot enter the namespaces of the machine: %w", err)
	}
	b.joined = true
	return nil
}

// newProc mounts /proc of the child's pid namespace from outside of it.
func (b *builder) newProc(attr uint64) (int, error) {
	fs, err := unix.Fsopen("proc", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fault.As(fault.Host, err)
	}
	defer func() { unix.Close(fs) }()
	namespace, err := unix.Open("/proc/"+strconv.Itoa(b.child.Pid)+"/ns/pid", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(namespace)
	if unix.FsconfigSetFd(fs, "pidns", namespace) != nil {
		// The option came with Linux 6.17. Before, the context takes the namespace of the
		// process that opens it, so one in there must.
		unix.Close(fs)
		if fs, err = b.openProcInside(); err != nil {
			return -1, err
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("%w%s", err, kernelLog(fs))
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, int(attr))
}

// openProcInside opens the context in a process that is born into the machine's pid namespace,
// shares the descriptors of this one, makes that one call and is gone.
func (b *builder) openProcInside() (int, error) {
	if err := unix.Setns(b.child.PidFD, unix.CLONE_NEWPID); err != nil {
		return -1, fmt.Errorf("cannot enter the pid namespace: %w", err)
	}
	p, err := spawn.New()
	if err != nil {
		return -1, err
	}
	defer p.Close()
	p.Call("open /proc from inside", spawn.Must, unix.SYS_FSOPEN, p.Text("proc"), unix.FSOPEN_CLOEXEC)
	p.Call("exit", spawn.Must, unix.SYS_EXIT_GROUP, 0)
	helper, err := p.Start(unix.CLONE_FILES, -1)
	if err != nil {
		return -1, err
	}
	defer unix.Close(helper.PidFD)
	if _, err := reap(helper.Pid); err != nil {
		return -1, err
	}
	if err := p.Failure(); err != nil {
		return -1, err
	}
	return int(p.Result(0)), nil
}

// scratchFS is a small file system, never seen as a whole, whose inodes are shown by masks and
// for generated files. It is made before the root can be reached by anybody (SEC-10).
func (b *builder) scratchFS() (int, error) {
	if b.scratch >= 0 {
		return b.scratch, nil
	}
	tree, err := b.newFS("tmpfs", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC,
		"mode=0755", "size=1m", "nr_inodes=32", "uid="+b.id(0), "gid="+b.id(0))
	if err != nil {
		return -1, err
	}
	b.scratch = b.keep(tree)
	if err := errors.Join(b.put(tree, "empty", nil, 0o444), unix.Mkdirat(tree, "nothing", 0o555)); err != nil {
		return -1, err
	}
	return tree, nil
}

// show attaches a file or directory of the scratch file system.
func (b *builder) show(name string, target int, attr uint64) error {
	scratch, err := b.scratchFS()
	if err != nil {
		return err
	}
	tree, err := unix.OpenTree(scratch, name, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	if err := b.restrict(tree, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC|attr); err != nil {
		return err
	}
	return attach(tree, target)
}

// mask shows nothing where the kernel shows something about the host. What this kernel does
// not have is passed over.
func (b *builder) mask(op Op) error {
	target, err := b.find(op.Target)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(target)
	var st unix.Stat_t
	if err := unix.Fstat(target, &st); err != nil {
		return err
	}
	name := "empty"
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		name = "nothing"
	}
	return b.show(name, target, unix.MOUNT_ATTR_RDONLY)
}

// readOnly makes a mount, or a directory by a mount of its own, read-only.
func (b *builder) readOnly(op Op) error {
	target, err := b.find(op.Target)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	tree, err := unix.OpenTree(target, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	if err := b.restrict(tree, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC|unix.MOUNT_ATTR_RDONLY); err != nil {
		return err
	}
	return attach(tree, target)
}

const sealGrace = 2 * time.Second

// seal makes an attached mount read-only, without touching its other attributes.
func (b *builder) seal(op Op) error {
	target, err := b.find(op.Target)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	// A process that another thread is starting at this moment may hold a copy of a descriptor
	// that was written through, for some microseconds.
	for deadline := time.Now().Add(sealGrace); ; time.Sleep(100 * time.Microsecond) {
		err := unix.MountSetattr(target, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
		if err != unix.EBUSY || time.Now().After(deadline) {
			return err
		}
	}
}

// bindSysfs shows a directory of a sysfs that belongs to the machine's network namespace.
func (b *builder) bindSysfs(op Op) error {
	if err := b.join(); err != nil {
		return err
	}
	attr, _ := attributes(op.Options)
	if b.sysfs < 0 {
		tree, err := b.newFS("sysfs", attr)
		if err != nil {
			return err
		}
		b.sysfs = b.keep(tree)
	}
	tree, err := unix.OpenTree(b.sysfs, op.Source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	if err := b.restrict(tree, attr); err != nil {
		return err
	}
	target, err := b.find(op.Target)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	return attach(tree, target)
}

// bind attaches a directory or file of the host.
func (b *builder) bind(op Op) error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, op.Source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("cannot open %q: %w", op.Source, err)
	}
	defer unix.Close(tree)
	var st unix.Stat_t
	if err := unix.Fstat(tree, &st); err != nil {
		return err
	}
	kind := st.Mode & unix.S_IFMT
	if kind != unix.S_IFDIR && kind != unix.S_IFREG {
		return fault.New(fault.Policy, "%s is neither a directory nor a regular file", op.Source)
	}
	attr, _ := attributes(op.Options)
	if err := b.restrict(tree, attr); err != nil {
		return err
	}
	target, err := b.mountPoint(op.Target, kind)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	return attach(tree, target)
}

// maxResolv bounds what is taken of the host's resolv.conf, in bytes.
const maxResolv = 64 << 10

// placeholder is an empty file that was made in the root to mount something on it.
type placeholder struct {
	dir   int
	name  string
	inode uint64
}

// remove takes the placeholder away, unless it is something else by now. It must be called on
// the machine's thread, when nothing runs in the machine any more: elsewhere, what is mounted
// on it would be in the way for as long as the mount namespace lives.
func (p *placeholder) remove() error {
	defer unix.Close(p.dir)
	if err := unix.Fchdir(p.dir); err != nil {
		return fault.New(fault.Failed, "cannot remove the empty %s from the tree: %w", p.name, err)
	}
	_ = unix.Unmount(p.name, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	var st unix.Stat_t
	if unix.Fstatat(p.dir, p.name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil || st.Ino != p.inode || st.Size != 0 {
		return nil
	}
	if err := unix.Unlinkat(p.dir, p.name, 0); err != nil {
		return fault.New(fault.Failed, "cannot remove the empty %s from the tree: %w", p.name, err)
	}
	return nil
}

// bindResolv shows the host's resolvers in the machine. The tree is not written to, except that
// an empty file is put where it has none, and is removed when the machine ends.
func (b *builder) bindResolv(op Op) error {
	data, err := readBounded("/etc/resolv.conf", maxResolv)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cannot read the resolvers of the host: %w", err)
	}
	scratch, err := b.scratchFS()
	if err != nil {
		return err
	}
	if err := b.put(scratch, "resolv.conf", data, 0o644); err != nil {
		return err
	}
	target, err := b.resolvPoint(op.Target)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	return b.show("resolv.conf", target, unix.MOUNT_ATTR_RDONLY)
}

// resolvPoint finds what /etc/resolv.conf is in the end: distributions make it a link into
// /run, where nothing exists yet.
func (b *builder) resolvPoint(target string) (int, error) {
	for range 10 {
		// Links are followed by hand, so that what a dangling one points to can be made.
		link, err := openBelow(b.root, target, unix.O_PATH|unix.O_NOFOLLOW, 0)
		if errors.Is(err, unix.ENOENT) {
			return b.makeResolv(target)
		}
		if err != nil {
			return -1, err
		}
		var st unix.Stat_t
		if err := unix.Fstat(link, &st); err != nil {
			unix.Close(link)
			return -1, err
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			return link, nil
		case unix.S_IFLNK:
			buffer := make([]byte, 4096)
			n, err := unix.Readlinkat(link, "", buffer)
			unix.Close(link)
			if err != nil {
				return -1, err
			}
			target = joinLink(target, string(buffer[:n]))
		default:
			unix.Close(link)
			return -1, fault.New(fault.Policy, "%s in the root is not a regular file", target)
		}
	}
	return -1, fault.New(fault.Policy, "%s in the root is a loop of symbolic links", target)
}

func (b *builder) makeResolv(target string) (int, error) {
	if err := b.asOwner(func() error { return b.makePoint(target, unix.S_IFREG) }); err != nil {
		return -1, fmt.Errorf("cannot make %s in the root: %w", target, err)
	}
	fd, err := b.find(target)
	if err != nil {
		return -1, err
	}
	var st, root unix.Stat_t
	if err := errors.Join(unix.Fstat(fd, &st), unix.Fstat(b.root, &root)); err != nil {
		unix.Close(fd)
		return -1, err
	}
	if st.Dev == root.Dev { // not in /run or another file system of the machine's own
		err := b.in(target, func(dir int, name string) error {
			kept, err := unix.FcntlInt(uintptr(dir), unix.F_DUPFD_CLOEXEC, 0)
			b.placed = &placeholder{dir: kept, name: name, inode: st.Ino}
			return err
		})
		if err != nil {
			unix.Close(fd)
			return -1, err
		}
	}
	return fd, nil
}

// readBounded reads a regular file of the host.
func readBounded(name string, limit int64) ([]byte, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.LimitReader(file, limit))
}

// loopbackUp switches on the one interface of a new network namespace. The thread stands in it.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fault.New(fault.Failed, "cannot open a socket in the machine: %w", err)
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	err = unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
	runtime.KeepAlive(request)
	if err != nil {
		return fault.New(fault.Failed, "cannot switch on the loopback interface: %w", err)
	}
	return nil
}
