// SPDX-License-Identifier: Apache-2.0

// Package kerneltest is what tests that need a capable host share: skipping with a reason,
// scratch file systems, mirrors, and a check that nothing was left behind.
//
// A skip is never silent: the reason is printed, and MKMACHINE_REQUIRE ("all", or names of
// features and programs joined by commas) turns it into a failure. Everything a helper makes
// is gone when the test ends.
package kerneltest

import (
	"bufio"
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/kernel"
)

// Require skips the test unless the host has all features.
func Require(t testing.TB, features ...kernel.Feature) {
	t.Helper()
	for _, f := range features {
		if err := kernel.Check(f); err != nil {
			Lacks(t, string(f), err.Error())
		}
	}
}

// Lacks skips the test because the named thing is missing, or fails it where
// MKMACHINE_REQUIRE asks for that name.
func Lacks(t testing.TB, name, reason string) {
	t.Helper()
	for want := range strings.SplitSeq(os.Getenv("MKMACHINE_REQUIRE"), ",") {
		if want == "all" || want == name {
			t.Fatalf("needs %s, which MKMACHINE_REQUIRE demands: %s", name, reason)
		}
	}
	t.Skipf("needs %s: %s", name, reason)
}

// Program gives the absolute path of a program of the host, or skips the test.
func Program(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		Lacks(t, name, err.Error())
	}
	return path
}

// Static skips the test unless the test binary is linked statically, as the program is: what
// runs in an empty root has no loader.
func Static(t testing.TB) {
	t.Helper()
	file, err := elf.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, p := range file.Progs {
		if p.Type == elf.PT_INTERP {
			Lacks(t, "static", "the test binary is linked dynamically; set CGO_ENABLED=0")
		}
	}
}

// Fixtures gives a directory of the shared fixtures: below $MKMACHINE_FIXTURES, or below
// ../shared/fixtures beside the repository. It skips the test where there is none.
func Fixtures(t testing.TB, name string) string {
	t.Helper()
	base := os.Getenv("MKMACHINE_FIXTURES")
	if base == "" {
		dir, err := os.Getwd()
		if err != nil {
			t.Fatal(err)
		}
		for dir != "/" {
			if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
				break
			}
			dir = filepath.Dir(dir)
		}
		base = filepath.Join(filepath.Dir(dir), "shared", "fixtures")
	}
	path := filepath.Join(base, name)
	if _, err := os.Stat(path); err != nil {
		Lacks(t, "fixtures", err.Error())
	}
	return path
}

// Mirror gives the URL, without a trailing slash, of a mirror for a family ("debian",
// "ubuntu") taken from $MKMACHINE_MIRROR_FAMILY or from the host's own apt configuration,
// where the sibling of its mirror is assumed to serve the other family. It does not try it.
func Mirror(t testing.TB, family string) string {
	t.Helper()
	if url := os.Getenv("MKMACHINE_MIRROR_" + strings.ToUpper(family)); url != "" {
		return strings.TrimRight(url, "/")
	}
	files, _ := filepath.Glob("/etc/apt/sources.list.d/*.sources")
	lists, _ := filepath.Glob("/etc/apt/sources.list.d/*.list")
	files = append(append(files, lists...), "/etc/apt/sources.list")
	var sibling string
	for _, name := range files {
		for _, url := range mirrorURLs(name) {
			base, last := url[:strings.LastIndex(url, "/")], url[strings.LastIndex(url, "/")+1:]
			switch last {
			case family:
				return url
			case "debian", "ubuntu":
				if sibling == "" {
					sibling = base + "/" + family
				}
			}
		}
	}
	if sibling == "" {
		Lacks(t, "mirror", "apt on this host has no mirror of "+family)
	}
	return sibling
}

// mirrorURLs lists the package archives named in one apt source file.
func mirrorURLs(name string) []string {
	file, err := os.Open(name)
	if err != nil {
		return nil
	}
	defer file.Close()
	var out []string
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if !strings.HasPrefix(line, "URIs:") && !strings.HasPrefix(line, "deb ") {
			continue
		}
		for _, word := range strings.Fields(line) {
			if strings.HasPrefix(word, "http://") || strings.HasPrefix(word, "https://") {
				out = append(out, strings.TrimRight(word, "/"))
			}
		}
	}
	return out
}

// LoopBtrfs mounts a fresh btrfs of 2 GiB (sparse) and gives its root directory.
func LoopBtrfs(t testing.TB) string {
	t.Helper()
	return LoopFS(t, "btrfs", 2<<30)
}

// LoopFS mounts a fresh file system (btrfs, ext4, xfs) of size bytes, kept in a sparse file,
// and gives its root directory. It is unmounted when the test ends.
func LoopFS(t testing.TB, kind string, size int64) string {
	t.Helper()
	Require(t, kernel.Root, kernel.Loop)
	mkfs := Program(t, "mkfs."+kind)
	mount, umount := Program(t, "mount"), Program(t, "umount")
	base, err := os.MkdirTemp("", "mkmachine-loop-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// Not RemoveAll: if the unmount failed, the content must not be walked.
		for _, name := range []string{"image", "fs"} {
			if err := os.Remove(filepath.Join(base, name)); err != nil {
				t.Errorf("cannot remove the scratch file system: %v", err)
			}
		}
		_ = os.Remove(base)
	})
	image, dir := filepath.Join(base, "image"), filepath.Join(base, "fs")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	file, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	err = file.Truncate(size)
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"-q", image}
	if kind == "ext4" {
		args = []string{"-q", "-E", "lazy_itable_init=1", image}
	}
	if out, err := exec.Command(mkfs, args...).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.%s: %v\n%s", kind, err, out)
	}
	if out, err := exec.Command(mount, "-o", "loop", image, dir).CombinedOutput(); err != nil {
		Lacks(t, kind, fmt.Sprintf("mount: %v: %s", err, out))
	}
	t.Cleanup(func() {
		if out, err := exec.Command(umount, dir).CombinedOutput(); err != nil {
			t.Errorf("umount %s: %v: %s", dir, err, out)
			_ = unix.Unmount(dir, unix.MNT_DETACH)
		}
	})
	return dir
}
