// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/build"
	"github.com/mkmachine/mkmachine/internal/kernel"
	"github.com/mkmachine/mkmachine/internal/kernel/kerneltest"
	"github.com/mkmachine/mkmachine/snapshot"
)

// host is a world in which the program runs as processes of its own, which can be killed.
// Its images, recipes and machines have names that nobody else on this machine uses.
type host struct {
	*world
	t        *testing.T
	bin      string
	template string // the name that builds publish
	vars     []string
	locks    []string // lock files that were there before
}

const commandTimeout = 2 * time.Minute

// newHost has two recipes, old.toml and new.toml, which differ in /etc/version alone.
func newHost(t *testing.T, dir, cache string) *host {
	t.Helper()
	kerneltest.Require(t, kernel.Root, kernel.UserNS, kernel.IDMap, kernel.Cgroup)
	bin, err := exec.LookPath("mkmachine") // testscript.Main put it there: this test program
	if err != nil {
		t.Fatal(err)
	}
	mirror := kerneltest.Mirror(t, "debian")
	answer, err := http.Head(mirror + "/dists/trixie/InRelease")
	if err != nil {
		kerneltest.Lacks(t, "mirror", err.Error())
	}
	answer.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	h := &host{world: newWorld(t, filepath.Join(dir, "machines")), t: t, bin: bin, template: fmt.Sprintf("crash%d", os.Getpid()), locks: lockFiles()}
	h.cache = cache
	h.set("DEBIAN", mirror)
	for _, version := range []string{"old", "new"} {
		h.recipe(version, "echo "+version+" > /etc/version")
	}
	return h
}

// on is the same host for a subtest.
func (h *host) on(t *testing.T) *host {
	other, w := *h, *h.world
	w.t, other.t, other.world = t, t, &w
	return &other
}

// set changes the mirror of a family for the commands to come.
func (h *host) set(family, mirror string) {
	h.vars = []string{"MKMACHINE_MIRROR_" + family + "=" + mirror}
}

// recipe writes NAME.toml: the smallest tree, and one script.
func (h *host) recipe(name, script string) {
	h.write(name+".toml", fmt.Sprintf(`schema = 1
name = "%s-%s"
[source]
kind = "deb"
distribution = "debian"
suite = "trixie"
variant = "essential"
pockets = ["release"]
[[script]]
run = %q
`, h.template, name, script))
}

// process prepares a command; the output is in the buffers.
func (h *host) process(name string, args ...string) (*exec.Cmd, *safeBuffer, *safeBuffer) {
	cmd := exec.Command(name, args...)
	cmd.Dir = h.dir
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + h.dir, "MKMACHINE_MACHINES=" + h.machines,
		"MKMACHINE_CACHE=" + h.cache, "MKMACHINE_RUNTIME=" + h.runtime}, h.vars...)
	var stdout, stderr safeBuffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = 2 * time.Second
	return cmd, &stdout, &stderr
}

// command runs the program to its end.
func (h *host) command(args ...string) outcome {
	h.t.Helper()
	return h.finish(h.start(args...))
}

// running is a command that was started.
type running struct {
	cmd            *exec.Cmd
	stdout, stderr *safeBuffer
	args           []string
}

func (h *host) start(args ...string) *running {
	h.t.Helper()
	r := &running{args: args}
	r.cmd, r.stdout, r.stderr = h.process(h.bin, args...)
	if err := r.cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = r.cmd.Process.Kill() }) // where the test has failed before the end
	return r
}

// finish waits; a command that hangs fails the test.
func (h *host) finish(r *running) outcome {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = r.cmd.Process.Signal(unix.SIGQUIT) })
	_ = r.cmd.Wait() // the state says it
	if !stop() {
		h.t.Fatalf("%v hung\n%s", r.args, r.stderr)
	}
	return outcome{r.cmd.ProcessState.ExitCode(), r.stdout.String(), r.stderr.String()}
}

// ok fails the test unless the command ends with 0.
func (h *host) ok(args ...string) outcome {
	h.t.Helper()
	o := h.command(args...)
	if o.code != 0 {
		h.t.Fatalf("mkmachine %s: exit %d\n%s%s", strings.Join(args, " "), o.code, o.stdout, o.stderr)
	}
	return o
}

// build builds and gives the result.
func (h *host) build(args ...string) *build.Result {
	h.t.Helper()
	var built []*build.Result
	h.ok(append([]string{"--json", "build"}, args...)...).result(h.t, &built)
	return built[0]
}

// images lists what is there by name.
func (h *host) images() map[string]snapshot.Image {
	h.t.Helper()
	var list []snapshot.Image
	h.ok("--json", "list").result(h.t, &list)
	out := map[string]snapshot.Image{}
	for _, img := range list {
		out[img.Name] = img
	}
	return out
}

// digest of the published template.
func (h *host) digest() string {
	h.t.Helper()
	img, ok := h.images()[h.template]
	if !ok || img.Meta == nil || img.Role != snapshot.Template {
		h.t.Fatalf("the template is gone: %+v", img)
	}
	return img.Meta.Manifest
}

