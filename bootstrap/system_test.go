// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"fmt"
	"strings"
	"testing"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/internal/rootfs"
)

const (
	sshUnit = "[Unit]\nDescription=x\n[Service]\nExecStart=/usr/sbin/sshd\n[Install]\nWantedBy=multi-user.target\nAlias=sshd.service\n"
	tplUnit = "[Install]\nWantedBy=getty.target \\\n other.target\nDefaultInstance=tty1\n"
)

func units() map[string]string {
	return map[string]string{
		"lib":                                               "-> usr/lib",
		"usr/lib/systemd/system/ssh.service":                sshUnit,
		"usr/lib/systemd/system/getty@.service":             tplUnit + "[Service]\nExecStart=-/sbin/agetty -o '-p -- \\\\u' --noclear - $TERM\n",
		"usr/lib/systemd/system/console-getty.service":      "[Service]\nExecStart=-/sbin/agetty -o '-- \\\\u' --noreset --noclear --keep-baud - 115200,38400,9600 $TERM\n",
		"usr/lib/systemd/system/static.service":             "[Service]\nExecStart=/bin/true\n",
		"usr/lib/systemd/system/noinst@.service":            "[Install]\nWantedBy=x.target\n",
		"usr/lib/systemd/system/net.service":                "[Install]\nRequiredBy=%p.target\nAlso=net.socket\n",
		"usr/lib/systemd/system/net.socket":                 "[Install]\nWantedBy=sockets.target\n",
		"usr/lib/systemd/system/old.service":                "-> ssh.service",
		"usr/lib/systemd/system/dropped.service":            "[Install]\nWantedBy=a.target\n",
		"etc/systemd/system/dropped.service.d/10.conf":      "[Install]\nWantedBy=\nUpheldBy=b.target\n",
		"usr/lib/systemd/system/masked.service":             sshUnit,
		"etc/systemd/system/masked.service":                 "-> /dev/null",
		"etc/systemd/system/x.target.wants/gone.service":    "-> /usr/lib/systemd/system/gone.service",
		"etc/systemd/system/x.target.wants/getty@2.service": "-> /usr/lib/systemd/system/getty@.service",
		"etc/systemd/system/file.service":                   sshUnit,
		"etc/init.d/legacy":                                 "#!/bin/sh\n",
	}
}

func apply(t *testing.T, r *rootfs.Root, s System) error {
	t.Helper()
	_, err := Customise(t.Context(), r, &Config{System: s, Clock: clock})
	return err
}

func links(t *testing.T, r *rootfs.Root) string {
	t.Helper()
	var b strings.Builder
	must(t, r.Walk(t.Context(), "etc/systemd/system", nil, func(n *rootfs.Node) error {
		if n.Type == rootfs.Symlink {
			fmt.Fprintf(&b, "%s %s\n", n.Path, n.Link)
		}
		return nil
	}))
	return b.String()
}

