// SPDX-License-Identifier: Apache-2.0

package cgroup_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/kernel"
	"github.com/mkmachine/mkmachine/internal/kernel/kerneltest"
	"github.com/mkmachine/mkmachine/runner/cgroup"
)

// The test binary, started in a group, tries something and says what happened.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "try" {
		try(os.Args[2])
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func try(what string) {
	switch what {
	case "devices":
		dir, _ := os.MkdirTemp("", "nodes")
		defer os.RemoveAll(dir)
		for _, d := range []struct {
			name         string
			kind         uint32
			major, minor uint32
		}{{"null", unix.S_IFCHR, 1, 3}, {"mem", unix.S_IFCHR, 1, 1}, {"loop0", unix.S_IFBLK, 7, 0}, {"kvm", unix.S_IFCHR, 10, 232}} {
			path := filepath.Join(dir, d.name)
			err := unix.Mknod(path, d.kind|0o600, int(unix.Mkdev(d.major, d.minor)))
			fmt.Print("make ", d.name, ": ", err, "; ")
		}
		for _, name := range []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/kmsg", "/dev/mem", "/dev/loop0", "/dev/loop-control"} {
			fd, err := unix.Open(name, unix.O_RDONLY|unix.O_NONBLOCK, 0)
			if err == unix.ENOENT {
				err = unix.EPERM // not on this host
			}
			fmt.Print(name, ": ", err, "; ")
			if err == nil {
				unix.Close(fd)
			}
		}
	case "fork":
		n := 0
		for ; n < 100; n++ {
			cmd := exec.Command("/bin/sleep", "30")
			if err := cmd.Start(); err != nil {
				fmt.Println(errors.Is(err, syscall.EAGAIN), n < 60)
				return
			}
		}
		fmt.Println("no limit")
	}
}

func create(t *testing.T, limits cgroup.Limits, devices ...cgroup.Device) *cgroup.Group {
	t.Helper()
	kerneltest.Require(t, kernel.Root, kernel.Cgroup, kernel.BPF)
	h, err := kernel.Hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	dirs, err := cgroup.Plan(h, fmt.Sprintf("cgrouptest-%d.1", os.Getpid()), limits)
	if err != nil {
		t.Fatal(err)
	}
	g, err := cgroup.Create(h, dirs, limits, devices)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Remove(); err != nil {
			t.Error(err)
		}
	})
	return g
}

// inside runs the test binary in the group.
func inside(t *testing.T, g *cgroup.Group, what string) string {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "try", what)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: g.FD()}
	done := make(chan error, 1)
	var out strings.Builder
	cmd.Stdout = &out
	go func() {
		// As the runner does: a thread enters the v1 groups, and what it starts is born there.
		leave, err := g.Enter()
		if err == nil {
			err = errors.Join(cmd.Start(), leave())
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	return out.String()
}

func TestDevices(t *testing.T) {
	g := create(t, cgroup.Limits{}, cgroup.Device{Major: 1, Minor: 3}, cgroup.Device{Major: 1, Minor: 5})
	const no, yes = "operation not permitted; ", "<nil>; "
	want := "make null: " + no + "make mem: " + no + "make loop0: " + no + "make kvm: " + no +
		"/dev/null: " + yes + "/dev/zero: " + yes + "/dev/full: " + no + "/dev/kmsg: " + no + "/dev/mem: " + no + "/dev/loop0: " + no + "/dev/loop-control: " + no
	if got := inside(t, g, "devices"); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
}

func TestPidsLimitAndKill(t *testing.T) {
	g := create(t, cgroup.Limits{Pids: 60, Memory: 1 << 30}, cgroup.Device{Major: 1, Minor: 3})
	if got := inside(t, g, "fork"); got != "true true\n" {
		t.Errorf("%q", got)
	}
	// The sleepers are left over; removing the group kills them.
	data, err := os.ReadFile(g.Dirs[0].Path + "/cgroup.procs")
	if err != nil || len(strings.Fields(string(data))) == 0 {
		t.Errorf("nothing is left to kill: %q %v", data, err)
	}
	if err := g.Remove(); err != nil {
		t.Error(err)
	}
	for _, d := range g.Dirs {
		if _, err := os.Stat(d.Path); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", d.Path, err)
		}
	}
}

// A directory that is not the recorded one is not touched, whatever its name.
func TestRemoveGoesByInode(t *testing.T) {
	g := create(t, cgroup.Limits{})
	other := g.Dirs[0]
	other.Inode++
	if err := cgroup.Remove([]cgroup.Dir{other}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(other.Path); err != nil {
		t.Error(err)
	}
}
