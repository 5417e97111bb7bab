// SPDX-License-Identifier: Apache-2.0

// Package seccomp makes the system call filters of the profiles.
//
// A filter is an allow-list for the native ABI of the machine. A call that this package knows
// and does not allow fails with EPERM, one that is newer than its tables with ENOSYS, so that
// programs fall back as on an older kernel. A call through another ABI (i386 or x32 on amd64,
// 32-bit ARM on arm64) kills the process. The tables are compile-time constants: nothing is
// computed before a filter is asked for. It never decides which profile applies.
package seccomp

import (
	"encoding/binary"
	"slices"
	"syscall"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// Filter is an assembled program in the kernel's format (struct sock_filter[]).
type Filter []byte

// Count is the number of instructions.
func (f Filter) Count() int { return len(f) / 8 }

// Options choose a filter for what runs inside a machine.
type Options struct {
	// NoSync makes calls that flush files to disk succeed without doing anything.
	NoSync bool
}

// Machine is the filter of the profiles "build" and "app".
func Machine(o Options) Filter {
	rules := make([]rule, 0, 400)
	for _, nr := range slices.Concat(machineCalls, archMachineCalls) {
		rules = append(rules, rule{uint32(nr), allow})
	}
	rules = append(rules, argumentRules...)
	if o.NoSync {
		for _, nr := range syncCalls {
			rules = slices.DeleteFunc(rules, func(r rule) bool { return r.nr == uint32(nr) })
			rules = append(rules, rule{uint32(nr), pretend})
		}
	}
	return assemble(rules)
}

// Files is the filter of confined processes: memory, threads of their own, files by descriptor
// or path, the sockets they have. They cannot execute, fork, open sockets or signal others.
func Files() Filter {
	rules := make([]rule, 0, 200)
	for _, nr := range slices.Concat(fileCalls, archFileCalls) {
		rules = append(rules, rule{uint32(nr), allow})
	}
	return assemble(append(rules, rule{unix.SYS_CLONE, threadsOnly}, rule{unix.SYS_IOCTL, fileIoctl}))
}

// Install puts the filter on all threads of this process. They must have given up new
// privileges, or hold CAP_SYS_ADMIN.
func Install(f Filter) error {
	prog := struct {
		count uint16
		at    unsafe.Pointer
	}{uint16(f.Count()), unsafe.Pointer(&f[0])}
	r, _, errno := syscall.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return fault.New(fault.Host, "cannot install the system call filter: %w", errno)
	}
	if r != 0 {
		return fault.New(fault.Failed, "cannot install the system call filter on thread %d", r)
	}
	return nil
}

// action is what becomes of a system call.
type action int

const (
	allow       action = iota
	pretend            // succeed without doing anything
	unknown            // ENOSYS
	threadsOnly        // clone: threads of the same process
	noNamespace        // clone: no new namespace
	noUnshare          // unshare: the same, and no time namespace, whose flag clone uses otherwise
	sockets            // socket: local, internet, and netlink for routes
	noInjection        // ioctl: no pushing of input into a terminal
	fileIoctl          // ioctl: sharing of file extents
	persona            // personality: those that programs of a distribution use
)

type rule struct {
	nr     uint32
	action action
}

// Return values of a filter.
const (
	retAllow   = unix.SECCOMP_RET_ALLOW
	retPretend = unix.SECCOMP_RET_ERRNO
	retEPERM   = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	retENOSYS  = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	retFamily  = unix.SECCOMP_RET_ERRNO | uint32(unix.EAFNOSUPPORT)
	retKill    = unix.SECCOMP_RET_KILL_PROCESS
)

// Offsets in struct seccomp_data. Arguments are 64-bit words; all supported machines are
// little-endian.
const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16
)

func argument(n uint32) bpf.Instruction { return bpf.LoadAbsolute{Off: offArgs + 8*n, Size: 4} }