func TestServices(t *testing.T) {
	const before = "masked.service /dev/null\nx.target.wants/getty@2.service /usr/lib/systemd/system/getty@.service\nx.target.wants/gone.service /usr/lib/systemd/system/gone.service\n"
	const u = " /usr/lib/systemd/system/"
	for name, c := range map[string]struct {
		s    System
		want string // lines that are new; "-" before a line that is gone
		text string
	}{
		"enable":          {System{Enable: []Text{text("ssh")}}, "multi-user.target.wants/ssh.service" + u + "ssh.service\nsshd.service" + u + "ssh.service\n", ""},
		"alias":           {System{Enable: []Text{text("old.service")}}, "multi-user.target.wants/ssh.service" + u + "ssh.service\nsshd.service" + u + "ssh.service\n", ""},
		"template":        {System{Enable: []Text{text("getty@.service")}}, "getty.target.wants/getty@tty1.service" + u + "getty@.service\nother.target.wants/getty@tty1.service" + u + "getty@.service\n", ""},
		"instance":        {System{Enable: []Text{text("getty@ttyS0")}}, "getty.target.wants/getty@ttyS0.service" + u + "getty@.service\nother.target.wants/getty@ttyS0.service" + u + "getty@.service\n", ""},
		"also":            {System{Enable: []Text{text("net")}}, "net.target.requires/net.service" + u + "net.service\nsockets.target.wants/net.socket" + u + "net.socket\n", ""},
		"drop-in":         {System{Enable: []Text{text("dropped")}}, "b.target.upholds/dropped.service" + u + "dropped.service\n", ""},
		"enable, disable": {System{Disable: []Text{text("getty@.service")}}, "-x.target.wants/getty@2.service" + u + "getty@.service\n", ""},
		"gone":            {System{Disable: []Text{text("gone")}}, "-x.target.wants/gone.service" + u + "gone.service\n", ""},
		"mask":            {System{Mask: []Text{text("apt-daily.timer")}}, "apt-daily.timer /dev/null\n", ""},
		"mask a file":     {System{Mask: []Text{text("file")}}, "", "exists and is no link"},
		"masked":          {System{Enable: []Text{text("masked")}}, "", "is masked"},
		"disable masked":  {System{Disable: []Text{text("masked")}}, "", ""},
		"missing":         {System{Enable: []Text{text("nothing")}}, "", "no unit \"nothing.service\""},
		"init script":     {System{Enable: []Text{text("legacy")}}, "", "no unit"},
		"static":          {System{Enable: []Text{text("static")}}, "", "no [Install]"},
		"no instance":     {System{Enable: []Text{text("noinst@.service")}}, "", "is a template"},
		"no name":         {System{Enable: []Text{text("../../etc/passwd")}}, "", "no name of a unit"},
		"newline":         {System{Mask: []Text{text("a\nb")}}, "", "no name of a unit"},
	} {
		t.Run(name, func(t *testing.T) {
			r := system(t, units())
			err := apply(t, r, c.s)
			if c.text == "" && err != nil || c.text != "" && (err == nil || !strings.Contains(err.Error(), c.text)) {
				t.Fatalf("got %v", err)
			}
			if pos, _ := fault.PosOf(err); err != nil && pos.Line != 7 {
				t.Errorf("position %v", pos)
			}
			got := links(t, r)
			want := before
			for l := range strings.Lines(c.want) {
				if gone, ok := strings.CutPrefix(l, "-"); ok {
					want = strings.Replace(want, gone, "", 1)
				} else {
					want += l
				}
			}
			for l := range strings.Lines(got) {
				if !strings.Contains(want, l) {
					t.Errorf("unexpected link %s", l)
				}
			}
			if strings.Count(got, "\n") != strings.Count(want, "\n") {
				t.Errorf("links:\n%swant:\n%s", got, want)
			}
		})
	}
}

func TestEnableThenDisableLeavesNothing(t *testing.T) {
	r := system(t, units())
	was := links(t, r)
	all := []Text{text("ssh"), text("net"), text("getty@ttyS0"), text("dropped")}
	must(t, apply(t, r, System{Enable: all}))
	must(t, apply(t, r, System{Disable: all}))
	if got := links(t, r); got != was {
		t.Errorf("links:\n%s", got)
	}
}

func TestAutologin(t *testing.T) {
	r := system(t, units())
	must(t, apply(t, r, System{Autologin: text("root")}))
	if got := read(t, r, "etc/systemd/system/console-getty.service.d/autologin.conf"); got !=
		"[Service]\nExecStart=\nExecStart=-/sbin/agetty --autologin root -o '-f -- \\\\u' --noreset --noclear --keep-baud - 115200,38400,9600 $TERM\n" {
		t.Errorf("got %s", got)
	}
	if got := read(t, r, "etc/systemd/system/getty@.service.d/autologin.conf"); got !=
		"[Service]\nExecStart=\nExecStart=-/sbin/agetty --autologin root -o '-p -f -- \\\\u' --noclear - $TERM\n" {
		t.Errorf("got %s", got)
	}
	if err := apply(t, r, System{Autologin: text("nobody")}); fault.ClassOf(err) != fault.Config {
		t.Errorf("got %v", err)
	}
	if err := apply(t, system(t, nil), System{Autologin: text("root")}); fault.ClassOf(err) != fault.Config {
		t.Errorf("got %v", err)
	}
}

