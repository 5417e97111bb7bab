// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/mkmachine/mkmachine/internal/kernel/kerneltest"
	"github.com/mkmachine/mkmachine/sources"
)

// pocket is a suite of a repository in a directory: one component, an index for each
// architecture.
type pocket struct {
	suite    string
	indexes  map[string]string // architecture → Packages
	backport bool
}

// repository writes pockets as apt and debootstrap read them.
func repository(t testing.TB, pockets []pocket) string {
	t.Helper()
	dir := t.TempDir()
	for _, p := range pockets {
		archs := slices.Sorted(maps.Keys(p.indexes))
		release := fmt.Sprintf("Origin: Test\nLabel: Test\nSuite: %s\nCodename: %s\nDate: Sat, 21 Nov 2026 00:00:00 UTC\nArchitectures: %s\nComponents: main\n",
			p.suite, p.suite, strings.Join(archs, " "))
		if p.backport {
			release += "NotAutomatic: yes\nButAutomaticUpgrades: yes\n"
		}
		release += "SHA256:\n"
		for _, arch := range archs {
			name := "main/binary-" + arch + "/Packages"
			file := filepath.Join(dir, "dists", p.suite, name)
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(p.indexes[arch]), 0o644); err != nil {
				t.Fatal(err)
			}
			release += fmt.Sprintf(" %x %d %s\n", sha256.Sum256([]byte(p.indexes[arch])), len(p.indexes[arch]), name)
		}
		if err := os.WriteFile(filepath.Join(dir, "dists", p.suite, "Release"), []byte(release), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// universeOf is what apt sees of pockets, in its order.
func universeOf(t testing.TB, pockets []pocket, archs []string) *Universe {
	t.Helper()
	var list []*Index
	for _, p := range pockets {
		for _, arch := range archs {
			src := IndexSource{Repository: p.suite, Name: p.suite + " " + arch, NotAutomatic: p.backport, ButAutomaticUpgrades: p.backport}
			list = append(list, index(t, src, p.indexes[arch]))
		}
	}
	return NewUniverse(list...)
}

// apt is an apt of the host that sees only a repository and a list of installed packages.
type apt struct {
	program, conf string
}

// newApt makes a sandbox in which packages are installed as the universe describes them.
func newApt(t testing.TB, repo string, pockets []pocket, archs []string, u *Universe, installed []sources.Package) *apt {
	t.Helper()
	a := &apt{program: kerneltest.Program(t, "apt-get")}
	dir := t.TempDir()
	for _, d := range []string{"etc/parts", "lists/partial", "cache/archives/partial", "log"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	var list, status strings.Builder
	for _, p := range pockets {
		fmt.Fprintf(&list, "deb [trusted=yes] file:%s %s main\n", repo, p.suite)
	}
	for _, p := range installed {
		found := false
		u.named(p.Name, func(_ int32, e *Entry) {
			if found || e.Version() != p.Version || e.Arch() != p.Arch {
				return
			}
			found = true
			status.WriteString("Status: install ok installed\n")
			for f := range nFields {
				if s := e.get(f); s != "" && f != fFilename && f != fSize && f != fSHA256 {
					fmt.Fprintf(&status, "%s: %s\n", fieldNames[f], s)
				}
			}
			status.WriteString("\n")
		})
	}
	quoted := ""
	for _, arch := range archs {
		quoted += fmt.Sprintf("%q; ", arch)
	}
	a.conf = write("apt.conf", fmt.Sprintf(`Dir %q; Dir::State %q; Dir::State::lists %q; Dir::State::status %q; Dir::Cache %q; Dir::Log %q;
Dir::Etc::sourcelist %q; Dir::Etc::sourceparts "/dev/null"; Dir::Etc::parts %q; Dir::Etc::main "/dev/null"; Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null"; Dir::Bin::dpkg "/bin/true";
APT::Architecture %q; APT::Architectures { %s}; APT::Sandbox::User ""; APT::Get::Assume-Yes "true"; APT::Get::allow-downgrades "true"; APT::Install-Recommends "false";
Acquire::Languages "none"; Acquire::Check-Valid-Until "false"; Debug::NoLocking "true";
`, dir, dir, dir+"/lists", write("status", status.String()), dir+"/cache", dir+"/log", write("sources.list", list.String()), dir+"/etc/parts", archs[0], quoted))
	if out, err := a.run("update"); err != nil {
		t.Fatalf("apt-get update: %v\n%s", err, out)
	}
	if out, err := a.run("check"); err != nil {
		t.Fatalf("apt-get check: %v\n%s", err, out)
	}
	return a
}

func (a *apt) run(args ...string) (string, error) {
	cmd := exec.Command(a.program, args...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "APT_CONFIG=" + a.conf}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

var aptInstalls = regexp.MustCompile(`(?m)^Inst (\S+) (?:\[[^]]*\] )?\((\S+)|^Remv (\S+)|^AutoDep: (\S+):(\S+)`)

// install is what "apt-get install" would do: "name=version", followed by "*" for what is
// marked as installed automatically, and "-name", sorted; or an error with what it said.
func (a *apt) install(recommends bool, wants ...string) ([]string, error) {
	args := []string{"-s", "-o", "Debug::pkgAutoRemove=true", "install"}
	if recommends {
		args = append(args, "-o", "APT::Install-Recommends=true")
	}
	out, err := a.run(append(args, wants...)...)
	if err != nil {
		return nil, errors.New(out[max(0, len(out)-600):])
	}
	var list []string
	auto := map[string]string{}
	for _, m := range aptInstalls.FindAllStringSubmatch(out, -1) {
		switch {
		case m[4] != "":
			auto[m[4]], auto[m[4]+":"+m[5]] = "*", "*"
		case m[3] != "":
			list = append(list, "-"+m[3])
		}
	}
	for _, m := range aptInstalls.FindAllStringSubmatch(out, -1) {
		if m[1] != "" {
			list = append(list, m[1]+"="+m[2]+auto[m[1]])
		}
	}
	slices.Sort(list)
	return list, nil
}

// difference is what a request adds to and takes from the variant, in apt's words.
func difference(u *Universe, req Request) ([]string, error) {
	bare := req
	bare.Add = nil
	before, err := Resolve(context.Background(), u, bare)
	if err != nil {
		return nil, err
	}
	after, err := Resolve(context.Background(), u, req)
	if err != nil {
		return nil, err
	}
	name := func(p sources.Package) string {
		if p.Arch == req.Arch || p.Arch == "all" {
			return p.Name
		}
		return p.Name + ":" + p.Arch
	}
	had := map[string]string{}
	for _, p := range before {
		had[name(p)] = p.Version
	}
	var out []string
	for _, p := range after {
		if had[name(p)] != p.Version {
			mark := ""
			if p.Auto {
				mark = "*"
			}
			out = append(out, name(p)+"="+p.Version+mark)
		}
		delete(had, name(p))
	}
	for n := range had {
		out = append(out, "-"+n)
	}
	slices.Sort(out)
	return out, nil
}

// compare runs one request both ways.
func (a *apt) compare(t *testing.T, u *Universe, req Request, recommends bool, wanted ...string) {
	t.Helper()
	req.Add, req.Recommends = wants(wanted...), recommends
	got, ours := difference(u, req)
	want, theirs := a.install(recommends, wanted...)
	if (ours == nil) != (theirs == nil) {
		t.Errorf("%v recommends=%v: we say %v %v, apt says %v %v", wanted, recommends, got, ours, want, theirs)
		return
	}
	if !slices.Equal(got, want) {
		var extra, missing []string
		for _, s := range got {
			if !slices.Contains(want, s) {
				extra = append(extra, s)
			}
		}
		for _, s := range want {
			if !slices.Contains(got, s) {
				missing = append(missing, s)
			}
		}
		t.Errorf("%v recommends=%v: we add %v, apt adds %v", wanted, recommends, extra, missing)
	}
}

// TestAddAgainstApt runs the cases of TestAdd through apt.
func TestAddAgainstApt(t *testing.T) {
	for _, test := range addCases {
		pockets := []pocket{{suite: "trixie", indexes: map[string]string{"amd64": strings.Join(tiny, "") + strings.Join(test.stanzas, "")}}}
		archs := []string{"amd64"}
		u := universeOf(t, pockets, archs)
		req := Request{Arch: "amd64", Suite: "trixie", Variant: VariantMinbase}
		base, err := Resolve(context.Background(), u, req)
		if err != nil {
			t.Fatal(err)
		}
		a := newApt(t, repository(t, pockets), pockets, archs, u, base)
		t.Run(strings.ReplaceAll(test.name, " ", "-"), func(t *testing.T) {
			a.compare(t, u, req, test.recommends, strings.Fields(test.add)...)
		})
	}
}

// TestForeignAgainstApt runs the cases of TestForeignArchitectures through apt.
func TestForeignAgainstApt(t *testing.T) {
	pockets, archs := []pocket{foreignPocket()}, []string{"amd64", "i386"}
	u := universeOf(t, pockets, archs)
	req := Request{Arch: "amd64", ForeignArchs: archs[1:], Suite: "trixie", Variant: VariantMinbase}
	base, err := Resolve(context.Background(), u, req)
	if err != nil {
		t.Fatal(err)
	}
	a := newApt(t, repository(t, pockets), pockets, archs, u, base)
	for _, test := range foreignCases {
		a.compare(t, u, req, false, strings.Fields(test.add)...)
	}
}

// TestPocketsAgainstApt: a newer version in a second pocket, and one that is only taken
// when asked for.
func TestPocketsAgainstApt(t *testing.T) {
	one := func(stanzas ...string) map[string]string {
		return map[string]string{"amd64": strings.Join(stanzas, "")}
	}
	pockets, archs := []pocket{
		{suite: "trixie", indexes: one(append(slices.Clone(tiny), stanza("Package: aa"), stanza("Package: bb", "Depends: aa (>= 1.1)"), stanza("Package: cc"))...)},
		{suite: "trixie-updates", indexes: one(stanza("Package: aa", "Version: 1.1"), stanza("Package: libc", "Version: 1.1"))},
		{suite: "trixie-backports", backport: true, indexes: one(stanza("Package: aa", "Version: 5"), stanza("Package: dd", "Depends: aa (>= 5)"),
			stanza("Package: ee", "Depends: aa"), stanza("Package: libc", "Version: 5"), stanza("Package: cc", "Version: 2", "Depends: libc (>= 5)"))},
	}, []string{"amd64"}
	u := universeOf(t, pockets, archs)
	req := Request{Arch: "amd64", Suite: "trixie", Variant: VariantMinbase}
	base, err := Resolve(context.Background(), u, req)
	if err != nil {
		t.Fatal(err)
	}
	a := newApt(t, repository(t, pockets), pockets, archs, u, base)
	for _, add := range []string{"aa", "aa=1", "aa=5", "bb", "bb aa=1", "cc", "cc=2", "cc=2 libc=5", "dd", "dd aa=5", "ee", "libc=1", "libc=5"} {
		a.compare(t, u, req, false, strings.Fields(add)...)
	}
}
