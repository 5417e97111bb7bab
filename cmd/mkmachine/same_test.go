// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mkmachine/mkmachine/internal/kernel"
	"github.com/mkmachine/mkmachine/internal/kernel/kerneltest"
)

const sameRecipe = `schema = 1
name = "same"
[source]
kind = "deb"
distribution = "debian"
suite = "trixie"
variant = "minbase"
pockets = ["release"]
[packages]
add = ["systemd-sysv", "dbus", "libpam-systemd", "iputils-ping", "sudo", "openssh-server", "python3-minimal"]
[[files]]
path = "/etc/motd"
content = "hello\n"
[[users]]
name = "ada"
groups = ["adm"]
sudo = true
[system]
timezone = "Europe/Berlin"
hostname = "same"
[[script]]
at = "finish"
run = "date -u > /etc/built; mkdir /srv/made; umask 027; touch /srv/made/x; useradd -m grace"
`

// TestSameLockSameTree builds one lock on different file systems, with a cold and a warm
// cache, from layers and from nothing, in other time zones, locales and umasks, and compares
// the exported bytes. The script of the recipe writes the date: it is run once for each
// tree, so the test gives it a fixed one.
func TestSameLockSameTree(t *testing.T) {
	kerneltest.Require(t, kernel.Root, kernel.UserNS, kernel.IDMap, kernel.Cgroup, kernel.Btrfs, kernel.Loop)
	mirror := kerneltest.Mirror(t, "debian")
	recipe := strings.Replace(sameRecipe, "date -u >", "date -u -d @$SOURCE_DATE_EPOCH >", 1)
	want, lock := "", []byte(nil)
	for _, c := range []struct {
		name, backend string
		loop          bool
		vars          map[string]string
		umask         int
		args          []string
	}{
		{name: "btrfs", loop: true},
		{name: "btrfs again from nothing", loop: true, vars: map[string]string{"TZ": "Asia/Tokyo", "LANG": "de_DE.UTF-8", "LC_ALL": "tr_TR.UTF-8"}, umask: 0o077, args: []string{"--rebuild"}},
		{name: "overlay", backend: "overlay", vars: map[string]string{"TZ": "America/St_Johns"}, umask: 0o002},
		{name: "copy", backend: "copy"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for k, v := range c.vars {
				t.Setenv(k, v)
			}
			if c.umask != 0 {
				old := setUmask(c.umask)
				defer setUmask(old)
			}
			machines := ""
			if c.loop {
				machines = filepath.Join(kerneltest.LoopBtrfs(t), "machines")
			}
			w := newWorld(t, machines)
			w.vars["MKMACHINE_BACKEND"] = c.backend
			t.Cleanup(w.empty)
			w.write("same.toml", recipe)
			if lock != nil {
				w.write("same.lock.json", string(lock))
			}
			w.must("--mirror", "debian="+mirror, "build", "same.toml")
			if len(c.args) > 0 {
				w.must(append([]string{"--mirror", "debian=" + mirror, "build", "same.toml"}, c.args...)...)
			}
			var err error
			if lock, err = os.ReadFile(filepath.Join(w.dir, "same.lock.json")); err != nil {
				t.Fatal(err)
			}
			w.must("export", "same", "same.tar")
			archive, err := os.ReadFile(filepath.Join(w.dir, "same.tar"))
			if err != nil {
				t.Fatal(err)
			}
			got := fmt.Sprintf("%x of %d bytes", sha256.Sum256(archive), len(archive))
			if want == "" {
				want = got
			}
			if got != want {
				t.Errorf("export is %s, the first was %s", got, want)
			}
			w.must("verify", "same")
		})
	}
}

// TestCheckConfirms: build --check builds twice, and says so when a script makes the trees differ.
func TestCheckConfirms(t *testing.T) {
	kerneltest.Require(t, kernel.Root, kernel.UserNS, kernel.IDMap, kernel.Cgroup)
	mirror := kerneltest.Mirror(t, "debian")
	w := newWorld(t, "")
	t.Cleanup(w.empty)
	base := "schema = 1\nname = \"c\"\n[source]\nkind = \"deb\"\ndistribution = \"debian\"\nsuite = \"trixie\"\nvariant = \"essential\"\npockets = [\"release\"]\n"
	w.write("c.toml", base)
	w.must("--mirror", "debian="+mirror, "build", "--check", "c.toml")
	w.write("c.toml", base+"[[script]]\nat = \"finish\"\nrun = \"cat /proc/sys/kernel/random/uuid > /etc/random\"\n")
	o := w.run("--mirror", "debian="+mirror, "build", "--check", "c.toml")
	if o.code != 3 || !strings.Contains(o.stderr, "/etc/random") {
		t.Errorf("a tree that differs: exit %d, want 3 and the path\n%s", o.code, o.stderr)
	}
}
