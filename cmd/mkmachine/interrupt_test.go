// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/kernel"
	"github.com/mkmachine/mkmachine/internal/kernel/kerneltest"
)

// interruptGrace is how long a command may take to end after Ctrl-C.
const interruptGrace = 5 * time.Second

// TestInterrupt sends SIGINT in the middle of the steps of a build and of a running machine:
// the command says so, ends with 130 and leaves nothing, without any help of the next one.
func TestInterrupt(t *testing.T) {
	hierarchies, err := kernel.Hierarchies()
	if err != nil {
		kerneltest.Lacks(t, "cgroup", err.Error())
	}
	fileSystems(t, func(t *testing.T, h *host) {
		h.recipe("slow", "touch /started; sleep 1000")
		h.recipe("deaf", "trap '' INT TERM HUP; touch /started; while :; do sleep 1; done")
		h.build("--name", h.template, "old.toml")
		h.ok("clone", h.template, h.template+"-m")
		old := h.digest()
		stage := h.machines + "/.#mkmachine-*"
		mirror, stalled, done := stallingMirror(t)
		for _, c := range []struct {
			name  string
			args  []string
			until func(r *running) bool
		}{
			{"download", []string{"build", "--rebuild", "--name", h.template, "new.toml"}, func(*running) bool {
				select {
				case <-stalled:
					return true
				default:
					return false
				}
			}},
			{"unpack", []string{"build", "--rebuild", "--name", h.template, "new.toml"}, func(*running) bool { return exists(stage + "/usr/bin/*") }},
			{"configure", []string{"build", "--rebuild", "--name", h.template, "new.toml"}, func(*running) bool {
				return exists(hierarchies.UnifiedRoot + "/mkmachine/build-" + h.template + "-*")
			}},
			{"script", []string{"build", "--name", h.template, "slow.toml"}, func(*running) bool { return exists(stage + "/started") }},
			{"deaf script", []string{"build", "--name", h.template, "deaf.toml"}, func(*running) bool { return exists(stage + "/started") }},
			{"run -x", []string{"run", "-x", h.template, "--", "sh", "-c", "echo up; sleep 1000"}, isUp},
			{"run", []string{"run", h.template + "-m", "--", "sh", "-c", "trap '' INT; echo up; while :; do sleep 1000; done"}, isUp},
		} {
			t.Run(c.name, func(t *testing.T) {
				h := h.on(t)
				if c.name == "download" {
					h.cache, h.machines = filepath.Join(h.dir, "empty"), h.machines+"-empty"
					h.set("DEBIAN", mirror)
					defer close(done)
				}
				r := h.start(c.args...)
				waitFor(t, c.name, func() bool { return c.until(r) })
				began := time.Now()
				_ = r.cmd.Process.Signal(unix.SIGINT)
				o := h.finish(r)
				if took := time.Since(began); took > interruptGrace {
					t.Errorf("took %v", took)
				}
				if o.code != exitInterrupted || !strings.Contains(o.stderr, "interrupted") {
					t.Errorf("exit %d\n%s", o.code, o.stderr)
				}
				h.wantNothing("interrupted")
				switch img, ok := h.images()[h.template]; {
				case c.name == "download" && ok:
					t.Error("a template is published")
				case c.name != "download" && (!ok || img.Meta.Manifest != old):
					t.Error("another template is published")
				}
			})
		}
		h.ok("verify", h.template)
		for _, args := range [][]string{{"build", "--rebuild", "--name", h.template, "slow.toml"}, {"run", "-x", h.template, "--", "sleep", "1000"}} {
			r := h.start(args...)
			waitFor(t, "the machine", func() bool { return len(h.members()) > 1 })
			began := time.Now()
			for r.cmd.Process.Signal(unix.SIGINT) == nil && time.Since(began) < interruptGrace && !dead(r) {
				time.Sleep(time.Millisecond)
			}
			if o := h.finish(r); o.code != exitInterrupted || time.Since(began) > time.Second {
				t.Errorf("interrupted many times: exit %d after %v\n%s", o.code, time.Since(began), o.stderr)
			}
			h.wantClean("interrupted many times")
		}
		h.ok("verify", h.template)
	})
}

func isUp(r *running) bool { return strings.Contains(r.stdout.String(), "up") }

// dead says whether the process has ended; it is not reaped.
func dead(r *running) bool {
	var info unix.Siginfo
	err := unix.Waitid(unix.P_PID, r.cmd.Process.Pid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	return err != nil || info.Signo != 0
}

// stallingMirror passes on what is asked for, except packages: there it says that it was
// asked, and is silent until done is closed.
func stallingMirror(t *testing.T) (base string, stalled <-chan struct{}, done chan<- struct{}) {
	behind, err := url.Parse(kerneltest.Mirror(t, "debian"))
	if err != nil {
		t.Fatal(err)
	}
	asked, release := make(chan struct{}, 1000), make(chan struct{})
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(behind) }, Transport: &http.Transport{DisableKeepAlives: true}}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, ".deb") {
			asked <- struct{}{}
			<-release
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	return server.URL, asked, release
}
