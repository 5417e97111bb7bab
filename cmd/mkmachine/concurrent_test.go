// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/mkmachine/mkmachine/internal/build"
)

const atOnce = 8

// TestAtOnce runs commands that meet: each succeeds, and work is done once.
func TestAtOnce(t *testing.T) {
	fileSystems(t, func(t *testing.T, h *host) {
		T := h.template
		t.Run("builds of one recipe", func(t *testing.T) {
			h := h.on(t)
			var builds []*running
			for range atOnce {
				builds = append(builds, h.start("--json", "build", "--name", T, "old.toml"))
			}
			worked := 0
			ids := map[string]int{}
			for _, r := range builds {
				o := h.finish(r)
				if o.code != 0 {
					t.Errorf("exit %d\n%s", o.code, o.stderr)
					continue
				}
				var built []*build.Result
				o.result(t, &built)
				ids[built[0].ID+" "+built[0].Digest]++
				if !built[0].UpToDate {
					worked++
				}
			}
			if worked != 1 || len(ids) != 1 {
				t.Errorf("%d builds worked, the results are %v", worked, ids)
			}
			h.wantClean("builds at once")
		})
		old := h.digest()
		t.Run("builds that share their base", func(t *testing.T) {
			h := h.on(t)
			h.ok("clean", "--layers", "--unused", "0s")
			var builds []*running
			for i := range 3 {
				h.recipe(fmt.Sprint(i), fmt.Sprintf("echo %d > /etc/version", i))
				builds = append(builds, h.start("build", "--name", fmt.Sprintf("%s-%d", T, i), fmt.Sprintf("%d.toml", i)))
			}
			for _, r := range builds {
				if o := h.finish(r); o.code != 0 {
					t.Errorf("exit %d\n%s", o.code, o.stderr)
				}
			}
			for i := range 3 {
				name := fmt.Sprintf("%s-%d", T, i)
				h.ok("verify", name)
				if o := h.ok("run", "-x", name, "--", "cat", "/etc/version"); o.stdout != fmt.Sprintln(i) {
					t.Errorf("%s has version %q", name, o.stdout)
				}
				h.ok("remove", name)
			}
			h.wantClean("builds that share their base")
		})
		t.Run("clones and throw-away machines", func(t *testing.T) {
			h := h.on(t)
			var all []*running
			var names []string
			for i := range atOnce {
				names = append(names, fmt.Sprintf("%s-%d", T, i))
				all = append(all, h.start("clone", T, names[i]), h.start("run", "-x", T, "--", "cat", "/etc/version"))
			}
			for _, r := range all {
				if o := h.finish(r); o.code != 0 || r.args[0] == "run" && o.stdout != "old\n" {
					t.Errorf("%v: exit %d %q\n%s", r.args, o.code, o.stdout, o.stderr)
				}
			}
			all = nil
			for _, n := range names {
				all = append(all, h.start("run", n, "--", "hostname"))
			}
			seen := map[string]bool{}
			for _, r := range all {
				o := h.finish(r)
				if o.code != 0 || seen[o.stdout] {
					t.Errorf("%v: exit %d %q\n%s", r.args, o.code, o.stdout, o.stderr)
				}
				seen[o.stdout] = true
			}
			all = nil
			for _, n := range names {
				all = append(all, h.start("remove", n))
			}
			for _, r := range all {
				if o := h.finish(r); o.code != 0 {
					t.Errorf("%v: exit %d\n%s", r.args, o.code, o.stderr)
				}
			}
			h.wantClean("clones at once") // a tree that another one held is collected by the next
		})
		t.Run("one name for many clones", func(t *testing.T) {
			h := h.on(t)
			var all []*running
			for range atOnce {
				all = append(all, h.start("clone", T, T+"-one"))
			}
			succeeded := 0
			for _, r := range all {
				switch o := h.finish(r); {
				case o.code == 0:
					succeeded++
				case o.code != 6 || !strings.Contains(o.stderr, "exists already"):
					t.Errorf("exit %d\n%s", o.code, o.stderr)
				}
			}
			if succeeded != 1 {
				t.Errorf("%d clones succeeded", succeeded)
			}
			h.ok("remove", T+"-one")
			h.wantClean("clones of one name")
		})
		t.Run("build and remove under a running copy", func(t *testing.T) {
			h := h.on(t)
			first, say := h.waiting("run", "-x", T)
			if fresh := h.build("--name", T, "new.toml").Digest; fresh == old {
				t.Error("the new template is the old one")
			}
			second, ask := h.waiting("run", "-x", T)
			h.ok("remove", T)
			if _, ok := h.images()[T]; ok {
				t.Error("the template is there still")
			}
			say("go\n")
			ask("go\n")
			for r, want := range map[*running]string{first: "up\nold\n", second: "up\nnew\n"} {
				if o := h.finish(r); o.code != 0 || o.stdout != want {
					t.Errorf("exit %d %q, want %q\n%s", o.code, o.stdout, want, o.stderr)
				}
			}
			// The tree of a template outlives it only as long as the machine.
			h.wantClean("removed under a running copy")
		})
		t.Run("commands for a running machine", func(t *testing.T) {
			h := h.on(t)
			h.build("--name", T, "old.toml")
			h.ok("clone", T, T+"-m")
			r, say := h.waiting("run", T+"-m")
			for _, args := range [][]string{{"remove", T + "-m"}, {"rename", T + "-m", T + "-n"}, {"run", T + "-m", "--", "true"}} {
				if o := h.command(args...); o.code != 6 && (args[0] != "run" || o.code != exitOwnFailure) || !strings.Contains(o.stderr, "in use") {
					t.Errorf("%v: exit %d\n%s", args, o.code, o.stderr)
				}
			}
			h.ok("clean")
			h.ok("remove", T)
			say("go\n")
			if o := h.finish(r); o.code != 0 || o.stdout != "up\nold\n" {
				t.Errorf("exit %d %q\n%s", o.code, o.stdout, o.stderr)
			}
			h.ok("remove", T+"-m")
			h.wantClean("commands for a running machine")
		})
	})
}

// waiting starts a machine that says "up", waits for a line and tells its version.
func (h *host) waiting(args ...string) (*running, func(string)) {
	h.t.Helper()
	read, write, err := os.Pipe()
	if err != nil {
		h.t.Fatal(err)
	}
	r := &running{args: append(args, "--", "sh", "-c", "echo up; read go; cat /etc/version")}
	r.cmd, r.stdout, r.stderr = h.process(h.bin, r.args...)
	r.cmd.Stdin = read
	if err := r.cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	read.Close()
	waitFor(h.t, "the machine", func() bool { return isUp(r) || dead(r) })
	return r, func(text string) { _, _ = io.WriteString(write, text); write.Close() }
}
