// SPDX-License-Identifier: Apache-2.0

package pgp_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/sources/pgp"
)

func have(program string) bool {
	_, err := exec.LookPath(program)
	return err == nil
}

func armored(t *testing.T, kind string, data []byte) string {
	t.Helper()
	var out bytes.Buffer
	w, err := armor.Encode(&out, kind, nil)
	if err != nil {
		t.Fatal(err)
	}
	w.Write(data)
	w.Close()
	return out.String() + "\n"
}

func TestLoadKeyring(t *testing.T) {
	a, b := newKey(t, born), newKey(t, born)
	block := func(e *openpgp.Entity) string { return armored(t, "PGP PUBLIC KEY BLOCK", public(t, e)) }
	var private bytes.Buffer
	a.SerializePrivate(&private, nil)
	for _, c := range []struct {
		name, data string
		keys       int
		class      fault.Class
		text       string
	}{
		{"binary", string(public(t, a, b)), 2, "", ""},
		{"armored", block(a), 1, "", ""},
		{"two blocks", block(a) + block(b), 2, "", ""},
		{"text between blocks", "Key of the archive\n" + block(a) + "\nand another:\n" + block(b) + "end\n", 2, "", ""},
		{"same key twice", string(public(t, a, a)), 1, "", ""},
		{"KEY-11 empty", "", 0, fault.Verify, "empty"},
		{"KEY-11 blank", " \n\n", 0, fault.Verify, "empty"},
		{"KEY-14 keybox", "\x00\x00\x00\x20\x01\x01\x00\x02KBXf\x00\x00\x00\x00", 0, fault.Format, "keybox"},
		{"KEY-14 SSH", "ssh-ed25519 AAAAC3 me@host\n", 0, fault.Format, "SSH"},
		{"KEY-14 SSH private", "-----BEGIN OPENSSH PRIVATE KEY-----\n", 0, fault.Format, "SSH"},
		{"KEY-14 X.509", "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n", 0, fault.Format, "X.509"},
		{"minisign", "untrusted comment: minisign public key\nRWQ\n", 0, fault.Format, "minisign"},
		{"web page", "<html>404</html>", 0, fault.Format, "HTML"},
		{"private key", private.String(), 0, fault.Format, "private"},
		{"private key armored", armored(t, "PGP PRIVATE KEY BLOCK", private.Bytes()), 0, fault.Format, "private"},
		{"text", "hello\n", 0, fault.Format, "neither"},
		{"cut", string(public(t, a)[:100]), 0, fault.Format, "truncated"},
		{"no key inside", "\xb4\x04test", 0, fault.Verify, "no usable key"},
		{"armor cut", block(a)[:200], 0, fault.Format, "end line"},
		{"partial length", "\xc6\xe1" + strings.Repeat("x", 10), 0, fault.Format, "partial"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := pgp.LoadKeyring([]byte(c.data))
			if c.class != "" {
				if fault.ClassOf(err) != c.class || !strings.Contains(err.Error(), c.text) {
					t.Fatalf("class %s: %v", fault.ClassOf(err), err)
				}
				return
			}
			if err != nil || len(r.Fingerprints()) != c.keys {
				t.Fatalf("%v: %v", r, err)
			}
			again, err := pgp.LoadKeyring(r.Binary())
			if err != nil || fmt.Sprint(again.Fingerprints()) != fmt.Sprint(r.Fingerprints()) {
				t.Fatalf("Binary does not load as the same keys: %v", err)
			}
		})
	}
}

func TestReadKeyring(t *testing.T) { // KEY-12
	dir := t.TempDir()
	for _, path := range []string{filepath.Join(dir, "none"), dir, "/dev/null"} {
		if _, err := pgp.ReadKeyring(path); fault.ClassOf(err) != fault.Verify {
			t.Errorf("%s: %v", path, err)
		}
	}
	good := filepath.Join(dir, "good")
	os.WriteFile(good, public(t, newKey(t, born)), 0o600)
	if _, err := pgp.ReadKeyring(good); err != nil {
		t.Fatal(err)
	}
}

