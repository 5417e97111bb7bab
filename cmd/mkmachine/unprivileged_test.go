// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/internal/kernel"
	"github.com/mkmachine/mkmachine/internal/kernel/kerneltest"
	"github.com/mkmachine/mkmachine/sources/sourcetest"
)

// nobody is an ordinary user without a home directory of his own.
const nobody = 65534

// person runs the program as a process of an ordinary user, in a directory that is his.
type person struct {
	t    *testing.T
	bin  string
	dir  string
	attr *syscall.SysProcAttr
	vars []string
}

// newPerson is nobody where the test runs as root, else the user of the test.
func newPerson(t *testing.T) *person {
	t.Helper()
	p := &person{t: t, attr: &syscall.SysProcAttr{}}
	// Not t.TempDir: its parent is for the user of the test alone.
	dir, err := os.MkdirTemp("", "mkmachine-person-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	p.bin, p.dir = filepath.Join(dir, "mkmachine"), filepath.Join(dir, "home")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(self)
	if err == nil {
		err = os.WriteFile(p.bin, program, 0o755)
	}
	if err == nil {
		err = os.Mkdir(p.dir, 0o700)
	}
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err == nil && os.Geteuid() == 0 {
		p.attr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
		err = os.Chown(p.dir, nobody, nobody)
	}
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *person) run(args ...string) outcome {
	p.t.Helper()
	cmd := exec.Command(p.bin, args...)
	cmd.Dir, cmd.SysProcAttr = p.dir, p.attr
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + p.dir}, p.vars...)
	var stdout, stderr safeBuffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); cmd.ProcessState == nil {
		p.t.Fatal(err)
	}
	return outcome{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

func (p *person) write(name, text string) {
	p.t.Helper()
	if err := os.WriteFile(filepath.Join(p.dir, name), []byte(text), 0o644); err != nil {
		p.t.Fatal(err)
	}
}

// TestUnprivileged: what needs no root works with the default directories of a user, and
// the rest says that it needs root, changing nothing.
func TestUnprivileged(t *testing.T) {
	p := newPerson(t)
	archive := sourcetest.NewRepo(t, sourcetest.Spec{Suite: "trixie", Packages: []sourcetest.Package{{Name: "base-files", Essential: true}}})
	p.write("archive.pgp", string(archive.Keyring))
	p.write("t.toml", fmt.Sprintf(fakeRecipe, archive.Fingerprint))
	p.vars = []string{"MKMACHINE_MIRROR_DEBIAN=" + archive.URL}
	for _, args := range [][]string{
		{"check", "t.toml"}, {"check", "debian-stable"}, {"recipes"}, {"recipes", "show", "debian-stable"}, {"recipes", "init", "web"},
		{"lock", "t.toml"}, {"lock", "--update", "t.toml"}, {"--json", "--offline", "lock", "t.toml"},
		{"version"}, {"--help"}, {"pool", "status"}, {"--machines", "none", "list"}, {"--machines", ".", "list", "--json"},
	} {
		if o := p.run(args...); o.code != 0 {
			t.Errorf("%q: exit %d\n%s%s", args, o.code, o.stdout, o.stderr)
		}
	}
	// The usual place is for root, where it is there; either way the answer is clear.
	if o := p.run("list"); o.code != 0 && o.code != fault.Host.ExitCode() || o.code != 0 && !strings.Contains(o.stderr, "hint: ") {
		t.Errorf("list: exit %d\n%s", o.code, o.stderr)
	}
	if _, err := os.Stat(filepath.Join(p.dir, "t.lock.json")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(p.dir, ".cache", "mkmachine", "blobs")); err != nil {
		t.Error(err)
	}

	p.vars = append(p.vars, "MKMACHINE_MACHINES="+filepath.Join(p.dir, "machines"))
	for _, args := range [][]string{
		{"build", "t.toml"}, {"build", "--explain", "t.toml"}, {"clone", "t", "a"}, {"rename", "t", "b"}, {"remove", "t"}, {"verify", "t"},
		{"export", "t", "t.tar"}, {"clean"}, {"run", "-x", "t", "--", "true"}, {"run", "t"}, {"pool", "create"},
	} {
		o := p.run(args...)
		if o.code != fault.Host.ExitCode() || o.stdout != "" || !strings.Contains(o.stderr, "needs root") || !strings.Contains(o.stderr, "hint: sudo mkmachine") {
			t.Errorf("%q: exit %d\n%s%s", args, o.code, o.stdout, o.stderr)
		}
		var e errorLine
		o = p.run(append([]string{"--json"}, args...)...)
		if err := json.Unmarshal([]byte(o.stdout), &e); err != nil || e.Class != fault.Host || e.Exit != o.code || len(e.Hints) == 0 {
			t.Errorf("%q: %v\n%s%s", args, err, o.stdout, o.stderr)
		}
	}
	if _, err := os.Stat(filepath.Join(p.dir, "machines")); !os.IsNotExist(err) {
		t.Errorf("the machines directory was made: %v", err)
	}
}

// TestRootWithoutPower is CLI-17: root of a user namespace has the number but not the power.
func TestRootWithoutPower(t *testing.T) {
	kerneltest.Require(t, kernel.Root, kernel.UserNS)
	p := newPerson(t)
	p.attr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		Credential:  &syscall.Credential{NoSetGroups: true}, // 0 and 0, as the maps have them
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: nobody, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: nobody, Size: 1}},
	}
	archive := sourcetest.NewRepo(t, sourcetest.Spec{Suite: "trixie", Packages: []sourcetest.Package{{Name: "base-files", Essential: true}}})
	p.write("archive.pgp", string(archive.Keyring))
	p.write("t.toml", fmt.Sprintf(fakeRecipe, archive.Fingerprint))
	p.vars = []string{"MKMACHINE_MIRROR_DEBIAN=" + archive.URL, "MKMACHINE_CACHE=" + p.dir + "/cache", "MKMACHINE_RUNTIME=" + p.dir + "/run"}
	for _, args := range [][]string{
		{"build", "t.toml"},
		{"--machines", filepath.Join(p.dir, "machines"), "build", "t.toml"},
	} {
		o := p.run(args...)
		if o.code != fault.Host.ExitCode() || !strings.Contains(o.stderr, "user namespace") || !strings.Contains(o.stderr, "hint: ") {
			t.Errorf("%q: exit %d\n%s%s", args, o.code, o.stdout, o.stderr)
		}
		if strings.Contains(o.stderr, "this is user") || strings.Contains(o.stderr, "goroutine") {
			t.Error(o.stderr)
		}
	}
}