// wantClean collects with the program and fails the test if anything is left of dead commands.
func (h *host) wantClean(when string) {
	h.t.Helper()
	h.ok("clean")
	h.wantNothing(when)
}

// wantNothing fails the test if anything is there that no command needs.
func (h *host) wantNothing(when string) {
	h.t.Helper()
	left := h.leftovers()
	for deadline := time.Now().Add(3 * time.Second); len(left) > 0 && time.Now().Before(deadline); left = h.leftovers() {
		time.Sleep(20 * time.Millisecond)
	}
	if len(left) > 0 {
		h.t.Fatalf("%s: left behind:\n  %s", when, strings.Join(left, "\n  "))
	}
}

// leftovers looks at everything that a command makes outside of images and layers.
func (h *host) leftovers() []string {
	reapOrphans()
	out := orphans()
	out = append(out, h.storeLeftovers()...)
	for _, pattern := range []string{
		h.runtime + "/leases/*", h.runtime + "/ids/*", h.runtime + "/scripts/*",
		h.machines + "/.mkmachine/packs/tmp/*", h.cache + "/tmp/*", h.cache + "/.*", h.dir + "/.*",
		"/sys/fs/cgroup/mkmachine/*" + h.template + "*", "/sys/fs/cgroup/*/mkmachine/*" + h.template + "*",
		"/sys/fs/cgroup/*/*/mkmachine/*" + h.template + "*",
	} {
		found, _ := filepath.Glob(pattern) // the patterns are constants
		out = append(out, found...)
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 4 && (strings.HasPrefix(f[4], h.machines) || strings.HasPrefix(f[4], h.dir)) {
			out = append(out, "mount "+f[4])
		}
	}
	for _, name := range lockFiles() {
		if !slices.Contains(h.locks, name) && !held(name) {
			out = append(out, "lock "+name)
		}
	}
	return out
}

// storeLeftovers are hidden objects, open journal entries, locks and trees without a reference.
func (h *host) storeLeftovers() []string {
	var out []string
	state := filepath.Join(h.machines, ".mkmachine")
	for _, pattern := range []string{h.machines + "/.#*", state + "/journal/*", state + "/trees/.#*"} {
		found, _ := filepath.Glob(pattern) // the patterns are constants
		for _, name := range found {
			// A file that was not renamed yet has no meaning to anybody; clean takes it when
			// it is too old to be somebody's who is just about to.
			if !strings.HasPrefix(filepath.Base(name), ".new-") {
				out = append(out, name)
			}
		}
	}
	used := ""
	layers, _ := filepath.Glob(state + "/layers/*.json")
	for _, name := range layers {
		data, _ := os.ReadFile(name)
		used += string(data)
	}
	links, _ := filepath.Glob(h.machines + "/*")
	inner, _ := filepath.Glob(h.machines + "/*.mstack/*")
	for _, name := range append(links, inner...) {
		target, _ := os.Readlink(name)
		used += target + " "
	}
	trees, _ := os.ReadDir(state + "/trees")
	for _, tree := range trees {
		if !strings.Contains(used, tree.Name()) {
			out = append(out, "tree "+tree.Name())
		}
	}
	return out
}

const lockDir = "/run/systemd/nspawn/locks"

func lockFiles() []string {
	names, _ := filepath.Glob(lockDir + "/*")
	return names
}

// held says whether somebody has the lock, or it is gone.
func held(name string) bool {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return true
	}
	defer f.Close()
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	return unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lock) != nil || lock.Type != unix.F_UNLCK
}

// children lists the children of this process. Orphans of killed commands come here, because
// kerneltest.Leaks has made it a subreaper.
func children() []int {
	var out []int
	files, _ := filepath.Glob("/proc/self/task/*/children")
	for _, name := range files {
		data, _ := os.ReadFile(name)
		for word := range strings.FieldsSeq(string(data)) {
			if pid, err := strconv.Atoi(word); err == nil {
				out = append(out, pid)
			}
		}
	}
	return out
}

// reapOrphans must not be called while a command runs that somebody waits for.
func reapOrphans() {
	for _, pid := range children() {
		_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
	}
}

func orphans() []string {
	var out []string
	for _, pid := range children() {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		out = append(out, fmt.Sprintf("process %d %s", pid, bytes.ReplaceAll(line, []byte{0}, []byte{' '})))
	}
	return out
}

// waitFor waits until the condition holds.
func waitFor(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !condition(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// exists says whether the pattern matches anything.
func exists(pattern string) bool {
	found, _ := filepath.Glob(pattern)
	return len(found) > 0
}

// fileSystems runs a test on the file systems with different backends.
func fileSystems(t *testing.T, test func(t *testing.T, h *host)) {
	cache := filepath.Join(t.TempDir(), "cache")
	for _, kind := range []string{"btrfs", "ext4"} {
		t.Run(kind, func(t *testing.T) {
			kerneltest.Leaks(t)
			dir := kerneltest.LoopFS(t, kind, 3<<30)
			test(t, newHost(t, dir, cache))
		})
	}
}
