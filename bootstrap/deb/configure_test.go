// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/sources"
	"github.com/mkmachine/mkmachine/sources/sourcetest"
)

// added marks all but the first n items as added.
func added(items []Item, n int) []Item {
	for i := range items[n:] {
		items[n+i].Package.Phase = sources.PhaseAdded
	}
	return items
}

func TestScriptOrderAndEnvironment(t *testing.T) {
	b := newBench(t)
	pre := map[string]string{"preinst": "#!/bin/sh\ntrue\n"}
	items := b.items(pkgs{
		{Name: "aaa", Scripts: pre}, {Name: "base-files", Scripts: pre}, {Name: "base-passwd", Scripts: pre},
		{Name: "dpkg", Version: "1.22.6ubuntu6.1"}, {Name: "libx", MultiArch: "same", Scripts: pre},
	})
	var env []string
	b.script = func(argv, e []string) error {
		if strings.HasSuffix(argv[0], "libx:amd64.preinst") {
			env = e
		}
		if argv[0] == "dpkg" {
			if b.read(policyPath) == "" {
				t.Error("no policy-rc.d while dpkg runs")
			}
			if !strings.Contains(b.read(admin+"/status"), "Package: aaa\nStatus: install ok unpacked\n") {
				t.Error("aaa is not unpacked when dpkg runs")
			}
		}
		return nil
	}
	if err := b.install(items); err != nil {
		t.Fatal(err)
	}
	info := admin + "/info/"
	want := []string{
		"/sbin/ldconfig", info + "base-passwd.preinst install", info + "base-files.preinst install", info + "aaa.preinst install",
		info + "libx:amd64.preinst install", "dpkg --force-unsafe-io --configure -a",
	}
	if d := cmp.Diff(want, b.ran); d != "" {
		t.Error(d)
	}
	for _, v := range []string{
		"PATH=" + searchPath, "DPKG_MAINTSCRIPT_PACKAGE=libx", "DPKG_MAINTSCRIPT_ARCH=amd64", "DPKG_MAINTSCRIPT_NAME=preinst",
		"DPKG_RUNNING_VERSION=1.22.6", "DPKG_ROOT=", "DPKG_ADMINDIR=/var/lib/dpkg", "SOURCE_DATE_EPOCH=1750000000",
		"DEBIAN_FRONTEND=noninteractive", "DEBCONF_NONINTERACTIVE_SEEN=true",
	} {
		if !slices.Contains(env, v) {
			t.Errorf("preinst without %s: %q", v, env)
		}
	}
	if b.read(policyPath) != "" {
		t.Error("policy-rc.d is left behind")
	}
}

