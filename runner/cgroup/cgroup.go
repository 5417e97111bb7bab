// SPDX-License-Identifier: Apache-2.0

// Package cgroup owns the control groups of machines.
//
// Every machine gets one leaf: in the v2 hierarchy for killing it as a whole and for the
// device filter, and, where the v2 hierarchy lacks the pids or memory controller, one of the
// same name in each v1 hierarchy that has it. A limit that no hierarchy can enforce is an
// error, never left out. Groups are removed by the path and inode that Create gave, and only
// when they are empty.
package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/internal/kernel"
	"github.com/mkmachine/mkmachine/internal/undo"
)

// Parent is the directory below which all leaves lie, in each hierarchy.
const Parent = "mkmachine"

// Limits of a group. Zero or negative means none.
type Limits struct {
	Pids   int64
	Memory int64   // bytes
	CPUs   float64 // processors' worth of time
}

// Dir is one directory of a group, as it is written into leases.
type Dir struct {
	Path  string `json:"path"`
	Inode uint64 `json:"inode"`
	V1    bool   `json:"v1,omitempty"`
}

// Group is the set of directories of one machine.
type Group struct {
	Dirs []Dir // the v2 directory first
	fd   int
	home []string // "tasks" files of the v1 groups that the creator stood in
}

// Plan says which directories Create will make for a leaf name, so that they can be written
// down first.
func Plan(h *kernel.CgroupMounts, name string, limits Limits) ([]Dir, error) {
	dirs := []Dir{{Path: filepath.Join(h.UnifiedRoot, Parent, name)}}
	own, err := ownV1()
	if err != nil {
		return nil, err
	}
	available := kernel.Controllers(h.UnifiedRoot)
	for _, c := range limits.controllers() {
		if slices.Contains(available, c) {
			continue
		}
		mount, path := h.V1[c], own[c]
		if mount == "" || path == "" {
			return nil, fault.Hint(fault.New(fault.Host, "cannot limit %s: no control group hierarchy has the controller", c),
				"boot with systemd.unified_cgroup_hierarchy=1, or lift the limit")
		}
		dir := filepath.Join(mount, path, Parent, name)
		if !slices.ContainsFunc(dirs, func(d Dir) bool { return d.Path == dir }) {
			dirs = append(dirs, Dir{Path: dir, V1: true})
		}
	}
	return dirs, nil
}

func (l Limits) controllers() []string {
	var out []string
	if l.Pids > 0 {
		out = append(out, "pids")
	}
	if l.Memory > 0 {
		out = append(out, "memory")
	}
	if l.CPUs > 0 {
		out = append(out, "cpu")
	}
	return out
}

// ownV1 gives this process's place in each v1 hierarchy by controller.
func ownV1() (map[string]string, error) {
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, fault.New(fault.Host, "cannot read the control groups of this process: %w", err)
	}
	own := map[string]string{}
	for line := range strings.Lines(string(data)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		for c := range strings.SplitSeq(f[1], ",") {
			own[c] = f[2]
		}
	}
	return own, nil
}

// Create makes the directories, sets the limits and attaches the device filter.
func Create(h *kernel.CgroupMounts, dirs []Dir, limits Limits, devices []Device) (g *Group, err error) {
	var u undo.Stack
	defer u.Run(&err)
	g = &Group{fd: -1}
	u.Add(func() error { return g.Remove() })
	available := kernel.Controllers(h.UnifiedRoot)
	for _, d := range dirs {
		if err := makeLeaf(d.Path); err != nil {
			return nil, err
		}
		var st unix.Stat_t
		if err := unix.Lstat(d.Path, &st); err != nil {
			return nil, fault.New(fault.Host, "cannot make the control group %s: %w", d.Path, err)
		}
		d.Inode = st.Ino
		g.Dirs = append(g.Dirs, d)
		if d.V1 {
			g.home = append(g.home, filepath.Join(filepath.Dir(filepath.Dir(d.Path)), "tasks"))
		}
	}
	g.fd, err = unix.Open(g.Dirs[0].Path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fault.New(fault.Host, "cannot open the control group %s: %w", g.Dirs[0].Path, err)
	}
	if err := g.limit(h, available, limits); err != nil {
		return nil, err
	}
	dir, err := unix.Open(g.Dirs[0].Path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fault.New(fault.Host, "cannot open the control group %s: %w", g.Dirs[0].Path, err)
	}
	err = attachDevices(dir, devices)
	unix.Close(dir)
	if err != nil {
		return nil, err
	}
	u.Keep()
	return g, nil
}

// makeLeaf makes a directory and, where needed, its parent, which others may be removing.
func makeLeaf(path string) error {
	var err error
	for range 10 {
		if err = os.Mkdir(filepath.Dir(path), 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			break
		}
		if err = os.Mkdir(path, 0o755); !errors.Is(err, os.ErrNotExist) {
			break
		}
	}
	if err == nil {
		return nil
	}
	return fault.Hint(fault.New(fault.Host, "cannot make a control group: %w", err),
		"run as root; in a container, let it have a writable cgroup namespace")
}

