// SPDX-License-Identifier: Apache-2.0

package pgp_test

import (
	"bytes"
	"crypto"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"

	"github.com/mkmachine/mkmachine/internal/kernel/kerneltest"
	"github.com/mkmachine/mkmachine/sources/pgp"
	"github.com/mkmachine/mkmachine/sources/sourcetest"
)

// now is the time of every question, born that of the keys; the vectors are made for them.
var (
	born = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	now  = time.Date(2026, 9, 1, 12, 0, 0, 0, time.UTC)
)

const releaseText = "Origin: Debian\nSuite: stable\n\n- a list\n-----\nDescription:  two  blanks\nSHA256:\n abc 1 x\n"

func at(t time.Time) func() time.Time { return func() time.Time { return t } }

func newKey(t testing.TB, created time.Time) *openpgp.Entity {
	t.Helper()
	e, err := openpgp.NewEntity("Archive", "", "archive@example.org", &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA, Time: at(created)})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// fixedKey is the same in every process, as fuzzing needs: its workers get seeds from their parent.
func fixedKey(t testing.TB) *openpgp.Entity {
	t.Helper()
	f, err := os.Open("testdata/key.asc")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	list, err := openpgp.ReadArmoredKeyRing(f)
	if err != nil {
		t.Fatal(err)
	}
	return list[0]
}

func public(t testing.TB, entities ...*openpgp.Entity) []byte {
	t.Helper()
	var out bytes.Buffer
	for _, e := range entities {
		if err := e.Serialize(&out); err != nil {
			t.Fatal(err)
		}
	}
	return out.Bytes()
}

func ring(t testing.TB, entities ...*openpgp.Entity) *pgp.Keyring {
	t.Helper()
	r, err := pgp.LoadKeyring(public(t, entities...))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func clearsign(t testing.TB, e *openpgp.Entity, text string, when time.Time) string {
	t.Helper()
	msg, err := sourcetest.Clearsign(e, text, when)
	if err != nil {
		t.Fatal(err)
	}
	return string(msg)
}

func detach(t testing.TB, e *openpgp.Entity, data string, when time.Time, edit func(*packet.Config)) string {
	t.Helper()
	cfg := &packet.Config{DefaultHash: crypto.SHA512, Time: at(when)}
	if edit != nil {
		edit(cfg)
	}
	var out bytes.Buffer
	err := openpgp.ArmoredDetachSign(&out, []*openpgp.Entity{e}, strings.NewReader(data), &openpgp.SignParams{Config: cfg})
	if err != nil {
		t.Fatal(err)
	}
	return out.String() + "\n"
}

// gpg is a GnuPG home of its own, for vectors that the library cannot make.
type gpg struct {
	t    testing.TB
	home string
}

func newGPG(t testing.TB) *gpg {
	t.Helper()
	kerneltest.Program(t, "gpg")
	// The path of the agent's socket must stay short.
	home, err := os.MkdirTemp("", "g")
	if err != nil {
		t.Fatal(err)
	}
	g := &gpg{t, home}
	t.Cleanup(func() {
		cmd := exec.Command("gpgconf", "--kill", "all")
		cmd.Env = g.env()
		cmd.Run()
		os.RemoveAll(home)
	})
	return g
}

func (g *gpg) env() []string {
	return []string{"GNUPGHOME=" + g.home, "PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
}

// run gives stdin to gpg at a faked time and returns its output.
func (g *gpg) run(when time.Time, stdin string, args ...string) string {
	g.t.Helper()
	args = append([]string{"--batch", "--yes", "--quiet", "--no-tty", "--pinentry-mode", "loopback", "--passphrase", "",
		"--no-auto-key-locate", "--allow-weak-digest-algos", "--allow-weak-key-signatures",
		"--faked-system-time", when.UTC().Format("20060102T150405") + "!"}, args...)
	cmd := exec.Command("gpg", args...)
	cmd.Env, cmd.Stdin = g.env(), strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		g.t.Fatalf("gpg %v: %v\n%s", args, err, &errs)
	}
	return out.String()
}

// key makes a key and returns its fingerprint.
func (g *gpg) key(when time.Time, name, algo, usage, expire string) string {
	g.t.Helper()
	g.run(when, "", "--quick-gen-key", name+" <"+name+"@example.org>", algo, usage, expire)
	out := g.run(when, "", "--with-colons", "--list-keys", name+"@example.org")
	return regexp.MustCompile(`(?m)^fpr:+([0-9A-F]{40}):`).FindStringSubmatch(out)[1]
}

func (g *gpg) export(fprs ...string) []byte {
	return []byte(g.run(now, "", append([]string{"--export"}, fprs...)...))
}

// gpgv asks the reference implementation; ok follows apt's rule.
func gpgv(t testing.TB, keyring []byte, args ...string) (ok bool, status string) {
	t.Helper()
	dir := t.TempDir()
	keys := filepath.Join(dir, "keys.gpg")
	if err := os.WriteFile(keys, keyring, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("gpgv", append([]string{"--status-fd", "1", "--keyring", keys}, args...)...)
	cmd.Env = []string{"GNUPGHOME=" + dir, "PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
	out, _ := cmd.CombinedOutput()
	status = string(out)
	return strings.Contains(status, "[GNUPG:] VALIDSIG ") && !strings.Contains(status, "[GNUPG:] BADSIG "), status
}

// gpgvText is gpgv's verdict on a clearsigned message and the text it gives out, without
// blanks at line ends (they are not signed and gpgv keeps them).
func gpgvText(t testing.TB, keyring, msg []byte) (ok bool, text, status string) {
	t.Helper()
	dir := t.TempDir()
	in, out := filepath.Join(dir, "msg"), filepath.Join(dir, "text")
	if err := os.WriteFile(in, msg, 0o600); err != nil {
		t.Fatal(err)
	}
	ok, status = gpgv(t, keyring, "--output", out, in)
	data, _ := os.ReadFile(out)
	return ok, trimLines(string(data)), status
}

func trimLines(s string) string {
	var out strings.Builder
	for line := range strings.Lines(s) {
		out.WriteString(strings.TrimRight(line, " \t\r\n") + "\n")
	}
	return out.String()
}
