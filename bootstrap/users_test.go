// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/internal/kernel"
	"github.com/mkmachine/mkmachine/internal/kernel/kerneltest"
	"github.com/mkmachine/mkmachine/internal/rootfs"
)

// clock is 20 000 days after 1970.
var clock = time.Unix(20_000*86400+5, 0)

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// system makes a small Debian-like tree, with what text maps paths to: "-> X" is a link,
// "dir" a directory, everything else a file's content.
func system(t testing.TB, extra map[string]string) *rootfs.Root {
	t.Helper()
	kerneltest.Require(t, kernel.Root)
	r, err := rootfs.Open(t.TempDir())
	must(t, err)
	t.Cleanup(func() { r.Close() })
	files := map[string]string{
		"etc/passwd":                     "root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n+nis::::::\n",
		"etc/group":                      "root:x:0:\ndaemon:x:1:\nsudo:x:27:\nshadow:x:42:\nusers:x:100:old\n",
		"etc/shadow":                     "root:*:19000:0:99999:7:::\ndaemon:*:19000:0:99999:7:::\n",
		"etc/gshadow":                    "root:*::\ndaemon:*::\nsudo:*::\nshadow:*::\nusers:*::old\n",
		"etc/subuid":                     "",
		"etc/subgid":                     "other:100000:65536\n",
		"etc/login.defs":                 "# comment\nUID_MIN 1000\nUID_MAX 60000\nHOME_MODE\t0700\n",
		"etc/skel/.bashrc":               "rc",
		"etc/skel/.config/link":          "-> ../.bashrc",
		"etc/os-release":                 "-> ../usr/lib/os-release",
		"usr/lib/os-release":             "ID=debian\n",
		"usr/share/zoneinfo/Etc/UTC":     "TZif",
		"etc/hostname":                   "localhost\n",
		"bin":                            "-> usr/bin",
		"sbin":                           "-> usr/sbin",
		"usr/bin/bash":                   "x\x7fELF",
		"usr/sbin/nologin":               "x\x7fELF",
		"usr/bin/sudo":                   "x\x7fELF",
		"etc/debian_version":             "13\n",
		"etc/systemd/system":             "dir",
		"usr/lib/systemd/system/a.timer": "[Timer]\n",
	}
	for k, v := range extra {
		files[k] = v
	}
	for _, links := range []bool{true, false} { // links first: others go through them
		for path, text := range files {
			target, isLink := strings.CutPrefix(text, "-> ")
			if isLink != links || text == "gone" {
				continue
			}
			if dir := parentOf(path); dir != "" {
				must(t, r.MkdirAll(dir, 0o755, 0, 0))
			}
			program, isProgram := strings.CutPrefix(text, "x\x7f")
			switch {
			case isLink:
				must(t, r.Symlink(target, path, 0, 0))
			case text == "dir":
				must(t, r.MkdirAll(path, 0o755, 0, 0))
			case isProgram:
				must(t, r.Put(path, 0o755, 0, 0, []byte("\x7f"+program)))
			default:
				must(t, r.Put(path, 0o644, 0, 0, []byte(text)))
			}
		}
	}
	must(t, r.Chmod("etc/shadow", 0o640), r.Chown("etc/shadow", 0, 42))
	return r
}

func read(t testing.TB, r *rootfs.Root, path string) string {
	t.Helper()
	data, err := r.ReadFile(path, 1<<20)
	must(t, err)
	return string(data)
}

func text(s string) Text { return Text{Value: s, Pos: fault.Pos{File: "r.toml", Line: 7, Col: 1}} }

const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEJ3lq1JYJtUN0mJm2Xyq8zjp0m3 me@host"

