// SPDX-License-Identifier: Apache-2.0

package seccomp

import (
	"encoding/binary"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

var update = flag.Bool("update", false, "rewrite golden files")

// decide runs a filter on a call. The virtual machine of the test library reads big-endian
// words; struct seccomp_data has native ones, so every word is written that way round, the
// lower half of an argument first.
func decide(t testing.TB, f Filter, arch, nr uint32, args ...uint64) string {
	t.Helper()
	raw := make([]bpf.RawInstruction, f.Count())
	for i := range raw {
		in := f[8*i:]
		raw[i] = bpf.RawInstruction{Op: binary.NativeEndian.Uint16(in), Jt: in[2], Jf: in[3], K: binary.NativeEndian.Uint32(in[4:])}
	}
	program, ok := bpf.Disassemble(raw)
	if !ok {
		t.Fatal("the filter has instructions that are not understood")
	}
	vm, err := bpf.NewVM(program)
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 64)
	binary.BigEndian.PutUint32(data[0:], nr)
	binary.BigEndian.PutUint32(data[4:], arch)
	for i, a := range args {
		binary.BigEndian.PutUint32(data[16+8*i:], uint32(a))
		binary.BigEndian.PutUint32(data[20+8*i:], uint32(a>>32))
	}
	n, err := vm.Run(data)
	if err != nil {
		t.Fatal(err)
	}
	switch r := uint32(n); r {
	case retAllow:
		return "allow"
	case retPretend:
		return "pretend"
	case retEPERM:
		return "EPERM"
	case retENOSYS:
		return "ENOSYS"
	case retFamily:
		return "EAFNOSUPPORT"
	case retKill:
		return "kill"
	default:
		return fmt.Sprintf("%#x", r)
	}
}

