// SPDX-License-Identifier: Apache-2.0

package rootfs

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/kernel"
	"github.com/mkmachine/mkmachine/internal/kernel/kerneltest"
)

// GNU tar and we make the same tree of the same archive, in every format that it writes.
func TestAgainstGNUTar(t *testing.T) {
	kerneltest.Require(t, kernel.Root)
	tar := kerneltest.Program(t, "tar")
	src := t.TempDir()
	r, err := Open(src)
	must(t, err)
	defer r.Close()
	sample(t, r)
	hole, err := os.Create(filepath.Join(src, "holes"))
	must(t, err)
	_, err = hole.WriteAt([]byte("data"), 3<<20)
	must(t, err, hole.Truncate(8<<20), hole.Close())
	for i := range 300 { // more regions than one header block of the old sparse format has
		f, err := os.OpenFile(filepath.Join(src, "comb"), os.O_WRONLY|os.O_CREATE, 0o600)
		must(t, err)
		_, err = f.WriteAt([]byte("x"), int64(i)*65536)
		must(t, err, f.Close())
	}
	must(t, os.WriteFile(filepath.Join(src, "ping"), []byte("x"), 0o755))
	must(t, unix.Setxattr(filepath.Join(src, "ping"), xattrCapability, []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0))
	if setfacl, err := exec.LookPath("setfacl"); err == nil {
		if out, err := exec.Command(setfacl, "-m", "u:4321:rwx,g:4322:r--", filepath.Join(src, "ping")).CombinedOutput(); err != nil {
			t.Logf("no ACLs here: %s", out)
		}
	}
	must(t, r.Clamp(t.Context(), 1_500_000_000))
	for _, args := range []string{"--format=ustar --exclude=./usr/x*", "--format=gnu", "--format=gnu --sparse", "--format=pax --xattrs --xattrs-include=*",
		"--format=pax --acls --xattrs --xattrs-include=*", "--format=pax --sparse --sparse-version=0.0", "--format=pax --sparse --sparse-version=0.1",
		"--format=pax --sparse --sparse-version=1.0"} {
		t.Run(strings.ReplaceAll(args, " ", ""), func(t *testing.T) {
			archive, err := exec.Command(tar, append(strings.Fields(args), "--numeric-owner", "-C", src, "-c", ".")...).Output()
			must(t, err)
			theirs, ours := tempRoot(t), tempRoot(t)
			// With --acls tar would take away the ACL that --xattrs just gave.
			how := []string{"--numeric-owner", "--xattrs", "--xattrs-include=*", "-C", "/proc/self/fd/3", "-xpf", "-"}
			if strings.Contains(args, "--acls") {
				how = append(how, "--acls")
			}
			cmd := exec.Command(tar, how...)
			dir := os.NewFile(uintptr(must1(unix.Dup(theirs.fd))), "theirs")
			cmd.ExtraFiles = []*os.File{dir}
			cmd.Stdin = bytes.NewReader(archive)
			out, err := cmd.CombinedOutput()
			dir.Close()
			if err != nil {
				t.Fatalf("tar: %v %s", err, out)
			}
			s := ours.NewSession(nil)
			u := s.NewUnpacker(&UnpackOptions{Holes: true})
			must(t, u.Tar(t.Context(), bytes.NewReader(archive)), u.Close(), s.Finish())
			a, err := theirs.Manifest(t.Context())
			must(t, err)
			b, err := ours.Manifest(t.Context())
			must(t, err)
			if d := DiffManifests(a, b, 20); d != "" {
				t.Errorf("tar made -, we made +:\n%s", d)
			}
		})
	}
}

func must1[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
