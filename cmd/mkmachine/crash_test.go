// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"cmp"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/kernel"
	"github.com/mkmachine/mkmachine/internal/kernel/kerneltest"
)

// killCalls are the system calls at which the program is killed: those that change what
// others can see.
const killCalls = "renameat,renameat2,rename,mkdirat,mkdir,ioctl,openat2,unlinkat,rmdir,linkat,symlinkat,fsync,syncfs,ftruncate," +
	"mount,umount2,move_mount,open_tree,fsmount,fsconfig,mount_setattr,setns,unshare,clone,clone3,execve,flock,pidfd_send_signal,fchmod,fchownat,utimensat"

// operation is a command that is killed.
type operation struct {
	name   string
	args   func(h *host) []string
	before func(h *host) // brings the state to where it was; cheap where nothing changed
	calls  int           // how many system calls to be killed at
	delays int           // how many random moments to be killed at
	// every says how often the command is run again to its end after a kill: each nth time.
	every int
}

// TestKill kills commands at many points. Each time the template is the old or the new one,
// whole; the next command leaves nothing of the dead one; and the same command then works.
// MKMACHINE_SLOW=1 kills at many more points.
func TestKill(t *testing.T) {
	if testing.Short() {
		t.Skip("kills hundreds of processes")
	}
	strace := kerneltest.Program(t, "strace")
	fileSystems(t, func(t *testing.T, h *host) {
		T := h.template
		fresh := h.build("--name", T, "new.toml").Digest
		old := h.build("--name", T, "old.toml").Digest
		if fresh == old {
			t.Fatal("both recipes give one tree")
		}
		h.wantClean("before the first kill")
		reset := func(h *host) {
			if h.digest() != old {
				h.build("--name", T, "old.toml")
			}
		}
		have := func(name string) func(h *host) {
			return func(h *host) {
				if _, ok := h.images()[name]; !ok {
					h.ok("clone", T, name)
				}
			}
		}
		haveNot := func(name string) func(h *host) {
			return func(h *host) {
				if _, ok := h.images()[name]; ok {
					h.ok("remove", name)
				}
			}
		}
		machine, other := T+"-m", T+"-n"
		packagesCalls := 0 // under strace this build takes ten times as long
		if os.Getenv("MKMACHINE_SLOW") != "" {
			packagesCalls = 3
		}
		for _, op := range []operation{
			{"build from packages", fixed("build", "--rebuild", "--name", T, "new.toml"), reset, packagesCalls, 4, 4},
			{"build from layers", fixed("build", "--name", T, "new.toml"), reset, 3, 3, 3},
			{"clone", fixed("clone", T, machine), haveNot(machine), 10, 6, 1},
			{"run -x", fixed("run", "-x", T, "--", "cat", "/etc/version"), nil, 10, 8, 1},
			{"run", fixed("run", machine, "--", "cat", "/etc/version"), have(machine), 8, 6, 1},
			{"rename", fixed("rename", machine, other), func(h *host) { have(machine)(h); haveNot(other)(h) }, 6, 4, 1},
			{"remove", fixed("remove", machine), have(machine), 7, 5, 1},
		} {
			t.Run(op.name, func(t *testing.T) {
				h := h.on(t)
				began := time.Now()
				killed, runs := op.torture(h, strace, func(when string) {
					if got := h.digest(); got != old && got != fresh {
						t.Fatalf("%s: the template is neither the old nor the new one: %s", when, got)
					}
					if strings.HasPrefix(op.name, "build") {
						h.ok("verify", T)
					}
				})
				h.ok("verify", T)
				t.Logf("killed in %d of %d attempts, %.1f s", killed, runs, time.Since(began).Seconds())
				if killed == 0 {
					t.Error("no attempt hit")
				}
			})
		}
	})
}

func fixed(args ...string) func(*host) []string { return func(*host) []string { return args } }

// torture kills the operation at its points and checks after each.
func (op *operation) torture(h *host, strace string, check func(when string)) (killed, runs int) {
	prepare := func() {
		if op.before != nil {
			op.before(h)
		}
	}
	scale := 1
	if os.Getenv("MKMACHINE_SLOW") != "" {
		scale = 10
	}
	args := op.args(h)
	after := func(when string, dead bool) {
		runs++
		if dead {
			killed++
		}
		h.wantClean(when)
		check(when)
		if runs%op.every == 0 {
			prepare()
			if o := h.command(args...); o.code != 0 {
				h.t.Fatalf("%s: then mkmachine %v: exit %d\n%s%s", when, args, o.code, o.stdout, o.stderr)
			}
			h.wantNothing("after " + strings.Join(args, " "))
		}
	}
	prepare()
	began := time.Now()
	h.ok(args...)
	took := time.Since(began)
	prepare()
	var points []point
	if op.calls > 0 {
		points = sample(h.points(strace, args), op.calls*scale)
		prepare()
	}
	for _, point := range points {
		prepare()
		cmd, _, stderr := h.process(strace, append([]string{"-f", "-qq", "-o", "/dev/null", "-e", "trace=" + point.call, "-e",
			fmt.Sprintf("inject=%s:signal=KILL:when=%d", point.call, point.number), h.bin}, args...)...)
		if err := cmd.Start(); err != nil {
			h.t.Fatal(err)
		}
		o := h.finish(&running{cmd: cmd, stdout: &safeBuffer{}, stderr: stderr, args: args})
		after(fmt.Sprintf("killed at %s number %d (exit %d)", point.call, point.number, o.code), o.code != 0)
	}
	for n := range op.delays * scale {
		prepare()
		r := h.start(args...)
		delay := time.Duration((float64(n) + rand.Float64()) / float64(op.delays*scale) * float64(took))
		time.Sleep(delay)
		_ = r.cmd.Process.Kill()
		o := h.finish(r)
		after(fmt.Sprintf("killed after %v of %v", delay, took), o.code < 0)
	}
	return killed, runs
}

