// SPDX-License-Identifier: Apache-2.0

package spawn_test

import (
	"errors"
	"io"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/kernel"
	"github.com/mkmachine/mkmachine/internal/kernel/kerneltest"
	"github.com/mkmachine/mkmachine/runner/spawn"
)

func start(t testing.TB, p *spawn.Program, flags uint64) unix.WaitStatus {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	child, err := p.Start(flags, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(child.PidFD)
	var status unix.WaitStatus
	if _, err := unix.Wait4(child.Pid, &status, 0, nil); err != nil {
		t.Fatal(err)
	}
	return status
}

func TestCallsThenExec(t *testing.T) {
	kerneltest.Require(t, kernel.Root)
	p, err := spawn.New()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	p.Call("duplicate", spawn.Must, unix.SYS_DUP3, write.Fd(), 1, 0)
	p.Call("do something that fails", spawn.Maybe, unix.SYS_CLOSE, 9999)
	p.Call("execute", spawn.Must, unix.SYS_EXECVE, p.Text("/bin/sh"), p.Texts([]string{"sh", "-c", "echo $A $0 $$"}), p.Texts([]string{"A=b"}))
	status := start(t, p, unix.CLONE_NEWPID)
	write.Close()
	out, _ := io.ReadAll(read)
	if status != 0 || string(out) != "b sh 1\n" || p.Failure() != nil {
		t.Errorf("status %v, output %q, failure %v", status, out, p.Failure())
	}
}

func TestFailureIsNamed(t *testing.T) {
	p, err := spawn.New()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	p.Call("change the directory", spawn.Must, unix.SYS_CHDIR, p.Text("/"))
	p.Call("execute", spawn.Must, unix.SYS_EXECVE, p.Text("/nowhere/at all"), p.Texts(nil), p.Texts(nil))
	status := start(t, p, 0)
	err = p.Failure()
	if status.ExitStatus() != 125 || !errors.Is(err, syscall.ENOENT) || !strings.Contains(err.Error(), "cannot execute") {
		t.Errorf("status %v, failure %v", status.ExitStatus(), err)
	}
}

func TestUnexpectedResultStops(t *testing.T) {
	p, err := spawn.New()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	p.Call("ask for the first process", spawn.One, unix.SYS_GETPID)
	p.Call("exit", spawn.Must, unix.SYS_EXIT_GROUP, 0)
	if status := start(t, p, 0); status.ExitStatus() != 125 || p.Failure() == nil {
		t.Errorf("status %v, failure %v", status.ExitStatus(), p.Failure())
	}
}

func TestTooLong(t *testing.T) {
	p, err := spawn.New()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	p.Bytes(make([]byte, 1<<20))
	if _, err := p.Start(0, -1); err == nil {
		t.Error("a program that does not fit was started")
	}
}

func BenchmarkTrue(b *testing.B) {
	for b.Loop() {
		p, _ := spawn.New()
		p.Call("execute", spawn.Must, unix.SYS_EXECVE, p.Text("/bin/true"), p.Texts([]string{"true"}), p.Texts(nil))
		start(b, p, 0)
		p.Close()
	}
}
