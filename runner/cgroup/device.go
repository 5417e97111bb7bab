// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"encoding/binary"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// Device is a character device that may be opened for reading and writing. Nothing may be
// made with mknod, and no block device may be opened.
type Device struct {
	Major uint32
	Minor uint32 // ignored where Any
	Any   bool   // all minors
}

// Instructions of the kernel's virtual machine that the filter needs: class and operation.
const (
	opLoad32  = 0x61 // dst = *(u32 *)(src + off)
	opMove    = 0xbf // dst = src
	opMoveImm = 0xb7
	opAndImm  = 0x57
	opShrImm  = 0x77
	opJumpSet = 0x45 // if dst & imm
	opJumpNE  = 0x55
	opJump    = 0x05
	opExit    = 0x95
)

// deviceFilter assembles a program over struct bpf_cgroup_dev_ctx {access<<16|type, major, minor}.
func deviceFilter(devices []Device) []byte {
	var code []byte
	emit := func(op byte, dst, src byte, off int16, imm int32) {
		code = append(code, op, src<<4|dst)
		code = binary.NativeEndian.AppendUint16(code, uint16(off))
		code = binary.NativeEndian.AppendUint32(code, uint32(imm))
	}
	give := func(value int32) {
		emit(opMoveImm, 0, 0, 0, value)
		emit(opExit, 0, 0, 0, 0)
	}
	emit(opLoad32, 2, 1, 0, 0)
	emit(opMove, 3, 2, 0, 0)
	emit(opAndImm, 2, 0, 0, 0xffff)
	emit(opShrImm, 3, 0, 0, 16)
	emit(opLoad32, 4, 1, 4, 0)
	emit(opLoad32, 5, 1, 8, 0)
	emit(opJumpNE, 2, 0, 2, unix.BPF_DEVCG_DEV_CHAR)
	emit(opJumpSet, 3, 0, 1, unix.BPF_DEVCG_ACC_MKNOD)
	emit(opJump, 0, 0, 2, 0) // over the refusal
	give(0)
	for _, d := range devices {
		if d.Any {
			emit(opJumpNE, 4, 0, 2, int32(d.Major))
		} else {
			emit(opJumpNE, 4, 0, 3, int32(d.Major))
			emit(opJumpNE, 5, 0, 2, int32(d.Minor))
		}
		give(1)
	}
	give(0)
	return code
}

// attachDevices loads the filter and attaches it to a cgroup, beside whatever is attached
// above: every program on the way to the root must agree.
func attachDevices(dir int, devices []Device) error {
	code := deviceFilter(devices)
	license := []byte("Apache-2.0\x00")
	// Their addresses go to the kernel as numbers: they must not lie on a stack, which can move.
	var pinned runtime.Pinner
	defer pinned.Unpin()
	pinned.Pin(&code[0])
	pinned.Pin(&license[0])
	load := struct {
		kind, count       uint32
		code, license     uint64
		level, size       uint32
		log               uint64
		version, flags    uint32
		name              [16]byte
		ifindex, expected uint32
	}{kind: unix.BPF_PROG_TYPE_CGROUP_DEVICE, count: uint32(len(code) / 8), code: uint64(uintptr(unsafe.Pointer(&code[0]))),
		license: uint64(uintptr(unsafe.Pointer(&license[0]))), name: [16]byte{'m', 'k', 'm', 'a', 'c', 'h', 'i', 'n', 'e'}, expected: unix.BPF_CGROUP_DEVICE}
	prog, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_LOAD, uintptr(unsafe.Pointer(&load)), unsafe.Sizeof(load))
	if errno != 0 {
		return fault.Hint(fault.New(fault.Host, "cannot load the device filter: %w", errno), "use a kernel with CONFIG_CGROUP_BPF, and run as root")
	}
	defer unix.Close(int(prog))
	attach := struct{ target, prog, kind, flags uint32 }{uint32(dir), uint32(prog), unix.BPF_CGROUP_DEVICE, unix.BPF_F_ALLOW_MULTI}
	if _, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_ATTACH, uintptr(unsafe.Pointer(&attach)), unsafe.Sizeof(attach)); errno != 0 {
		return fault.New(fault.Host, "cannot attach the device filter: %w", errno)
	}
	return nil
}