// body gives the instructions of an action, which end by returning. The accumulator holds the
// number of the call. Flags and numbers that the rules look at are 32 bits wide in the kernel,
// so the lower half of an argument is what counts.
func (a action) body() []bpf.Instruction {
	ret := func(v uint32) bpf.Instruction { return bpf.RetConstant{Val: v} }
	// oneOf allows the listed values of the argument in the accumulator.
	oneOf := func(first bpf.Instruction, otherwise uint32, values ...uint32) []bpf.Instruction {
		out := []bpf.Instruction{first}
		for i, v := range values {
			out = append(out, bpf.JumpIf{Cond: bpf.JumpEqual, Val: v, SkipTrue: uint8(len(values) - i)})
		}
		return append(out, ret(otherwise), ret(retAllow))
	}
	switch a {
	case allow:
		return []bpf.Instruction{ret(retAllow)}
	case pretend:
		return []bpf.Instruction{ret(retPretend)}
	case unknown:
		return []bpf.Instruction{ret(retENOSYS)}
	case threadsOnly:
		return []bpf.Instruction{argument(0),
			bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: unix.CLONE_THREAD, SkipFalse: 1}, ret(retAllow), ret(retEPERM)}
	case noNamespace, noUnshare:
		namespaces := uint32(unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
			unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET)
		if a == noUnshare {
			namespaces |= unix.CLONE_NEWTIME
		}
		return []bpf.Instruction{argument(0),
			bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: namespaces, SkipFalse: 1}, ret(retEPERM), ret(retAllow)}
	case sockets:
		return []bpf.Instruction{argument(0),
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.AF_UNIX, SkipTrue: 6},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.AF_INET, SkipTrue: 5},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.AF_INET6, SkipTrue: 4},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.AF_NETLINK, SkipFalse: 2},
			argument(2),
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.NETLINK_ROUTE, SkipTrue: 1},
			ret(retFamily), ret(retAllow)}
	case noInjection:
		return []bpf.Instruction{argument(1),
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.TIOCSTI, SkipTrue: 2},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.TIOCLINUX, SkipTrue: 1},
			ret(retAllow), ret(retEPERM)}
	case fileIoctl:
		return oneOf(argument(1), retEPERM, unix.FICLONE, unix.FICLONERANGE, unix.FS_IOC_GETFLAGS, unix.FS_IOC_SETFLAGS)
	case persona:
		// PER_LINUX, PER_LINUX32, each with UNAME26, and the query.
		return oneOf(argument(0), retEPERM, 0, 8, 0x20000, 0x20008, 0xffffffff)
	}
	return []bpf.Instruction{ret(retKill)}
}

// span is a run of call numbers with the same action.
type span struct {
	first uint32
	body  []bpf.Instruction
}

// assemble makes a filter that finds the action of a call by bisection.
func assemble(rules []rule) Filter {
	slices.SortFunc(rules, func(a, b rule) int { return int(a.nr) - int(b.nr) })
	denied := []bpf.Instruction{bpf.RetConstant{Val: retEPERM}}
	absent := []bpf.Instruction{bpf.RetConstant{Val: retENOSYS}}
	var spans []span
	next := uint32(0)
	// gap fills numbers up to end that no rule names.
	gap := func(end uint32) {
		for _, part := range []struct {
			first, last uint32
			body        []bpf.Instruction
		}{{0, lastOld, denied}, {lastOld + 1, firstNew - 1, absent}, {firstNew, lastKnown, denied}, {lastKnown + 1, ^uint32(0), absent}} {
			from, to := max(next, part.first), min(end-1, part.last)
			if next < end && from <= to {
				spans = append(spans, span{from, part.body})
			}
		}
		next = end
	}
	previous := action(-1)
	for _, r := range rules {
		if r.nr > next || len(spans) == 0 {
			gap(r.nr)
			previous = -1
		}
		if r.action != previous {
			spans = append(spans, span{r.nr, r.action.body()})
		}
		previous, next = r.action, r.nr+1
	}
	gap(^uint32(0))

	program := []bpf.Instruction{
		bpf.LoadAbsolute{Off: offArch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: auditArch, SkipTrue: 1},
		bpf.RetConstant{Val: retKill},
		bpf.LoadAbsolute{Off: offNumber, Size: 4},
	}
	if foreignBit != 0 {
		// -1 is what a tracer uses to skip a call, and would look like x32.
		program = append(program,
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: ^uint32(0), SkipFalse: 1},
			bpf.RetConstant{Val: retENOSYS},
			bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: foreignBit, SkipFalse: 1},
			bpf.RetConstant{Val: retKill})
	}
	program = append(program, bisect(spans)...)
	out := make(Filter, 0, 8*len(program))
	for _, instruction := range program {
		raw, err := instruction.Assemble()
		if err != nil {
			panic("internal error: the system call filter cannot be assembled: " + err.Error())
		}
		out = binary.NativeEndian.AppendUint16(out, raw.Op)
		out = append(out, raw.Jt, raw.Jf)
		out = binary.NativeEndian.AppendUint32(out, raw.K)
	}
	return out
}

func bisect(spans []span) []bpf.Instruction {
	if len(spans) == 1 {
		return spans[0].body
	}
	middle := len(spans) / 2
	low, high := bisect(spans[:middle]), bisect(spans[middle:])
	var out []bpf.Instruction
	if len(low) <= 255 {
		out = append(out, bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: spans[middle].first, SkipTrue: uint8(len(low))})
	} else {
		// Conditional jumps reach 255 instructions, plain ones any number.
		out = append(out, bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: spans[middle].first, SkipFalse: 1}, bpf.Jump{Skip: uint32(len(low))})
	}
	return append(append(out, low...), high...)
}