func TestRestrict(t *testing.T) {
	a, b := newKey(t, born), newKey(t, born)
	both := ring(t, a, b)
	fpr := both.Fingerprints()[0]
	spaced := fmt.Sprintf("%s %s  %s", strings.ToLower(fpr[:4]), fpr[4:20], fpr[20:])
	only, err := both.Restrict([]string{spaced})
	if err != nil || len(only.Fingerprints()) != 1 {
		t.Fatal(err)
	}
	// KEY-02: the other key is in the file but not pinned.
	sig := detach(t, b, "x", now.Add(-time.Hour), nil)
	if _, err := pgp.VerifyDetached([]byte("x"), []byte(sig), only, pgp.Policy{Now: now}); fault.ClassOf(err) != fault.Verify || len(fault.Hints(err)) == 0 {
		t.Fatal(err)
	}
	if _, err := pgp.VerifyDetached([]byte("x"), []byte(sig), both, pgp.Policy{Now: now}); err != nil {
		t.Fatal(err)
	}
	for _, short := range []string{fpr[32:], fpr[24:], "0x" + fpr[24:], "", strings.Repeat("z", 40)} { // KEY-01
		if _, err := both.Restrict([]string{short}); fault.ClassOf(err) != fault.Config {
			t.Errorf("%q: %v", short, err)
		}
	}
	if _, err := both.Restrict([]string{strings.Repeat("A", 40)}); fault.ClassOf(err) != fault.Verify { // KEY-16
		t.Fatal(err)
	}
	if _, err := both.Restrict(nil); fault.ClassOf(err) != fault.Config {
		t.Fatal(err)
	}
}

func verify(data []byte, sig string) error {
	r, err := pgp.LoadKeyring(data)
	if err != nil {
		return err
	}
	_, err = pgp.VerifyDetached([]byte("x"), []byte(sig), r, pgp.Policy{Now: now})
	return err
}

func TestRevoked(t *testing.T) { // KEY-07
	e := newKey(t, born)
	sig := detach(t, e, "x", now.Add(-time.Hour), nil)
	clean := public(t, e)
	if err := verify(clean, sig); err != nil {
		t.Fatal(err)
	}
	for _, reason := range []packet.ReasonForRevocation{packet.KeyCompromised, packet.KeySuperseded, packet.NoReason} {
		e := newKey(t, born)
		sig := detach(t, e, "x", now.Add(-time.Hour), nil)
		clean := public(t, e)
		if err := e.Revoke(reason, "gone", &packet.Config{Time: at(now.Add(-time.Minute))}); err != nil {
			t.Fatal(err)
		}
		revoked := public(t, e)
		var certificate bytes.Buffer
		e.Revocations[0].Packet.Serialize(&certificate)
		for name, keyring := range map[string][]byte{
			"revoked":                          revoked,
			"clean copy first":                 append(bytes.Clone(clean), revoked...),
			"clean copy last":                  append(bytes.Clone(revoked), clean...),
			"certificate alone before the key": append(certificate.Bytes(), clean...),
			"certificate after the key":        append(bytes.Clone(clean), certificate.Bytes()...),
		} {
			err := verify(keyring, sig)
			if fault.ClassOf(err) != fault.Verify || !strings.Contains(err.Error(), "revoked") {
				t.Errorf("%s (%v): %v", name, reason, err)
			}
		}
	}
	// A revocation by somebody else has no effect.
	stranger := newKey(t, born)
	stranger.Revoke(packet.KeyCompromised, "", &packet.Config{Time: at(now.Add(-time.Minute))})
	var foreign bytes.Buffer
	stranger.Revocations[0].Packet.Serialize(&foreign)
	if err := verify(append(bytes.Clone(clean), foreign.Bytes()...), sig); err != nil {
		t.Fatal(err)
	}
}

