// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/internal/undo"
	"github.com/mkmachine/mkmachine/runner/seccomp"
	"github.com/mkmachine/mkmachine/runner/spawn"
)

// ConfineOptions tunes Confine. Zero values mean what each field says.
type ConfineOptions struct {
	ReadOnly  bool   // the directory cannot be written
	Memory    uint64 // bytes of private memory (RLIMIT_DATA); 0: 4 GiB
	FileSize  uint64 // largest file, in bytes (RLIMIT_FSIZE); 0: 64 GiB
	OpenFiles uint64 // open descriptors (RLIMIT_NOFILE); 0: 4096
}

// Confined is a running confined process.
type Confined struct {
	// Conn is the parent's end of the entry's connection. Descriptors may be sent over it.
	Conn *net.UnixConn

	process *spawn.Process
	program *spawn.Program
	stderr  *os.File
	exited  chan struct{}
	status  unix.WaitStatus
	waitErr error
	close   sync.Once
}

// confinedCaps is what an entry may do, in its own user namespace only.
var confinedCaps = []uintptr{unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_DAC_READ_SEARCH, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_SETFCAP}

// Confine runs a registered entry in a process that sees only the directory root, as its /.
//
// The process stands in new user, mount, pid, network, ipc and uts namespaces. Ids 0 to 65535
// are mapped to themselves, so that it writes trees with the owners they shall have, but its
// capabilities hold only against files of those owners below root. Its mount namespace belongs
// to the caller's user namespace: it cannot mount. It may make the system calls that reading
// and writing files needs, and no others; it cannot execute anything. It dies with its parent.
// It needs root. Errors are of class fault.Host where the kernel lacks something.
func Confine(ctx context.Context, entry, root string, opts *ConfineOptions) (*Confined, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if opts == nil {
		opts = &ConfineOptions{}
	}
	if entry == "" || entry == initEntry {
		return nil, fault.New(fault.Internal, "internal error: %q is no entry for a confined process", entry)
	}
	c := &Confined{exited: make(chan struct{})}
	started := make(chan error)
	onOwnThread(func() {
		err := c.start(entry, root, opts)
		started <- err
		if err != nil {
			return
		}
		c.status, c.waitErr = reap(c.process.Pid)
		close(c.exited)
	})
	if err := <-started; err != nil {
		return nil, wrapConfine(root, err)
	}
	context.AfterFunc(ctx, func() { c.kill() })
	return c, nil
}

func wrapConfine(root string, err error) error {
	return fault.As(fault.ClassOf(err), errorf("cannot start a confined process for %q: %w", root, err))
}

// start does all the work, on a thread of its own that is the child's parent.
func (c *Confined) start(entry, root string, opts *ConfineOptions) (err error) {
	var u, always undo.Stack
	defer always.Run(&err)
	defer func() {
		if err != nil {
			u.Run(&err)
		}
	}()
	image, err := selfImage()
	if err != nil {
		return err
	}
	fds, err := childFiles()
	if err != nil {
		return err
	}
	always.Add(fds.closeChildEnds)
	u.Add(fds.closeParentEnds)

	if err := enterMountNamespace(); err != nil {
		return err
	}
	c.program, err = spawn.New()
	if err != nil {
		return err
	}
	u.Add(c.program.Close)
	c.prepare(image, fds, entry, opts)
	const namespaces = unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS
	c.process, err = c.program.Start(namespaces, -1)
	if err != nil {
		return hostLacksNamespaces(err)
	}
	u.Add(func() error {
		_ = unix.PidfdSendSignal(c.process.PidFD, unix.SIGKILL, nil, 0)
		_, waitErr := reap(c.process.Pid)
		return errors.Join(waitErr, unix.Close(c.process.PidFD))
	})
	if err := writeIDMaps(c.process.Pid, "0 0 65536\n"); err != nil {
		return err
	}
	// Only now: the kernel makes no user namespace for a thread whose root is covered.
	tree, err := unix.OpenTree(unix.AT_FDCWD, root, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return fault.New(fault.Failed, "cannot open %q: %w", root, err)
	}
	always.Add(func() error { return unix.Close(tree) })
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC, Propagation: unix.MS_PRIVATE}
	if opts.ReadOnly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, attr); err != nil {
		return fault.New(fault.Failed, "cannot restrict the mount: %w", err)
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, "/", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fault.New(fault.Failed, "cannot attach the tree: %w", err)
	}

	// Changes the root of the child, too: it stands in this mount namespace.
	if err := pivot(tree); err != nil {
		return err
	}
	if err := fds.release(); err != nil {
		return errors.Join(err, c.program.Failure())
	}
	c.Conn, c.stderr = fds.conn, fds.stderrRead
	return nil
}

