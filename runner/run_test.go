// SPDX-License-Identifier: Apache-2.0

package runner_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/internal/kernel"
	"github.com/mkmachine/mkmachine/internal/kernel/kerneltest"
	"github.com/mkmachine/mkmachine/runner"
)

func TestExitStatus(t *testing.T) {
	root := newRoot(t)
	kerneltest.Leaks(t)
	if err := os.WriteFile(root+"/plain", []byte("text"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		argv []string
		code int
		fail string
	}{
		{[]string{"/probe", "true"}, 0, ""},
		{[]string{"/probe", "exit", "3"}, 3, ""},
		{[]string{"/probe", "exit", "133"}, 133, ""},
		{[]string{"/probe", "die", "9"}, 128 + 9, ""},
		{[]string{"/probe", "die", "15"}, 128 + 15, ""},
		{[]string{"/absent"}, 127, "no such file"},
		{[]string{"absent"}, 127, "no such file"},
		{[]string{"/plain"}, 126, "permission denied"},
		{[]string{"/etc"}, 126, "permission denied"},
	} {
		t.Run(strings.Join(c.argv, " "), func(t *testing.T) {
			m := &runner.Machine{Name: "test", Root: root, Argv: c.argv}
			status, err := runner.Run(t.Context(), m, options(t))
			if status.Code != c.code || (err == nil) != (c.fail == "") || err != nil && !strings.Contains(err.Error(), c.fail) {
				t.Errorf("%v, %v", status, err)
			}
		})
	}
}

func TestStreams(t *testing.T) {
	root := newRoot(t)
	kerneltest.Leaks(t)
	big := strings.Repeat("0123456789", 200_000)
	m := machine(root, "cat")
	m.Stdin = strings.NewReader(big)
	if status, out := run(t, m); !status.Ok() || out != big {
		t.Errorf("%v, %d of %d bytes", status, len(out), len(big))
	}
	var stdout, stderr bytes.Buffer
	m = machine(root, "both")
	m.Stdout, m.Stderr = &stdout, &stderr
	if _, err := runner.Run(t.Context(), m, options(t)); err != nil || stdout.String() != "out " || stderr.String() != "err " {
		t.Errorf("%q %q %v", &stdout, &stderr, err)
	}
	if _, out := run(t, machine(root, "both")); out != "out err " {
		t.Errorf("one writer for both: %q", out)
	}
	// Nothing to read, nowhere to write.
	if status, err := runner.Run(t.Context(), machine(root, "cat"), options(t)); err != nil || !status.Ok() {
		t.Errorf("no streams: %v %v", status, err)
	}
}

func TestUserAndEnvironment(t *testing.T) {
	root := newRoot(t)
	for user, want := range map[string]string{
		"":           "0 0 [] / /root root",
		"user":       "1000 1000 [77 1000] /home/user /home/user user",
		"1000":       "1000 1000 [77 1000] /home/user /home/user user",
		"user:extra": "1000 77 [77 1000] /home/user /home/user user",
		"4242:4243":  "4242 4243 [4242] / / 4242",
	} {
		m := machine(root, "id")
		m.User = user
		if _, out := run(t, m); strings.TrimSpace(out) != want {
			t.Errorf("user %q: %q, want %q", user, out, want)
		}
	}
	t.Setenv("GODEBUG", "x=1")
	t.Setenv("SECRET", "of the host")
	m := machine(root, "env")
	m.Env = []string{"A=b", "PATH=/x"}
	const want = "A=b\nPATH=/x\nHOME=/root\nUSER=root\nLOGNAME=root\ncontainer=mkmachine\n"
	if _, out := run(t, m); out != want {
		t.Errorf("environment:\n%s", out)
	}
	m = machine(root, "id")
	m.User = "nobody-here"
	if status, err := runner.Run(t.Context(), m, options(t)); status.Code != 126 || err == nil || !strings.Contains(err.Error(), "nobody-here") {
		t.Errorf("unknown user: %v %v", status, err)
	}
}

func TestExec(t *testing.T) {
	root := newRoot(t)
	kerneltest.Leaks(t)
	i, err := runner.Start(t.Context(), machine(root), options(t))
	if err != nil {
		t.Fatal(err)
	}
	defer i.Close()
	var wait sync.WaitGroup
	for n := range 20 {
		wait.Go(func() {
			var out bytes.Buffer
			status, err := i.Exec(t.Context(), runner.Command{Argv: []string{"/probe", "print", fmt.Sprint(n)}, Stdout: &out})
			if err != nil || !status.Ok() || out.String() != fmt.Sprint(n) {
				t.Errorf("%d: %v %v %q", n, status, err, out.String())
			}
		})
	}
	wait.Wait()
	// A descendant that keeps the output open does not hold up its parent's end.
	began := time.Now()
	var out bytes.Buffer
	status, err := i.Exec(t.Context(), runner.Command{Argv: []string{"/probe", "orphan"}, Stdout: &out})
	if err != nil || !status.Ok() || !strings.Contains(out.String(), "parent done") || time.Since(began) > 5*time.Second {
		t.Errorf("orphan: %v %v %q after %v", status, err, out.String(), time.Since(began))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := i.Exec(ctx, runner.Command{Argv: []string{"/probe", "sleep"}}); err == nil {
		t.Error("a command outlived its context")
	}
	if err := i.Close(); err != nil {
		t.Error(err)
	}
	if _, err := i.Exec(t.Context(), runner.Command{Argv: []string{"/probe", "true"}}); err == nil {
		t.Error("a closed machine runs commands")
	}
}

func TestSignalAndTimeout(t *testing.T) {
	root := newRoot(t)
	kerneltest.Leaks(t)
	m := machine(root, "catch")
	read, write, _ := os.Pipe()
	defer read.Close()
	m.Stdout = write
	i, err := runner.Start(t.Context(), m, options(t))
	if err != nil {
		t.Fatal(err)
	}
	defer i.Close()
	if _, err := read.Read(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	if err := i.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	status, err := i.Wait()
	write.Close()
	if err != nil || status.Code != 7 {
		t.Errorf("caught: %v %v", status, err)
	}
	m = machine(root, "sleep")
	m.Timeout = 50 * time.Millisecond
	status, err = runner.Run(t.Context(), m, options(t))
	if status.Signal != unix.SIGKILL || err == nil || !strings.Contains(err.Error(), "timed out after 50ms") {
		t.Errorf("timeout: %v %v", status, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err = runner.Run(ctx, machine(root, "sleep"), options(t)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("cancelled: %v", err)
	}
}

// Each place where the machine's own file systems go must be a directory of the root itself.
func TestLinksForMountPointsAreRefused(t *testing.T) {
	root := newRoot(t)
	kerneltest.Leaks(t)
	outside := t.TempDir()
	for _, name := range []string{"proc", "sys", "dev", "run", "tmp"} {
		for kind, plant := range map[string]func(string) error{
			"absolute link": func(p string) error { return os.Symlink(outside, p) },
			"relative link": func(p string) error { return os.Symlink("etc", p) },
			"dangling link": func(p string) error { return os.Symlink("/nowhere", p) },
			"file":          func(p string) error { return os.WriteFile(p, nil, 0o644) },
			"fifo":          func(p string) error { return unix.Mkfifo(p, 0o644) },
			"device":        func(p string) error { return unix.Mknod(p, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))) },
		} {
			path := filepath.Join(root, name)
			os.RemoveAll(path)
			if err := plant(path); err != nil {
				t.Fatal(err)
			}
			_, err := runner.Run(t.Context(), machine(root, "true"), options(t))
			if fault.ClassOf(err) != fault.Policy || !strings.Contains(err.Error(), "/"+name) {
				t.Errorf("%s as %s: %s: %v", name, kind, fault.ClassOf(err), err)
			}
			os.Remove(path)
		}
	}
	if entries, _ := os.ReadDir(outside); len(entries) != 0 {
		t.Errorf("something was made outside: %v", entries)
	}
}

func TestMountsAndReadOnly(t *testing.T) {
	root := newRoot(t)
	kerneltest.Leaks(t)
	shared := t.TempDir()
	os.WriteFile(shared+"/in", []byte("from the host"), 0o644)
	m := machine(root, "read", "/share/in")
	m.Mounts = []runner.Mount{{Source: shared, Target: "/share", ReadOnly: true}}
	if _, out := run(t, m); out != "from the host<nil>" {
		t.Errorf("read: %q", out)
	}
	m = machine(root, "write", "/share/out")
	m.Mounts = []runner.Mount{{Source: shared, Target: "/share", ReadOnly: true}}
	if status, out := run(t, m); status.Ok() || !strings.Contains(out, "read-only") {
		t.Errorf("write to a read-only mount: %v %q", status, out)
	}
	m = machine(root, "write", "/share/out")
	m.Mounts = []runner.Mount{{Source: shared, Target: "/share"}}
	run(t, m)
	var st unix.Stat_t
	if err := unix.Stat(shared+"/out", &st); err != nil || st.Uid != 0 {
		t.Errorf("a written file belongs to %d outside, %v", st.Uid, err)
	}
	m = machine(root, "write", "/file")
	m.ReadOnly = true
	if status, out := run(t, m); status.Ok() || !strings.Contains(out, "read-only") {
		t.Errorf("write to a read-only root: %v %q", status, out)
	}
	run(t, machine(root, "write", "/file"))
	if err := unix.Stat(root+"/file", &st); err != nil || st.Uid != 0 {
		t.Errorf("a written file belongs to %d outside, %v", st.Uid, err)
	}
	// A target that is a link leads where it leads inside, or nowhere.
	os.Symlink(shared, root+"/link")
	m = machine(root, "true")
	m.Mounts = []runner.Mount{{Source: shared, Target: "/link"}}
	if _, err := runner.Run(t.Context(), m, options(t)); fault.ClassOf(err) != fault.Policy {
		t.Errorf("mount on a link: %v", err)
	}
}

func TestOverlayRoot(t *testing.T) {
	lower := newRoot(t)
	kerneltest.Require(t, kernel.Overlay)
	for _, kind := range []string{"here", "ext4", "btrfs"} {
		t.Run(kind, func(t *testing.T) {
			dir := t.TempDir()
			if kind != "here" {
				dir = kerneltest.LoopFS(t, kind, 1<<28)
			}
			for _, name := range []string{"upper", "work"} {
				if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			m := machine("", "write", "/etc/new")
			m.Overlay = &runner.Overlay{Lower: []string{lower}, Upper: dir + "/upper", Work: dir + "/work"}
			if status, out := run(t, m); !status.Ok() {
				t.Fatalf("%v %s", status, out)
			}
			var st unix.Stat_t
			if err := unix.Stat(dir+"/upper/etc/new", &st); err != nil || st.Uid != 0 {
				t.Errorf("in the upper layer: owner %d, %v", st.Uid, err)
			}
			if _, err := os.Stat(lower + "/etc/new"); err == nil {
				t.Error("the lower layer was changed")
			}
			os.RemoveAll(dir + "/work/work")
		})
	}
}

// What setcap(8) writes inside is what a package manager on the host would have written.
func TestFileCapabilities(t *testing.T) {
	root := newRoot(t)
	m := machine(root, "setcap")
	m.Profile = runner.Build
	if _, out := run(t, m); out != "<nil> <nil>" {
		t.Fatal(out)
	}
	caps := make([]byte, 64)
	if n, err := unix.Getxattr(root+"/capable", "security.capability", caps); err != nil || n != 20 || caps[3] != 2 {
		t.Errorf("%d bytes, version %d, %v; want version 2 in 20 bytes", n, caps[3], err)
	}
}

func TestTrusted(t *testing.T) {
	root := newRoot(t)
	kerneltest.Leaks(t)
	m := machine(root, "id")
	m.Trusted = true
	if _, out := run(t, m); !strings.HasPrefix(out, "0 0 ") {
		t.Errorf("%q", out)
	}
}

func TestHostNetwork(t *testing.T) {
	root := newRoot(t)
	kerneltest.Leaks(t)
	host, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		t.Skip("the host has no resolv.conf: ", err)
	}
	for name, plant := range map[string]func(string) error{
		"none": func(string) error { return nil },
		"file": func(p string) error { return os.WriteFile(p, []byte("old"), 0o644) },
		"link": func(p string) error { return os.Symlink("../run/systemd/resolve/stub-resolv.conf", p) },
	} {
		path := root + "/etc/resolv.conf"
		if err := plant(path); err != nil {
			t.Fatal(err)
		}
		m := machine(root, "read", "/etc/resolv.conf")
		m.Network = runner.Host
		if _, out := run(t, m); out != string(host)+"<nil>" {
			t.Errorf("%s: %q", name, out)
		}
		data, err := os.ReadFile(path)
		switch name {
		case "none":
			if !os.IsNotExist(err) {
				t.Errorf("a file was left in the tree: %q %v", data, err)
			}
		case "file":
			if string(data) != "old" {
				t.Errorf("the tree's file was changed: %q %v", data, err)
			}
		}
		os.Remove(path)
	}
}

func TestParallel(t *testing.T) {
	root := newRoot(t)
	kerneltest.Leaks(t)
	opts := options(t)
	var wait sync.WaitGroup
	for range 20 {
		wait.Go(func() {
			if status, err := runner.Run(t.Context(), machine(root, "true"), opts); err != nil || !status.Ok() {
				t.Errorf("%v %v", status, err)
			}
		})
	}
	wait.Wait()
	for _, dir := range []string{"leases", "ids"} {
		if left, _ := os.ReadDir(filepath.Join(opts.Runtime, dir)); len(left) != 0 {
			t.Errorf("%s left: %v", dir, left)
		}
	}
}

// supervise is a process of its own that runs a machine and is killed.
func supervise(root, runtime string) int {
	m := &runner.Machine{Name: "victim", Root: root, Argv: []string{"/probe", "sleep"}, Stdout: os.Stdout}
	_, err := runner.Run(context.Background(), m, &runner.Options{Runtime: runtime})
	fmt.Println(err)
	return 1
}

func TestKilledSupervisor(t *testing.T) {
	root := newRoot(t)
	kerneltest.Leaks(t)
	for _, delay := range []time.Duration{-1, 0, time.Millisecond, 3 * time.Millisecond, 5 * time.Millisecond, 8 * time.Millisecond, 12 * time.Millisecond} {
		runtime := t.TempDir()
		cmd := exec.Command("/proc/self/exe", "supervise", root, runtime)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if delay < 0 { // until the payload runs
			out.Read(make([]byte, 10))
		} else {
			time.Sleep(10*time.Millisecond + delay)
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		// The dead machine's init is an orphan, which Leaks has made this process adopt.
		for {
			if _, err := unix.Wait4(-1, nil, 0, nil); err != nil && err != unix.EINTR {
				break
			}
		}
		cleaned, err := runner.Clean(t.Context(), runtime)
		if err != nil {
			t.Errorf("after %v: %v", delay, err)
		}
		t.Logf("killed after %v: cleaned %v", delay, cleaned)
		for _, pattern := range []string{"/sys/fs/cgroup/mkmachine/*", "/sys/fs/cgroup/*/mkmachine/*", runtime + "/*/*"} {
			left, _ := filepath.Glob(pattern)
			for _, l := range left {
				if strings.Contains(l, fmt.Sprintf("-%d.", cmd.Process.Pid)) || strings.HasPrefix(l, runtime) {
					t.Errorf("after %v: left %s", delay, l)
				}
			}
		}
	}
}

// Clean leaves what is in use alone, and distrusts what a lease says.
func TestCleanIsCareful(t *testing.T) {
	root := newRoot(t)
	opts := options(t)
	i, err := runner.Start(t.Context(), machine(root), opts)
	if err != nil {
		t.Fatal(err)
	}
	defer i.Close()
	if cleaned, err := runner.Clean(t.Context(), opts.Runtime); err != nil || len(cleaned) != 0 {
		t.Errorf("cleaned %v, %v", cleaned, err)
	}
	if status, err := i.Exec(t.Context(), runner.Command{Argv: []string{"/probe", "true"}}); err != nil || !status.Ok() {
		t.Errorf("the machine does not run any more: %v %v", status, err)
	}
	victim := t.TempDir()
	evil := fmt.Sprintf(`{"name":"x","cgroups":[{"path":%q}]}`, victim)
	if err := os.WriteFile(opts.Runtime+"/leases/x.json", []byte(evil), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := runner.Clean(t.Context(), opts.Runtime); fault.ClassOf(err) != fault.State && err == nil {
		t.Error("a forged lease was believed")
	}
	if _, err := os.Stat(victim); err != nil {
		t.Error(err)
	}
}

// A supervisor that is killed while it renews its lease leaves the new text with the end of
// a longer old one behind it.
func TestCleanReadsHalfRenewedLease(t *testing.T) {
	kerneltest.Require(t, kernel.Root, kernel.Cgroup)
	hierarchies, err := kernel.Hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	opts := options(t)
	name := fmt.Sprintf("renewed-%d.1", os.Getpid())
	group := filepath.Join(hierarchies.UnifiedRoot, "mkmachine", name)
	if err := os.MkdirAll(group, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(group)
	if err := os.MkdirAll(opts.Runtime+"/leases", 0o700); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf(`{"name":%q,"cgroups":[{"path":%q}]}"}]}`, name, group)
	if err := os.WriteFile(opts.Runtime+"/leases/"+name+".json", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if cleaned, err := runner.Clean(t.Context(), opts.Runtime); err != nil || len(cleaned) != 1 {
		t.Errorf("cleaned %v, %v", cleaned, err)
	}
	if _, err := os.Stat(group); err == nil {
		t.Error("the control group is there still")
	}
}

func BenchmarkRunTrue(b *testing.B) {
	root := newRoot(b)
	opts := options(b)
	for b.Loop() {
		if _, err := runner.Run(b.Context(), machine(root, "true"), opts); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkExec(b *testing.B) {
	root := newRoot(b)
	i, err := runner.Start(b.Context(), machine(root), options(b))
	if err != nil {
		b.Fatal(err)
	}
	defer i.Close()
	for b.Loop() {
		if _, err := i.Exec(b.Context(), runner.Command{Argv: []string{"/probe", "true"}}); err != nil {
			b.Fatal(err)
		}
	}
}