func (g *Group) limit(h *kernel.CgroupMounts, available []string, limits Limits) error {
	unified := g.Dirs[0].Path
	var enable []string
	for _, c := range limits.controllers() {
		if slices.Contains(available, c) {
			enable = append(enable, "+"+c)
		}
	}
	if len(enable) > 0 {
		for _, dir := range []string{h.UnifiedRoot, filepath.Dir(unified)} {
			if err := write(filepath.Join(dir, "cgroup.subtree_control"), strings.Join(enable, " ")); err != nil {
				return fault.Hint(fault.As(fault.Host, err), "run outside of the container, or lift the limits")
			}
		}
	}
	type setting struct{ controller, file, value, oldFile string }
	settings := []setting{}
	if limits.Pids > 0 {
		settings = append(settings, setting{"pids", "pids.max", strconv.FormatInt(limits.Pids, 10), "pids.max"})
	}
	if limits.Memory > 0 {
		settings = append(settings, setting{"memory", "memory.max", strconv.FormatInt(limits.Memory, 10), "memory.limit_in_bytes"})
		if slices.Contains(available, "memory") {
			settings = append(settings, setting{"memory", "memory.oom.group", "1", ""})
		}
	}
	if limits.CPUs > 0 {
		const period = 100000 // microseconds
		quota := strconv.Itoa(int(limits.CPUs * period))
		value := quota + " " + strconv.Itoa(period)
		if !slices.Contains(available, "cpu") {
			value = quota
		}
		settings = append(settings, setting{"cpu", "cpu.max", value, "cpu.cfs_quota_us"})
	}
	for _, s := range settings {
		path := filepath.Join(unified, s.file)
		if !slices.Contains(available, s.controller) {
			i := slices.IndexFunc(g.Dirs, func(d Dir) bool {
				return d.V1 && strings.HasPrefix(d.Path, h.V1[s.controller]+"/")
			})
			if i < 0 {
				return fault.New(fault.Internal, "internal error: no control group for %s", s.controller)
			}
			path = filepath.Join(g.Dirs[i].Path, s.oldFile)
		}
		if err := write(path, s.value); err != nil {
			return fault.As(fault.Host, err)
		}
	}
	return nil
}

func write(path, text string) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot open %s: %w", path, err)
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte(text)); err != nil {
		return fmt.Errorf("cannot write %q to %s: %w", text, path, err)
	}
	return nil
}

// FD is a descriptor of the v2 directory, for a process to be born in.
func (g *Group) FD() int { return g.fd }

// Enter moves the calling thread into the v1 directories, so that what it clones is born
// there; moving a process afterwards would wait for every processor. leave moves it back.
func (g *Group) Enter() (leave func() error, err error) {
	var u undo.Stack
	defer u.Run(&err)
	back := func() error {
		var errs []error
		for _, home := range g.home {
			errs = append(errs, write(home, "0"))
		}
		return errors.Join(errs...)
	}
	u.Add(back)
	for _, d := range g.Dirs {
		if d.V1 {
			if err := write(filepath.Join(d.Path, "tasks"), "0"); err != nil {
				return nil, fault.As(fault.Host, err)
			}
		}
	}
	u.Keep()
	return back, nil
}

// Remove kills what is left in the group, waits until it is empty and removes it.
func (g *Group) Remove() error {
	if g.fd >= 0 {
		unix.Close(g.fd)
		g.fd = -1
	}
	return Remove(g.Dirs)
}

// removeGrace is how long killed processes may take to go.
const removeGrace = 10 * time.Second

// Remove is Group.Remove by recorded directories. Directories that are gone, or whose inode
// is not the recorded one (where one is recorded), are left alone.
func Remove(dirs []Dir) error {
	var errs []error
	for _, d := range dirs {
		var st unix.Stat_t
		if err := unix.Lstat(d.Path, &st); err != nil || d.Inode != 0 && st.Ino != d.Inode {
			continue
		}
		if err := kill(d); err != nil {
			errs = append(errs, err)
			continue
		}
		// The parent goes with the last leaf.
		_ = unix.Rmdir(filepath.Dir(d.Path))
	}
	return errors.Join(errs...)
}

func kill(d Dir) error {
	deadline := time.Now().Add(removeGrace)
	pause := 50 * time.Microsecond
	for {
		err := unix.Rmdir(d.Path)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return fault.New(fault.Failed, "cannot remove the control group %s: %w", d.Path, err)
		}
		if d.V1 || write(filepath.Join(d.Path, "cgroup.kill"), "1") != nil {
			killMembers(d)
		}
		time.Sleep(pause)
		pause = min(2*pause, 20*time.Millisecond)
	}
}

// killMembers is for kernels before 5.14 and for v1: it catches up with forks by repetition.
func killMembers(d Dir) {
	data, _ := os.ReadFile(filepath.Join(d.Path, "cgroup.procs"))
	for word := range strings.FieldsSeq(string(data)) {
		if pid, err := strconv.Atoi(word); err == nil && pid > 1 && pid != os.Getpid() {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
}
