// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// onOwnThread runs work on a thread that nothing else uses and that ends with it, so that
// work may change the thread's namespaces, root and credentials.
//
// It is never the first thread of the process: that one cannot end, and what it is changed
// to would show as the state of the whole process in /proc.
func onOwnThread(work func()) {
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			work() // not unlocked: the runtime ends the thread with the goroutine
			return
		}
		moved := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(moved)
			work()
		}()
		<-moved
		runtime.UnlockOSThread()
	}()
}

// enterMountNamespace gives the calling thread a root, a working directory, a umask and a mount
// namespace of its own, owned by the user namespace of this process, in which nothing
// propagates to or from the host (SEC-18).
func enterMountNamespace() error {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return fault.New(fault.Host, "cannot create a mount namespace: %w", err)
	}
	// The caller's umask is no business of what is made here, nor of the machine's commands.
	unix.Umask(0o022)
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fault.New(fault.Failed, "cannot make the mount namespace private: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return fault.New(fault.Failed, "cannot enter the root directory: %w", err)
	}
	return nil
}

// pivot makes the detached mount tree the root of the calling thread's mount namespace, and of
// every process in it, and lets go of the old one. The new root is attached on top of the old
// one by descriptor, so no path is looked up that anybody else could change.
func pivot(tree int) error {
	step := func(what string, err error) error {
		if err != nil {
			return fault.New(fault.Failed, "cannot %s: %w", what, err)
		}
		return nil
	}
	old, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return step("open the old root", err)
	}
	defer unix.Close(old)
	if err := unix.Fchdir(tree); err != nil {
		return step("enter the new root", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return step("change the root (is the host's root an initramfs?)", err)
	}
	if err := unix.Fchdir(old); err != nil {
		return step("go back to the old root", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return step("let go of the old root", err)
	}
	return step("enter the new root", unix.Chdir("/"))
}

// reap waits for the process behind a pidfd and gives its wait status.
func reap(pid int) (unix.WaitStatus, error) {
	var status unix.WaitStatus
	for {
		_, err := unix.Wait4(pid, &status, 0, nil)
		if err == nil {
			return status, nil
		}
		if err != unix.EINTR {
			return 0, fmt.Errorf("cannot wait for process %d: %w", pid, err)
		}
	}
}
