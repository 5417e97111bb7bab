// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"bytes"
	"os"
	"runtime"
	"strings"
	"unsafe"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// CgroupMounts says where the cgroup hierarchies of the host are mounted and where this
// process stands in them. All paths are absolute and host-side.
type CgroupMounts struct {
	Unified     string // mount point of the v2 hierarchy
	UnifiedRoot string // the directory within it that this process may build below: the mount point itself
	// V1 maps a v1 controller ("pids", "memory") to its mount point; empty on pure v2 hosts.
	V1 map[string]string
}

// Hierarchies finds the cgroup hierarchies and checks that v2 is there and writable.
func Hierarchies() (*CgroupMounts, error) {
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return m.FSType != "cgroup" && m.FSType != "cgroup2", false
	})
	if err != nil {
		return nil, missing("mount /proc", "cannot read the mount table: %v", err)
	}
	h := &CgroupMounts{V1: map[string]string{}}
	for _, m := range mounts {
		if m.FSType == "cgroup2" {
			if h.Unified == "" {
				h.Unified, h.UnifiedRoot = m.Mountpoint, m.Mountpoint
			}
			continue
		}
		for option := range strings.SplitSeq(m.VFSOptions, ",") {
			switch option {
			case "pids", "memory", "cpu", "cpuset", "devices":
				h.V1[option] = m.Mountpoint
			}
		}
	}
	if h.Unified == "" {
		return nil, missing("mount -t cgroup2 none /sys/fs/cgroup/unified (or boot with systemd.unified_cgroup_hierarchy=1)",
			"cannot use control groups: no cgroup v2 hierarchy is mounted")
	}
	if err := unix.Access(h.UnifiedRoot, unix.W_OK); err != nil {
		return nil, missing("run as root; in a container, let it have a writable cgroup namespace (docker run --cgroupns=private --privileged)",
			"cannot use control groups: %s: %v", h.UnifiedRoot, err)
	}
	return h, nil
}

// Controllers lists the v2 controllers available in a cgroup directory.
func Controllers(dir string) []string {
	data, err := os.ReadFile(dir + "/cgroup.controllers")
	if err != nil {
		return nil
	}
	return strings.Fields(string(data))
}

// checkBPF loads the smallest device program: r0 = 1; exit.
func checkBPF() error {
	insns := &[16]byte{0xb7, 0, 0, 0, 1, 0, 0, 0, 0x95}
	license := &[2]byte{'0'}
	// Their addresses go to the kernel as numbers: they must not lie on a stack, which can move.
	var pinned runtime.Pinner
	defer pinned.Unpin()
	pinned.Pin(insns)
	pinned.Pin(license)
	attr := struct {
		kind, count       uint32
		insns, license    uint64
		level, size       uint32
		log               uint64
		version, flags    uint32
		name              [16]byte
		ifindex, expected uint32
	}{kind: unix.BPF_PROG_TYPE_CGROUP_DEVICE, count: 2, insns: uint64(uintptr(unsafe.Pointer(insns))),
		license: uint64(uintptr(unsafe.Pointer(license))), expected: unix.BPF_CGROUP_DEVICE}
	fd, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_LOAD, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if errno != 0 {
		return missing("run as root on a kernel with CONFIG_CGROUP_BPF", "cannot load a device program: %v", errno)
	}
	return unix.Close(int(fd))
}

// BootID is the id of this boot of the host.
func BootID() string {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(data))
}
