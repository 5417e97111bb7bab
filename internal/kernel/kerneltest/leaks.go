// SPDX-License-Identifier: Apache-2.0

package kerneltest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// leakGrace is how long a dying process or a lazily released resource may take to vanish.
const leakGrace = 3 * time.Second

// Leaks fails the test if it leaves behind open descriptors, descendants of this process,
// control groups of machines that this process ran, or mounts and loop devices whose paths
// lie in this process's temporary directories or in one of dirs. Call it first, so that its
// check runs after all other clean-ups. Tests that use it must not run in parallel with others.
func Leaks(t testing.TB, dirs ...string) {
	t.Helper()
	// Orphans of the test become children of this process and can be seen.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	before := observe(dirs)
	t.Cleanup(func() {
		deadline := time.Now().Add(leakGrace)
		for {
			left := difference(before, observe(dirs))
			if len(left) == 0 {
				return
			}
			if time.Now().After(deadline) {
				t.Errorf("left behind:\n  %s", strings.Join(left, "\n  "))
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	})
}

// difference lists what is in after more often than in before.
func difference(before, after []string) []string {
	var left []string
	for _, item := range after {
		if i := slices.Index(before, item); i >= 0 {
			before = slices.Delete(slices.Clone(before), i, i+1)
			continue
		}
		left = append(left, item)
	}
	return left
}

func observe(dirs []string) []string {
	out := descriptors()
	out = append(out, processes()...)
	out = append(out, cgroups()...)
	ours := func(path string) bool {
		if strings.HasPrefix(path, filepath.Join(os.TempDir(), "Test")) && len(dirs) == 0 {
			return true
		}
		return slices.ContainsFunc(dirs, func(dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") })
	}
	data, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 4 && ours(f[4]) {
			out = append(out, "mount "+f[4])
		}
	}
	loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, name := range loops {
		if data, err := os.ReadFile(name); err == nil && ours(strings.TrimSpace(string(data))) {
			out = append(out, "loop device of "+strings.TrimSpace(string(data)))
		}
	}
	return out
}

// descriptors lists open files by what they refer to. What is made once per process and kept
// is left out: Go's poller, and the runner's sealed copy of the program.
func descriptors() []string {
	entries, _ := os.ReadDir("/proc/self/fd")
	var out []string
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil || strings.Contains(target, "eventpoll") || strings.Contains(target, "eventfd") ||
			strings.HasPrefix(target, "/memfd:mkmachine") || target == "/"+filepath.Base(os.Args[0]) ||
			strings.HasPrefix(target, "/proc/") {
			continue
		}
		// Numbers of pipes and sockets tell two of a kind apart but mean nothing to a reader;
		// they stay so that a replaced one is seen.
		out = append(out, "descriptor "+target)
	}
	return out
}

// processes lists all descendants of this process, zombies included.
func processes() []string {
	parents := map[int][]int{}
	names := map[int]string{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, name := range stats {
		data, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		text := string(data)
		open, shut := strings.IndexByte(text, '('), strings.LastIndexByte(text, ')')
		if open < 0 || shut < open {
			continue
		}
		pid, _ := strconv.Atoi(strings.TrimSpace(text[:open]))
		rest := strings.Fields(text[shut+1:])
		if len(rest) < 2 {
			continue
		}
		parent, _ := strconv.Atoi(rest[1])
		parents[parent] = append(parents[parent], pid)
		names[pid] = fmt.Sprintf("process %d %s (%s)", pid, text[open+1:shut], rest[0])
	}
	var out []string
	queue := []int{os.Getpid()}
	for len(queue) > 0 {
		children := parents[queue[0]]
		queue = append(queue[1:], children...)
		for _, pid := range children {
			out = append(out, names[pid])
		}
	}
	return out
}

// cgroups lists the control groups of machines whose supervisor is this process. Their
// names end in "-PID.N".
func cgroups() []string {
	var out []string
	for _, pattern := range []string{"/sys/fs/cgroup/mkmachine/*", "/sys/fs/cgroup/*/mkmachine/*"} {
		dirs, _ := filepath.Glob(fmt.Sprintf("%s-%d.*", pattern, os.Getpid()))
		for _, dir := range dirs {
			out = append(out, "cgroup "+dir)
		}
	}
	return out
}
