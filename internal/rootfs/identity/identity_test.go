// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"bytes"
	"crypto/tls"
	"errors"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/mkmachine/mkmachine/internal/kernel"
	"github.com/mkmachine/mkmachine/internal/kernel/kerneltest"
	"github.com/mkmachine/mkmachine/internal/rootfs"
)

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func tree(t testing.TB, files map[string]string) (*rootfs.Root, string) {
	t.Helper()
	kerneltest.Require(t, kernel.Root)
	dir := t.TempDir()
	r, err := rootfs.Open(dir)
	must(t, err)
	t.Cleanup(func() { r.Close() })
	for path, text := range files {
		must(t, r.MkdirAll(path[:strings.LastIndexByte(path, '/')], 0o755, 0, 0))
		if target, ok := strings.CutPrefix(text, "-> "); ok {
			must(t, r.Symlink(target, path, 0, 0))
		} else {
			must(t, r.Put(path, 0o644, 0, 0, []byte(text)))
		}
	}
	return r, dir
}

var full = map[string]string{
	"etc/machine-id": "", "etc/hostname": "template\n", "etc/hosts": "127.0.0.1 localhost\n127.0.1.1\ttemplate\n", "usr/sbin/sshd": "x",
	"etc/ssh/sshd_config": "", "usr/sbin/make-ssl-cert": "x", "etc/ssl/certs/x.pem": "", "etc/ssl/private/x": "", "var/lib/dbus/machine-id": "old\n",
}

func TestReset(t *testing.T) {
	r, dir := tree(t, full)
	must(t, r.Chown("etc/ssl/private", 0, 110))
	must(t, Reset(r, &Options{Hostname: "web.example.org", Rand: bytes.NewReader(bytes.Repeat([]byte{0xff}, 16))}))
	for path, want := range map[string]string{
		"etc/machine-id": "ffffffffffff4fffbfffffffffffffff\n", "var/lib/dbus/machine-id": "ffffffffffff4fffbfffffffffffffff\n",
		"etc/hostname": "web.example.org\n", "etc/hosts": "127.0.0.1 localhost\n127.0.1.1\tweb.example.org web\n",
	} {
		if got, err := r.ReadFile(path, 1000); err != nil || string(got) != want {
			t.Errorf("%s: %q %v", path, got, err)
		}
	}
	for _, kind := range []string{"ed25519", "ecdsa"} {
		file := "etc/ssh/ssh_host_" + kind + "_key"
		data, err := r.ReadFile(file, 10000)
		must(t, err)
		signer, err := ssh.ParsePrivateKey(data)
		must(t, err)
		pub, err := r.ReadFile(file+".pub", 10000)
		must(t, err)
		key, comment, _, _, err := ssh.ParseAuthorizedKey(pub)
		must(t, err)
		if !bytes.Equal(key.Marshal(), signer.PublicKey().Marshal()) || comment != "root@web.example.org" {
			t.Errorf("%s: public key %s", kind, pub)
		}
		if st, _ := r.Lstat(file); st.Mode != 0o600 {
			t.Errorf("%s has mode %o", file, st.Mode)
		}
		if keygen, err := exec.LookPath("ssh-keygen"); err == nil {
			if out, err := exec.Command(keygen, "-y", "-f", dir+"/"+file).CombinedOutput(); err != nil || !strings.HasPrefix(string(pub), strings.TrimSpace(string(out))[:40]) {
				t.Errorf("ssh-keygen: %s %v", out, err)
			}
		}
	}
	if _, err := tls.LoadX509KeyPair(dir+"/etc/ssl/certs/ssl-cert-snakeoil.pem", dir+"/etc/ssl/private/ssl-cert-snakeoil.key"); err != nil {
		t.Error(err)
	}
	if st, _ := r.Lstat("etc/ssl/private/ssl-cert-snakeoil.key"); st.Mode != 0o640 || st.GID != 110 {
		t.Errorf("key has mode %o group %d", st.Mode, st.GID)
	}
	// Keys stay, the machine-id does not.
	before, err := os.ReadFile(dir + "/etc/ssh/ssh_host_ed25519_key")
	must(t, err, Reset(r, nil))
	after, _ := os.ReadFile(dir + "/etc/ssh/ssh_host_ed25519_key")
	id, _ := os.ReadFile(dir + "/etc/machine-id")
	if !bytes.Equal(before, after) || !regexp.MustCompile(`^[0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}\n$`).Match(id) || strings.HasPrefix(string(id), "ffffffffffff") {
		t.Errorf("second reset: %q", id)
	}
}

func TestResetGivesOnlyWhatIsUsed(t *testing.T) {
	r, _ := tree(t, map[string]string{"usr/bin/app": "x"})
	before, err := r.Tree(t.Context())
	must(t, err, Reset(r, &Options{Hostname: "web"}))
	if after, _ := r.Tree(t.Context()); after != before {
		t.Errorf("the tree got:\n%s", after)
	}
	r, _ = tree(t, map[string]string{"etc/machine-id": "-> /run/machine-id", "etc/hostname": "x\n"})
	must(t, Reset(r, &Options{Hostname: "web"}))
	if target, err := r.Readlink("etc/machine-id"); err != nil || target != "/run/machine-id" {
		t.Errorf("machine-id: %q %v", target, err)
	}
	if err := Reset(r, &Options{Hostname: "a\nb"}); err == nil {
		t.Error("a name with a newline was written")
	}
}

// Budget: 5 ms for everything.
func TestResetIsFast(t *testing.T) {
	best := time.Hour
	for range 5 {
		r, _ := tree(t, full)
		start := time.Now()
		must(t, Reset(r, &Options{Hostname: "web"}))
		best = min(best, time.Since(start))
	}
	t.Logf("%v", best)
	if best > 50*time.Millisecond {
		t.Errorf("took %v, budget 5 ms", best)
	}
}
