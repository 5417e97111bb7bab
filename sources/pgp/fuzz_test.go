// SPDX-License-Identifier: Apache-2.0

package pgp_test

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mkmachine/mkmachine/sources/pgp"
)

// labMirrors finds signed archives below MKMACHINE_MIRRORS (one directory for each family),
// for tests on real data.
func labMirrors(t *testing.T, family string) string {
	t.Helper()
	dir := os.Getenv("MKMACHINE_MIRRORS")
	if dir == "" {
		t.Skip("needs mirrors of real archives, named by MKMACHINE_MIRRORS")
	}
	return filepath.Join(dir, family)
}

func TestRealArchives(t *testing.T) {
	keys, err := pgp.ReadKeyring("/usr/share/keyrings/debian-archive-keyring.gpg")
	if err != nil {
		t.Skip("needs debian-archive-keyring:", err)
	}
	if len(keys.Skipped) > 0 {
		t.Errorf("skipped: %v", keys.Skipped)
	}
	dir := labMirrors(t, "debian")
	binary, err := os.ReadFile("/usr/share/keyrings/debian-archive-keyring.gpg")
	if err != nil {
		t.Fatal(err)
	}
	for _, suite := range []string{"trixie", "bookworm", "sid"} {
		inline, err := os.ReadFile(filepath.Join(dir, "dists", suite, "InRelease"))
		if err != nil {
			t.Skip(err)
		}
		text, signers, err := pgp.VerifyClearsigned(inline, keys, pgp.Policy{Now: time.Now()})
		if err != nil || len(signers) < 2 {
			t.Fatal(suite, signers, err)
		}
		if ok, theirs, status := gpgvText(t, binary, inline); !ok || theirs != string(text) {
			t.Fatalf("%s: gpgv disagrees: %s", suite, status)
		}
		data, _ := os.ReadFile(filepath.Join(dir, "dists", suite, "Release"))
		sig, _ := os.ReadFile(filepath.Join(dir, "dists", suite, "Release.gpg"))
		if signers, err = pgp.VerifyDetached(data, sig, keys, pgp.Policy{Now: time.Now()}); err != nil || len(signers) < 2 {
			t.Fatal(suite, signers, err)
		}
		if !bytes.Equal(data, text) {
			t.Fatalf("%s: InRelease and Release differ", suite)
		}
		data[len(data)/2] ^= 1
		if _, err = pgp.VerifyDetached(data, sig, keys, pgp.Policy{Now: time.Now()}); err == nil {
			t.Fatal("changed Release accepted")
		}
	}
}

// TestMutations changes a message in thousands of small ways: what is accepted must be the
// signed text, and gpgv must accept it with that text too.
func TestMutations(t *testing.T) {
	e := newKey(t, born)
	keys, exported := ring(t, e), public(t, e)
	good := []byte(clearsign(t, e, releaseText, now.Add(-time.Hour)))
	rng := rand.New(rand.NewPCG(1, 2))
	pieces := []string{"\n", "\r", "\r\n", " ", "\t", "-", "- ", "\f", "\v", "\x00", "=", "\u00a0", "\u2028", "Hash: SHA256\n", "\n\n", "-----END PGP SIGNATURE-----\n", "-----BEGIN PGP SIGNED MESSAGE-----\n", "x"}
	accepted, asked := 0, 0
	for range 20_000 {
		msg := bytes.Clone(good)
		for range 1 + rng.IntN(2) {
			i := rng.IntN(len(msg))
			switch rng.IntN(4) {
			case 0:
				msg = append(msg[:i:i], append([]byte(pieces[rng.IntN(len(pieces))]), msg[i:]...)...)
			case 1:
				msg = append(msg[:i:i], msg[i+1:]...)
			case 2:
				msg[i] ^= 1 << rng.IntN(8)
			case 3: // double or drop a line
				lines := bytes.SplitAfter(msg, []byte("\n"))
				j := rng.IntN(len(lines))
				if rng.IntN(2) == 0 {
					lines = append(lines[:j:j], append([][]byte{lines[j]}, lines[j:]...)...)
				} else {
					lines = append(lines[:j:j], lines[j+1:]...)
				}
				msg = bytes.Join(lines, nil)
			}
			if len(msg) == 0 {
				break
			}
		}
		text, _, err := pgp.VerifyClearsigned(msg, keys, pgp.Policy{Now: now})
		if err != nil {
			continue
		}
		accepted++
		if string(text) != releaseText {
			t.Fatalf("accepted with another text:\n%q\n%q", text, msg)
		}
		if have("gpgv") && asked < 60 {
			asked++
			if ok, theirs, status := gpgvText(t, exported, msg); !ok || theirs != trimLines(releaseText) {
				t.Fatalf("accepted, gpgv disagrees: %q\n%q\n%s", theirs, msg, status)
			}
		}
	}
	if accepted == 0 {
		t.Fatal("no mutation was harmless; the test proves nothing")
	}
	t.Logf("%d accepted, gpgv asked about %d", accepted, asked)
}

