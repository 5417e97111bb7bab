// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"fmt"
	"strings"
)

// Op is one operation of a plan. Which fields matter depends on Kind.
type Op struct {
	Kind    string // root, overlay, fs, bind, node, link, file, dir, mask, readonly, pivot, …
	Target  string // path in the machine
	Source  string // path on the host, type of file system, target of a link
	Options []string
	Data    string // content of a file
}

// Plan is what Start will do, in order. It depends on nothing but the Machine.
type Plan struct {
	Machine *Machine // with defaults filled in
	Ops     []Op
}

// String prints one line per operation, numbered.
func (p *Plan) String() string {
	var b strings.Builder
	for i, op := range p.Ops {
		line := fmt.Sprintf("%3d %-8s %s", i+1, op.Kind, op.Target)
		if op.Source != "" {
			line += " ← " + op.Source
		}
		if len(op.Options) > 0 {
			line += "  " + strings.Join(op.Options, ",")
		}
		if op.Data != "" {
			line += fmt.Sprintf("  (%d bytes)", len(op.Data))
		}
		b.WriteString(strings.TrimRight(line, " "))
		b.WriteByte('\n')
	}
	return b.String()
}

// Masked files and directories of /proc: an empty file or directory is seen instead. Those
// that the kernel does not have are passed over.
var maskedProc = []string{
	"acpi", "asound", "bus", "config.gz", "fs", "interrupts", "iomem", "ioports", "irq", "kallsyms", "kcore", "keys", "key-users",
	"kmsg", "kpagecgroup", "kpagecount", "kpageflags", "latency_stats", "modules", "mtrr", "pagetypeinfo", "sched_debug", "scsi",
	"slabinfo", "sysrq-trigger", "timer_list", "timer_stats", "vmallocinfo",
}

// readOnlyProc is what stays visible but cannot be written.
var readOnlyProc = []string{"sys"}

// deviceNodes are the only devices of a machine; the device filter allows exactly them and
// pseudo-terminals.
var deviceNodes = []struct {
	name         string
	major, minor uint32
}{{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}}

// Plan says what Start would do, without looking at the host.
func (m *Machine) Plan() (*Plan, error) {
	r, err := m.resolved()
	if err != nil {
		return nil, err
	}
	p := &Plan{Machine: r}
	add := func(kind, target, source string, options ...string) {
		p.Ops = append(p.Ops, Op{Kind: kind, Target: target, Source: source, Options: options})
	}
	limits := []string{"devices=null:zero:full:random:urandom:tty:ptmx:pts"}
	limits = append(limits, r.Limits.describe()...)
	add("cgroup", "mkmachine/"+r.Name, "", limits...)
	namespaces := []string{"pid", "mount", "ipc", "uts", "cgroup"}
	if !r.Trusted {
		ids := "ids=pick:65536"
		if r.IDs.Size != 0 {
			ids = fmt.Sprintf("ids=%d:%d", r.IDs.Base, r.IDs.Size)
		}
		namespaces = append(namespaces, "user", ids)
	}
	if r.Network == Loopback {
		namespaces = append(namespaces, "net")
	}
	add("clone", "init", "", namespaces...)
	p.planRoot(add)
	p.planDev(add)
	add("fs", "/proc", "proc", "nosuid", "nodev", "noexec")
	for _, name := range maskedProc {
		add("mask", "/proc/"+name, "")
	}
	for _, name := range readOnlyProc {
		add("readonly", "/proc/"+name, "")
	}
	p.planSys(add)
	add("fs", "/run", "tmpfs", "nosuid", "nodev", "mode=0755", "size=20%", "nr_inodes=800k")
	add("dir", "/run/lock", "", "mode=1777")
	add("fs", "/tmp", "tmpfs", "nosuid", "nodev", "mode=1777", "size=50%", "nr_inodes=1m")
	for _, mount := range r.Mounts {
		options := []string{"nosuid", "nodev"}
		if mount.ReadOnly {
			options = append(options, "ro")
		}
		if !mount.NoIDMap && !r.Trusted {
			options = append(options, "idmap")
		}
		add("bind", mount.Target, mount.Source, options...)
	}
	if r.Network == Host {
		add("resolv", "/etc/resolv.conf", "", "ro")
	}
	if r.ReadOnly || r.Overlay != nil && r.Overlay.Upper == "" {
		add("seal", "/", "")
	}
	add("pivot", "/", "")
	add("hostname", r.Hostname, "")
	if r.Network == Loopback {
		add("loopback", "lo", "")
	}
	p.planInit(add)
	return p, nil
}

