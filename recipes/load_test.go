// SPDX-License-Identifier: Apache-2.0

package recipes

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// head makes a text a complete recipe.
const head = "schema = 1\nname = \"t\"\nextends = \"debian-stable\"\n"

func problemsOf(t *testing.T, err error) Problems {
	t.Helper()
	var ps Problems
	if err != nil && !errors.As(err, &ps) {
		t.Fatalf("error %v (%T) is not Problems", err, err)
	}
	return ps
}

// TestBadRecipes has the catalogue of what a recipe can have wrong. want is
// LINE:COL: text of each problem.
func TestBadRecipes(t *testing.T) {
	long := strings.Repeat("a", 65)
	for _, c := range []struct {
		name  string
		text  string
		class fault.Class // "" is Config
		want  []string
	}{
		{name: "RCP-01 name", text: "schema=1\nextends='debian-stable'\nname = \"../evil\"", want: []string{`3:8: name: "../evil" is not a name`}},
		{name: "RCP-01 slash", text: "schema=1\nextends='debian-stable'\nname = \"a/b\"", want: []string{`3:8: name: "a/b" is not a name`}},
		{name: "RCP-01 dot", text: "schema=1\nextends='debian-stable'\nname = \".\"", want: []string{`3:8: name: "." is not a name`}},
		{name: "RCP-01 empty", text: "schema=1\nextends='debian-stable'\nname = \"\"", want: []string{`3:8: name: name is empty`}},
		{name: "RCP-02 option", text: "schema=1\nextends='debian-stable'\nname = \"--help\"", want: []string{`3:8: name: "--help" is not a name`}},
		{name: "RCP-03 control", text: "schema=1\nextends='debian-stable'\nname = \"a\\u001b\\n\"", want: []string{`3:8: name: "a\x1b\n" is not a name`}},
		{name: "RCP-04 long", text: "schema=1\nextends='debian-stable'\nname = \"" + long + "\"", want: []string{`3:8: name: name "aaaaaaaaaaaaaaaaaaaa"… is longer than 64 bytes`}},
		{name: "RCP-04 label", text: "schema=1\nextends='debian-stable'\nname = \"" + long[:64] + "\"", want: []string{`3:8: name: "` + long[:64] + `" is not a name`}},
		{name: "RCP-05 hidden", text: "schema=1\nextends='debian-stable'\nname = \".host\"", want: []string{`3:8: name: ".host" is not a name`}},
		{name: "RCP-05 suffix", text: "schema=1\nextends='debian-stable'\nname = \"con.service\"", want: []string{`3:8: name: name "con.service" has the reserved ending ".service"`}},
		{name: "RCP-07 unknown key", text: "schema = 1\nextends = \"debian-stable\"\n[source]\nsutie = \"sid\"", want: []string{`4:1: unknown key "sutie" (did you mean "suite"?)`}},
		{name: "RCP-07 everywhere", text: head + "[[files]]\npath='/a'\ncontent=''\nmod='0644'\n[[users]]\nname='u'\nshel='/bin/sh'\n[system.services]\nenabel=[]\n[[script]]\nrun='true'\nsecret=[]\n[machine]\nbot=true\n[[test]]\nbooot=true\n[[repository]]\nurll=''\n[nothing]",
			want: []string{`7:1: unknown key "mod"`, `10:1: unknown key "shel"`, `12:1: unknown key "enabel"`, `15:1: unknown key "secret"`, `17:1: unknown key "bot"`, `18:3: the test tests nothing`, `19:1: unknown key "booot"`,
				`20:3: missing key "key_file"`, `20:3: missing key "keys"`, `20:3: missing key "name"`, `20:3: missing key "suite"`, `20:3: missing key "url"`, `21:1: unknown key "urll"`, `22:2: unknown key "nothing"`}},
		{name: "RCP-08 duplicate key", text: head + "[packages]\nrecommends = true\nrecommends = false", want: []string{`6:1: duplicate key "recommends", first in line 5`}},
		{name: "RCP-08 duplicate table", text: head + "[system]\nhostname='a'\n[system]\nhostname='b'", want: []string{`6:2: duplicate key "system", first in line 4`}},
		{name: "RCP-08 dotted over inline", text: head + "machine = {boot = true}\nmachine.boot = false", want: []string{`5:1: duplicate key "machine"`}},
		{name: "RCP-08 same script twice", text: head + "[[script]]\nname='a'\nrun='true'\n[[script]]\nname='a'\nrun='true'", want: []string{`8:6: [[script]] "a" is written twice, first in line 5`}},
		{name: "RCP-08 same file twice", text: head + "[[files]]\npath='/a'\ncontent=''\n[[files]]\npath='/a'\ncontent='2'", want: []string{`8:6: [[files]] "/a" is written twice, first in line 5`}},
		{name: "RCP-09 large", text: head + "#" + strings.Repeat("x", maxRecipeSize), class: fault.Limit, want: []string{`larger than 1048576 bytes`}},
		{name: "RCP-09 nested arrays", text: head + "[machine]\ncommand = " + strings.Repeat("[", 9000) + strings.Repeat("]", 9000), class: fault.Limit, want: []string{`5:11: nested more than 32 levels`}},
		{name: "RCP-09 beyond the parser", text: head + "x = " + strings.Repeat("[", 10100), class: fault.Limit, want: []string{`4:10005: not valid TOML: arrays and inline tables are nested more`}},
		{name: "RCP-09 nested keys", text: head + "a" + strings.Repeat(".a", 9000) + " = 1", class: fault.Limit, want: []string{`4:1: key has more than 32 parts`}},
		{name: "RCP-12 file URL", text: head + "[source]\nmirror = \"file:///etc/shadow\"", want: []string{`5:10: mirror: "file:///etc/shadow" is not an http or https URL`}},
		{name: "RCP-12 data URL", text: head + "[source]\nmirror = \"data:text/plain,x\"", want: []string{`5:10: mirror: "data:text/plain,x" is not an http`}},
		{name: "RCP-12 no host", text: head + "[source]\nmirror = \"http://\"", want: []string{`5:10: mirror: URL "http://" has no host`}},
		{name: "RCP-15 password in a message", text: head + "[source]\nmirror = \"ftp://user:hunter2@host/\"", want: []string{`5:10: mirror: "ftp://***@host/" is not`}},
		{name: "RCP-21 env", text: head + "[[script]]\nrun='true'\nenv = { \"A=B\" = \"x\", \"A B\" = \"x\", C = \"1\\n2\", D = \"\\u0000\" }", want: []string{`6:9: env: "A=B" is not a name`, `6:22: env: "A B" is not a name`, `6:39: env.C: has a newline`, `6:51: env.D: has a newline or NUL`}},
		{name: "RCP-29 durations", text: head + durations("-1s", "0x10", "1e309", "NaN", "5 minutes", "1.5h", "25h", "0s", "", "99999999h", "1s1h"), want: []string{`5:29: timeout: "-1s" is not a duration`, `6:29:`, `7:29:`, `8:29:`, `9:29:`, `10:29:`, `11:29:`, `12:29:`, `13:29:`, `14:29:`, `15:29:`}},
		{name: "RCP-29 number", text: head + "[[script]]\nrun='true'\ntimeout=60", want: []string{`6:9: timeout must be a duration, not an integer`}},
		{name: "RCP-30 packages", text: head + "[packages]\nadd = [\"-y\", \"pkg;rm -rf /\", \"pkg=1.0 evil\", \"../x.deb\", \"pkg\\n\", \"Pkg\", \"ok:amd64\", \"ok2=1:2.0-1~x\"]",
			want: []string{`5:8: packages.add: "-y" is not a package`, `5:14:`, `5:30:`, `5:46:`, `5:58: packages.add: "pkg\n"`, `5:67:`}},
		{name: "KEY-01 short key", text: head + "[source]\nkeys = [\"762F67A0B2C39DE4\"]", want: []string{`5:9: keys: "762F67A0B2C39DE4" is a short key id`}},
		{name: "KEY-16 foreign key", text: head + "[source]\nkeys = [\"0000000000000000000000000000000000000000\"]", want: []string{`5:9: keys: 0000000000000000000000000000000000000000 is not a pinned key of "debian"`, `keys: none of them signs the pocket "release"`, `"security"`, `"updates"`}},
		{name: "repository without keys", text: head + "[[repository]]\nname='x'\nurl='https://h/'\nsuite='s'\nkeys=[]\nkey_file='../k'", class: fault.Path, want: []string{`8:6: keys is empty`, `9:10: key_file: path "../k" leaves`}},

		{name: "schema missing", text: "extends = 'debian-stable'\nname='x'", want: []string{`1:1: missing key "schema"`}},
		{name: "schema 2", text: "schema = 2\nextends = 'debian-stable'\nname='x'", want: []string{`1:10: schema 2 is not known`}},
		{name: "no source", text: "schema = 1\nname='x'", want: []string{`1:1: the recipe has no source`}},
		{name: "empty source", text: "schema = 1\nname='x'\n[source]", want: []string{`3:2: missing key "distribution"`, `3:2: missing key "kind"`, `3:2: missing key "suite"`}},
		{name: "kind unknown", text: "schema = 1\nname='x'\n[source]\nkind='debb'\ndistribution='debian'\nsuite='sid'", want: []string{`4:6: kind: kind "debb" is not known (did you mean "deb"?)`}},
		{name: "kind later", text: "schema = 1\nname='x'\n[source]\nkind='oci'\ndistribution='debian'\nsuite='sid'", want: []string{`4:6: kind: kind "oci" is not supported by this version (supported: deb)`}},
		{name: "distribution", text: head + "[source]\ndistribution='debain'", want: []string{`5:14: distribution: kind "deb" has no "debain" that this version knows (did you mean "debian"?)`}},
		{name: "suite, variant, arch, component, pocket", text: head + "[source]\nsuite='trixy'\nvariant='tiny'\narch='x86_64'\ncomponents=['mian']\n",
			want: []string{`5:7: suite: debian has no "trixy" that this version knows (did you mean "trixie"?)`, `6:9: variant: debian has no "tiny"`, `7:6: arch: debian has no "x86_64"`, `8:13: components: debian has no "mian"`}},
		{name: "pocket of sid", text: head + "[source]\nsuite='sid'", want: []string{`5:7: pockets: "sid" has no "updates" (write pockets = ["release"])`, `5:7: pockets: "sid" has no "security"`}},
		{name: "pockets without release", text: head + "[source]\npockets=['updates']", want: []string{`5:10: pockets: "release" is always needed`}},
		{name: "snapshot", text: head + "[source]\nsnapshot='yesterday'", want: []string{`5:10: snapshot: "yesterday" is not a time`}},
		{name: "types", text: head + "packages = 3\n[[system]]\n[source]\nsuite = 1\ncomponents = 'main'\n[machine]\nboot = 'yes'",
			want: []string{`4:12: packages must be a table, not an integer`, `5:3: system must be a table, not an array`, `7:9: suite must be a string, not an integer`, `8:14: components must be an array or a table, not a string`, `10:8: boot must be a boolean, not a string`}},
		{name: "remove what is not there", text: head + "[packages]\nremove=['iproute']", want: []string{`5:9: packages.remove: "iproute" is not in what is inherited (did you mean "iproute2"?)`}},
		{name: "package twice", text: head + "[packages]\nadd=['vim', 'vim=1', 'less', 'less']", want: []string{`5:13: packages.add: "vim" and "vim=1" exclude each other`, `5:30: packages.add has "less" twice`}},
		{name: "file paths", text: head + filesAt("etc/motd", "/etc/../motd", "/", "/proc/x", "/a\\nb", "/run/x", "/b/"), want: []string{`4:28: path: "etc/motd" is not an absolute`, `5:27: path: path "/etc/../motd" is not clean (write "/motd")`, `6:27: path: a file cannot be the root`, `7:27: path: "/proc/x" would be hidden`, `8:27: path: "/a\nb" has a control`, `9:27:`, `10:27: path: path "/b/" is not clean`}},
		{name: "file below file", text: head + "[[files]]\npath='/a'\ncontent=''\n[[files]]\npath='/a/b'\ncontent=''", want: []string{`8:6: files: "/a/b" lies below the file "/a"`}},
		{name: "file modes and owners", text: head + "[[files]]\npath='/a'\ncontent=''\nmode=644\nowner='4294967296'\n[[files]]\npath='/b'\ncontent=''\nmode='0999'\nowner='-1:x'", want: []string{`7:6: mode: "644" is not a file mode`, `8:7: owner: "4294967296" is not an owner`, `12:6:`, `13:7:`}},
		{name: "file without text", text: head + "[[files]]\npath='/a'\n[[files]]\npath='/b'\ncontent='x'\nsource='y'", want: []string{`4:3: missing key "content" or "source"`, `9:1: "content" and "source" exclude each other`, `9:8: source: cannot open "y": file does not exist`}},
		{name: "users", text: head + "[[users]]\nname='Root'\n[[users]]\nname='a'\nuid=0\nshell='bash'\nhome='/a:b'\npassword_hash='hunter2'\nssh_authorized_keys=['hello']\n[[users]]\nname='b'\nuid=70000\nempty_password=true\npassword_hash='$6$aaaaaaaa$bbbbbbbb'",
			want: []string{`5:6: name: "Root" is not a user`, `8:5: uid 0 is root`, `9:7: shell: "bash" is not an absolute path`, `10:6: home: "/a:b" has a colon`, `11:15: password_hash: not a crypt(5) hash`, `12:22: ssh_authorized_keys: "hello" is not a public key`, `15:5: uid must be a decimal number from 0 to 65533`, `17:15: "password_hash" and "empty_password" exclude`}},
		{name: "system", text: head + "[system]\nhostname='a b'\ntimezone='../x'\nlocale='xx;y'\nservices={enable=['ssh'],mask=['dbus.service'],disable=[]}\n", want: []string{`5:10: hostname: "a b" is not a host name`, `6:10: timezone: "../x" is not`, `7:8: locale: "xx;y" is not`, `8:19: enable: "ssh" is not a unit name (did you mean "ssh.service"?)`}},
		{name: "enabled and masked", text: head + "[system.services]\nmask=['systemd-networkd.service']", want: []string{`5:7: services: "systemd-networkd.service" is enabled and masked`}},
		{name: "script", text: head + "[[script]]\nrun=''\n[[script]]\n[[script]]\nrun='''#!bash\ntrue'''\n[[script]]\nrun='true'\nat='start'", want: []string{`5:5: run: is empty`, `6:3: missing key "run" or "file"`, `8:5: the #! line "bash" names no absolute path`, `12:4: at: "start" is not known`}},
		{name: "machine", text: head + "[machine]\nnetwork='bridge'\nbind=['rel:/x']\nports=['0','http','1:2:3','sctp:1']\nuser='a b'\ndir='x'\ncommand=['ls']", want: []string{`5:9: network: "bridge" is not known`, `6:7: bind: "rel" is not an absolute`, `7:8:`, `7:12:`, `7:19:`, `7:27:`, `8:6:`, `9:5:`, `10:10: machine.command is not run`}},
		{name: "tests", text: head + "[[test]]\nwait='running'\n[[test]]\ncommands=['true', []]\n[[test]]\nboot=true\nexpect_packages=['a=1','b']", want: []string{`4:3: a test that does not boot`, `7:11: commands must be arrays of arguments, not a string`, `7:10: commands has no program`, `10:18: expect_packages: "a=1" names a version`, `10:24: expect_packages: "b" is not a package`}},
		{name: "syntax", text: "schema = 1\nname = 't\n", want: []string{`2:10: not valid TOML: literal strings cannot have new lines`}},
		{name: "bytes", text: "schema = 1\nname = 'a\x00'\n", want: []string{`2:10: byte 0x00 is not allowed`}},
		{name: "not UTF-8", text: "schema = 1\n# \xff\n", want: []string{`2:3: byte 0xff is not allowed`}},
		{name: "empty", text: "", want: []string{`1:1: missing key "schema"`, `1:1: the recipe has no source`}},
		{name: "extends nothing", text: "schema=1\nextends='debian-stabel'", want: []string{`2:9: there is no library recipe "debian-stabel" (did you mean "debian-stable"?)`}},
		{name: "extends outside", text: "schema=1\nextends='../../secrets.toml'", class: fault.Path, want: []string{`2:9: extends: path "../../secrets.toml" leaves the recipe's directory`}},
		{name: "extends absolute", text: "schema=1\nextends='/etc/x.toml'", class: fault.Path, want: []string{`2:9: extends: path "/etc/x.toml" is absolute`}},
		{name: "extends itself", text: "schema=1\nextends='./recipe.toml'", want: []string{`2:9: extends goes in a circle: "t.toml" → "recipe.toml"`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			began := time.Now()
			r, err := Parse("t.toml", []byte(c.text))
			if took := time.Since(began); took > time.Second {
				t.Errorf("took %v", took)
			}
			if err == nil {
				t.Fatalf("accepted: %+v", r)
			}
			class := c.class
			if class == "" {
				class = fault.Config
			}
			if got := fault.ClassOf(err); got != class {
				t.Errorf("class %s, want %s", got, class)
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("secret in the message: %v", err)
			}
			all := err.Error()
			if c.name == "syntax" && len(problemsOf(t, err)) != 1 {
				t.Errorf("more than the syntax error: %v", err)
			}
			for _, w := range c.want {
				if !strings.Contains(all, w) {
					t.Errorf("no problem %q", w)
				}
			}
			if ps := problemsOf(t, err); t.Failed() {
				t.Logf("%d problems:\n%s", len(ps), all)
			}
		})
	}
}