// Every number from 0 to 600 has the answer that was agreed on.
func TestSweep(t *testing.T) {
	for name, f := range map[string]Filter{"machine": Machine(Options{}), "nosync": Machine(Options{NoSync: true}), "files": Files()} {
		if f.Count() > 4096 {
			t.Errorf("%s: %d instructions are more than the kernel takes", name, f.Count())
		}
		var b strings.Builder
		first, last := 0, ""
		for nr := 0; nr <= 601; nr++ {
			got := ""
			if nr <= 600 {
				got = decide(t, f, auditArch, uint32(nr))
			}
			if got != last {
				if last != "" {
					fmt.Fprintf(&b, "%d-%d %s\n", first, nr-1, last)
				}
				first, last = nr, got
			}
		}
		path := filepath.Join("testdata", name+"_"+runtime.GOARCH+".txt")
		if *update {
			if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if os.IsNotExist(err) {
			t.Skipf("no table for %s yet; go test -update writes it", runtime.GOARCH)
		}
		if err != nil {
			t.Fatal(err)
		}
		if b.String() != string(want) {
			t.Errorf("%s: the answers differ from %s:\n%s", name, path, b.String())
		}
	}
}

func TestArguments(t *testing.T) {
	f := Machine(Options{})
	for _, c := range []struct {
		nr   uint32
		args []uint64
		want string
	}{
		{unix.SYS_CLONE, []uint64{unix.CLONE_VM | unix.CLONE_VFORK | uint64(unix.SIGCHLD)}, "allow"},
		{unix.SYS_CLONE, []uint64{unix.CLONE_NEWNS}, "EPERM"},
		{unix.SYS_CLONE, []uint64{unix.CLONE_NEWUSER | unix.CLONE_VM}, "EPERM"},
		{unix.SYS_CLONE, []uint64{unix.CLONE_NEWUSER | 1<<40}, "EPERM"},
		{unix.SYS_CLONE3, []uint64{0}, "ENOSYS"},
		{unix.SYS_UNSHARE, []uint64{unix.CLONE_FS | unix.CLONE_FILES}, "allow"},
		{unix.SYS_UNSHARE, []uint64{unix.CLONE_NEWNET}, "EPERM"},
		{unix.SYS_UNSHARE, []uint64{unix.CLONE_NEWTIME}, "EPERM"},
		{unix.SYS_SOCKET, []uint64{unix.AF_UNIX, 1, 0}, "allow"},
		{unix.SYS_SOCKET, []uint64{unix.AF_INET6, 1, 0}, "allow"},
		{unix.SYS_SOCKET, []uint64{unix.AF_NETLINK, 3, unix.NETLINK_ROUTE}, "allow"},
		{unix.SYS_SOCKET, []uint64{unix.AF_NETLINK, 3, unix.NETLINK_AUDIT}, "EAFNOSUPPORT"},
		{unix.SYS_SOCKET, []uint64{unix.AF_VSOCK, 1, 0}, "EAFNOSUPPORT"},
		{unix.SYS_SOCKET, []uint64{unix.AF_ALG, 1, 0}, "EAFNOSUPPORT"},
		{unix.SYS_SOCKET, []uint64{unix.AF_PACKET, 1, 0}, "EAFNOSUPPORT"},
		{unix.SYS_SOCKET, []uint64{unix.AF_VSOCK | 1<<32, 1, 0}, "EAFNOSUPPORT"},
		{unix.SYS_SOCKET, []uint64{unix.AF_UNIX | 7<<32, 1, 0}, "allow"}, // the kernel takes 32 bits
		{unix.SYS_IOCTL, []uint64{0, unix.TCGETS}, "allow"},
		{unix.SYS_IOCTL, []uint64{0, unix.TIOCSTI}, "EPERM"},
		{unix.SYS_IOCTL, []uint64{0, unix.TIOCSTI | 1<<32}, "EPERM"},
		{unix.SYS_IOCTL, []uint64{0, unix.TIOCLINUX}, "EPERM"},
		{unix.SYS_PERSONALITY, []uint64{0xffffffff}, "allow"},
		{unix.SYS_PERSONALITY, []uint64{0x0040000}, "EPERM"},
	} {
		if got := decide(t, f, auditArch, c.nr, c.args...); got != c.want {
			t.Errorf("call %d %#x: %s, want %s", c.nr, c.args, got, c.want)
		}
	}
	files := Files()
	for _, c := range []struct {
		nr   uint32
		args []uint64
		want string
	}{
		{unix.SYS_CLONE, []uint64{unix.CLONE_VM | unix.CLONE_THREAD}, "allow"},
		{unix.SYS_CLONE, []uint64{uint64(unix.SIGCHLD)}, "EPERM"},
		{unix.SYS_IOCTL, []uint64{0, unix.FICLONE}, "allow"},
		{unix.SYS_IOCTL, []uint64{0, unix.FICLONERANGE}, "allow"},
		{unix.SYS_IOCTL, []uint64{0, unix.TCGETS}, "EPERM"},
		{unix.SYS_EXECVE, nil, "EPERM"},
		{unix.SYS_EXECVEAT, nil, "EPERM"},
		{unix.SYS_SOCKET, []uint64{unix.AF_UNIX}, "EPERM"},
		{unix.SYS_KILL, nil, "EPERM"},
	} {
		if got := decide(t, files, auditArch, c.nr, c.args...); got != c.want {
			t.Errorf("files: call %d %#x: %s, want %s", c.nr, c.args, got, c.want)
		}
	}
}

func TestForeignABIs(t *testing.T) {
	for name, f := range map[string]Filter{"machine": Machine(Options{}), "files": Files()} {
		for _, arch := range []uint32{unix.AUDIT_ARCH_I386, unix.AUDIT_ARCH_ARM, unix.AUDIT_ARCH_X86_64, unix.AUDIT_ARCH_AARCH64, unix.AUDIT_ARCH_RISCV64, 0} {
			if arch == auditArch {
				continue
			}
			for nr := uint32(0); nr < 500; nr += 7 {
				if got := decide(t, f, arch, nr); got != "kill" {
					t.Errorf("%s: arch %#x call %d: %s", name, arch, nr, got)
				}
			}
		}
		if foreignBit != 0 {
			for nr := uint32(0); nr < 600; nr++ {
				if got := decide(t, f, auditArch, foreignBit|nr); got != "kill" {
					t.Errorf("%s: x32 call %d: %s", name, nr, got)
				}
			}
		}
	}
}

func BenchmarkMachine(b *testing.B) {
	for b.Loop() {
		Machine(Options{NoSync: true})
	}
}