// point is the numberth of one system call in some thread.
type point struct {
	call   string
	number int
}

// points runs the command once and counts its system calls; strace counts them by thread.
func (h *host) points(strace string, args []string) []point {
	h.t.Helper()
	log := filepath.Join(h.t.TempDir(), "strace")
	cmd, _, stderr := h.process(strace, append([]string{"-f", "-qq", "-o", log, "-e", "signal=none", "-e", "trace=" + killCalls, h.bin}, args...)...)
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	if o := h.finish(&running{cmd: cmd, stdout: &safeBuffer{}, stderr: stderr, args: args}); o.code != 0 {
		h.t.Fatalf("strace: exit %d\n%s", o.code, stderr)
	}
	f, err := os.Open(log)
	if err != nil {
		h.t.Fatal(err)
	}
	defer f.Close()
	line := regexp.MustCompile(`^(\d+) +(\w+)\(`)
	counts := map[[2]string]int{}
	most := map[string]int{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if m := line.FindStringSubmatch(lines.Text()); m != nil {
			key := [2]string{m[1], m[2]}
			counts[key]++
			most[m[2]] = max(most[m[2]], counts[key])
		}
	}
	var out []point
	for call, n := range most {
		// A call that is made hundreds of times is hit at powers of two.
		for i := 1; i <= n; i = max(i+1, i*3/2) {
			out = append(out, point{call, i})
		}
	}
	slices.SortFunc(out, func(a, b point) int { return cmp.Or(cmp.Compare(a.call, b.call), a.number-b.number) })
	if len(out) == 0 {
		h.t.Fatal("strace saw no call")
	}
	return out
}

// sample takes n of the points, one at random from each of n equal parts.
func sample(points []point, n int) []point {
	if n >= len(points) {
		return points
	}
	out := make([]point, n)
	for i := range out {
		low, high := i*len(points)/n, (i+1)*len(points)/n
		out[i] = points[low+rand.IntN(high-low)]
	}
	return out
}

// TestKillSupervisor kills the program while what it runs in a machine lives on.
func TestKillSupervisor(t *testing.T) {
	fileSystems(t, func(t *testing.T, h *host) {
		h.build("--name", h.template, "old.toml")
		h.ok("clone", h.template, h.template+"-m")
		for _, args := range [][]string{{"run", "-x", h.template}, {"run", h.template + "-m"}} {
			r := h.start(append(args, "--", "sh", "-c", "sleep 1000 & trap '' TERM HUP; echo up; while :; do sleep 1000; done")...)
			waitFor(t, "the payload", func() bool { return strings.Contains(r.stdout.String(), "up") })
			if list := h.members(); len(list) < 3 {
				t.Fatalf("processes of the machine: %v", list)
			}
			_ = r.cmd.Process.Kill()
			h.finish(r)
			waitFor(t, "the end of the payload", func() bool { reapOrphans(); return len(h.members()) == 0 })
			h.wantClean("killed the supervisor of " + strings.Join(args, " "))
			h.ok(append(args, "--", "true")...)
		}
		h.ok("remove", h.template+"-m")
		h.wantNothing("at the end")
	})
}

// members lists the processes in control groups of this host's machines.
func (h *host) members() []string {
	h.t.Helper()
	hierarchies, err := kernel.Hierarchies()
	if err != nil {
		h.t.Fatal(err)
	}
	files, _ := filepath.Glob(hierarchies.UnifiedRoot + "/mkmachine/*" + h.template + "*/cgroup.procs")
	var out []string
	for _, name := range files {
		data, _ := os.ReadFile(name)
		out = append(out, strings.Fields(string(data))...)
	}
	return out
}

// TestKilledChild kills the first process of a machine under a living supervisor.
func TestKilledChild(t *testing.T) {
	fileSystems(t, func(t *testing.T, h *host) {
		h.build("--name", h.template, "old.toml")
		r := h.start("run", "-x", h.template, "--", "sh", "-c", "echo up; sleep 1000")
		waitFor(t, "the payload", func() bool { return strings.Contains(r.stdout.String(), "up") })
		for _, pid := range h.members() {
			var n int
			if _, err := fmt.Sscan(pid, &n); err != nil {
				t.Fatal(err)
			}
			_ = unix.Kill(n, unix.SIGKILL)
		}
		if o := h.finish(r); o.code == 0 {
			t.Errorf("exit %d\n%s", o.code, o.stderr)
		}
		h.wantNothing("killed all processes of the machine")
	})
}