func FuzzClearsigned(f *testing.F) {
	e := fixedKey(f)
	keys, exported := ring(f, e), public(f, e)
	good := clearsign(f, e, releaseText, now.Add(-time.Hour))
	for _, seed := range []string{good, strings.ReplaceAll(good, "\n", "\r\n"), good + good, "x\n" + good, strings.Replace(good, "Hash:", "NotDashEscaped:", 1), good[:len(good)/2], ""} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, msg []byte) {
		text, _, err := pgp.VerifyClearsigned(msg, keys, pgp.Policy{Now: now})
		if err != nil {
			return
		}
		if string(text) != releaseText {
			t.Fatalf("accepted with another text: %q", text)
		}
		if ok, theirs, status := gpgvText(t, exported, msg); have("gpgv") && (!ok || theirs != trimLines(releaseText)) {
			t.Fatalf("gpgv disagrees: %q\n%s", theirs, status)
		}
	})
}

func FuzzDetached(f *testing.F) {
	e := fixedKey(f)
	keys := ring(f, e)
	sig := detach(f, e, "x", now.Add(-time.Hour), nil)
	f.Add([]byte("x"), []byte(sig))
	f.Add([]byte("y"), []byte(sig+sig))
	f.Fuzz(func(t *testing.T, data, sig []byte) {
		for _, binary := range []bool{false, true} {
			if _, err := pgp.VerifyDetached(data, sig, keys, pgp.Policy{Now: now, BinarySignature: binary}); err == nil && string(data) != "x" {
				t.Fatalf("accepted for other data %q", data)
			}
		}
	})
}

func FuzzKeyring(f *testing.F) {
	a, b := fixedKey(f), newKey(f, born)
	both := public(f, a, b)
	sig := []byte(detach(f, a, "x", now.Add(-time.Hour), nil))
	f.Add(both)
	f.Add(append(bytes.Clone(both), both...))
	f.Add(both[:len(both)/2])
	f.Add([]byte("-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nmDMEaQ==\n-----END PGP PUBLIC KEY BLOCK-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := pgp.LoadKeyring(data)
		if err != nil {
			return
		}
		for _, fpr := range r.Fingerprints() {
			if _, err := pgp.ParseFingerprint(fpr); err != nil {
				t.Fatal(err)
			}
		}
		again, err := pgp.LoadKeyring(r.Binary())
		if err != nil || len(again.Fingerprints()) != len(r.Fingerprints()) {
			t.Fatalf("Binary does not load: %v", err)
		}
		// Whatever else is in the ring, only the true key can prove its signature.
		signers, err := pgp.VerifyDetached([]byte("x"), sig, r, pgp.Policy{Now: now})
		if err == nil && signers[0].Fingerprint != ring(t, a).Fingerprints()[0] {
			t.Fatalf("proved by %s", signers[0].Fingerprint)
		}
	})
}
