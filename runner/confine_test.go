// SPDX-License-Identifier: Apache-2.0

package runner_test

import (
	"context"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/kernel"
	"github.com/mkmachine/mkmachine/internal/kernel/kerneltest"
	"github.com/mkmachine/mkmachine/runner"
)

func confine(t testing.TB, entry string, opts *runner.ConfineOptions) (*runner.Confined, string) {
	t.Helper()
	kerneltest.Static(t)
	kerneltest.Require(t, kernel.Root, kernel.UserNS, kernel.Seccomp)
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/sentinel", []byte("#!/sentinel\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	c, err := runner.Confine(t.Context(), entry, dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, dir
}

// A confined process writes a tree as root would: owners, set-user-id bits, file capabilities.
func TestConfineWritesAsRoot(t *testing.T) {
	kerneltest.Leaks(t)
	c, dir := confine(t, "echo", nil)
	if _, err := c.Conn.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(c.Conn)
	if err := c.Wait(); err != nil {
		t.Fatal(err)
	}
	if string(answer) != "done" || err != nil {
		t.Errorf("answer %q, %v", answer, err)
	}
	info, err := os.Stat(dir + "/out")
	if err != nil {
		t.Fatal(err)
	}
	owner := info.Sys().(*syscall.Stat_t)
	if info.Mode() != 0o755|os.ModeSetuid || owner.Uid != 1000 || owner.Gid != 50 {
		t.Errorf("mode %v, owner %d:%d", info.Mode(), owner.Uid, owner.Gid)
	}
	caps := make([]byte, 64)
	if n, err := unix.Getxattr(dir+"/out", "security.capability", caps); err != nil || n != 20 || caps[3] != 2 {
		t.Errorf("capabilities: %d bytes, version %d, %v; want version 2 in 20 bytes", n, caps[3], err)
	}
}

func TestConfinedSeesNothingElse(t *testing.T) {
	c, dir := confine(t, "doors", nil)
	out, err := io.ReadAll(c.Conn)
	if err := c.Wait(); err != nil || len(out) == 0 {
		t.Fatal(err)
	}
	const want = `root sentinel: <nil>
proc: stat /proc/self: no such file or directory
above: stat ../../../../etc/passwd: no such file or directory
exec: operation not permitted
socket: operation not permitted
mount: operation not permitted
unshare: operation not permitted
chroot: operation not permitted
device: operation not permitted
kill: operation not permitted
foreign id: invalid argument
prctl: operation not permitted
`
	if string(out) != want || err != nil {
		t.Errorf("%v, got\n%s\nwant\n%s", err, out, want)
	}
	if _, err := os.Lstat(dir + "/dev0"); err == nil {
		t.Error("a device node was made")
	}
}

func TestConfineTellsWhatWentWrong(t *testing.T) {
	kerneltest.Leaks(t)
	c, _ := confine(t, "panic", nil)
	if err := c.Wait(); err == nil || !strings.Contains(err.Error(), "panic: on purpose") {
		t.Errorf("panic: %v", err)
	}
	c, _ = confine(t, "wait", nil)
	c.Conn.CloseWrite()
	if err := c.Wait(); err == nil || err.Error() != "end of input" {
		t.Errorf("error: %v", err)
	}
	c, _ = confine(t, "nonesuch", nil)
	if err := c.Wait(); err == nil || !strings.Contains(err.Error(), `no entry "nonesuch"`) {
		t.Errorf("unknown entry: %v", err)
	}
	if _, err := runner.Confine(t.Context(), "wait", t.TempDir()+"/absent", nil); err == nil || !strings.Contains(err.Error(), "absent") {
		t.Errorf("no directory: %v", err)
	}
	c, _ = confine(t, "echo", &runner.ConfineOptions{ReadOnly: true})
	c.Conn.Write([]byte("x"))
	if err := c.Wait(); err == nil || !strings.Contains(err.Error(), "read-only file system") {
		t.Errorf("read-only: %v", err)
	}
}

func TestConfineEndsWithItsContext(t *testing.T) {
	kerneltest.Static(t)
	kerneltest.Require(t, kernel.Root, kernel.UserNS)
	kerneltest.Leaks(t)
	ctx, cancel := context.WithCancel(t.Context())
	c, err := runner.Confine(ctx, "wait", t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(20*time.Millisecond, cancel)
	if err := c.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("after cancel: %v", err)
	}
}

func BenchmarkConfine(b *testing.B) {
	for b.Loop() {
		c, _ := confine(b, "wait", nil)
		c.Conn.CloseWrite()
		_ = c.Wait()
	}
}
