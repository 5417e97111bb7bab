// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unicode"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/internal/kernel"
	"github.com/mkmachine/mkmachine/internal/kernel/kerneltest"
	"github.com/mkmachine/mkmachine/sources/sourcetest"
)

const packagesPath = "main/binary-amd64/Packages"

// publish replaces the Packages text of a repository that has no other form of it, and signs.
func publish(t *testing.T, r *sourcetest.Repo, text string) {
	t.Helper()
	sum := sha256.Sum256([]byte(text))
	line := regexp.MustCompile(`(?m)^ [0-9a-f]{64} \d+ ` + packagesPath + `$`)
	release := line.ReplaceAllString(r.ReleaseText(), fmt.Sprintf(" %s %d %s", hex.EncodeToString(sum[:]), len(text), packagesPath))
	r.SetFile("dists/trixie/"+packagesPath, []byte(text))
	if err := r.Sign(release); err != nil {
		t.Fatal(err)
	}
}

// TestSignedNonsense: an archive whose signature is good and whose index is not.
func TestSignedNonsense(t *testing.T) {
	t.Parallel()
	// replace changes the first field that matches.
	replace := func(pattern, with string) func(string) string {
		return func(s string) string {
			at := regexp.MustCompile(`(?m)` + pattern).FindStringIndex(s)
			return s[:at[0]] + with + s[at[1]:]
		}
	}
	for _, c := range []struct {
		name  string
		edit  func(string) string
		class fault.Class
		word  string
	}{
		{"REL-11 path leaves", replace(`^Filename: .*`, "Filename: ../../etc/passwd"), fault.Path, "file name"},
		{"REL-11 absolute path", replace(`^Filename: .*`, "Filename: /etc/passwd"), fault.Path, "file name"},
		{"REL-11 address", replace(`^Filename: .*`, "Filename: http://evil.example/x"), fault.Path, "file name"},
		{"REL-11 empty part", replace(`^Filename: .*`, "Filename: pool//x"), fault.Path, "file name"},
		{"REL-11 encoded dots", replace(`^Filename: .*`, "Filename: %2e%2e/%2e%2e/x"), fault.Path, "file name"},
		{"REL-11 dot", replace(`^Filename: .*`, "Filename: ."), fault.Path, "file name"},
		{"REL-13 no SHA256", replace(`^SHA256: .*\n`, ""), fault.Verify, "SHA256"},
		{"REL-13 short SHA256", replace(`^SHA256: .*`, "SHA256: abcd"), fault.Verify, "SHA256"},
		{"REL-15 negative size", replace(`^Size: .*`, "Size: -1"), fault.Format, "size"},
		{"REL-15 huge size", replace(`^Size: .*`, "Size: 99999999999999999999"), fault.Format, "size"},
		{"REL-15 exponent", replace(`^Size: .*`, "Size: 1e3"), fault.Format, "size"},
		{"REL-16 package is a path", replace(`^Package: .*`, "Package: ../x"), fault.Format, "../x"},
		{"REL-16 package is an option", replace(`^Package: .*`, "Package: -oDir::Etc=x"), fault.Format, "-oDir"},
		{"REL-16 package is two words", replace(`^Package: .*`, "Package: a b"), fault.Format, "a b"},
		{"REL-16 package of a MiB", replace(`^Package: .*`, "Package: "+strings.Repeat("a", 1<<20)), fault.Format, "package"},
		{"REL-16 package that clears the screen", replace(`^Package: .*`, "Package: a\x1b[2J"), fault.Format, "ackage"},
		{"REL-17 two epochs", replace(`^Version: .*`, "Version: 1:2:3"), fault.Format, "1:2:3"},
		{"REL-17 no version", replace(`^Version: .*\n`, ""), fault.Format, "ersion"},
		{"REL-17 blank in version", replace(`^Version: .*`, "Version: 1 0"), fault.Format, "1 0"},
		{"REL-17 huge epoch", replace(`^Version: .*`, "Version: 99999999999:1"), fault.Format, "99999999999"},
		{"REL-18 missing dependency", replace(`^Depends: .*`, "Depends: nothing-has-it"), fault.Dep, "nothing-has-it"},
		{"REL-26 nothing essential", replace(`^Essential: .*\n`, ""), fault.Dep, "ssential"},
		{"REL-26 empty index", func(string) string { return "" }, fault.Dep, "trixie"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w, r := newArchive(t, sourcetest.Spec{Indexes: []string{""}, NoByHash: true, Packages: []sourcetest.Package{
				{Name: "base-files", Essential: true, Depends: "hello"}, {Name: "hello"},
			}})
			good := string(r.File("dists/trixie/" + packagesPath))
			publish(t, r, c.edit(good))
			w.refused(c.class, []string{c.word}, "lock", "t.toml")
			w.noLock()
			publish(t, r, good)
			w.must("lock", "t.toml")
		})
	}
}

