// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mkmachine/mkmachine/internal/kernel/kerneltest"
	"github.com/mkmachine/mkmachine/sources/sourcetest"
)

type pkgs = []sourcetest.Package
type files = []sourcetest.File

// dpkgCases are sets of packages without scripts, in install order. fails: neither dpkg
// nor we install them.
var dpkgCases = []struct {
	name  string
	set   pkgs
	fails string
}{
	{name: "plain files, modes, owners, links", set: pkgs{{Name: "plain", Files: files{
		{Path: "/usr/bin/tool", Mode: 0o4755, Body: "tool"},
		{Path: "/usr/bin/alias", Mode: 0o4755, Hard: "/usr/bin/tool"},
		{Path: "/usr/share/plain/link", Link: "../nowhere"},
		{Path: "/var/lib/plain", Dir: true, Mode: 0o2770, UID: 7, GID: 8},
		{Path: "/var/lib/plain/data", Mode: 0o640, UID: 7, GID: 8, Body: "x"},
		{Path: "/usr/share/plain/empty"},
	}}}},
	{name: "split paths land below usr", set: pkgs{
		{Name: "split", Files: files{{Path: "/bin/sh", Body: "sh"}, {Path: "/lib/x/y", Body: "y"}, {Path: "/sbin/init", Link: "/lib/x/y"}}},
		{Name: "merged", Files: files{{Path: "/usr/bin/dash", Body: "dash"}, {Path: "/usr/lib/x/z", Body: "z"}}},
	}},
	{name: "conffiles", set: pkgs{
		{Name: "conf", Conffiles: []string{"/etc/conf/a", "/etc/conf/b"}, Files: files{
			{Path: "/etc/conf/a", Mode: 0o640, GID: 42, Body: "a\n"}, {Path: "/etc/conf/b", Body: "b\n"}, {Path: "/etc/conf/c", Body: "no conffile"}}},
		{Name: "gone", Conffiles: []string{"remove-on-upgrade /etc/gone.conf"}, Files: files{{Path: "/usr/share/gone", Body: "1"}}},
	}},
	{name: "fields in dpkg's order and spacing", set: pkgs{{
		Name: "fields", Depends: "a|b (>=1.0), c:any(<<2),d", Provides: "virtual (= 1)", Essential: true, MultiArch: "foreign",
		Fields: map[string]string{"Homepage": "https://example.org/", "X-Odd": "kept", "Source": "other (0.9)", "Tag": "one, two", "Bugs": "mailto:x@example.org", "Original-Maintainer": "me"},
	}}},
	{name: "several lines of description", set: pkgs{{Name: "long", Fields: map[string]string{"Task": "one,\n two,\n three"}}}},
	{name: "names with architectures", set: pkgs{
		{Name: "libsame", MultiArch: "same", Files: files{{Path: "/usr/lib/x86_64-linux-gnu/libsame.so.1", Body: "so"}}},
		{Name: "all", Arch: "all", Files: files{{Path: "/usr/share/all", Body: "all"}}},
	}},
	{name: "trigger interests", set: pkgs{
		{Name: "watch", Scripts: map[string]string{"triggers": "# words\ninterest-noawait /usr/share/watched\ninterest named-one\ninterest-await named-two\n"}},
		{Name: "libwatch", MultiArch: "same", Scripts: map[string]string{"triggers": "interest /usr/share/watched\ninterest-noawait named-two\n"}},
	}},
	{name: "hardly anything", set: pkgs{{Name: "dirs", Files: files{{Path: "/srv/d", Dir: true, Mode: 0o700}}}}},
	{name: "the first package says how a directory looks", set: pkgs{
		{Name: "one", Files: files{{Path: "/opt/d", Dir: true, Mode: 0o750, GID: 5}}},
		{Name: "two", Files: files{{Path: "/opt/d", Dir: true, Mode: 0o711, UID: 9}, {Path: "/opt/d/f", Body: "f"}}},
	}},
	{name: "later replaces earlier", set: pkgs{
		{Name: "old", Files: files{{Path: "/usr/bin/x", Body: "old"}, {Path: "/usr/bin/o", Body: "o"}}},
		{Name: "new", Replaces: "old (<< 2)", Files: files{{Path: "/usr/bin/x", Body: "new", Mode: 0o755}}},
	}},
	{name: "earlier replaces later", set: pkgs{
		{Name: "boss", Replaces: "late", Files: files{{Path: "/usr/bin/x", Body: "boss"}}},
		{Name: "late", Files: files{{Path: "/usr/bin/x", Body: "late"}, {Path: "/usr/bin/l", Body: "l"}}},
	}},
	{name: "both replace: the later wins", set: pkgs{
		{Name: "aa", Replaces: "bb", Files: files{{Path: "/usr/x", Body: "aa"}}},
		{Name: "bb", Replaces: "aa", Files: files{{Path: "/usr/x", Body: "bb"}}},
	}},
	{name: "a chain of three", set: pkgs{
		{Name: "aa", Files: files{{Path: "/usr/x", Body: "aa"}}},
		{Name: "bb", Replaces: "aa", Files: files{{Path: "/usr/x", Body: "bb"}, {Path: "/usr/y", Body: "bb"}}},
		{Name: "cc", Replaces: "aa, bb", Files: files{{Path: "/usr/x", Body: "cc"}, {Path: "/usr/y", Link: "x"}}},
	}},
	{name: "a hard link to a file that another replaces", set: pkgs{
		{Name: "aa", Files: files{{Path: "/usr/x", Body: "aa"}, {Path: "/usr/z", Hard: "/usr/x"}}},
		{Name: "bb", Replaces: "aa", Files: files{{Path: "/usr/x", Body: "bb"}}},
	}},
	{name: "a replaces that does not reach", fails: "also in old", set: pkgs{
		{Name: "old", Files: files{{Path: "/usr/bin/x", Body: "old"}}},
		{Name: "new", Replaces: "old (<< 1)", Files: files{{Path: "/usr/bin/x", Body: "new"}}},
	}},
	{name: "nobody replaces", fails: "also in aa", set: pkgs{
		{Name: "aa", Files: files{{Path: "/usr/x", Body: "aa"}}}, {Name: "bb", Files: files{{Path: "/usr/x", Body: "aa"}}},
	}},
	{name: "links come last in lists", set: pkgs{
		{Name: "links", Files: files{{Path: "/usr/a", Link: "b"}, {Path: "/usr/b", Body: "b"}, {Path: "/usr/c", Link: "b"}, {Path: "/usr/d", Body: "d"}}},
	}},
	{name: "a link where a directory was stays away", set: pkgs{
		{Name: "dir", Files: files{{Path: "/usr/share/doc/p/readme", Body: "r"}}},
		{Name: "link", Files: files{{Path: "/usr/share/doc/p", Link: "q"}, {Path: "/usr/share/doc/q/other", Body: "o"}}},
	}},
	{name: "a directory where a link was goes through it", set: pkgs{
		{Name: "link", Files: files{{Path: "/run/lock/deep/x", Body: "x"}, {Path: "/var/lock", Link: "../run/lock"}}},
		{Name: "dir", Files: files{{Path: "/var/lock/deep/sub/y", Body: "y"}, {Path: "/var/lock/z", Body: "z"}}},
	}},
	{name: "the same link to a directory in two packages", set: pkgs{
		{Name: "one", Files: files{{Path: "/usr/share/d/f", Body: "f"}, {Path: "/usr/share/l", Link: "d"}}},
		{Name: "two", Files: files{{Path: "/usr/share/d/g", Body: "g"}, {Path: "/usr/share/l", Link: "d"}}},
	}},
	{name: "a conffile that another replaces", set: pkgs{
		{Name: "old", Conffiles: []string{"/etc/x"}, Files: files{{Path: "/etc/x", Body: "old"}}},
		{Name: "new", Replaces: "old", Files: files{{Path: "/usr/share/new", Body: "n"}, {Path: "/usr/share/old", Body: "n"}}},
	}},
	{name: "all compressions", set: pkgs{
		{Name: "xz", Compression: "xz", Files: files{{Path: "/usr/1", Body: strings.Repeat("x", 300_000)}}},
		{Name: "gz", Compression: "gz", Files: files{{Path: "/usr/2", Body: strings.Repeat("g", 300_000)}}},
		{Name: "zst", Compression: "zst", Files: files{{Path: "/usr/3", Body: strings.Repeat("z", 300_000)}}},
		{Name: "none", Compression: "none", Files: files{{Path: "/usr/4", Body: strings.Repeat("n", 300_000)}}},
	}},
}