func TestUsers(t *testing.T) {
	r := system(t, nil)
	_, err := Customise(t.Context(), r, &Config{Clock: clock,
		Files: []File{{Path: "/home/deploy/app/run", Data: []byte("x"), Mode: 0o4755, Owner: "deploy:users"},
			{Path: "/etc/motd", Data: []byte("hello\n"), Mode: 0o644}},
		Users: []User{
			{Name: text("deploy"), UID: -1, Groups: []Text{text("sudo"), text("users")}, SSHAuthorizedKeys: []Text{text(key)}, Sudo: true,
				PasswordHash: text("$y$j9T$abc$def")},
			{Name: text("ci.bot"), UID: 1234, Shell: text("/bin/bash"), EmptyPassword: true, Sudo: true},
			{Name: text("svc"), UID: -1, System: true},
			{Name: text("root"), UID: -1, EmptyPassword: true, SSHAuthorizedKeys: []Text{text(key)}},
		}})
	must(t, err)
	for path, want := range map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n+nis::::::\n" +
			"deploy:x:1000:1000::/home/deploy:/bin/bash\nci.bot:x:1234:1234::/home/ci.bot:/bin/bash\nsvc:x:999:999::/nonexistent:/usr/sbin/nologin\n",
		"etc/group": "root:x:0:\ndaemon:x:1:\nsudo:x:27:deploy\nshadow:x:42:\nusers:x:100:old,deploy\ndeploy:x:1000:\nci.bot:x:1234:\nsvc:x:999:\n",
		"etc/shadow": "root::19000:0:99999:7:::\ndaemon:*:19000:0:99999:7:::\ndeploy:$y$j9T$abc$def:20000:0:99999:7:::\n" +
			"ci.bot::20000:0:99999:7:::\nsvc:!:20000::::::\n",
		"etc/gshadow":                      "root:*::\ndaemon:*::\nsudo:*::deploy\nshadow:*::\nusers:*::old,deploy\ndeploy:!::\nci.bot:!::\nsvc:!::\n",
		"etc/subuid":                       "deploy:100000:65536\nci.bot:165536:65536\n",
		"etc/subgid":                       "other:100000:65536\ndeploy:165536:65536\nci.bot:231072:65536\n",
		"home/deploy/.ssh/authorized_keys": key + "\n",
		"root/.ssh/authorized_keys":        key + "\n",
		"etc/sudoers.d/90-deploy":          "deploy ALL=(ALL:ALL) NOPASSWD: ALL\n",
		"etc/sudoers.d/90-ci_bot":          "ci.bot ALL=(ALL:ALL) NOPASSWD: ALL\n",
		"home/ci.bot/.bashrc":              "rc",
		"etc/motd":                         "hello\n",
	} {
		if got := read(t, r, path); got != want {
			t.Errorf("%s:\n%s\nwant:\n%s", path, got, want)
		}
	}
	for path, want := range map[string]rootfs.Info{
		"etc/shadow": {Mode: 0o640, GID: 42}, "home/ci.bot": {Mode: 0o700, UID: 1234, GID: 1234},
		"home/ci.bot/.config/link": {Mode: 0o777, UID: 1234, GID: 1234}, "home/deploy/.ssh": {Mode: 0o700, UID: 1000, GID: 1000},
		"home/deploy/.ssh/authorized_keys": {Mode: 0o600, UID: 1000, GID: 1000}, "etc/sudoers.d/90-deploy": {Mode: 0o440},
		"home/deploy/app/run": {Mode: 0o4755, UID: 1000, GID: 100},
	} {
		st, err := r.Lstat(path)
		must(t, err)
		if st.Mode != want.Mode || st.UID != want.UID || st.GID != want.GID {
			t.Errorf("%s: %o %d:%d", path, st.Mode, st.UID, st.GID)
		}
	}
	if _, err := r.Lstat("nonexistent"); err == nil {
		t.Error("a service got a home")
	}
}

func TestUsersErrors(t *testing.T) {
	for name, c := range map[string]struct {
		u     User
		class fault.Class
		text  string
	}{
		"colon":         {User{Name: text("a:b"), UID: -1}, fault.Config, "no user name"},
		"number":        {User{Name: text("0"), UID: -1}, fault.Config, "no user name"},
		"newline":       {User{Name: text("a\nroot"), UID: -1}, fault.Config, "no user name"},
		"dash":          {User{Name: text("-f"), UID: -1}, fault.Config, "no user name"},
		"big id":        {User{Name: text("a"), UID: 4294967296}, fault.Config, "allowed are"},
		"taken id":      {User{Name: text("a"), UID: 1}, fault.Config, "another user's"},
		"other id":      {User{Name: text("daemon"), UID: 5}, fault.Config, "with the id 1"},
		"group":         {User{Name: text("a"), UID: -1, Groups: []Text{text("nogroup")}}, fault.Config, "no such"},
		"shell":         {User{Name: text("a"), UID: -1, Shell: text("/bin/zsh")}, fault.Config, "no shell"},
		"shell newline": {User{Name: text("a"), UID: -1, Shell: text("/bin/bash\nx:x:0:0::/:/bin/sh")}, fault.Config, "no absolute path"},
		"home":          {User{Name: text("a"), UID: -1, Home: text("/home/../etc")}, fault.Config, "no absolute path"},
		"home colon":    {User{Name: text("a"), UID: -1, Home: text("/home/a:/bin/sh")}, fault.Config, "no absolute path"},
		"hash":          {User{Name: text("a"), UID: -1, PasswordHash: text("secret")}, fault.Config, "no hash"},
		"hash colon":    {User{Name: text("a"), UID: -1, PasswordHash: text("$6$a$b:0:0")}, fault.Config, "no hash"},
		"both":          {User{Name: text("a"), UID: -1, PasswordHash: text("$6$a$b"), EmptyPassword: true}, fault.Config, "exclude"},
		"key":           {User{Name: text("a"), UID: -1, SSHAuthorizedKeys: []Text{text("-----BEGIN OPENSSH PRIVATE KEY-----")}}, fault.Config, "no public key"},
		"key newline":   {User{Name: text("a"), UID: -1, SSHAuthorizedKeys: []Text{text(key + "\n" + key)}}, fault.Config, "no public key"},
	} {
		t.Run(name, func(t *testing.T) {
			r := system(t, nil)
			before, err := r.Tree(t.Context())
			must(t, err)
			u := c.u
			u.Pos = fault.Pos{File: "r.toml", Line: 3}
			_, err = Customise(t.Context(), r, &Config{Users: []User{u}, Clock: clock})
			if fault.ClassOf(err) != c.class || !strings.Contains(err.Error(), c.text) {
				t.Fatalf("got %s: %v", fault.ClassOf(err), err)
			}
			if pos, ok := fault.PosOf(err); !ok || pos.File != "r.toml" {
				t.Errorf("position %v", pos)
			}
			if after, _ := r.Tree(t.Context()); after != before {
				t.Error("the tree changed")
			}
		})
	}
}

