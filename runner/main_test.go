// SPDX-License-Identifier: Apache-2.0

package runner_test

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/kernel"
	"github.com/mkmachine/mkmachine/internal/kernel/kerneltest"
	"github.com/mkmachine/mkmachine/runner"
)

// The test binary is three things: the tests, the child of the runner, and, under the name
// "probe", the program that runs inside the machines of the tests. So they need no other.
func TestMain(m *testing.M) {
	runner.Dispatch(map[string]runner.Entry{"echo": echoEntry, "doors": doorsEntry, "panic": panicEntry, "wait": waitEntry})
	if filepath.Base(os.Args[0]) == "probe" && len(os.Args) > 1 {
		os.Exit(probe(os.Args[1], os.Args[2:]))
	}
	if len(os.Args) == 4 && os.Args[1] == "supervise" {
		os.Exit(supervise(os.Args[2], os.Args[3]))
	}
	os.Exit(m.Run())
}

// newRoot makes the smallest tree that runs: the probe and two account files.
func newRoot(t testing.TB) string {
	t.Helper()
	kerneltest.Static(t)
	kerneltest.Require(t, kernel.Root, kernel.UserNS, kernel.Cgroup, kernel.BPF, kernel.Seccomp)
	dir := t.TempDir()
	if err := kernel.IDMapped(dir); err != nil {
		kerneltest.Lacks(t, string(kernel.IDMap), err.Error())
	}
	fill(t, dir)
	return dir
}

func fill(t testing.TB, dir string) {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(os.Chmod(dir, 0o755))
	check(os.MkdirAll(dir+"/etc", 0o755))
	check(os.MkdirAll(dir+"/home/user", 0o755))
	check(os.Chown(dir+"/home/user", 1000, 1000))
	check(os.WriteFile(dir+"/etc/passwd", []byte("root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n"), 0o644))
	check(os.WriteFile(dir+"/etc/group", []byte("root:x:0:\nextra:x:77:other,user\nuser:x:1000:\n"), 0o644))
	src, err := os.Open("/proc/self/exe")
	check(err)
	defer src.Close()
	dst, err := os.OpenFile(dir+"/probe", os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	check(err)
	_, err = io.Copy(dst, src)
	check(err)
	check(dst.Close())
}

// machine describes one that runs a probe in root; the runtime directory is the test's own.
func machine(root string, args ...string) *runner.Machine {
	m := &runner.Machine{Name: "test", Root: root}
	if len(args) > 0 {
		m.Argv = append([]string{"/probe"}, args...)
	}
	return m
}

func options(t testing.TB) *runner.Options { return &runner.Options{Runtime: t.TempDir()} }

// run gives the status and what was printed.
func run(t testing.TB, m *runner.Machine) (runner.ExitStatus, string) {
	t.Helper()
	var out strings.Builder
	m.Stdout, m.Stderr = &out, &out
	status, err := runner.Run(t.Context(), m, options(t))
	if err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	return status, out.String()
}

// probe runs inside a machine.
func probe(name string, args []string) int {
	switch name {
	case "true":
	case "exit":
		code := 0
		fmt.Sscan(args[0], &code)
		return code
	case "die":
		sig := 0
		fmt.Sscan(args[0], &sig)
		signal.Reset()
		_ = unix.Kill(unix.Getpid(), unix.Signal(sig))
		time.Sleep(time.Minute)
	case "sleep":
		fmt.Println("asleep")
		time.Sleep(time.Minute)
	case "catch":
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, unix.SIGTERM)
		fmt.Println("ready")
		fmt.Println(<-signals)
		return 7
	case "print":
		fmt.Print(strings.Join(args, " "))
	case "cat":
		_, _ = io.Copy(os.Stdout, os.Stdin)
	case "both":
		fmt.Fprint(os.Stdout, "out ")
		fmt.Fprint(os.Stderr, "err ")
	case "id":
		groups, _ := os.Getgroups()
		dir, _ := os.Getwd()
		fmt.Println(os.Getuid(), os.Getgid(), groups, dir, os.Getenv("HOME"), os.Getenv("USER"))
	case "env":
		fmt.Println(strings.Join(os.Environ(), "\n"))
	case "orphan":
		return orphan()
	case "effects":
		return effects()
	case "write":
		if err := os.WriteFile(args[0], []byte("x"), 0o644); err != nil {
			fmt.Print(err)
			return 1
		}
	case "read":
		data, err := os.ReadFile(args[0])
		fmt.Print(string(data), err)
	case "tty":
		return ttyProbe()
	case "setcap":
		// cap_net_bind_service=ep, as setcap(8) writes it
		caps := []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
		fmt.Print(os.WriteFile("/capable", nil, 0o755), unix.Setxattr("/capable", "security.capability", caps, 0))
	case "x32":
		_, _, _ = unix.RawSyscall(0x40000000|unix.SYS_GETPID, 0, 0, 0)
		fmt.Print("alive")
	default:
		fmt.Println("no probe", name)
		return 99
	}
	return 0
}

// orphan starts a process that keeps the output open and outlives its parent.
func orphan() int {
	p, err := os.StartProcess("/probe", []string{"/probe", "sleep"}, &os.ProcAttr{Files: []*os.File{nil, os.Stdout, os.Stderr}})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	_ = p.Release()
	fmt.Println("parent done")
	return 0
}

func echoEntry(conn *net.UnixConn) error {
	buf := make([]byte, 100)
	n, err := conn.Read(buf)
	if err != nil {
		return err
	}
	if err := os.WriteFile("/out", buf[:n], 0o644); err != nil {
		return err
	}
	if err := os.Chown("/out", 1000, 50); err != nil {
		return err
	}
	if err := os.Chmod("/out", 0o755|os.ModeSetuid); err != nil {
		return err
	}
	// cap_net_bind_service=ep, as packages carry it
	caps := []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	if err := unix.Setxattr("/out", "security.capability", caps, 0); err != nil {
		return err
	}
	_, err = conn.Write([]byte("done"))
	return err
}

func panicEntry(*net.UnixConn) error { panic("on purpose") }

func waitEntry(conn *net.UnixConn) error {
	_, _ = conn.Read(make([]byte, 1))
	return fmt.Errorf("end of input")
}

// doorsEntry tries what a confined process must not be able to do, and says what happened.
func doorsEntry(conn *net.UnixConn) error {
	say := func(name string, err error) { fmt.Fprintf(conn, "%s: %v\n", name, err) }
	entries, err := os.ReadDir("/")
	names := []string{}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	say("root "+strings.Join(names, ","), err)
	_, err = os.Stat("/proc/self")
	say("proc", err)
	_, err = os.Stat("../../../../etc/passwd")
	say("above", err)
	say("exec", unix.Exec("/sentinel", []string{"x"}, nil))
	_, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	say("socket", err)
	say("mount", unix.Mount("none", "/", "tmpfs", 0, ""))
	say("unshare", unix.Unshare(unix.CLONE_NEWUSER))
	say("chroot", unix.Chroot("/"))
	say("device", unix.Mknod("/dev0", unix.S_IFBLK|0o600, int(unix.Mkdev(7, 0))))
	say("kill", unix.Kill(1, 0))
	say("foreign id", unix.Lchown("/", 70000, 0))
	say("prctl", unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0))
	return nil
}
