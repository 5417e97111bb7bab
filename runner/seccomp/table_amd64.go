// SPDX-License-Identifier: Apache-2.0

package seccomp

import "golang.org/x/sys/unix"

// The native ABI. Numbers 335 to 423 were left out when the tables of all architectures were
// brought together; foreignBit marks x32 calls.
const (
	auditArch  = unix.AUDIT_ARCH_X86_64
	foreignBit = 0x40000000
	lastOld    = unix.SYS_RSEQ
	firstNew   = unix.SYS_PIDFD_SEND_SIGNAL
)

// Calls that newer architectures do not have any more.
var (
	archMachineCalls = []int{
		unix.SYS_NEWFSTATAT,
		unix.SYS_ACCESS, unix.SYS_ALARM, unix.SYS_ARCH_PRCTL, unix.SYS_CHMOD, unix.SYS_CHOWN, unix.SYS_CREAT, unix.SYS_DUP2,
		unix.SYS_EPOLL_CREATE, unix.SYS_EPOLL_WAIT, unix.SYS_EVENTFD, unix.SYS_FORK, unix.SYS_FUTIMESAT,
		unix.SYS_GETDENTS, unix.SYS_GETPGRP, unix.SYS_GET_THREAD_AREA, unix.SYS_INOTIFY_INIT, unix.SYS_LCHOWN, unix.SYS_LINK,
		unix.SYS_LSTAT, unix.SYS_MKDIR, unix.SYS_MKNOD, unix.SYS_OPEN, unix.SYS_PAUSE, unix.SYS_PIPE, unix.SYS_POLL,
		unix.SYS_READLINK, unix.SYS_RENAME, unix.SYS_RENAMEAT, unix.SYS_RMDIR, unix.SYS_SELECT, unix.SYS_SET_THREAD_AREA, unix.SYS_SIGNALFD,
		unix.SYS_STAT, unix.SYS_SYMLINK, unix.SYS_TIME, unix.SYS_UNLINK, unix.SYS_UTIME, unix.SYS_UTIMES, unix.SYS_VFORK,
		unix.SYS_MAP_SHADOW_STACK,
	}
	archFileCalls = []int{
		unix.SYS_NEWFSTATAT,
		unix.SYS_ACCESS, unix.SYS_ARCH_PRCTL, unix.SYS_LSTAT, unix.SYS_OPEN, unix.SYS_POLL, unix.SYS_READLINK, unix.SYS_STAT, unix.SYS_MKDIR,
		unix.SYS_UNLINK, unix.SYS_RMDIR, unix.SYS_RENAME, unix.SYS_RENAMEAT, unix.SYS_SYMLINK, unix.SYS_LINK, unix.SYS_CHMOD, unix.SYS_CHOWN, unix.SYS_LCHOWN,
		unix.SYS_DUP2, unix.SYS_EPOLL_WAIT,
	}
)