// TestBadRelease: signed Release texts that prove nothing, and keyrings that are none.
func TestBadRelease(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		edit  func(string) string
		class fault.Class
		word  string
	}{
		{"REL-01 weak digests", func(s string) string {
			return regexp.MustCompile(`(?m)^ ([0-9a-f]{32})[0-9a-f]{32} `).ReplaceAllString(strings.Replace(s, "SHA256:", "MD5Sum:", 1), " $1 ")
		}, fault.Verify, "SHA256"},
		{"REL-02 other size", func(s string) string {
			return regexp.MustCompile(`(?m)^( [0-9a-f]{64}) \d+ `).ReplaceAllString(s, "$1 7 ")
		}, fault.Verify, packagesPath},
		{"REL-03 two digests", func(s string) string {
			return s + fmt.Sprintf(" %064d 7 %s\n", 0, packagesPath)
		}, fault.Format, packagesPath},
		{"REL-26 other architecture", func(s string) string {
			return strings.ReplaceAll(s, "amd64", "s390x")
		}, fault.Dep, "amd64"},
		{"REL-26 other component", func(s string) string {
			return strings.ReplaceAll(strings.Replace(s, "Components: main", "Components: other", 1), " main/", " other/")
		}, fault.Dep, "main"},
		{"CS-11 NUL", func(s string) string { return strings.Replace(s, "Origin: Debian", "Origin: De\x00bian", 1) }, fault.Verify, "InRelease"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w, r := newArchive(t, sourcetest.Spec{Indexes: []string{""}, NoByHash: true})
			good := r.ReleaseText()
			if err := r.Sign(c.edit(good)); err != nil {
				t.Fatal(err)
			}
			w.refused(c.class, []string{c.word}, "lock", "t.toml")
			w.noLock()
		})
	}
	for _, c := range []struct {
		name, keyring string
		class         fault.Class
	}{
		{"KEY-11 empty", "", fault.Verify},
		{"KEY-14 SSH key", "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ root@host\n", fault.Format},
		{"KEY-14 certificate", "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n", fault.Format},
		{"web page", "<!DOCTYPE html><html></html>", fault.Format},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w, _ := newArchive(t, sourcetest.Spec{})
			w.write("archive.pgp", c.keyring)
			w.refused(c.class, []string{"key"}, "lock", "t.toml")
		})
	}
	t.Run("KEY-02 a second key in the file", func(t *testing.T) {
		t.Parallel()
		w, r := newArchive(t, sourcetest.Spec{})
		key, err := r.SignByStranger()
		if err != nil {
			t.Fatal(err)
		}
		w.write("archive.pgp", string(r.Keyring)+string(key))
		w.refused(fault.Verify, []string{"InRelease", "key"}, "lock", "t.toml")
	})
}