func durations(texts ...string) string {
	var b strings.Builder
	b.WriteString("script = [\n")
	for _, d := range texts {
		fmt.Fprintf(&b, "{run = 'true',   timeout =  %q},\n", d)
	}
	return b.String() + "]\n"
}

func filesAt(paths ...string) string {
	var b strings.Builder
	b.WriteString("files = [")
	for _, p := range paths {
		fmt.Fprintf(&b, "{content='', path=\"%s\"},\n        ", p)
	}
	return b.String() + "]\n"
}

func TestAllProblemsSorted(t *testing.T) {
	_, err := Parse("t.toml", []byte(head+"[machine]\nbot = 1\n[source]\nsuite = 3\nsutie = 1\n"))
	ps := problemsOf(t, err)
	var lines []int
	for _, p := range ps {
		lines = append(lines, p.Pos.Line)
	}
	if fmt.Sprint(lines) != "[5 7 8]" {
		t.Errorf("lines %v\n%v", lines, err)
	}
	if p := ps[0].Pos; p.Text != "bot = 1" || p.Col != 1 || p.File != "t.toml" {
		t.Errorf("position %+v", p)
	}
}

func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// TestReferences are the files that a recipe must not reach (RCP-16, RCP-18).
func TestReferences(t *testing.T) {
	outside := t.TempDir()
	write(t, outside, map[string]string{"shadow": "secret"})
	dir := t.TempDir()
	write(t, dir, map[string]string{"in/ok": "fine", "big/x": ""})
	for name, target := range map[string]string{
		"link": filepath.Join(outside, "shadow"), "up": "../x", "inlink": "in/ok", "dirlink": outside, "loop": "loop", "zero": "/dev/zero",
	} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o644); err != nil {
		t.Fatal(err)
	}
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: filepath.Join(dir, "socket")}); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(dir, "big/x"), maxFile+1); err != nil {
		t.Fatal(err)
	}
	for source, want := range map[string]fault.Class{
		"in/ok": "", "./in/ok": "", "inlink": "",
		"link": fault.Path, "up": fault.Path, "dirlink/shadow": fault.Path, "zero": fault.Path,
		"fifo": fault.Path, "socket": fault.Path, "in": fault.Path,
		"../" + filepath.Base(outside) + "/shadow": fault.Path, "/etc/shadow": fault.Path, "in/../../x": fault.Path,
		"missing": fault.Config, "loop": fault.Config, "big/x": fault.Limit, ".": fault.Path, "": fault.Config,
	} {
		write(t, dir, map[string]string{"r.toml": head + fmt.Sprintf("[[files]]\npath='/x'\nsource=%q\n", source)})
		r, err := Load(dir, "r.toml")
		if want == "" {
			if err != nil || string(r.Files[0].Data) != "fine" {
				t.Errorf("%q: %v", source, err)
			}
			continue
		}
		if err == nil || fault.ClassOf(err) != want {
			t.Errorf("%q: class %v of %v, want %s", source, fault.ClassOf(err), err, want)
		} else if problemsOf(t, err)[0].Pos.Line != 6 {
			t.Errorf("%q: %v", source, err)
		}
	}
}

