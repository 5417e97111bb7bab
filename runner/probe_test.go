// SPDX-License-Identifier: Apache-2.0

package runner_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/kernel/kerneltest"
	"github.com/mkmachine/mkmachine/runner"
)

var update = flag.Bool("update", false, "rewrite golden files")

// golden compares a text with a file below testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (go test -update rewrites it); got:\n%s", path, got)
	}
}

// effects tries, inside a machine, what each row of the table of defaults is about, and prints
// what happened: the effect of the hardening, not its configuration.
func effects() int {
	say := func(what string, result any) {
		if errno, ok := result.(error); ok {
			var number unix.Errno
			if errors.As(errno, &number) {
				result = unix.ErrnoName(number)
			}
		}
		fmt.Printf("%s: %v\n", what, result)
	}
	call := func(what string, nr uintptr, args ...uintptr) {
		var a [6]uintptr
		copy(a[:], args)
		r, _, errno := unix.RawSyscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5])
		if errno != 0 {
			say(what, errno)
			return
		}
		say(what, int(r))
	}
	effectsOfIdentity(say)
	effectsOfCalls(say, call)
	effectsOfFiles(say)
	effectsOfNetwork(say)
	return 0
}

func effectsOfIdentity(say func(string, any)) {
	data, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(data)) {
		key, value, _ := strings.Cut(line, ":")
		switch key {
		case "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp":
			say(key, strings.TrimSpace(value))
		}
	}
	data, _ = os.ReadFile("/proc/self/uid_map")
	f := strings.Fields(string(data))
	say("user namespace", f[0] == "0" && f[1] != "0" && f[2] == "65536")
	say("first process", os.Getppid())
	hostname, _ := os.Hostname()
	say("host name", hostname)
	groups := []string{}
	data, _ = os.ReadFile("/proc/self/cgroup")
	for line := range strings.Lines(string(data)) {
		if g := strings.SplitN(strings.TrimSpace(line), ":", 3); g[2] != "/" {
			groups = append(groups, g[2])
		}
	}
	say("control groups other than /", groups)
	entries, _ := os.ReadDir("/proc/self/fd")
	fds := []string{}
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && !strings.HasPrefix(target, "/proc/") && !strings.HasPrefix(target, "anon_inode:") {
			fds = append(fds, e.Name())
		}
	}
	say("descriptors", fds)
	var limit unix.Rlimit
	_ = unix.Getrlimit(unix.RLIMIT_CORE, &limit)
	say("core limit", limit)
	_ = unix.Getrlimit(unix.RLIMIT_NOFILE, &limit)
	say("open files at most 65536", limit.Max <= 65536)
	say("raise open files", unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1 << 19, Max: 1 << 19}))
	say("trace init", unix.PtraceAttach(1))
	_, err := os.Readlink("/proc/1/exe")
	say("see init's program", err)
	_, err = os.Readlink("/proc/1/fd/0")
	say("see init's descriptors", err)
	say("stop init", unix.Kill(1, unix.SIGSTOP))
	say("kill init", unix.Kill(1, unix.SIGKILL))
	say("interrupt init", unix.Kill(1, unix.SIGTERM))
}

