// SPDX-License-Identifier: Apache-2.0

// Package spawn starts a process that first makes a prepared list of system calls and then
// executes a program, with any namespaces, from a multi-threaded Go program.
//
// It owns the few instructions between clone3(2) and execveat(2). Those run no Go code and use
// no stack: a loop in assembly walks a table of system calls that lies outside of the Go heap.
// The child shares memory with its parent until it executes (no page table is copied, however
// large the parent), runs while the parent goes on, and writes each result into the table, so
// that the parent can say afterwards which call failed. It never decides what the calls are.
package spawn

import (
	"fmt"
	"runtime"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// Mode says what a call's result must be for the child to go on.
type Mode uintptr

// The modes. The assembly knows their values.
const (
	Must  Mode = 0 // anything but an error
	Maybe Mode = 1 // errors are ignored
	One   Mode = 2 // exactly 1, for one-byte reads and writes
)

// call is one row of the table; the assembly knows its layout.
type call struct {
	nr     uintptr
	args   [6]uintptr
	mode   Mode
	result uintptr
}

// notRun marks a row whose call has not returned.
const notRun = ^uintptr(0) >> 1

const (
	maxCalls  = 160
	tableSize = uintptr(maxCalls) * unsafe.Sizeof(call{})
	arenaSize = 256 << 10
)

// Program is the list of calls of one child. It must not be copied, and must be closed.
type Program struct {
	arena []byte
	used  uintptr
	names []string
	err   error
}

// New makes an empty program.
func New() (*Program, error) {
	arena, err := unix.Mmap(-1, 0, int(tableSize)+arenaSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fault.New(fault.Failed, "cannot allocate memory for a child process: %w", err)
	}
	return &Program{arena: arena, used: tableSize}, nil
}

// Close frees the table. The child must have executed its program or be gone.
func (p *Program) Close() error {
	if p.arena == nil {
		return nil
	}
	arena := p.arena
	p.arena = nil
	return unix.Munmap(arena)
}

func (p *Program) row(i int) *call {
	return (*call)(unsafe.Pointer(&p.arena[uintptr(i)*unsafe.Sizeof(call{})]))
}

// Call appends a system call; name is for error messages.
func (p *Program) Call(name string, mode Mode, nr uintptr, args ...uintptr) {
	if len(p.names) == maxCalls-1 || len(args) > 6 {
		p.err = fault.New(fault.Internal, "internal error: the child program is too long at %q", name)
		return
	}
	c := p.row(len(p.names))
	c.nr, c.mode, c.result = nr, mode, notRun
	copy(c.args[:], args)
	p.names = append(p.names, name)
}

// Bytes copies data into the table and gives its address for use as an argument.
func (p *Program) Bytes(data []byte) uintptr {
	p.used = (p.used + 7) &^ 7
	if p.used+uintptr(len(data))+1 > uintptr(len(p.arena)) {
		p.err = fault.New(fault.Internal, "internal error: the child program has no room for %d bytes", len(data))
		return 0
	}
	at := p.used
	copy(p.arena[at:], data)
	p.used += uintptr(len(data)) + 1
	return uintptr(unsafe.Pointer(&p.arena[at]))
}

// offset is where in the table an address lies.
func (p *Program) offset(address uintptr) uintptr {
	return address - uintptr(unsafe.Pointer(&p.arena[0]))
}

// Text copies a NUL-terminated string.
func (p *Program) Text(s string) uintptr { return p.Bytes(append([]byte(s), 0)) }

// Words copies an array of machine words.
func (p *Program) Words(words ...uintptr) uintptr {
	if len(words) == 0 {
		return 0
	}
	return p.Bytes(unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), uintptr(len(words))*unsafe.Sizeof(words[0])))
}

// Texts copies a NULL-terminated array of strings, as execve(2) takes it.
func (p *Program) Texts(list []string) uintptr {
	words := make([]uintptr, 0, len(list)+1)
	for _, s := range list {
		words = append(words, p.Text(s))
	}
	return p.Words(append(words, 0)...)
}

// Process is a started child.
type Process struct {
	Pid   int // in the pid namespace of the caller
	PidFD int // close-on-exec
}

// cloneArgs is struct clone_args of clone3(2).
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

// Start clones. flags are namespace flags (CLONE_NEW…); cgroup is a descriptor of a v2 control
// group for the child to be born in, or -1. The calling goroutine must be locked to its thread,
// and the thread is the child's parent: parent-death signals come when the thread ends.
func (p *Program) Start(flags uint64, cgroup int) (*Process, error) {
	if p.err != nil {
		return nil, p.err
	}
	p.row(len(p.names)).nr = ^uintptr(0) // ends the table: exit

	// The kernel stores the descriptor here; a variable on a Go stack could move meanwhile.
	pidfd := p.Bytes([]byte{0, 0, 0, 0})
	if p.err != nil {
		return nil, p.err
	}
	args := &cloneArgs{
		flags:      flags | unix.CLONE_VM | unix.CLONE_PIDFD | unix.CLONE_CLEAR_SIGHAND,
		pidfd:      uint64(pidfd),
		exitSignal: uint64(unix.SIGCHLD),
	}
	if cgroup >= 0 {
		args.flags |= unix.CLONE_INTO_CGROUP
		args.cgroup = uint64(cgroup)
	}
	// No handler of the Go runtime may run in the child, which shares its memory; signals
	// stay blocked on this thread until the child has its own copy of the mask.
	var all, old unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	// As in os/exec: descriptors that another thread is about to mark close-on-exec must not
	// be copied half-way.
	syscall.ForkLock.Lock()
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, &old); err != nil {
		syscall.ForkLock.Unlock()
		return nil, fault.New(fault.Failed, "cannot block signals: %w", err)
	}
	r := clone(unsafe.Pointer(args), unsafe.Sizeof(*args), unsafe.Pointer(p.row(0)))
	maskErr := unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil)
	syscall.ForkLock.Unlock()
	runtime.KeepAlive(args)
	if errno := asErrno(r); errno != 0 {
		return nil, fault.New(fault.Failed, "cannot create a process with new namespaces (%#x): %w", flags, errno)
	}
	child := &Process{Pid: int(r), PidFD: int(*(*int32)(unsafe.Pointer(&p.arena[p.offset(pidfd)])))}
	if maskErr != nil {
		_ = unix.PidfdSendSignal(child.PidFD, unix.SIGKILL, nil, 0)
		return nil, fault.New(fault.Failed, "cannot restore the signal mask: %w", maskErr)
	}
	return child, nil
}

// Failure says which call of the child failed. It is nil where none has, and may be asked at
// any time.
func (p *Program) Failure() error {
	for i, name := range p.names {
		c := p.row(i)
		result := atomic.LoadUintptr(&c.result)
		if result == notRun {
			return nil
		}
		if errno := asErrno(result); c.mode != Maybe && errno != 0 {
			return fmt.Errorf("cannot %s: %w", name, errno)
		}
		if c.mode == One && result != 1 {
			return fmt.Errorf("cannot %s: unexpected result %d", name, result)
		}
	}
	return nil
}

// Result is what call number i, counted from 0, gave. The child must be gone.
func (p *Program) Result(i int) uintptr { return atomic.LoadUintptr(&p.row(i).result) }

func asErrno(r uintptr) syscall.Errno {
	if r > ^uintptr(4095) {
		return syscall.Errno(-r)
	}
	return 0
}

// clone calls clone3 and, in the child, runs the table. It gives the raw result.
//
//go:noescape
func clone(args unsafe.Pointer, size uintptr, table unsafe.Pointer) uintptr
