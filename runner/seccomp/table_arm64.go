// SPDX-License-Identifier: Apache-2.0

package seccomp

import "golang.org/x/sys/unix"

// The native ABI. Numbers 295 to 423 belong to other architectures.
const (
	auditArch  = unix.AUDIT_ARCH_AARCH64
	foreignBit = 0
	lastOld    = unix.SYS_KEXEC_FILE_LOAD
	firstNew   = unix.SYS_PIDFD_SEND_SIGNAL
)

// Calls that only this architecture has, or has not lost.
var (
	archMachineCalls = []int{unix.SYS_FSTATAT, unix.SYS_RENAMEAT}
	archFileCalls    = []int{unix.SYS_FSTATAT, unix.SYS_RENAMEAT}
)