// What the account files of a hostile tree may be.
func TestHostileAccounts(t *testing.T) {
	big := strings.Repeat("x:x:1:\n", 2<<20)
	for name, extra := range map[string]map[string]string{
		"300 MB group": {"etc/group": big}, "long line": {"etc/group": strings.Repeat("x", 65<<10) + "\n"},
		"NUL": {"etc/passwd": "root\x00:x:0:0::/:/bin/sh\n"}, "FIFO": {"etc/passwd": "gone"}, "directory": {"etc/shadow": "dir"},
		"id of 2^32": {"etc/passwd": "deploy:x:4294967296:0::/home:/bin/sh\n"}, "negative": {"etc/passwd": "deploy:x:-1:0::/:/bin/sh\n"},
		"hex": {"etc/passwd": "deploy:x:0x0:0::/:/bin/sh\n"}, "plus": {"etc/passwd": "deploy:x:+0:0::/:/bin/sh\n"},
	} {
		t.Run(name, func(t *testing.T) {
			r := system(t, extra)
			if name == "FIFO" {
				must(t, r.Remove("etc/passwd"), unix.Mknodat(r.Fd(), "etc/passwd", unix.S_IFIFO|0o644, 0))
			}
			_, err := Customise(t.Context(), r, &Config{Files: []File{{Path: "/x", Owner: "deploy"}}, Clock: clock})
			if err == nil || fault.ClassOf(err) == fault.Internal {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestOwner(t *testing.T) {
	r := system(t, nil)
	a, err := openAccounts(r)
	must(t, err)
	for in, want := range map[string][2]int{"": {0, 0}, "root": {0, 0}, "daemon": {1, 1}, "daemon:sudo": {1, 27}, "5": {5, 0}, "5:6": {5, 6}, ":shadow": {0, 42}} {
		if uid, gid, err := a.owner(in); err != nil || [2]int{uid, gid} != want {
			t.Errorf("%q: %d:%d %v", in, uid, gid, err)
		}
	}
	for _, in := range []string{"nobody", "root:nobody", "65536", "-1", "a b", "root:", "0x0", "+0"} {
		if uid, gid, err := a.owner(in); err == nil {
			t.Errorf("%q: %d:%d", in, uid, gid)
		}
	}
}

func FuzzAccounts(f *testing.F) {
	f.Add([]byte("root:x:0:0:root:/root:/bin/bash\n+::::::\n#x\n"), "deploy")
	f.Add([]byte("a:b"), "x")
	f.Fuzz(func(t *testing.T, data []byte, name string) {
		tab, err := parseTable("etc/passwd", 7, data)
		if err != nil {
			return
		}
		want := string(data)
		if want != "" && !strings.HasSuffix(want, "\n") {
			want += "\n"
		}
		if got := string(tab.format()); got != want {
			t.Errorf("unchanged table is written as %q, was %q", got, want)
		}
		rows := len(tab.rows)
		known := tab.find(name) != nil
		if tab.set(name, "x", "1", "1", "", "/", "/bin/sh") != nil {
			return
		}
		again, err := parseTable("etc/passwd", 7, tab.format())
		if err != nil {
			t.Fatal(err)
		}
		if !known {
			rows++
		}
		if len(again.rows) != rows {
			t.Errorf("%q made %d rows of %d", name, len(again.rows), rows)
		}
		if strings.IndexByte("#+-", name[0]) < 0 && again.find(name) == nil {
			t.Errorf("%q is not found again", name)
		}
	})
}

func TestCustomiseCancelled(t *testing.T) {
	r := system(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Customise(ctx, r, &Config{Files: []File{{Path: "/x"}}}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