// TestBadRecipes: through the program, what only a recipe can ask for.
func TestBadRecipes(t *testing.T) {
	t.Parallel()
	w, r := newArchive(t, sourcetest.Spec{})
	delete(w.vars, "MKMACHINE_MIRROR_DEBIAN")
	base := fmt.Sprintf(fakeRecipe, r.Fingerprint)
	port := r.URL[strings.LastIndex(r.URL, ":"):]
	for _, c := range []struct {
		name, text string
		class      fault.Class
		word       string
	}{
		{"RCP-13 loopback", base + "mirror = \"" + r.URL + "\"\n", fault.Policy, "not a public address"},
		{"RCP-13 name of loopback", base + "mirror = \"http://localhost" + port + "\"\n", fault.Policy, "not a public address"},
		{"RCP-13 metadata service", base + "mirror = \"http://169.254.169.254/debian\"\n", fault.Policy, "not a public address"},
		{"RCP-13 mapped address", base + "mirror = \"http://[::ffff:169.254.169.254]/\"\n", fault.Policy, "not a public address"},
		{"RCP-12 file", base + "mirror = \"file:///etc\"\n", fault.Config, "mirror"},
		{"RCP-12 ftp", base + "mirror = \"ftp://mirror.example.org/\"\n", fault.Config, "mirror"},
		{"RCP-18 key from a device", strings.Replace(base, "archive.pgp", "/dev/zero", 1), fault.Path, "key_file"},
		{"RCP-18 key from a fifo", strings.Replace(base, "archive.pgp", "fifo", 1), fault.Path, "fifo"},
		{"RCP-16 link out of the tree", strings.Replace(base, "archive.pgp", "link", 1), fault.Path, "link"},
		{"KEY-01 short key", strings.Replace(base, r.Fingerprint, r.Fingerprint[24:], 1), fault.Config, "40"},
		{"KEY-16 no fingerprint", strings.Replace(base, `"`+r.Fingerprint+`"`, "", 1), fault.Config, "key"},
		{"RCP-09 huge", base + "# " + strings.Repeat("x", 2<<20), fault.Limit, ""},
		{"RCP-30 option as a package", base + "[packages]\nadd = [\"-y\"]\n", fault.Config, "-y"},
		{"RCP-07 unknown key", base + "sha25 = \"x\"\n", fault.Config, ""},
	} {
		w.write("t.toml", c.text)
		_ = os.Remove(filepath.Join(w.dir, "fifo"))
		if err := syscall.Mkfifo(filepath.Join(w.dir, "fifo"), 0o644); err != nil {
			t.Fatal(err)
		}
		_ = os.Remove(filepath.Join(w.dir, "link"))
		if err := os.Symlink("/etc/passwd", filepath.Join(w.dir, "link")); err != nil {
			t.Fatal(err)
		}
		t.Run(c.name, func(t *testing.T) {
			o := w.run("lock", "t.toml")
			e := w.run("--json", "lock", "t.toml").failure(t)
			if e.Class != c.class || o.code != c.class.ExitCode() || !strings.Contains(o.stderr, c.word) {
				t.Errorf("exit %d, class %s, want %s with %q\n%s", o.code, e.Class, c.class, c.word, o.stderr)
			}
		})
		w.noLock()
	}
	t.Run("RCP-15 a password is never shown", func(t *testing.T) {
		w.write("t.toml", base)
		for _, f := range []sourcetest.Fault{sourcetest.Missing, sourcetest.Broken, sourcetest.Loop, ""} {
			r.Heal()
			if f != "" {
				r.Fail("*", f, 0)
			}
			trace := filepath.Join(w.dir, "trace")
			o := w.run("-v", "--json", "--trace", trace, "--mirror", "debian="+strings.Replace(r.URL, "://", "://user:pa55word@", 1), "lock", "--update", "t.toml")
			seen, err := os.ReadFile(trace)
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(o.stdout+o.stderr+string(seen), "pa55word") || (f == "") != (o.code == 0) {
				t.Errorf("%s: exit %d\n%s%s%s", f, o.code, o.stdout, o.stderr, seen)
			}
		}
		lock, err := os.ReadFile(filepath.Join(w.dir, "t.lock.json"))
		if err != nil || bytes.Contains(lock, []byte("pa55word")) {
			t.Errorf("%v %s", err, lock)
		}
	})
}