func TestHostnameTimezoneLocale(t *testing.T) {
	r := system(t, map[string]string{"etc/hosts": "127.0.0.1 localhost\n127.0.1.1 old\n::1 localhost"})
	must(t, apply(t, r, System{Hostname: text("web.example.org"), Timezone: text("Etc/UTC"), Locale: text("C.UTF-8")}))
	for path, want := range map[string]string{
		"etc/hostname":       "web.example.org\n",
		"etc/hosts":          "127.0.0.1 localhost\n127.0.1.1\tweb.example.org web\n::1 localhost\n",
		"etc/localtime":      "TZif",
		"etc/default/locale": "LANG=C.UTF-8\n",
	} {
		if got := read(t, r, path); got != want {
			t.Errorf("%s: %q", path, got)
		}
	}
	for _, s := range []System{
		{Hostname: text("a\n127.0.0.2 b")}, {Hostname: text("-a")}, {Hostname: text(strings.Repeat("a", 65))}, {Hostname: text("UPPER")},
		{Timezone: text("../../../etc/passwd")}, {Timezone: text("Mars/Phobos")}, {Timezone: text("/etc/passwd")},
		{Locale: text("de_DE.UTF-8")}, {Locale: text("x\ny")}, {Locale: text("C.UTF-8\nPATH=/tmp")},
	} {
		if err := apply(t, r, s); fault.ClassOf(err) != fault.Config {
			t.Errorf("%+v: %v", s, err)
		}
	}
}

func TestLocaleThatMustBeMade(t *testing.T) {
	r := system(t, map[string]string{"usr/sbin/locale-gen": "x\x7fELF", "etc/locale.gen": "# comment\n# de_DE.UTF-8 UTF-8\n# en_US.UTF-8 UTF-8\n",
		"usr/share/i18n/SUPPORTED": "de_DE.UTF-8 UTF-8\nen_US.UTF-8 UTF-8\n", "etc/locale.conf": "LANG=C\nLC_TIME=C\n", "etc/default/locale": "-> ../locale.conf"})
	commands, err := Customise(t.Context(), r, &Config{System: System{Locale: text("de_DE.UTF-8")}})
	must(t, err)
	if fmt.Sprint(commands) != "[[/usr/sbin/locale-gen]]" {
		t.Errorf("commands %q", commands)
	}
	if got := read(t, r, "etc/locale.gen"); got != "# comment\nde_DE.UTF-8 UTF-8\n# en_US.UTF-8 UTF-8\n" {
		t.Errorf("locale.gen: %s", got)
	}
	if got := read(t, r, "etc/locale.conf"); got != "LANG=de_DE.UTF-8\nLC_TIME=C\n" {
		t.Errorf("locale.conf: %s", got)
	}
	if err := apply(t, r, System{Locale: text("tlh_QO.UTF-8")}); fault.ClassOf(err) != fault.Config {
		t.Errorf("unknown locale: %v", err)
	}
}

func TestSeal(t *testing.T) {
	r := system(t, map[string]string{
		"etc/machine-id": "0123\n", "var/lib/dbus/machine-id": "0123\n", "etc/ssh/ssh_host_rsa_key": "k", "etc/ssh/ssh_host_rsa_key.pub": "k",
		"etc/ssh/sshd_config": "keep", "var/lib/systemd/random-seed": "r", "var/log/journal/abc/system.journal": "j", "var/log/dpkg.log": "l",
		"var/log/apt/term.log": "l", "var/log/wtmp": "w", "var/log/keep.log": "keep", "var/lib/apt/lists/x_InRelease": "i", "var/lib/apt/lists/partial/y": "i",
		"var/cache/apt/archives/a.deb": "d", "var/cache/apt/pkgcache.bin": "b", "var/cache/ldconfig/aux-cache": "c", "etc/passwd-": "old", "etc/shadow-": "old",
		"var/lib/dpkg/status-old": "old", "var/lib/dpkg/status": "keep", "run/lock/x": "x", "run/systemd/y": "y", "tmp/.X11/z": "z", "var/tmp/t": "t", "dev/shm/s": "s",
		"etc/ssl/certs/ssl-cert-snakeoil.pem": "c", "etc/ssl/private/ssl-cert-snakeoil.key": "k", "etc/ssl/certs/1a2b3c4d.0": "-> ssl-cert-snakeoil.pem",
		"etc/ssl/certs/ffffffff.0": "-> other.pem", "etc/iscsi/initiatorname.iscsi": "InitiatorName=iqn.1\n", "var/lib/dhcp/dhclient.eth0.leases": "l",
	})
	must(t, r.Chmod("etc/machine-id", 0o444))
	must(t, Seal(t.Context(), r, clock))
	tree, err := r.Tree(t.Context())
	must(t, err)
	for _, gone := range []string{"/var/lib/dbus/machine-id", "/etc/ssh/ssh_host_rsa_key", "/etc/ssh/ssh_host_rsa_key.pub", "/var/lib/systemd/random-seed",
		"/var/log/journal/abc", "/var/log/dpkg.log", "/var/log/apt/term.log", "/var/lib/apt/lists/x_InRelease", "/var/lib/apt/lists/partial/y",
		"/var/cache/apt/archives/a.deb", "/var/cache/apt/pkgcache.bin", "/var/cache/ldconfig/aux-cache", "/etc/passwd-", "/etc/shadow-", "/var/lib/dpkg/status-old",
		"/run/lock/x", "/run/systemd", "/tmp/.X11", "/var/tmp/t", "/dev/shm", "/etc/ssl/certs/ssl-cert-snakeoil.pem", "/etc/ssl/private/ssl-cert-snakeoil.key",
		"/etc/ssl/certs/1a2b3c4d.0", "/var/lib/dhcp/dhclient.eth0.leases"} {
		if strings.Contains(tree, gone+" ") {
			t.Errorf("%s is still there", gone)
		}
	}
	for _, kept := range []string{"/etc/machine-id file 0444 0:0 e3b0c442", "/etc/ssh/sshd_config ", "/var/log/wtmp file 0644 0:0 e3b0c442", "/var/log/keep.log ",
		"/var/lib/apt/lists/partial dir", "/var/lib/dpkg/status ", "/run/lock dir", "/tmp dir", "/var/tmp dir", "/dev dir", "/var/log/journal dir", "/etc/ssl/certs/ffffffff.0 "} {
		if !strings.Contains(tree, "\n"+kept) {
			t.Errorf("%s is missing:\n%s", kept, tree)
		}
	}
	if got := read(t, r, "etc/iscsi/initiatorname.iscsi"); got != "GenerateName=yes\n" {
		t.Errorf("initiator name: %q", got)
	}
	one, err := r.Digest(t.Context())
	must(t, err)
	must(t, Seal(t.Context(), r, clock))
	if two, _ := r.Digest(t.Context()); one != two {
		t.Error("sealing twice changes the tree")
	}
	must(t, r.Walk(t.Context(), "", nil, func(n *rootfs.Node) error {
		if n.ModTime > clock.Unix() {
			t.Errorf("%s is from %d", n.Path, n.ModTime)
		}
		return nil
	}))
}