// TestAgainstDpkg installs each set with dpkg and with us, ours in several orders of
// arrival, and compares the trees, the database included.
func TestAgainstDpkg(t *testing.T) {
	dpkg := kerneltest.Program(t, "dpkg")
	for _, c := range dpkgCases {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t)
			for i := range c.set {
				// Something of its own: dpkg makes a package disappear of which nothing is left.
				p := &c.set[i]
				p.Files = append(p.Files, sourcetest.File{Path: "/usr/share/doc/" + p.Name + "/copyright", Body: p.Name})
			}
			items := b.items(c.set)
			want, err := dpkgTree(t, dpkg, b, len(items))
			if (err != nil) != (c.fails != "") {
				t.Fatalf("dpkg: %v", err)
			}
			random := rand.New(rand.NewPCG(1, uint64(len(c.name))))
			for try := range 4 {
				b.dir = t.TempDir()
				if try > 0 {
					b.shuffle = random.Perm(len(items))
				}
				err := b.install(items)
				if c.fails != "" {
					if err == nil || !strings.Contains(err.Error(), c.fails) {
						t.Errorf("got %v, want an error with %q", err, c.fails)
					}
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				if d := difference(want, treeLines(t, b.dir, notCompared)); d != "" {
					t.Errorf("arrival %v: - dpkg, + ours:\n%s", b.shuffle, d)
				}
			}
		})
	}
}