type addOp func(kind, target, source string, options ...string)

func (p *Plan) planRoot(add addOp) {
	m := p.Machine
	options := []string{"nodev"}
	if m.Profile == App {
		options = append(options, "nosuid")
	}
	if !m.Trusted {
		options = append(options, "idmap")
	}
	if m.ReadOnly || m.Overlay != nil && m.Overlay.Upper == "" {
		options = append(options, "ro")
	}
	if m.Overlay == nil {
		add("root", "/", m.Root, options...)
		return
	}
	source := strings.Join(m.Overlay.Lower, ":")
	if m.Overlay.Upper != "" {
		source = m.Overlay.Upper + ":" + source
		options = append(options, "work="+m.Overlay.Work)
	}
	add("overlay", "/", source, options...)
}

func (p *Plan) planDev(add addOp) {
	add("fs", "/dev", "tmpfs", "nosuid", "noexec", "mode=0755", "size=4m", "nr_inodes=64k")
	for _, node := range deviceNodes {
		add("node", "/dev/"+node.name, "", fmt.Sprintf("c%d:%d", node.major, node.minor), "mode=0666")
	}
	for _, link := range [][2]string{{"fd", "/proc/self/fd"}, {"stdin", "/proc/self/fd/0"}, {"stdout", "/proc/self/fd/1"},
		{"stderr", "/proc/self/fd/2"}, {"ptmx", "pts/ptmx"}} {
		add("link", "/dev/"+link[0], link[1])
	}
	add("dir", "/dev/pts", "", "mode=0755")
	add("fs", "/dev/pts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")
	add("dir", "/dev/shm", "", "mode=1777")
	add("fs", "/dev/shm", "tmpfs", "nosuid", "nodev", "mode=1777", "size=10%", "nr_inodes=400k")
	add("dir", "/dev/mqueue", "", "mode=1777")
	add("fs", "/dev/mqueue", "mqueue", "nosuid", "nodev", "noexec")
}

// planSys makes the little of /sys that programs rely on: how many processors there are, the
// network interfaces of the machine's own namespace, and its own control group.
func (p *Plan) planSys(add addOp) {
	add("fs", "/sys", "tmpfs", "nosuid", "nodev", "noexec", "mode=0555", "size=4m", "nr_inodes=1k")
	for _, dir := range []string{"block", "bus", "class", "class/net", "dev", "devices", "devices/system", "devices/system/cpu",
		"devices/virtual", "devices/virtual/net", "fs", "fs/cgroup", "kernel"} {
		add("dir", "/sys/"+dir, "", "mode=0755")
	}
	for _, name := range []string{"online", "possible", "present", "kernel_max"} {
		add("copy", "/sys/devices/system/cpu/"+name, "/sys/devices/system/cpu/"+name)
	}
	if p.Machine.Network == Loopback {
		add("sysfs", "/sys/class/net", "class/net", "nosuid", "nodev", "noexec", "ro")
		add("sysfs", "/sys/devices/virtual/net", "devices/virtual/net", "nosuid", "nodev", "noexec", "ro")
	}
	add("fs", "/sys/fs/cgroup", "cgroup2", "nosuid", "nodev", "noexec", "ro")
	add("seal", "/sys", "")
}

func (p *Plan) planInit(add addOp) {
	m := p.Machine
	options := []string{fmt.Sprintf("caps=%#x", capMask(m.Profile.caps())), "seccomp=machine"}
	if m.NoSync {
		options = append(options, "nosync")
	}
	if m.Profile == App {
		options = append(options, "no_new_privs")
	}
	options = append(options, "nofile=1024:65536", "core=0:0", "memlock=8m", "keyring=new")
	add("exec", "init", "", options...)
	if len(m.Argv) > 0 {
		command := fmt.Sprintf("%q", m.Argv)
		add("main", command, "", fmt.Sprintf("user=%s", orRoot(m.User)))
	}
}

func orRoot(user string) string {
	if user == "" {
		return "root"
	}
	return user
}

// describe lists the limits that are not the default ones.
func (l Limits) describe() []string {
	show := func(name string, value int64, text string) string {
		switch {
		case value < 0:
			return name + "=none"
		case value == 0:
			return name + "=" + text
		}
		return fmt.Sprintf("%s=%d", name, value)
	}
	out := []string{show("pids", l.Pids, fmt.Sprint(defaultPids)), show("memory", l.Memory, "50%")}
	if l.CPUs > 0 {
		out = append(out, fmt.Sprintf("cpus=%g", l.CPUs))
	}
	return out
}