// prepare writes down what the child does before it executes the sealed program.
func (c *Confined) prepare(image *os.File, fds *childEnds, entry string, opts *ConfineOptions) {
	p := c.program
	p.Call("follow the parent's death", spawn.Must, unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL))
	fds.take(p, image)
	fds.await(p)
	p.Call("become group 0", spawn.Must, unix.SYS_SETRESGID, 0, 0, 0)
	p.Call("drop groups", spawn.Must, unix.SYS_SETGROUPS, 0, 0)
	p.Call("become user 0", spawn.Must, unix.SYS_SETRESUID, 0, 0, 0)
	p.Call("follow the parent's death", spawn.Must, unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL))
	p.Call("become a session leader", spawn.Must, unix.SYS_SETSID)
	p.Call("set the file mode mask", spawn.Must, unix.SYS_UMASK, 0)
	limit := func(name string, resource, value, fallback uint64) {
		if value == 0 {
			value = fallback
		}
		p.Call("limit "+name, spawn.Must, unix.SYS_PRLIMIT64, 0, uintptr(resource), p.Words(uintptr(value), uintptr(value)), 0)
	}
	limit("memory", unix.RLIMIT_DATA, opts.Memory, 4<<30)
	limit("the size of files", unix.RLIMIT_FSIZE, opts.FileSize, 64<<30)
	limit("open files", unix.RLIMIT_NOFILE, opts.OpenFiles, 4096)
	p.Call("forbid core dumps", spawn.Must, unix.SYS_PRLIMIT64, 0, unix.RLIMIT_CORE, p.Words(0, 0), 0)
	dropCaps(p, confinedCaps)
	p.Call("give up new privileges", spawn.Must, unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	fds.exec(p, entry)
}

// sealEntry closes the last doors of a confined process, from inside: from here on only
// system calls on files and memory work, on all threads.
func sealEntry() error {
	return seccomp.Install(seccomp.Files())
}

// Wait waits until the process is gone and gives nil, what the entry returned, or how it died.
func (c *Confined) Wait() error {
	<-c.exited
	defer c.Close()
	if c.waitErr != nil {
		return fault.As(fault.Internal, c.waitErr)
	}
	if c.status.Exited() && c.status.ExitStatus() == 0 {
		return nil
	}
	if err := c.program.Failure(); err != nil {
		return fault.New(fault.Host, "cannot set up the confined process: %w", err)
	}
	text := readTail(c.stderr)
	switch {
	case c.status.Signaled():
		return fault.New(fault.Failed, "the confined process was killed by %v%s", c.status.Signal(), text)
	case text == "":
		return fault.New(fault.Failed, "the confined process exited with status %d", c.status.ExitStatus())
	}
	return fault.New(fault.Failed, "%s", strings.TrimPrefix(text, ": "))
}

// readTail gives what a child wrote to its standard error, bounded, as ": TEXT", or "".
func readTail(r io.Reader) string {
	if r == nil {
		return ""
	}
	data, _ := io.ReadAll(io.LimitReader(r, 16<<10))
	if text := strings.TrimSpace(string(bytes.ToValidUTF8(data, []byte("?")))); text != "" {
		return ": " + text
	}
	return ""
}

func (c *Confined) kill() {
	select {
	case <-c.exited:
	default:
		_ = unix.PidfdSendSignal(c.process.PidFD, unix.SIGKILL, nil, 0)
	}
}

// Close kills the process if it still runs, waits until it is gone, and frees everything. It
// may be called more than once, also after Wait.
func (c *Confined) Close() error {
	var err error
	c.close.Do(func() {
		c.kill()
		<-c.exited
		err = errors.Join(c.program.Close(), unix.Close(c.process.PidFD), c.stderr.Close())
		// The caller may have closed its end already, to tell the entry that it is done.
		if e := c.Conn.Close(); e != nil && !errors.Is(e, net.ErrClosed) {
			err = errors.Join(err, e)
		}
	})
	return err
}

// writeIDMaps maps ids of the user namespace of a process, users and groups alike. The text is
// written through a private instance of /proc, so that nothing mounted over the host's can
// redirect it (SEC-11).
func writeIDMaps(pid int, text string) error {
	wrap := func(what string, err error) error { return fault.New(fault.Failed, "cannot %s: %w", what, err) }
	fs, err := unix.Fsopen("proc", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return wrap("open a private /proc", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return wrap("make a private /proc", err)
	}
	proc, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return wrap("mount a private /proc", err)
	}
	defer unix.Close(proc)
	how := &unix.OpenHow{Flags: unix.O_WRONLY | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_SYMLINKS}
	for _, name := range []string{"uid_map", "gid_map"} {
		fd, err := unix.Openat2(proc, strconv.Itoa(pid)+"/"+name, how)
		if err != nil {
			return wrap("open "+name, err)
		}
		_, err = unix.Write(fd, []byte(text))
		unix.Close(fd)
		if err != nil {
			return wrap("write "+name, err)
		}
	}
	return nil
}