// dpkgTree has dpkg unpack the packages one after the other, then configure them.
func dpkgTree(t *testing.T, dpkg string, b *bench, n int) ([]string, error) {
	t.Helper()
	dir := t.TempDir()
	for _, top := range b.merged {
		if err := os.MkdirAll(filepath.Join(dir, "usr", top), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("usr/"+top, filepath.Join(dir, top)); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"info", "updates", "triggers", "alternatives"} {
		if err := os.MkdirAll(filepath.Join(dir, admin, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"status", "available"} {
		if err := os.WriteFile(filepath.Join(dir, admin, f), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	run := func(args ...string) error {
		cmd := exec.Command(dpkg, append([]string{"--root=" + dir, "--force-depends", "--force-unsafe-io", "--log=/dev/null"}, args...)...)
		cmd.Env = []string{"PATH=" + searchPath, "LC_ALL=C"}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Logf("%s", out)
		}
		return err
	}
	debs, err := filepath.Glob(filepath.Join(b.debs, "*.deb"))
	if err != nil || len(debs) != n {
		t.Fatal(err, debs)
	}
	for _, deb := range debs {
		if err := run("--unpack", deb); err != nil {
			return nil, err
		}
	}
	if err := run("--configure", "-a"); err != nil {
		return nil, err
	}
	return treeLines(t, dir, notCompared), nil
}

// notCompared are dpkg's own locks and back-ups, and the layout version that it writes
// only with its first architecture-qualified package.
func notCompared(path string) bool {
	switch path {
	case admin + "/lock", admin + "/lock-frontend", admin + "/status-old", admin + "/triggers/Lock",
		admin + "/triggers/Unincorp", admin + "/triggers/File", admin + "/arch", admin + "/info/format", admin + "/arch-native":
		return true
	}
	return false
}
