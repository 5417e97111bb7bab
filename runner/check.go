// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// selfCheck is what a machine's init must find to be so before anything else may run (SEC-09).
// It comes from the plan, and is compared with what the kernel says inside.
type selfCheck struct {
	Caps       uint64       `json:"caps"`
	NoNewPrivs bool         `json:"no_new_privs"`
	IDMap      string       `json:"id_map"` // the three numbers of /proc/self/uid_map
	Hostname   string       `json:"hostname"`
	Mounts     []mountCheck `json:"mounts"`
	Nothing    []string     `json:"nothing"` // empty where they exist
}

// mountCheck is a mount that must be there, with at least these options.
type mountCheck struct {
	Target  string   `json:"target"`
	Options []string `json:"options"`
}

// checks derives the self-check from the operations that were carried out.
func (p *Plan) checks(base uint32) selfCheck {
	m := p.Machine
	c := selfCheck{Caps: capMask(m.Profile.caps()), NoNewPrivs: m.Profile == App, Hostname: m.Hostname,
		IDMap: fmt.Sprintf("0 %d %d", base, m.IDs.Size)}
	if m.Trusted {
		c.IDMap = ""
	}
	flags := func(options []string) []string {
		var out []string
		for _, o := range options {
			switch o {
			case "nosuid", "nodev", "noexec", "ro":
				out = append(out, o)
			}
		}
		return out
	}
	sealed := map[string]bool{}
	for _, op := range p.Ops {
		if op.Kind == "seal" {
			sealed[op.Target] = true
		}
	}
	for _, op := range p.Ops {
		switch op.Kind {
		case "root", "overlay", "fs", "sysfs", "bind":
			options := flags(op.Options)
			if op.Target == "/" || op.Kind != "bind" {
				if sealed[op.Target] && !slices.Contains(options, "ro") {
					options = append(options, "ro")
				}
			}
			c.Mounts = append(c.Mounts, mountCheck{op.Target, options})
		case "readonly":
			c.Mounts = append(c.Mounts, mountCheck{op.Target, []string{"ro", "nosuid", "nodev", "noexec"}})
		case "mask":
			c.Nothing = append(c.Nothing, op.Target)
		}
	}
	return c
}

// verify compares, inside. Any difference is an error that ends the machine.
func (c *selfCheck) verify() error {
	for _, check := range []func() error{c.verifyStatus, c.verifyIdentity, c.verifyMounts, c.verifyMasks} {
		if err := check(); err != nil {
			return fmt.Errorf("cannot confirm the isolation of the machine: %w", err)
		}
	}
	return nil
}

func (c *selfCheck) verifyStatus() error {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	caps := fmt.Sprintf("%016x", c.Caps)
	none := fmt.Sprintf("%016x", 0)
	want := map[string]string{"NSpid": "1", "CapInh": none, "CapPrm": caps, "CapEff": caps, "CapBnd": caps, "CapAmb": none,
		"NoNewPrivs": "0", "Seccomp": "2", "Uid": "0 0 0 0", "Gid": "0 0 0 0", "Groups": ""}
	if c.NoNewPrivs {
		want["NoNewPrivs"] = "1"
	}
	for line := range strings.Lines(string(data)) {
		key, value, _ := strings.Cut(line, ":")
		value = strings.Join(strings.Fields(value), " ")
		if expected, ok := want[key]; ok {
			if value != expected {
				return fmt.Errorf("%s is %q, not %q", key, value, expected)
			}
			delete(want, key)
		}
	}
	// Kernels before 4.1 have no NSpid; all others are always there.
	delete(want, "NSpid")
	if len(want) > 0 {
		return fmt.Errorf("/proc/self/status lacks %d of the lines it should have", len(want))
	}
	return nil
}

func (c *selfCheck) verifyIdentity() error {
	if c.IDMap != "" {
		for _, name := range []string{"uid_map", "gid_map"} {
			data, err := os.ReadFile("/proc/self/" + name)
			if err != nil {
				return err
			}
			if got := strings.Join(strings.Fields(string(data)), " "); got != c.IDMap {
				return fmt.Errorf("%s is %q, not %q", name, got, c.IDMap)
			}
		}
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return err
	}
	if got := unix.ByteSliceToString(uts.Nodename[:]); got != c.Hostname {
		return fmt.Errorf("the host name is %q, not %q", got, c.Hostname)
	}
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "0::"); ok && strings.TrimSpace(rest) != "/" {
			return fmt.Errorf("the control group is %q, not /", strings.TrimSpace(rest))
		}
	}
	return nil
}

func (c *selfCheck) verifyMounts() error {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	top := map[string][]string{} // the last mount on a path is the one that is seen
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) < 7 {
			return fmt.Errorf("strange line in mountinfo: %q", line)
		}
		if f[6] != "-" {
			return fmt.Errorf("%s propagates (%s)", f[4], f[6])
		}
		top[unescape(f[4])] = strings.Split(f[5], ",")
	}
	for _, m := range c.Mounts {
		have, ok := top[m.Target]
		if !ok {
			return fmt.Errorf("%s is not mounted", m.Target)
		}
		for _, o := range m.Options {
			if !slices.Contains(have, o) {
				return fmt.Errorf("%s is mounted without %s", m.Target, o)
			}
		}
	}
	return nil
}

// unescape turns the octal escapes of mountinfo into bytes.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var out []byte
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				out = append(out, byte(n))
				i += 3
				continue
			}
		}
		out = append(out, s[i])
	}
	return string(out)
}

func (c *selfCheck) verifyMasks() error {
	for _, name := range c.Nothing {
		fd, err := unix.Open(name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err == unix.ENOENT {
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		var buffer [64]byte
		n, err := unix.Read(fd, buffer[:])
		if err == unix.EISDIR {
			// An empty directory has no links from subdirectories and lists nothing but itself.
			n, err = unix.Getdents(fd, make([]byte, 1024))
			if n <= 48 {
				n = 0
			}
		}
		unix.Close(fd)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if n != 0 {
			return fmt.Errorf("%s is not masked", name)
		}
	}
	return nil
}