// TestCommandLine: the CLI items for the verbs that exist.
func TestCommandLine(t *testing.T) {
	kerneltest.Require(t, kernel.Root)
	w := newWorld(t, "")
	canary := filepath.Join(w.machines, "keep")
	if err := os.MkdirAll(filepath.Join(canary, "usr"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(w.machines, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/", filepath.Join(w.dir, "rootlink")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		item  string
		class fault.Class
		args  []string
	}{
		{"CLI-01", fault.Config, []string{"rm", ""}},
		{"CLI-01", fault.Config, []string{"rm", "."}},
		{"CLI-01", fault.Config, []string{"rm", ".."}},
		{"CLI-01", fault.Config, []string{"rm", "/"}},
		{"CLI-01", fault.Config, []string{"rm", "*"}},
		{"CLI-01", fault.Config, []string{"rm", "keep", "../keep"}},
		{"CLI-01", fault.Config, []string{"rm", "keep/"}},
		{"CLI-01", fault.Config, []string{"clone", "keep", "../evil"}},
		{"CLI-01", fault.Config, []string{"clone", "../keep", "new"}},
		{"CLI-01", fault.Config, []string{"rename", "keep", "a/b"}},
		{"CLI-01", fault.Config, []string{"inspect", "../keep"}},
		{"CLI-01", fault.Config, []string{"verify", ".."}},
		{"CLI-01", fault.Config, []string{"export", "..", "x.tar"}},
		{"CLI-02", fault.Config, []string{"rm", "--", "-rf"}},
		{"CLI-02", fault.Config, []string{"rm", "--all", "extra"}},
		{"CLI-02", fault.Config, []string{"rm"}},
		{"CLI-03", fault.Config, []string{"run", "keep", "--bind", "/etc:/etc:rw,foo"}},
		{"CLI-04", fault.Config, []string{"run", "keep", "--bind", "etc:/etc"}},
		{"CLI-04", fault.Config, []string{"run", "keep", "--bind", "/does/not/exist"}},
		{"CLI-04", fault.Config, []string{"run", "keep", "--bind", "/etc\n:/x"}},
		{"CLI-04", fault.Config, []string{"run", "keep", "--bind", "/etc:x"}},
		{"CLI-04", fault.Policy, []string{"run", "keep", "--bind", w.dir + "/rootlink:/mnt"}},
		{"CLI-07", fault.Config, []string{"run", "keep", "--memory", "1"}},
		{"CLI-07", fault.Config, []string{"run", "keep", "--memory", "-1G"}},
		{"CLI-07", fault.Config, []string{"run", "keep", "--memory", "1EiB"}},
		{"CLI-07", fault.Config, []string{"run", "keep", "--memory", "0x10"}},
		{"CLI-07", fault.Config, []string{"run", "keep", "--pids", "0"}},
		{"CLI-07", fault.Config, []string{"run", "keep", "--pids", "-5"}},
		{"CLI-07", fault.Config, []string{"run", "keep", "--timeout", "-5s"}},
		{"CLI-07", fault.Config, []string{"clean", "--unused", "-5s"}},
		{"CLI-07", fault.Config, []string{"clean", "--unused", "5 minutes"}},
		{"CLI-07", fault.Config, []string{"pool", "create", "--size", "1"}},
		{"CLI-08", fault.Config, []string{"run", "keep", "--user", "4294967296"}},
		{"CLI-08", fault.Config, []string{"run", "keep", "--user", "4294967295"}},
		{"CLI-08", fault.Config, []string{"run", "keep", "--user", "-1"}},
		{"CLI-08", fault.Config, []string{"run", "keep", "--user", "0x0"}},
		{"CLI-08", fault.Config, []string{"run", "keep", "--user", "00"}},
		{"CLI-08", fault.Config, []string{"run", "keep", "--user", "01000"}},
		{"CLI-08", fault.Config, []string{"run", "keep", "--user", "root:x:x"}},
		{"CLI-08", fault.Config, []string{"run", "keep", "--user", ":0"}},
		{"CLI-08", fault.Config, []string{"run", "keep", "--user", "root:"}},
		{"CLI-10", fault.Config, []string{"run", "keep", "--eph"}},
		{"CLI-10", fault.Config, []string{"run", "keep", "--ephemera", "--", "x"}},
		{"CLI-10", fault.Config, []string{"run", "keep", "ls", "-l"}},
		{"CLI-10", fault.Config, []string{"run", "--network", "everything", "keep"}},
		{"usage", fault.Config, []string{"build", "--name", "a", "debian-stable", "ubuntu-lts"}},
		{"usage", fault.Config, []string{"build", "--name", "../a", "debian-stable"}},
		{"usage", fault.Config, []string{"--machines", "", "list"}},
		{"usage", fault.Config, []string{"--mirror", "debian", "lock", "debian-stable"}},
		{"usage", fault.Config, []string{"--backend", "zfs", "clean"}},
		{"usage", fault.Config, []string{"recipes", "init", "../x"}},
		{"usage", fault.Config, []string{"recipes", "show", "../x"}},
		{"usage", fault.Config, []string{"export", "keep", "x.rar"}},
		{"state", fault.State, []string{"inspect", "nowhere"}},
		{"state", fault.State, []string{"rm", "nowhere"}},
		{"state", fault.State, []string{"rename", "nowhere", "new"}},
		{"state", fault.State, []string{"clone", "nowhere", "new"}},
		{"state", fault.State, []string{"clone", "keep", "keep"}},
	} {
		t.Run(fmt.Sprintf("%s %q", c.item, c.args), func(t *testing.T) {
			w.t = t
			e := w.run(append([]string{"--json"}, c.args...)...).failure(t)
			o := w.run(c.args...)
			if e.Class != c.class || o.code != c.class.ExitCode() {
				t.Errorf("exit %d, class %s, want %s: %s", o.code, e.Class, c.class, e.Message)
			}
			w.tidyError(o)
			if _, err := os.Stat(filepath.Join(canary, "usr")); err != nil {
				t.Fatal("the canary is gone")
			}
		})
	}
}

// newTree makes a tree in which the program itself, also as idle, is the only command.
func newTree(t *testing.T, dir string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"bin", "etc", "usr", "proc", "sys", "dev", "run", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/mkmachine"), program, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(dir, "bin/mkmachine"), filepath.Join(dir, "bin/idle")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestHostileAccounts is CLI-09: the machine's own account files cannot make the program
// hang, grow, or take another user than the one that was asked for.
func TestHostileAccounts(t *testing.T) {
	kerneltest.Require(t, kernel.Root, kernel.UserNS, kernel.IDMap, kernel.Cgroup)
	w := newWorld(t, "")
	tree := newTree(t, filepath.Join(w.dir, "tree"))
	passwd := filepath.Join(tree, "etc/passwd")
	for _, c := range []struct {
		name string
		make func() error
		user string
		ok   bool
	}{
		{"plain", func() error { return os.WriteFile(passwd, []byte("web:x:33:33::/:/bin/sh\n"), 0o644) }, "web", true},
		{"number without an entry", func() error { return nil }, "4711", true},
		{"absent name", func() error { return nil }, "nobody-here", false},
		{"fifo", func() error { return syscall.Mkfifo(passwd, 0o644) }, "web", false},
		{"device", func() error { return os.Symlink("/dev/zero", passwd) }, "web", false},
		{"300 MiB of holes", func() error {
			if err := os.WriteFile(passwd, nil, 0o644); err != nil {
				return err
			}
			return os.Truncate(passwd, 300<<20)
		}, "web", false},
		{"a million others", func() error {
			return os.WriteFile(passwd, []byte(strings.Repeat("a:x:0:0::/:/bin/sh\n", 1_000_000)), 0o644)
		}, "web", false},
		{"a name that is a number", func() error { return os.WriteFile(passwd, []byte("33:x:0:0::/:/bin/sh\n"), 0o644) }, "33", true},
		{"an id that is no number", func() error { return os.WriteFile(passwd, []byte("web:x:-1:0x0::/:/bin/sh\n"), 0o644) }, "web", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w.t = t
			if c.name != "number without an entry" && c.name != "absent name" {
				_ = os.Remove(passwd)
			}
			if err := c.make(); err != nil {
				t.Fatal(err)
			}
			// An ordinary user has another default for his cache: it shows who runs.
			o := w.run("run", "--user", c.user, tree, "--", "/bin/mkmachine", "rm", "x")
			want := 126
			if c.ok {
				want = fault.Host.ExitCode()
			}
			if o.code != want || c.ok && !strings.Contains(o.stderr, "this is user") {
				t.Errorf("exit %d, want %d\n%s%s", o.code, want, o.stdout, o.stderr)
			}
		})
	}
	t.Run("CLI-10 what stands behind -- is the payload's", func(t *testing.T) {
		w.t = t
		if o := w.must("run", tree, "--", "/bin/mkmachine", "--version"); !strings.Contains(o.stdout, "mkmachine") {
			t.Errorf("%q %q", o.stdout, o.stderr)
		}
		if o := w.run("run", tree, "--", "--version"); o.code != 127 {
			t.Errorf("exit %d\n%s%s", o.code, o.stdout, o.stderr)
		}
		if e := w.run("--json", "run", tree, "--", "--version").failure(t); e.Exit != 127 {
			t.Errorf("%+v", e)
		}
	})
	t.Run("CLI-07 little memory", func(t *testing.T) {
		w.t = t
		if o := w.run("run", "--memory", "4M", tree, "--", "/bin/mkmachine", "version"); o.code == 0 && !strings.Contains(o.stdout, "mkmachine") {
			t.Errorf("exit %d\n%s%s", o.code, o.stdout, o.stderr)
		}
	})
}

// TestRunningMachine is CLI-14: a machine that runs cannot be started again,
// copied or removed; throw-away copies run beside each other under names of their own.
func TestRunningMachine(t *testing.T) {
	kerneltest.Require(t, kernel.Root, kernel.UserNS, kernel.IDMap, kernel.Cgroup)
	w := newWorld(t, "")
	if err := os.MkdirAll(w.machines, 0o700); err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("busy%d", os.Getpid())
	newTree(t, filepath.Join(w.machines, name))
	version := []string{name, "--", "/bin/mkmachine", "version"}
	stop := w.background("run", name, "--", "/bin/idle")
	for _, args := range [][]string{append([]string{"run"}, version...), append([]string{"run", "-x"}, version...), {"remove", name}, {"rename", name, name + "x"}} {
		e := w.run(append([]string{"--json"}, args...)...).failure(t)
		o := w.run(args...)
		if e.Class != fault.State || o.code != e.Exit || !strings.Contains(o.stderr, name) {
			t.Errorf("%q: exit %d, class %s: %s", args, o.code, e.Class, e.Message)
		}
		w.tidyError(o)
	}
	stop()
	stop = w.background("run", "-x", name, "--", "/bin/idle")
	w.must(append([]string{"run", "-x"}, version...)...)
	stop()
	w.must(append([]string{"run"}, version...)...)
	w.must("remove", name)
}

// background starts a command, waits for its first output, and gives a function that
// interrupts it and waits for its end.
func (w *world) background(args ...string) (stop func()) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(w.t.Context())
	started, ended := make(chan struct{}), make(chan outcome, 1)
	other := *w
	other.adjust = func(e *env) { e.Stdout = &signalling{Writer: e.Stdout, first: started} }
	go func() { ended <- other.runWith(ctx, "", args...) }()
	select {
	case <-started:
	case o := <-ended:
		w.t.Fatalf("exit %d\n%s%s", o.code, o.stdout, o.stderr)
	case <-time.After(30 * time.Second):
		w.t.Fatal("it did not start")
	}
	return func() { cancel(); <-ended }
}

// signalling closes first when the first byte is written.
type signalling struct {
	io.Writer
	first chan struct{}
	once  sync.Once
}

func (s *signalling) Write(p []byte) (int, error) {
	s.once.Do(func() { close(s.first) })
	return s.Writer.Write(p)
}

// TestHostileNames is CLI-19: whatever lies in the machines directory, the output is JSON
// and nothing that a terminal acts upon.
func TestHostileNames(t *testing.T) {
	w := newWorld(t, "")
	names := []string{"good", "a\x1b[2Jb", "line\nbreak", "tab\tname", "\u202eevil", "bad\xff\xfeutf8", "del\x7f", "\u0085next", "##[error]x", "::error::x", `"quote\`}
	for _, n := range names {
		if err := os.MkdirAll(filepath.Join(w.machines, n, "usr/lib"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(w.machines, n, "usr/lib/os-release"), []byte("PRETTY_NAME=\"\x1b]0;x\x07\"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(w.machines, "fifo"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/nowhere\x1b[2J", filepath.Join(w.machines, "dangling")); err != nil {
		t.Fatal(err)
	}
	check := func(o outcome) {
		t.Helper()
		for _, text := range []string{o.stdout, o.stderr} {
			if i := strings.IndexFunc(text, func(r rune) bool {
				return r != '\n' && (unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == unicode.ReplacementChar)
			}); i >= 0 {
				t.Errorf("%q in the output: %q", text[i:min(i+4, len(text))], text)
			}
			for line := range strings.Lines(text) {
				if strings.HasPrefix(line, "::error") || strings.HasPrefix(line, "##[") {
					t.Errorf("a command for CI: %q", line)
				}
			}
		}
	}
	o := w.must("--json", "list")
	check(o)
	dec := json.NewDecoder(strings.NewReader(o.stdout))
	dec.DisallowUnknownFields()
	var images []struct{ Name string }
	o.result(t, &images)
	if len(images) == 0 || !strings.Contains(o.stdout, `"good"`) {
		t.Errorf("%s", o.stdout)
	}
	check(w.must("list"))
	for _, n := range names {
		check(w.run("--json", "inspect", n))
		check(w.run("inspect", n))
		check(w.run("--json", "rm", n+"x"))
		check(w.run("rm", n+"x"))
		check(w.run("--json", "check", n))
		check(w.run("check", n))
		check(w.run(n))
		check(w.run("--json", n))
	}
}

// TestMachinesDirectory is CLI-20.
func TestMachinesDirectory(t *testing.T) {
	kerneltest.Require(t, kernel.Root)
	for _, c := range []struct {
		name  string
		make  func(dir string) error
		class fault.Class
	}{
		{"link", func(dir string) error { return os.Symlink(t.TempDir(), dir) }, fault.Policy},
		{"file", func(dir string) error { return os.WriteFile(dir, nil, 0o600) }, fault.Config},
		{"others may write", func(dir string) error {
			if err := os.MkdirAll(filepath.Join(dir, "machine"), 0o755); err != nil {
				return err
			}
			return os.Chmod(dir, 0o777)
		}, fault.Policy},
		{"of another user", func(dir string) error {
			if err := os.Mkdir(dir, 0o755); err != nil {
				return err
			}
			return os.Chown(dir, nobody, nobody)
		}, fault.Policy},
		{"others may write to its parent", func(dir string) error { return os.Chmod(filepath.Dir(dir), 0o777) }, fault.Policy},
		{"read-only file system", func(dir string) error { return os.Symlink("/proc/self", dir) }, fault.Policy},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, filepath.Join(t.TempDir(), "sub", "machines"))
			if err := os.Mkdir(filepath.Dir(w.machines), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := c.make(w.machines); err != nil {
				t.Fatal(err)
			}
			e := w.run("--json", "clean").failure(t)
			o := w.run("clean")
			if e.Class != c.class || o.code != c.class.ExitCode() {
				t.Errorf("exit %d, class %s, want %s: %s", o.code, e.Class, c.class, e.Message)
			}
			w.tidyError(o)
		})
	}
}