func effectsOfCalls(say func(string, any), call func(string, uintptr, ...uintptr)) {
	bad := ^uintptr(0)
	text := func(s string) uintptr { return uintptr(unsafe.Pointer(&append([]byte(s), 0)[0])) }
	say("mount a file system", unix.Mount("none", "/tmp", "tmpfs", 0, ""))
	say("unmount a mask", unix.Unmount("/proc/kcore", unix.MNT_DETACH))
	say("unmount /proc/sys", unix.Unmount("/proc/sys", unix.MNT_DETACH))
	say("make /proc/sys writable", unix.Mount("", "/proc/sys", "", unix.MS_REMOUNT|unix.MS_BIND, ""))
	call("fsopen", unix.SYS_FSOPEN, text("tmpfs"))
	call("open_tree", unix.SYS_OPEN_TREE, bad, text("/"), 1)
	call("move_mount", unix.SYS_MOVE_MOUNT)
	call("pivot_root", unix.SYS_PIVOT_ROOT, text("."), text("."))
	call("unshare a user namespace", unix.SYS_UNSHARE, unix.CLONE_NEWUSER)
	call("clone a user namespace", unix.SYS_CLONE, unix.CLONE_NEWUSER)
	call("unshare nothing", unix.SYS_UNSHARE, 0)
	call("clone3", unix.SYS_CLONE3)
	call("setns", unix.SYS_SETNS, bad)
	call("io_uring_setup", unix.SYS_IO_URING_SETUP, 8)
	call("userfaultfd", unix.SYS_USERFAULTFD)
	call("bpf", unix.SYS_BPF)
	call("perf_event_open", unix.SYS_PERF_EVENT_OPEN)
	call("keyctl", unix.SYS_KEYCTL)
	call("add_key", unix.SYS_ADD_KEY)
	call("request_key", unix.SYS_REQUEST_KEY)
	call("open_by_handle_at", unix.SYS_OPEN_BY_HANDLE_AT)
	call("fanotify_init", unix.SYS_FANOTIFY_INIT)
	call("quotactl", unix.SYS_QUOTACTL)
	call("kexec_load", unix.SYS_KEXEC_LOAD)
	call("init_module", unix.SYS_INIT_MODULE)
	call("reboot", unix.SYS_REBOOT)
	call("syslog", unix.SYS_SYSLOG, 2)
	call("settimeofday", unix.SYS_SETTIMEOFDAY)
	call("swapon", unix.SYS_SWAPON)
	call("a call of the future", 9999)
	call("personality: no randomisation", unix.SYS_PERSONALITY, 0x0040000)
	call("personality: linux32", unix.SYS_PERSONALITY, 8)
	call("personality: linux", unix.SYS_PERSONALITY, 0)
	call("push terminal input", unix.SYS_IOCTL, 0, unix.TIOCSTI, text("x"))
	call("push console input", unix.SYS_IOCTL, 0, unix.TIOCLINUX, text("x"))
	call("fsync of nothing", unix.SYS_FSYNC, bad)
	call("sync_file_range of nothing", unix.SYS_SYNC_FILE_RANGE, bad)
	runtime.KeepAlive(text)
}

func effectsOfFiles(say func(string, any)) {
	say("make a block device", unix.Mknod("/tmp/b", unix.S_IFBLK|0o600, int(unix.Mkdev(7, 0))))
	say("make a character device", unix.Mknod("/dev/mem", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 1))))
	say("make a fifo", unix.Mkfifo("/tmp/fifo", 0o600))
	_, err := os.Open("/planted/null")
	say("open a device of the root", err)
	say("give to a foreign id", os.Lchown("/tmp/fifo", 70000, 0))
	say("give to a known id", os.Lchown("/tmp/fifo", 65534, 65534))
	for _, name := range []string{"null", "zero", "full", "random", "urandom", "tty", "kmsg", "mem", "fuse", "kvm", "loop0", "console"} {
		file, err := os.OpenFile("/dev/"+name, os.O_RDWR, 0)
		say("/dev/"+name, err)
		if err == nil {
			file.Close()
		}
	}
	_, err = os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	say("/dev/ptmx", err)
	for _, name := range []string{"kallsyms", "kcore", "keys", "key-users", "kmsg", "modules", "iomem", "ioports", "interrupts",
		"slabinfo", "vmallocinfo", "pagetypeinfo", "kpagecount", "timer_list", "config.gz", "sysrq-trigger", "bus", "fs", "irq", "acpi"} {
		path := "/proc/" + name
		info, err := os.Stat(path)
		switch {
		case os.IsNotExist(err):
			say(path, "empty")
		case err != nil:
			say(path, err)
		case info.IsDir():
			entries, err := os.ReadDir(path)
			if err != nil || len(entries) > 0 {
				say(path, fmt.Sprint(len(entries), err))
			} else {
				say(path, "empty")
			}
		default:
			file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
			if err != nil {
				say(path, err)
				continue
			}
			n, _ := file.Read(make([]byte, 64))
			file.Close()
			if n == 0 {
				say(path, "empty")
			} else {
				say(path, n)
			}
		}
	}
	for _, name := range []string{"/proc/sysrq-trigger", "/proc/sys/kernel/hostname", "/proc/sys/kernel/core_pattern", "/proc/sys/net/ipv4/ip_forward",
		"/proc/kcore", "/proc/self/oom_score_adj", "/sys/new", "/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/new", "/dev/new", "/run/new", "/tmp/new", "/new"} {
		file, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE, 0o644)
		if err != nil {
			// Which of EACCES, EROFS and ENOENT it is depends on what this kernel has.
			say("write "+name, "refused")
			continue
		}
		say("write "+name, "done")
		file.Close()
	}
	_, err = os.Stat("/sys/fs/cgroup/cgroup.procs")
	say("own control group", err)
	for _, name := range []string{"firmware", "kernel/debug", "kernel/security", "module", "power", "hypervisor", "devices/pci0000:00", "block/loop0", "fs/bpf"} {
		_, err := os.Stat("/sys/" + name)
		say("/sys/"+name, err)
	}
	data, _ := os.ReadFile("/proc/self/mountinfo")
	say("propagating mounts", bytes.Contains(data, []byte("shared:")) || bytes.Contains(data, []byte("master:")))
	var fs unix.Statfs_t
	_ = unix.Statfs("/", &fs)
	say("root: nodev", fs.Flags&unix.ST_NODEV != 0)
	say("root: nosuid", fs.Flags&unix.ST_NOSUID != 0)
}