func subkeyOf(t *testing.T, e *openpgp.Entity) *openpgp.Subkey {
	t.Helper()
	if err := e.AddSigningSubkey(&packet.Config{Algorithm: packet.PubKeyAlgoEdDSA, Time: at(born.Add(time.Hour))}); err != nil {
		t.Fatal(err)
	}
	return &e.Subkeys[len(e.Subkeys)-1]
}

func TestSubkeys(t *testing.T) {
	e := newKey(t, born)
	sub := subkeyOf(t, e)
	sig := detach(t, e, "x", now.Add(-time.Hour), func(c *packet.Config) { c.SigningKeyId = sub.PublicKey.KeyId })
	signers, err := pgp.VerifyDetached([]byte("x"), []byte(sig), ring(t, e), pgp.Policy{Now: now})
	if err != nil || signers[0].Subkey != fmt.Sprintf("%X", sub.PublicKey.Fingerprint) || signers[0].Fingerprint != fmt.Sprintf("%X", e.PrimaryKey.Fingerprint) {
		t.Fatal(signers, err)
	}
	t.Run("KEY-09 no cross-certification", func(t *testing.T) {
		e := newKey(t, born)
		sub := subkeyOf(t, e)
		sig := detach(t, e, "x", now.Add(-time.Hour), func(c *packet.Config) { c.SigningKeyId = sub.PublicKey.KeyId })
		binding := sub.Bindings[0].Packet
		binding.EmbeddedSignature = nil
		if err := binding.SignKey(sub.PublicKey, e.PrivateKey, &packet.Config{Time: at(born.Add(time.Hour))}); err != nil {
			t.Fatal(err)
		}
		if err := verify(public(t, e), sig); fault.ClassOf(err) != fault.Verify {
			t.Fatal(err)
		}
	})
	t.Run("KEY-07 revoked subkey", func(t *testing.T) {
		e := newKey(t, born)
		sub := subkeyOf(t, e)
		sig := detach(t, e, "x", now.Add(-time.Hour), func(c *packet.Config) { c.SigningKeyId = sub.PublicKey.KeyId })
		clean := public(t, e)
		if err := sub.Revoke(packet.KeySuperseded, "", &packet.Config{Time: at(now.Add(-time.Minute))}); err != nil {
			t.Fatal(err)
		}
		if err := verify(append(clean, public(t, e)...), sig); fault.ClassOf(err) != fault.Verify || !strings.Contains(err.Error(), "revoked") {
			t.Fatal(err)
		}
	})
	t.Run("subkey of another primary key", func(t *testing.T) {
		other := newKey(t, born)
		other.Subkeys = append(other.Subkeys, *sub)
		if err := verify(public(t, other), sig); fault.ClassOf(err) != fault.Verify {
			t.Fatal(err)
		}
	})
}

