// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mkmachine/mkmachine/internal/fault"
)

func TestPlanGolden(t *testing.T) {
	for name, m := range map[string]*Machine{
		"build": {Name: "web", Root: "/stage", Profile: Build, NoSync: true, Network: Host},
		"app": {Name: "web", Hostname: "host.example", Root: "/var/lib/machines/web", ReadOnly: true, IDs: IDMap{Base: 1 << 20, Size: 65536},
			Argv: []string{"/bin/echo", "two words"}, User: "www-data", Limits: Limits{Pids: 10, Memory: -1, CPUs: 1.5},
			Mounts: []Mount{{Source: "/src", Target: "/work", ReadOnly: true}, {Source: "/cache", Target: "/cache", NoIDMap: true}}},
		"overlay": {Name: "e", Overlay: &Overlay{Lower: []string{"/l2", "/l1"}, Upper: "/x/upper", Work: "/x/work"}},
		"trusted": {Name: "t", Root: "/tree", Trusted: true, Profile: Build},
	} {
		t.Run(name, func(t *testing.T) {
			plan, err := m.Plan()
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join("testdata", "plan_"+name+".txt")
			if flag.Lookup("update").Value.String() == "true" {
				if err := os.WriteFile(path, []byte(plan.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if plan.String() != string(want) {
				t.Errorf("plan differs from %s:\n%s", path, plan)
			}
		})
	}
}

func TestMachineIsChecked(t *testing.T) {
	for _, c := range []struct {
		m    Machine
		want string
	}{
		{Machine{}, "without a root"},
		{Machine{Root: "/", Name: "../x"}, "cannot name a machine"},
		{Machine{Root: "/", Name: strings.Repeat("a", 65)}, "cannot name a machine"},
		{Machine{Root: "/", Hostname: "a\nb"}, "host name"},
		{Machine{Root: "/", Profile: "boot"}, "profile"},
		{Machine{Root: "/", Network: "lan"}, "network"},
		{Machine{Root: "/", Dir: "rel"}, "absolute"},
		{Machine{Root: "/", IDs: IDMap{Base: 0, Size: 65536}}, "user 0 of the host"},
		{Machine{Root: "/", IDs: IDMap{Base: 1000, Size: 10}}, "fewer than"},
		{Machine{Root: "/", Mounts: []Mount{{Source: "rel", Target: "/x"}}}, "absolute"},
		{Machine{Root: "/", Mounts: []Mount{{Source: "/x", Target: "/y/.."}}}, "absolute"},
		{Machine{Root: "/", Argv: []string{"a\x00b"}}, "zero byte"},
		{Machine{Overlay: &Overlay{}}, "lower"},
		{Machine{Overlay: &Overlay{Lower: []string{"/l"}, Upper: "/u"}}, "upper and work"},
	} {
		_, err := c.m.Plan()
		if err == nil || !strings.Contains(err.Error(), c.want) || fault.ClassOf(err) != fault.Config {
			t.Errorf("%+v: %v", c.m, err)
		}
	}
}

// The check of a machine without any hardening fails on each thing that is looked at.
func TestSelfCheckNotices(t *testing.T) {
	plan, err := (&Machine{Root: "/tree"}).Plan()
	if err != nil {
		t.Fatal(err)
	}
	c := plan.checks(1 << 20)
	for name, check := range map[string]func() error{"status": c.verifyStatus, "identity": c.verifyIdentity, "mounts": c.verifyMounts, "masks": c.verifyMasks} {
		if check() == nil {
			t.Errorf("%s: this process passes for a machine's init", name)
		}
	}
}

func TestUnescape(t *testing.T) {
	for in, want := range map[string]string{`/a\040b`: "/a b", `/plain`: "/plain", `/x\134`: `/x\`, `/short\04`: `/short\04`} {
		if got := unescape(in); got != want {
			t.Errorf("%q: %q", in, got)
		}
	}
}

func TestEscape(t *testing.T) {
	now := time.Now()
	type key struct {
		text  string
		after time.Duration
	}
	for _, c := range []struct {
		keys []key
		want bool
	}{
		{[]key{{"\x1d\x1d\x1d", 0}}, true},
		{[]key{{"\x1d", 0}, {"\x1d", 100 * time.Millisecond}, {"\x1d", 900 * time.Millisecond}}, true},
		{[]key{{"\x1d", 0}, {"\x1d", 100 * time.Millisecond}, {"\x1d", 1100 * time.Millisecond}}, false},
		{[]key{{"\x1d\x1dx\x1d", 0}}, false},
		{[]key{{"x\x1d\x1d\x1d", 0}}, true},
	} {
		w, got := escapeWatch{}, false
		for _, k := range c.keys {
			got = got || w.typed([]byte(k.text), now.Add(k.after))
		}
		if got != c.want {
			t.Errorf("%+v: %v", c.keys, got)
		}
	}
}

func TestLookupUser(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(root+"/etc", 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) {
		if err := os.WriteFile(root+"/etc/"+name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("passwd", "root:x:0:0::/root:/bin/sh\nbad line\nneg:x:-1:0::/:/\nu:x:12:13:Gecos,,:/home/u:/bin/x\nbig:x:4294967296:1::/:/\n")
	write("group", "g:x:50:\nmany:x:51:x,u,y\nu:x:13:u\n")
	for spec, want := range map[string]*account{
		"": nil, "root": nil, "0": nil,
		"u":   {name: "u", home: "/home/u", shell: "/bin/x", uid: 12, gid: 13, groups: []uint32{13, 51}},
		"12":  {name: "u", home: "/home/u", shell: "/bin/x", uid: 12, gid: 13, groups: []uint32{13, 51}},
		"u:g": {name: "u", home: "/home/u", shell: "/bin/x", uid: 12, gid: 50, groups: []uint32{13, 51}},
		"7:8": {name: "7", home: "/", uid: 7, gid: 8, groups: []uint32{7}},
	} {
		got, err := lookupUser(root, spec)
		if err != nil || (got == nil) != (want == nil) || got != nil && (got.uid != want.uid || got.gid != want.gid || got.home != want.home ||
			got.name != want.name || len(got.groups) != len(want.groups)) {
			t.Errorf("%q: %+v, %v", spec, got, err)
		}
	}
	for _, spec := range []string{"absent", "neg", "big", "u:absent", "-1", "4294967296"} {
		if got, err := lookupUser(root, spec); err == nil {
			t.Errorf("%q: %+v", spec, got)
		}
	}
}

func FuzzLookupUser(f *testing.F) {
	f.Add("root:x:0:0::/root:/bin/sh\n", "g:x:1:a,b\n", "a:g")
	f.Fuzz(func(t *testing.T, passwd, group, spec string) {
		root := t.TempDir()
		_ = os.Mkdir(root+"/etc", 0o755)
		_ = os.WriteFile(root+"/etc/passwd", []byte(passwd), 0o644)
		_ = os.WriteFile(root+"/etc/group", []byte(group), 0o644)
		_, _ = lookupUser(root, spec)
	})
}