func TestWaves(t *testing.T) {
	req, add := sources.PhaseRequired, sources.PhaseAdded
	for _, c := range []struct {
		name  string
		facts []Facts
		want  string
	}{
		{"required packages never wait", []Facts{
			{Name: "a", Phase: req, Preinst: true, PreDepends: "b"}, {Name: "b", Phase: req, Postinst: true},
		}, "a b"},
		{"added ones come after the base", []Facts{{Name: "base", Phase: req}, {Name: "x", Phase: add}, {Name: "y", Phase: add, Depends: "x"}}, "base | x y"},
		{"a preinst that leans on scripts", []Facts{
			{Name: "user", Phase: add, Preinst: true, PreDepends: "tool (>= 1)"}, {Name: "tool", Phase: add, Postinst: true}, {Name: "other", Phase: add},
		}, "tool other | user"},
		{"what depends on it waits, too", []Facts{
			{Name: "tool", Phase: add, Conffiles: true}, {Name: "user", Phase: add, Preinst: true, PreDepends: "tool"}, {Name: "top", Phase: add, Depends: "none | user"},
		}, "tool | user top"},
		{"through what the pre-dependency depends on", []Facts{
			{Name: "user", Phase: add, Preinst: true, PreDepends: "mid"}, {Name: "mid", Phase: add, Depends: "low"}, {Name: "low", Phase: add, Postinst: true},
		}, "mid low | user"},
		{"a provider", []Facts{
			{Name: "user", Phase: add, Preinst: true, PreDepends: "virtual"}, {Name: "real", Phase: add, Postinst: true, Provides: "virtual (= 2)"},
		}, "real | user"},
		{"libraries, Essential ones and plain ones are good enough", []Facts{
			{Name: "user", Phase: add, Preinst: true, PreDepends: "lib, ess, plain"}, {Name: "lib", Phase: add, Library: true, Postinst: true},
			{Name: "ess", Phase: add, Essential: true, Postinst: true}, {Name: "plain", Phase: add},
		}, "user lib ess plain"},
		{"no preinst, no waiting", []Facts{{Name: "user", Phase: add, PreDepends: "tool"}, {Name: "tool", Phase: add, Postinst: true}}, "user tool"},
		{"two steps", []Facts{
			{Name: "a", Phase: add, Postinst: true}, {Name: "b", Phase: add, Preinst: true, Postinst: true, PreDepends: "a"}, {Name: "c", Phase: add, Preinst: true, PreDepends: "b"},
		}, "a | b | c"},
		{"a cycle", []Facts{
			{Name: "a", Phase: add, Preinst: true, Postinst: true, PreDepends: "b"}, {Name: "b", Phase: add, Postinst: true, Depends: "a"},
		}, "a b"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var facts []*Facts
			for i := range c.facts {
				c.facts[i].Order = i
				facts = append(facts, &c.facts[i])
			}
			var waves []string
			for _, w := range plan(facts) {
				var names []string
				for _, f := range w {
					names = append(names, f.Name)
				}
				waves = append(waves, strings.Join(names, " "))
			}
			if got := strings.Join(waves, " | "); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

func TestLaterWave(t *testing.T) {
	b := newBench(t)
	items := added(b.items(pkgs{
		{Name: "watcher", Scripts: map[string]string{"triggers": "interest-noawait /usr/share/w\ninterest named\n", "postinst": "#!/bin/sh\ntrue\n"}},
		{Name: "tool", Conffiles: []string{"/etc/tool"}, Files: files{{Path: "/etc/tool", Body: "t"}}, Scripts: map[string]string{"postinst": "#!/bin/sh\ntrue\n"}},
		{Name: "user", PreDepends: "tool", Scripts: map[string]string{"preinst": "#!/bin/sh\ntrue\n", "triggers": "activate named\nactivate-noawait quiet\n"},
			Files: files{{Path: "/usr/share/w/x", Body: "x"}}},
	}), 1)
	seen := false
	b.script = func(argv, _ []string) error {
		if !strings.HasSuffix(argv[0], "/user.preinst") {
			return nil
		}
		seen = true
		for _, r := range b.ran {
			if strings.HasPrefix(r, "dpkg ") {
				want := "named user\nquiet -\n/usr/share/w -\n"
				if got := b.read(admin + "/triggers/Unincorp"); got != want {
					t.Errorf("triggers that were fired: %q, want %q", got, want)
				}
				return nil
			}
		}
		t.Error("the preinst ran before its pre-dependency was configured")
		return nil
	}
	if err := b.install(items); err != nil {
		t.Fatal(err)
	}
	if !seen || b.read("/usr/share/w/x") != "x" {
		t.Errorf("user is not installed; ran %q", b.ran)
	}
}

func TestPreinstFails(t *testing.T) {
	pre := map[string]string{"preinst": "#!/bin/sh\ntrue\n"}
	set := pkgs{
		{Name: "ess", Essential: true, Scripts: pre},
		{Name: "weak", Scripts: map[string]string{"preinst": "#!/bin/sh\ntrue\n", "triggers": "interest /usr/share/w\ninterest weak\n"}, Files: files{{Path: "/usr/weak", Body: "w"}}},
		{Name: "top", Depends: "weak", Files: files{{Path: "/usr/top", Body: "t"}}},
	}
	t.Run("dpkg takes over", func(t *testing.T) {
		b := newBench(t)
		items := added(b.items(set), 1)
		var configured, slow bool
		b.script = func(argv, _ []string) error {
			status := b.read(admin + "/status")
			switch {
			case strings.HasSuffix(argv[0], "/weak.preinst"):
				return errors.New("exit status 3")
			case slices.Contains(argv, "--install"):
				slow = true
				want, _ := os.ReadFile(filepath.Join(b.debs, items[1].Package.Path))
				if b.read(argv[len(argv)-1]) != string(want) {
					t.Errorf("%q does not get the package", argv)
				}
			case slices.Contains(argv, "--configure") && slices.ContainsFunc(b.ran, func(r string) bool { return strings.Contains(r, "weak.preinst") }) && !slow:
				configured = true
				if strings.Contains(status, "weak") || strings.Contains(status, "Package: top") {
					t.Errorf("taken back, but in status:\n%s", status)
				}
				if b.read(admin+"/triggers/weak")+b.read(admin+"/triggers/File")+b.read(admin+"/info/weak.list") != "" {
					t.Error("taken back, but in the database")
				}
			}
			return nil
		}
		if err := b.install(items); err != nil {
			t.Fatal(err)
		}
		if !configured || !slow {
			t.Errorf("ran %q", b.ran)
		}
		if f := b.fallbacks(); len(f) != 1 || !strings.Contains(f[0], "weak") || !strings.Contains(f[0], "exit status 3") {
			t.Errorf("events %q", f)
		}
		if !strings.Contains(b.read(admin+"/status"), "Package: top\nStatus: install ok installed\n") {
			t.Error("top is not installed in the end")
		}
		if _, err := os.Stat(filepath.Join(b.dir, slowDir)); err == nil {
			t.Error("the package's copy is left behind")
		}
	})
	t.Run("not for Essential ones", func(t *testing.T) {
		b := newBench(t)
		b.script = func(argv, _ []string) error {
			if strings.HasSuffix(argv[0], "/ess.preinst") {
				return errors.New("exit status 3")
			}
			return nil
		}
		err := b.install(b.items(set))
		if err == nil || !strings.Contains(err.Error(), "ess.preinst install: exit status 3") {
			t.Errorf("got %v", err)
		}
	})
}

// A preinst diverts a file of another package, which is there already.
func TestDiversions(t *testing.T) {
	set := pkgs{
		{Name: "owner", Files: files{{Path: "/usr/bin/x", Body: "owner"}, {Path: "/bin/y", Body: "owner y"}}},
		{Name: "diverter", Files: files{{Path: "/usr/bin/x", Body: "diverter"}}, Scripts: map[string]string{"preinst": "#!/bin/sh\ntrue\n"}},
	}
	for _, order := range [][]int{{0, 1}, {1, 0}} {
		b := newBench(t)
		items := b.items(pkgs{set[order[0]], set[order[1]]})
		b.script = func(argv, _ []string) error {
			if strings.HasSuffix(argv[0], "/diverter.preinst") {
				text := "/usr/bin/x\n/usr/bin/x.real\ndiverter\n/bin/y\n/bin/y.real\ndiverter\n"
				return os.WriteFile(filepath.Join(b.dir, admin, "diversions"), []byte(text), 0o644)
			}
			return nil
		}
		if err := b.install(items); err != nil {
			t.Fatal(err)
		}
		for path, want := range map[string]string{
			"/usr/bin/x": "diverter", "/usr/bin/x.real": "owner", "/usr/bin/y": "", "/usr/bin/y.real": "owner y",
		} {
			if got := b.read(path); got != want {
				t.Errorf("order %v: %s is %q, want %q", order, path, got, want)
			}
		}
	}
}

func TestRefusedPackages(t *testing.T) {
	build := func(p sourcetest.Package) []byte {
		p.Version, p.Arch = "1.0", "amd64"
		data, err := p.Build()
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	good := build(sourcetest.Package{Name: "good"})
	for _, c := range []struct {
		name  string
		data  []byte
		class fault.Class
	}{
		{"another name than in the index", build(sourcetest.Package{Name: "evil"}), fault.Verify},
		{"not an archive", []byte("hello"), fault.Format},
		{"cut short", good[:len(good)-40], fault.Format},
		{"a name with dots", build(sourcetest.Package{Name: "good", Files: files{{Path: "/x", Hard: "../../etc/passwd"}}}), fault.Path},
		{"a name with a newline", build(sourcetest.Package{Name: "good", Files: files{{Path: "/a\nb"}}}), fault.Format},
		{"a trigger that is a path to somewhere", build(sourcetest.Package{Name: "good", Scripts: map[string]string{"triggers": "interest ../../x\n"}}), fault.Format},
		{"a relation that does not parse", build(sourcetest.Package{Name: "good", Depends: "a ("}), fault.Format},
		{"a control member that is dpkg's own", build(sourcetest.Package{Name: "good", Scripts: map[string]string{"list": "/x\n"}}), fault.Format},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t)
			err := b.install([]Item{b.item(0, sources.Package{Name: "good", Version: "1.0", Arch: "amd64", Phase: sources.PhaseRequired}, c.data)})
			if err == nil || fault.ClassOf(err) != c.class || !strings.Contains(err.Error(), "cannot unpack good 1.0") {
				t.Errorf("got %s: %v, want %s", fault.ClassOf(err), err, c.class)
			}
			if len(b.ran) > 0 {
				t.Errorf("programs ran: %q", b.ran)
			}
		})
	}
}

// Two architectures of a library share what is the same in both.
func TestMultiArchSame(t *testing.T) {
	lib := func(arch, doc string) sourcetest.Package {
		return sourcetest.Package{Name: "libsame", Arch: arch, MultiArch: "same", Files: files{
			{Path: "/usr/lib/" + arch + "/libsame.so.1", Body: arch}, {Path: "/usr/share/doc/libsame/copyright", Body: doc},
		}}
	}
	b := newBench(t)
	if err := b.install(b.items(pkgs{lib("amd64", "same"), lib("arm64", "same")})); err != nil {
		t.Fatal(err)
	}
	if b.read("/usr/share/doc/libsame/copyright") != "same" {
		t.Error("the shared file is not there")
	}
	for _, arch := range []string{"amd64", "arm64"} {
		if list := b.read(admin + "/info/libsame:" + arch + ".list"); !strings.Contains(list, "/usr/share/doc/libsame/copyright\n") {
			t.Errorf("%s: %q", arch, list)
		}
	}
	b = newBench(t)
	err := b.install(b.items(pkgs{lib("amd64", "one1"), lib("arm64", "two2")}))
	if err == nil || fault.ClassOf(err) != fault.Dep || !strings.Contains(err.Error(), "/usr/share/doc/libsame/copyright") {
		t.Errorf("got %v", err)
	}
}
