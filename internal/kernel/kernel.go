// SPDX-License-Identifier: Apache-2.0

// Package kernel asks the running kernel what it can do.
//
// Every probe tries the real thing on something of its own and gives either nil or an
// error of class fault.Host that says why not and, as a hint, what changes it. Probes leave
// nothing behind and never decide what to do about a missing feature: callers refuse, or
// report that they take another way. A probe's answer is not remembered, so it stays true
// when the administrator fixes the host.
package kernel

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// ErrMissing is wrapped by every error of this package that says "this host cannot".
var ErrMissing = errors.New("the host cannot do it")

// Feature names something that a host may or may not be able to do.
type Feature string

// The features that Check knows.
const (
	Root     Feature = "root"     // effective uid 0 in the first user namespace
	UserNS   Feature = "userns"   // user namespaces may be created
	IDMap    Feature = "idmap"    // id-mapped mounts of the temporary directory's file system
	Overlay  Feature = "overlay"  // overlayfs
	Btrfs    Feature = "btrfs"    // the btrfs driver
	Xfs      Feature = "xfs"      // the xfs driver
	Loop     Feature = "loop"     // loop devices
	Cgroup   Feature = "cgroup"   // a writable cgroup v2 hierarchy, alone or beside v1
	BPF      Feature = "bpf"      // cgroup device programs
	Seccomp  Feature = "seccomp"  // seccomp filters
	Memfd    Feature = "memfd"    // sealed memory files
	Landlock Feature = "landlock" // Landlock rules
	Net      Feature = "net"      // network namespaces
)

// Features lists all features in the order in which they should be shown.
func Features() []Feature {
	return []Feature{Root, UserNS, IDMap, Overlay, Btrfs, Xfs, Loop, Cgroup, BPF, Seccomp, Memfd, Landlock, Net}
}

// Check probes one feature. The error is of class fault.Host, wraps ErrMissing and has a hint.
func Check(f Feature) error {
	switch f {
	case Root:
		return checkRoot()
	case UserNS:
		return checkUserNS()
	case IDMap:
		return IDMapped(os.TempDir())
	case Overlay, Btrfs, Xfs:
		return fileSystem(string(f))
	case Loop:
		return checkLoop()
	case Cgroup:
		_, err := Hierarchies()
		return err
	case BPF:
		return checkBPF()
	case Seccomp:
		return checkSeccomp()
	case Memfd:
		return checkMemfd()
	case Landlock:
		return checkLandlock()
	case Net:
		return checkNamespace("net")
	}
	return fault.New(fault.Internal, "internal error: unknown kernel feature %q", f)
}

func missing(hint, format string, args ...any) error {
	err := fault.As(fault.Host, fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), ErrMissing))
	if hint == "" {
		return err
	}
	return fault.Hint(err, "%s", hint)
}

func checkRoot() error {
	if os.Geteuid() != 0 {
		return missing("run it as root, for example with sudo", "cannot act as root: effective user id is %d", os.Geteuid())
	}
	// In a child user namespace uid 0 is not enough: mounts of block devices and id-mapped
	// mounts need the first one. Its map is the full identity.
	data, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return missing("mount /proc", "cannot read the user id map: %v", err)
	}
	if f := strings.Fields(string(data)); len(f) != 3 || f[0] != "0" || f[1] != "0" || f[2] != "4294967295" {
		return missing("run it outside of the container, or in one without a user namespace",
			"cannot act as root: this is a user namespace (map %q)", strings.Join(f, " "))
	}
	return nil
}

func checkNamespace(kind string) error {
	if _, err := os.Stat("/proc/self/ns/" + kind); err != nil {
		return missing("use a kernel with namespaces enabled", "cannot use %s namespaces: %v", kind, err)
	}
	return nil
}

func checkUserNS() error {
	if err := checkNamespace("user"); err != nil {
		return err
	}
	if n := readSysctl("user/max_user_namespaces"); n == "0" {
		return missing("sysctl -w user.max_user_namespaces=16384", "cannot create user namespaces: user.max_user_namespaces is 0")
	}
	if os.Geteuid() == 0 {
		return nil
	}
	if readSysctl("kernel/unprivileged_userns_clone") == "0" {
		return missing("sysctl -w kernel.unprivileged_userns_clone=1", "cannot create user namespaces without root")
	}
	return nil
}