// A tree whose directories are links to elsewhere loses nothing but its own files.
func TestSealFollowsNothingOut(t *testing.T) {
	r := system(t, map[string]string{"tmp": "-> /etc", "var/tmp": "-> ../../../../../../tmp", "run": "-> usr/bin", "var/log": "-> /etc", "etc/machine-id": "-> /run/machine-id"})
	before := read(t, r, "etc/passwd")
	must(t, Seal(t.Context(), r, clock))
	if read(t, r, "etc/passwd") != before {
		t.Error("sealing went through a link")
	}
	if _, err := r.Lstat("usr/bin/bash"); err != nil {
		t.Error(err)
	}
}

func TestSanity(t *testing.T) {
	elf := func(machine byte) string {
		h := []byte("\x7fELF\x02\x01\x01" + strings.Repeat("\x00", 9) + "\x03\x00" + string(rune(machine)) + "\x00")
		return "x\x7f" + string(h[1:])
	}
	good := map[string]string{"usr/bin/dash": elf(62), "usr/bin/sh": "-> dash", "usr/bin/dpkg": elf(62), "var/lib/dpkg/status": "x", "usr/lib/systemd/systemd": elf(62),
		"usr/sbin/init": "-> ../lib/systemd/systemd", "var/lib/dpkg/info/systemd-sysv.list": "/.\n/usr/sbin/init\n"}
	must(t, Sanity(system(t, good), "amd64"), Sanity(system(t, good), "unheard-of"))
	for name, change := range map[string]map[string]string{
		"no os-release": {"usr/lib/os-release": "gone"}, "no shell": {"usr/bin/dash": "gone"}, "shell is text": {"usr/bin/dash": "text"},
		"other machine": {"usr/bin/dash": elf(3)}, "no dpkg": {"usr/bin/dpkg": "gone"}, "no init": {"usr/sbin/init": "gone"}, "init leads nowhere": {"usr/lib/systemd/systemd": "gone"},
	} {
		files := map[string]string{}
		for k, v := range good {
			files[k] = v
		}
		for k, v := range change {
			files[k] = v
		}
		if err := Sanity(system(t, files), "amd64"); fault.ClassOf(err) != fault.State {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := Sanity(system(t, good), "arm64"); fault.ClassOf(err) != fault.State {
		t.Errorf("wrong architecture: %v", err)
	}
}