func effectsOfNetwork(say func(string, any)) {
	for _, s := range []struct {
		name                 string
		family, kind, number int
	}{{"local", unix.AF_UNIX, unix.SOCK_STREAM, 0}, {"internet", unix.AF_INET, unix.SOCK_STREAM, 0}, {"internet 6", unix.AF_INET6, unix.SOCK_DGRAM, 0},
		{"routes", unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE}, {"audit", unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_AUDIT},
		{"netfilter", unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER}, {"vsock", unix.AF_VSOCK, unix.SOCK_STREAM, 0},
		{"crypto", unix.AF_ALG, unix.SOCK_SEQPACKET, 0}, {"packet", unix.AF_PACKET, unix.SOCK_RAW, 0}, {"raw", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP}} {
		fd, err := unix.Socket(s.family, s.kind, s.number)
		say("socket "+s.name, err)
		if err == nil {
			unix.Close(fd)
		}
	}
	links := []string{}
	interfaces, err := net.Interfaces()
	for _, i := range interfaces {
		links = append(links, i.Name)
	}
	say("interfaces "+strings.Join(links, " "), err)
	listener, err := net.Listen("tcp", "127.0.0.1:80")
	say("listen", err)
	if err == nil {
		conn, err := net.DialTimeout("tcp", listener.Addr().String(), time.Second)
		say("connect", err)
		if err == nil {
			conn.Close()
		}
		listener.Close()
	}
	conn, err := net.DialTimeout("tcp", "169.254.169.254:80", time.Second)
	say("reach the metadata service", err)
	if err == nil {
		conn.Close()
	}
}