func TestExtends(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"base/base.toml": "schema=1\nextends='debian-stable'\n[source]\npockets.remove=['updates']\n" +
			"[packages]\nadd=['nginx', 'vim']\nremove=['iputils-ping']\nrecommends=true\n" +
			"[[files]]\npath='/a'\nsource='a.txt'\n[[files]]\npath='/b'\ncontent='b'\n" +
			"[[users]]\nname='u'\nsudo=true\n[[script]]\nname='one'\nrun='echo 1'\n[[script]]\nrun='echo 2'\n[machine]\nenv={A='1',B='2'}\nports=['80']\n",
		"base/a.txt": "from base",
		"web.toml": "schema=1\nextends='base/base.toml'\n[source]\nvariant='default'\npockets.add=['backports']\n" +
			"[packages]\nadd=['nginx=1.2', 'curl', 'vim']\nremove=['login']\n[[files]]\npath='/b'\ncontent='web'\nmode='0600'\n[[files]]\npath='/c'\ncontent='c'\n" +
			"[[script]]\nname='one'\nfile='s.sh'\ntimeout='1h1m1s'\n[machine]\nenv={B='3'}\nports.add=['443']\nboot=false\n[system.services]\nenable.add=['nginx.service']\n",
		"s.sh": "#!/bin/bash -x\necho one\n",
	})
	r, err := Load(dir, "./web.toml")
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprintf("%s | %v | %v | %v | %v | %t\n", r.Name, r.Chain, values(r.Source.Pockets), r.Source.Variant.Value, values(r.Packages.Add), r.Packages.Recommends)
	for _, f := range r.Files {
		got += fmt.Sprintf("%s %s %o %s\n", f.Path.Value, f.Data, f.Mode, f.Owner.Value)
	}
	for _, s := range r.Scripts {
		got += fmt.Sprintf("%s %q %s %d\n", s.Name.Value, s.Data, s.Interpreter.Value, s.Timeout)
	}
	got += fmt.Sprintf("%v %v %t %v %d\n", r.Machine.Env, values(r.Machine.Ports), r.Machine.Boot, values(r.System.Services.Enable), len(r.Users))
	want := `web | [./web.toml base/base.toml library:debian-stable] | [release security backports] | default | [systemd-sysv dbus libpam-systemd iproute2 netbase ca-certificates nginx=1.2 vim curl] | true
/a from base 644 root:root
/b web 600 root:root
/c c 644 root:root
one "#!/bin/bash -x\necho one\n" /bin/bash -x 3661
 "echo 2" /bin/sh -e 3600
map[A:1 B:3] [80 443] false [systemd-networkd.service nginx.service] 1
`
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	if p := r.Files[0].Path.Pos; p.File != "base/base.toml" || p.Line != 10 {
		t.Errorf("position of an inherited file: %v", p)
	}
}

