// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"runtime"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// IDMapped reports whether the file system that holds dir allows id-mapped mounts.
// It needs root and starts one short-lived process that holds a user namespace.
func IDMapped(dir string) error {
	if err := checkRoot(); err != nil {
		return err
	}
	holder, err := userNamespace()
	if err != nil {
		return missing("sysctl -w user.max_user_namespaces=16384", "cannot create a user namespace: %v", err)
	}
	defer unix.Close(holder)
	tree, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return missing("use Linux 5.12 or newer", "cannot clone the mount of %q: %v", dir, err)
	}
	defer unix.Close(tree)
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(holder)}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, attr); err != nil {
		hint := "keep machines on ext4, btrfs, xfs or tmpfs"
		if errors.Is(err, unix.ENOSYS) {
			hint = "use Linux 5.12 or newer"
		}
		return missing(hint, "cannot map ids on the file system of %q: %v", dir, err)
	}
	return nil
}

// userNamespace gives a descriptor of a new user namespace with 65536 ids mapped.
// The process that carries it is this very program stopped by ptrace before its first
// instruction, so that nothing of it runs; it is killed as soon as the descriptor is open.
func userNamespace() (int, error) {
	runtime.LockOSThread() // ptrace requests must come from the tracing thread
	defer runtime.UnlockOSThread()
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0x10000, Size: 0x10000}}
	pid, err := syscall.ForkExec("/proc/self/exe", []string{"probe"}, &syscall.ProcAttr{
		Env: []string{},
		Sys: &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids, Ptrace: true},
	})
	if err != nil {
		return -1, err
	}
	var status syscall.WaitStatus
	_, err = syscall.Wait4(pid, &status, 0, nil)
	fd := -1
	if err == nil {
		fd, err = unix.Open("/proc/"+strconv.Itoa(pid)+"/ns/user", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	}
	if !status.Exited() && !status.Signaled() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
		_, _ = syscall.Wait4(pid, &status, 0, nil)
	}
	return fd, err
}

func seccompActionAvailable(action *uint32) syscall.Errno {
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0, uintptr(unsafe.Pointer(action)))
	return errno
}
