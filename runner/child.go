// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"encoding/binary"
	"errors"
	"net"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/runner/spawn"
)

// childFailed is the exit status of a child that could not do its work.
const childFailed = 125

// childEnds are the descriptors between a parent and a re-executed child.
//
//	parent                child, before it executes       child, after
//	conn        ↔         socket                          3
//	stderrRead  ←         stderrWrite                     2
//	                      null                            0, 1
//
// Before it executes, the child waits for one byte on the socket, so that the parent can
// finish what must be outside first. No other descriptor even reaches that point.
type childEnds struct {
	conn                    *net.UnixConn
	socket, null            int
	stderrRead, stderrWrite *os.File
	kept                    uintptr // in the child: socket, stderrWrite, null, program
}

func childFiles() (*childEnds, error) {
	wrap := func(err error) error { return fault.New(fault.Failed, "cannot connect to a child process: %w", err) }
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, wrap(err)
	}
	f := &childEnds{socket: pair[1], null: -1}
	file := os.NewFile(uintptr(pair[0]), "child")
	conn, err := net.FileConn(file) // duplicates the descriptor
	file.Close()
	if err == nil {
		f.conn = conn.(*net.UnixConn)
		f.stderrRead, f.stderrWrite, err = os.Pipe()
	}
	if err == nil {
		f.null, err = unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		f.closeChildEnds()
		f.closeParentEnds()
		return nil, wrap(err)
	}
	return f, nil
}

func (f *childEnds) closeChildEnds() error {
	var errs []error
	for _, fd := range []int{f.socket, f.null} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	if f.stderrWrite != nil {
		errs = append(errs, f.stderrWrite.Close())
	}
	return errors.Join(errs...)
}

func (f *childEnds) closeParentEnds() error {
	var errs []error
	if f.conn != nil {
		errs = append(errs, f.conn.Close())
	}
	if f.stderrRead != nil {
		errs = append(errs, f.stderrRead.Close())
	}
	return errors.Join(errs...)
}

// take is the first thing that the child does: it keeps four descriptors, out of the way of
// the numbers that they get in the end, and closes its copies of all others. What the parent
// opens, writes or locks meanwhile is not held up by a child that waits.
func (f *childEnds) take(p *spawn.Program, image *os.File) {
	sources := []int{f.socket, int(f.stderrWrite.Fd()), f.null, int(image.Fd())}
	f.kept = uintptr(slices.Max(append(sources, childSocket)) + 1)
	for i, source := range sources {
		p.Call("move a descriptor", spawn.Must, unix.SYS_DUP3, uintptr(source), f.kept+uintptr(i), unix.O_CLOEXEC)
	}
	p.Call("close descriptors", spawn.Must, unix.SYS_CLOSE_RANGE, 0, f.kept-1, 0)
	p.Call("close descriptors", spawn.Must, unix.SYS_CLOSE_RANGE, f.kept+uintptr(len(sources)), uintptr(^uint32(0)), 0)
}

// await makes the child wait for one word. It fails when the parent is dead, since nobody
// else has the other end.
func (f *childEnds) await(p *spawn.Program) {
	p.Call("wait for the parent", spawn.One, unix.SYS_READ, f.kept, p.Bytes([]byte{0}), 1)
}

// tell makes the child send one word to the parent.
func (f *childEnds) tell(p *spawn.Program) {
	p.Call("tell the parent", spawn.One, unix.SYS_WRITE, f.kept, p.Bytes([]byte{1}), 1)
}

// release lets a waiting child go on.
func (f *childEnds) release() error {
	if _, err := f.conn.Write([]byte{1}); err != nil {
		return fault.New(fault.Failed, "cannot release the child process: %w", err)
	}
	return nil
}

// hear waits for the child's word.
func (f *childEnds) hear() error {
	if _, err := f.conn.Read(make([]byte, 1)); err != nil {
		return fault.New(fault.Failed, "cannot hear from the child process: %w", err)
	}
	return nil
}

// exec arranges the descriptors as the sealed copy of this program expects them and executes
// it with an empty environment. What was kept for that is close-on-exec.
func (f *childEnds) exec(p *spawn.Program, entry string) {
	for target, source := range []uintptr{f.kept + 2, f.kept + 2, f.kept + 1, f.kept} {
		p.Call("arrange descriptors", spawn.Must, unix.SYS_DUP3, source, uintptr(target), 0)
	}
	// Default actions were set at birth; the mask must not outlive the execution either.
	p.Call("unblock signals", spawn.Must, unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, p.Bytes(make([]byte, 8)), 0, 8)
	p.Call("execute", spawn.Must, unix.SYS_EXECVEAT, f.kept+3, p.Text(""),
		p.Texts([]string{childName, entry}), p.Texts(nil), unix.AT_EMPTY_PATH)
}

// lastCap is the highest capability that the running kernel knows.
func lastCap() uintptr {
	last := uintptr(unix.CAP_LAST_CAP)
	for n := uintptr(0); n < 64; n++ {
		if _, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, n, 0, 0, 0); err != nil {
			break
		}
		last = n
	}
	return last
}

// capMask is the set of capabilities as /proc/PID/status shows it.
func capMask(caps []uintptr) uint64 {
	var mask uint64
	for _, c := range caps {
		mask |= 1 << c
	}
	return mask
}

// dropCaps limits the child for ever to keep: bounding set first, then nothing inheritable or
// ambient. What is permitted and effective follows at execution from the bounding set, because
// the child is user 0 of its namespace.
func dropCaps(p *spawn.Program, keep []uintptr) {
	mask := capMask(keep)
	for c, last := uintptr(0), lastCap(); c <= last; c++ {
		if mask&(1<<c) == 0 {
			p.Call("drop a capability", spawn.Must, unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		}
	}
	p.Call("drop ambient capabilities", spawn.Must, unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
}

// setCaps makes what is permitted and effective the same set at once, and nothing inheritable.
func setCaps(p *spawn.Program, keep []uintptr) {
	mask := capMask(keep)
	header := []byte{0x22, 0x05, 0x08, 0x20, 0, 0, 0, 0} // _LINUX_CAPABILITY_VERSION_3, this process
	low, high := uint32(mask), uint32(mask>>32)
	var data []byte
	for _, v := range []uint32{low, low, 0, high, high, 0} {
		data = binary.NativeEndian.AppendUint32(data, v)
	}
	p.Call("set capabilities", spawn.Must, unix.SYS_CAPSET, p.Bytes(header), p.Bytes(data))
}

// hostLacksNamespaces explains why a process with new namespaces could not be made.
func hostLacksNamespaces(err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC):
		return fault.Hint(fault.As(fault.Host, err), "sysctl -w user.max_user_namespaces=16384 user.max_net_namespaces=16384")
	case errors.Is(err, unix.EPERM):
		return fault.Hint(fault.As(fault.Host, err), "run as root")
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EINVAL):
		return fault.Hint(fault.As(fault.Host, err), "use Linux 5.12 or newer with all namespaces enabled")
	}
	return err
}