func TestEffects(t *testing.T) {
	root := newRoot(t)
	kerneltest.Leaks(t)
	if err := os.Mkdir(root+"/planted", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(root+"/planted/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		t.Skip("cannot make a device node: ", err)
	}
	if err := os.Chmod(root+"/planted/null", 0o666); err != nil {
		t.Fatal(err)
	}
	// Descriptors that this process has left open on purpose.
	for range 30 {
		fd, err := unix.Open("/etc/passwd", unix.O_RDONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
	}
	for _, profile := range []runner.Profile{runner.Build, runner.App} {
		t.Run(string(profile), func(t *testing.T) {
			m := machine(root, "effects")
			m.Profile, m.NoSync = profile, profile == runner.Build
			status, out := run(t, m)
			if !status.Ok() {
				t.Errorf("%v", status)
			}
			golden(t, "effects_"+string(profile)+".txt", out)
			os.Remove(root + "/new")
		})
	}
}

// Calls through another ABI kill the caller.
func TestForeignABI(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("only amd64 has more than one here")
	}
	root := newRoot(t)
	if status, out := run(t, machine(root, "x32")); status.Signal != unix.SIGSYS {
		t.Errorf("x32: %v %q", status, out)
	}
	// A 32-bit program of one instruction more than nothing: exit(0) by int 0x80.
	code := []byte{0x31, 0xdb, 0x31, 0xc0, 0x40, 0xcd, 0x80}
	elf := []byte("\x7fELF\x01\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x03\x00\x01\x00\x00\x00\x54\x80\x04\x08\x34\x00\x00\x00" +
		"\x00\x00\x00\x00\x00\x00\x00\x00\x34\x00\x20\x00\x01\x00\x00\x00\x00\x00\x00\x00" +
		"\x01\x00\x00\x00\x00\x00\x00\x00\x00\x80\x04\x08\x00\x80\x04\x08\x5b\x00\x00\x00\x5b\x00\x00\x00\x05\x00\x00\x00\x00\x10\x00\x00")
	if err := os.WriteFile(root+"/i386", append(elf, code...), 0o755); err != nil {
		t.Fatal(err)
	}
	m := &runner.Machine{Name: "test", Root: root, Argv: []string{"/i386"}}
	status, err := runner.Run(t.Context(), m, options(t))
	if status.Signal != unix.SIGSYS {
		t.Errorf("i386: %v %v", status, err)
	}
}

// ttyProbe says what its terminal is, then echoes a line.
func ttyProbe() int {
	size, err := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	name, _ := os.Readlink("/proc/self/fd/0")
	controlling, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	fmt.Println(size.Row, size.Col, name, err)
	line := make([]byte, 100)
	n, _ := controlling.Read(line)
	fmt.Printf("read %q\n", line[:n])
	return 5
}

// hostTerminal makes a pseudo-terminal as a user would sit at.
func hostTerminal(t *testing.T) (user, screen *os.File) {
	t.Helper()
	screen, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		kerneltest.Lacks(t, "pty", err.Error())
	}
	raw, err := screen.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(func(fd uintptr) {
		if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err != nil {
			return
		}
		var n int
		if n, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN); err != nil {
			return
		}
		_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: 33, Col: 99})
		user, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { user.Close(); screen.Close() })
	return user, screen
}

func TestTerminal(t *testing.T) {
	root := newRoot(t)
	kerneltest.Leaks(t)
	user, screen := hostTerminal(t)
	m := machine(root, "tty")
	m.Terminal = &runner.Terminal{File: user, Escape: true}
	i, err := runner.Start(t.Context(), m, options(t))
	if err != nil {
		t.Fatal(err)
	}
	defer i.Close()
	seen := make(chan string)
	go func() {
		var all []byte
		buffer := make([]byte, 1000)
		for !bytes.Contains(all, []byte("read")) {
			n, err := screen.Read(buffer)
			if err != nil {
				break
			}
			all = append(all, buffer[:n]...)
			if bytes.Count(all, []byte("\n")) == 1 {
				screen.Write([]byte("typed\r"))
			}
		}
		seen <- string(all)
	}()
	status, err := i.Wait()
	out := <-seen
	if err != nil || status.Code != 5 || !strings.HasPrefix(out, "33 99 /dev/pts/0 <nil>\r\n") || !strings.Contains(out, `read "typed\n"`) {
		t.Errorf("%v %v %q", status, err, out)
	}
	if err := i.Close(); err != nil {
		t.Error(err)
	}
	m = machine(root, "sleep")
	m.Terminal = &runner.Terminal{File: user, Escape: true}
	go func() {
		screen.Read(make([]byte, 100))
		screen.Write([]byte{0x1d, 0x1d, 0x1d})
	}()
	status, err = runner.Run(t.Context(), m, options(t))
	if err != nil || status.Signal != unix.SIGKILL {
		t.Errorf("escape: %v %v", status, err)
	}
}