// TestEmptyFiles: a script must do something; an empty keyring proves nothing, which is
// for the verification to say (KEY-11).
func TestEmptyFiles(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"empty": "", "script.toml": head + "[[script]]\nfile='empty'\n",
		"key.toml":  head + "[source]\nkeys=['0000000000000000000000000000000000000000']\nkey_file='empty'\n",
		"bare.toml": head + "[source]\nkey_file='empty'\n",
	})
	if _, err := Load(dir, "script.toml"); err == nil || !strings.Contains(err.Error(), `script.toml:5:6: file: "empty" is empty`) {
		t.Errorf("%v", err)
	}
	if r, err := Load(dir, "key.toml"); err != nil {
		t.Error(err)
	} else if ring, keys := r.Source.Signers("release"); len(ring) != 0 || len(keys) != 1 {
		t.Errorf("%d bytes, keys %v", len(ring), keys)
	}
	if _, err := Load(dir, "bare.toml"); err == nil || !strings.Contains(err.Error(), "bare.toml:5:10: key_file without keys") {
		t.Errorf("%v", err)
	}
}

// TestExtendsCircle has RCP-17 and RCP-27.
func TestExtendsCircle(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"a.toml": "schema=1\nextends='b.toml'\n", "b.toml": "schema=1\nextends='./sub/../a.toml'\n", "self.toml": "schema=1\nextends='self.toml'\n",
	})
	for _, name := range []string{"a.toml", "self.toml"} {
		_, err := Load(dir, name)
		if err == nil || fault.ClassOf(err) != fault.Config || !strings.Contains(err.Error(), "extends goes in a circle") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for i := range 1000 {
		write(t, dir, map[string]string{fmt.Sprintf("d%d.toml", i): fmt.Sprintf("schema=1\nextends='d%d.toml'\n", i+1)})
	}
	_, err := Load(dir, "d0.toml")
	if err == nil || fault.ClassOf(err) != fault.Config || !strings.Contains(err.Error(), "more than 16 recipes extend one another") {
		t.Errorf("%v", err)
	}
}

func TestLoadArguments(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"x/my.toml": "schema=1\nextends='debian-sid'\n[[files]]\npath='/f'\nsource='f'\n", "x/f": "1"})
	if err := os.Symlink("x/my.toml", filepath.Join(dir, "link.toml")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"x/my.toml", filepath.Join(dir, "x/my.toml"), "link.toml", "./link.toml"} {
		r, err := Load(dir, name)
		if err != nil || r.Name != "my" || r.Origin != name {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, hint := range map[string]string{"debian-stabl": `did you mean "debian-stable"?`, "nothing-like-it": "mkmachine recipes lists them", "a\x1bb": ""} {
		_, err := Load(dir, name)
		if fault.ClassOf(err) != fault.Config || !strings.Contains(strings.Join(fault.Hints(err), " "), hint) || strings.ContainsRune(err.Error(), 27) {
			t.Errorf("%q: %v, hints %q", name, err, fault.Hints(err))
		}
	}
	for _, name := range []string{"missing.toml", "./x", "no/such.toml"} {
		if _, err := Load(dir, name); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