func TestExpiredKey(t *testing.T) { // KEY-08
	e, err := openpgp.NewEntity("Old", "", "old@example.org", &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA, Time: at(born), KeyLifetimeSecs: 30 * 86400})
	if err != nil {
		t.Fatal(err)
	}
	made := born.Add(10 * 24 * time.Hour)
	sig := []byte(detach(t, e, "x", made, nil))
	for _, c := range []struct {
		name   string
		policy pgp.Policy
		ok     bool
	}{
		{"while it was valid", pgp.Policy{Now: made.Add(time.Hour)}, true},
		{"now", pgp.Policy{Now: now}, false},
		{"pinned inside", pgp.Policy{Now: now, KeysAt: made.Add(24 * time.Hour)}, true},
		{"pinned outside", pgp.Policy{Now: now, KeysAt: now.Add(-24 * time.Hour)}, false},
		{"pinned before the signature", pgp.Policy{Now: now, KeysAt: made.Add(-24 * time.Hour)}, true},
	} {
		_, err := pgp.VerifyDetached([]byte("x"), sig, ring(t, e), c.policy)
		if (err == nil) != c.ok || (err != nil && (fault.ClassOf(err) != fault.Verify || !strings.Contains(err.Error(), "expired"))) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// TestWeak uses gpg for what the library refuses to make.
func TestWeak(t *testing.T) {
	g := newGPG(t)
	made := now.Add(-time.Hour)
	sign := func(fpr string, args ...string) string {
		return g.run(made, "x", append(args, "--local-user", fpr, "--armor", "--output", "-", "--detach-sign", "-")...)
	}
	strong := g.key(born, "strong", "ed25519", "sign", "never")
	if err := verify(g.export(strong), sign(strong)); err != nil {
		t.Fatal(err)
	}
	rsa := g.key(born, "rsa", "rsa2048", "sign", "never")
	r, err := pgp.LoadKeyring(g.export(rsa))
	if err != nil {
		t.Fatal(err)
	}
	signers, err := pgp.VerifyDetached([]byte("x"), []byte(sign(rsa)), r, pgp.Policy{Now: now})
	if err != nil || !strings.Contains(signers[0].Warning, "2048") {
		t.Fatal(signers, err)
	}
	for _, digest := range []string{"SHA1", "RIPEMD160", "MD5", "SHA224"} { // KEY-05
		err := verify(g.export(rsa), sign(rsa, "--digest-algo", digest, "--personal-digest-preferences", digest))
		if fault.ClassOf(err) != fault.Verify || !strings.Contains(err.Error(), "hash") {
			t.Errorf("%s: %v", digest, err)
		}
	}
	for name, algo := range map[string]string{"KEY-03": "rsa1024", "KEY-04 dsa1024": "dsa1024", "KEY-04 dsa3072": "dsa3072", "KEY-04 secp256k1": "secp256k1"} {
		fpr := g.key(born, strings.NewReplacer(" ", "", "-", "").Replace(name), algo, "sign", "never")
		err := verify(g.export(fpr), sign(fpr))
		if fault.ClassOf(err) != fault.Verify || !strings.Contains(err.Error(), "weak") && !strings.Contains(err.Error(), "not accepted") {
			t.Errorf("%s: %v", name, err)
		}
	}
	t.Run("CS-20 signature older than its key", func(t *testing.T) {
		fpr := g.key(now.Add(-2*time.Hour), "young", "ed25519", "sign", "never")
		sig := g.run(now.Add(-24*time.Hour), "x", "--ignore-time-conflict", "--ignore-valid-from", "--local-user", fpr, "--armor", "--output", "-", "--detach-sign", "-")
		if err := verify(g.export(fpr), sig); fault.ClassOf(err) != fault.Verify || !strings.Contains(err.Error(), "before its key") {
			t.Fatal(err)
		}
	})
	t.Run("extended key, minimal export", func(t *testing.T) {
		// The self-signature is newer than the message: the archive refreshed its key.
		fpr := g.key(born, "extended", "ed25519", "sign", "2026-08-01")
		sig := g.run(born.Add(24*time.Hour), "x", "--local-user", fpr, "--armor", "--output", "-", "--detach-sign", "-")
		g.run(now.Add(-2*time.Hour), "", "--quick-set-expire", fpr, "2027-08-01")
		minimal := []byte(g.run(now, "", "--export-options", "export-minimal", "--export", fpr))
		if err := verify(minimal, sig); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("SHA-1 self-signature", func(t *testing.T) {
		g.run(born, "", "--cert-digest-algo", "SHA1", "--quick-gen-key", "sha1 <sha1@example.org>", "rsa2048", "sign", "never")
		out := g.run(born, "", "--with-colons", "--list-keys", "sha1@example.org")
		fpr := regexp.MustCompile(`(?m)^fpr:+([0-9A-F]{40}):`).FindStringSubmatch(out)[1]
		sig := sign(fpr)
		r, err := pgp.LoadKeyring(g.export(fpr))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := pgp.VerifyDetached([]byte("x"), []byte(sig), r, pgp.Policy{Now: now}); fault.ClassOf(err) != fault.Verify {
			t.Fatal(err)
		}
		if _, err := pgp.VerifyDetached([]byte("x"), []byte(sig), r, pgp.Policy{Now: now, AllowSHA1Bindings: true}); err != nil {
			t.Fatal(err)
		}
	})
}