func readSysctl(name string) string {
	data, err := os.ReadFile("/proc/sys/" + name)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

// fileSystem tries to open a context for the driver; the kernel loads the module for it.
func fileSystem(name string) error {
	fd, err := unix.Fsopen(name, unix.FSOPEN_CLOEXEC)
	if err == nil {
		unix.Close(fd)
		return nil
	}
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		data, _ := os.ReadFile("/proc/filesystems")
		for line := range strings.Lines(string(data)) {
			if f := strings.Fields(line); len(f) > 0 && f[len(f)-1] == name {
				return missing("run it as root", "cannot mount %s: %v", name, err)
			}
		}
	}
	return missing("modprobe "+name, "cannot use %s: %v", name, err)
}

func checkLoop() error {
	fd, err := unix.Open("/dev/loop-control", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return missing("modprobe loop", "cannot use loop devices: /dev/loop-control: %v", err)
	}
	return unix.Close(fd)
}

func checkMemfd() error {
	fd, err := unix.MemfdCreate("probe", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return missing("use Linux 3.17 or newer", "cannot create a memory file: %v", err)
	}
	return unix.Close(fd)
}

func checkSeccomp() error {
	// GET_ACTION_AVAIL reads a 32-bit action and changes nothing.
	action := uint32(unix.SECCOMP_RET_KILL_PROCESS)
	if errno := seccompActionAvailable(&action); errno != 0 {
		return missing("use a kernel with CONFIG_SECCOMP_FILTER", "cannot use seccomp filters: %v", errno)
	}
	return nil
}

func checkLandlock() error {
	version, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return missing("boot with lsm=landlock,…", "cannot use landlock: %v", errno)
	}
	if version < 1 {
		return missing("boot with lsm=landlock,…", "cannot use landlock: version %d", version)
	}
	return nil
}

// Arch is the kernel architecture in Go's words ("amd64", "arm64").
func Arch() string { return runtime.GOARCH }

// binfmtNames maps the names that distributions and Go give an architecture to the name
// under which qemu-user registers its interpreter.
func binfmtName(arch string) string {
	switch arch {
	case "amd64", "x86_64":
		return "x86_64"
	case "i386", "386", "i686":
		return "i386"
	case "arm64", "aarch64":
		return "aarch64"
	case "armhf", "armel", "arm", "armv7h", "armv7l":
		return "arm"
	case "riscv64":
		return "riscv64"
	case "ppc64el", "ppc64le":
		return "ppc64le"
	case "s390x":
		return "s390x"
	case "loong64", "loongarch64":
		return "loongarch64"
	case "mips64el", "mips64le":
		return "mips64el"
	}
	return arch
}

// Runs reports whether programs of an architecture (a distribution's or Go's name for it)
// can be executed inside a foreign root: natively, or by an interpreter registered with
// binfmt_misc under the F flag, which opens it before the root is entered.
func Runs(arch string) error {
	name, native := binfmtName(arch), binfmtName(runtime.GOARCH)
	if name == native || (name == "i386" && native == "x86_64") {
		return nil
	}
	const hint = "apt-get install qemu-user-static (Arch: pacman -S qemu-user-static-binfmt; Fedora: dnf install qemu-user-static), then try again"
	dir := "/proc/sys/fs/binfmt_misc"
	if status := readSysctl("fs/binfmt_misc/status"); status == "" {
		return missing("mount -t binfmt_misc binfmt_misc "+dir+" && "+hint,
			"cannot run %s programs on %s: binfmt_misc is not mounted", arch, runtime.GOARCH)
	} else if status != "enabled" {
		return missing("echo 1 > "+dir+"/status", "cannot run %s programs on %s: binfmt_misc is %s", arch, runtime.GOARCH, status)
	}
	data, err := os.ReadFile(filepath.Join(dir, "qemu-"+name))
	if err != nil {
		return missing(hint, "cannot run %s programs on %s: no interpreter is registered", arch, runtime.GOARCH)
	}
	enabled, fixed := false, false
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		enabled = enabled || line == "enabled"
		if flags, ok := strings.CutPrefix(line, "flags: "); ok {
			fixed = strings.Contains(flags, "F")
		}
	}
	if !enabled {
		return missing("echo 1 > "+dir+"/qemu-"+name, "cannot run %s programs on %s: the interpreter is disabled", arch, runtime.GOARCH)
	}
	if !fixed {
		return missing(hint, "cannot run %s programs on %s: the interpreter is not registered with flag F", arch, runtime.GOARCH)
	}
	return nil
}
