// SPDX-License-Identifier: Apache-2.0

package pgp

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// maxKeyring bounds a keyring in bytes; the largest distribution keyrings are below 4 MiB.
const maxKeyring = 32 << 20

// Keyring is a set of public keys, each primary fingerprint once. It is immutable and safe
// for concurrent use.
type Keyring struct {
	keys []*key
	// Skipped says what was in the bytes and could not be used as a key, for a warning.
	Skipped []string
}

// key is everything the keyring's bytes said about one primary key.
type key struct {
	fingerprint string
	userID      string
	ids         []uint64 // of the primary key and the subkeys
	blocks      [][]byte // transferable public keys, one for each copy
	revocations [][]byte // key revocation signature packets from anywhere
}

// LoadKeyring reads public keys from bytes: binary, or armored in one or more blocks; text
// between armored blocks is ignored. Copies of a key are merged and a revocation in any of
// them counts. Bytes that are another kind of key file are a fault.Format error naming it;
// bytes without a usable key are a fault.Verify error, so that nobody can go on without keys.
func LoadKeyring(data []byte) (*Keyring, error) {
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, fault.New(fault.Verify, "cannot load keyring: it is empty")
	}
	if len(data) > maxKeyring {
		return nil, fault.New(fault.Limit, "cannot load keyring: it is larger than %d MiB", maxKeyring>>20)
	}
	if kind := foreignKeyFile(data); kind != "" {
		return nil, fault.Hint(fault.New(fault.Format, "cannot load keyring: it is %s, not an OpenPGP public key", kind),
			"gpg --export FINGERPRINT writes a key in the right form")
	}
	r := &Keyring{}
	l := loader{ring: r, loose: nil}
	if data[0]&0x80 != 0 {
		if err := l.packets(data); err != nil {
			return nil, fault.New(fault.Format, "cannot load keyring: %w", err)
		}
	} else if err := l.armored(data); err != nil {
		return nil, fault.New(fault.Format, "cannot load keyring: %w", err)
	}
	l.attachLoose()
	if len(r.keys) == 0 {
		return nil, fault.New(fault.Verify, "cannot load keyring: it holds no usable key%s", skippedText(r.Skipped))
	}
	return r, nil
}

// ReadKeyring is LoadKeyring on a file. A file that cannot be read is a fault.Verify error.
func ReadKeyring(path string) (*Keyring, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fault.New(fault.Verify, "cannot load keyring: %w", err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, fault.New(fault.Verify, "cannot load keyring %s: not a regular file", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxKeyring+1))
	if err != nil {
		return nil, fault.New(fault.Verify, "cannot load keyring: %w", err)
	}
	ring, err := LoadKeyring(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return ring, nil
}

// Merge is a keyring with the keys of all of them.
func Merge(rings ...*Keyring) *Keyring {
	out := &Keyring{}
	for _, r := range rings {
		if r == nil {
			continue
		}
		for _, k := range r.keys {
			out.add(k)
		}
		out.Skipped = append(out.Skipped, r.Skipped...)
	}
	return out
}

// Restrict is the keyring cut down to the keys with these fingerprints: 40 hex digits of
// primary keys, spaces allowed. Anything shorter is a fault.Config error (key ids can be
// forged), a fingerprint that is not there a fault.Verify error.
func (r *Keyring) Restrict(fingerprints []string) (*Keyring, error) {
	out := &Keyring{}
	for _, want := range fingerprints {
		fpr, err := ParseFingerprint(want)
		if err != nil {
			return nil, err
		}
		i := slices.IndexFunc(r.keys, func(k *key) bool { return k.fingerprint == fpr })
		if i < 0 {
			return nil, fault.Hint(fault.New(fault.Verify, "cannot use keyring: it has no key with fingerprint %s", fpr),
				"it holds %s", strings.Join(r.Fingerprints(), ", "))
		}
		out.add(r.keys[i])
	}
	if len(out.keys) == 0 {
		return nil, fault.New(fault.Config, "cannot use keyring: no fingerprint given")
	}
	return out, nil
}

// ParseFingerprint normalises a full fingerprint to 40 upper-case hex digits.
func ParseFingerprint(s string) (string, error) {
	fpr := strings.ToUpper(strings.ReplaceAll(s, " ", ""))
	if _, err := hex.DecodeString(fpr); err != nil || len(fpr) != 40 {
		return "", fault.Hint(fault.New(fault.Config, "cannot use %q as a fingerprint: want all 40 hex digits", s),
			"gpg --show-keys --with-fingerprint FILE prints it; key ids of 8 or 16 digits can be forged")
	}
	return fpr, nil
}

// Fingerprints lists the primary keys in the order of the bytes.
func (r *Keyring) Fingerprints() []string {
	out := make([]string, len(r.keys))
	for i, k := range r.keys {
		out[i] = k.fingerprint
	}
	return out
}

// UserID is a user id of a key, for display only; empty where the key is unknown.
func (r *Keyring) UserID(fingerprint string) string {
	for _, k := range r.keys {
		if k.fingerprint == fingerprint {
			return k.userID
		}
	}
	return ""
}

// Binary is the keyring as an unarmored OpenPGP file, the form that apt's Signed-By takes.
func (r *Keyring) Binary() []byte {
	var out []byte
	for _, k := range r.keys {
		for _, b := range k.blocks {
			out = append(out, b...)
		}
	}
	return out
}

// add takes over a key, merging it with the copy that is there.
func (r *Keyring) add(k *key) {
	for i, have := range r.keys {
		if have.fingerprint != k.fingerprint {
			continue
		}
		merged := *have
		merged.blocks = appendNew(slices.Clone(have.blocks), k.blocks)
		merged.revocations = appendNew(slices.Clone(have.revocations), k.revocations)
		for _, id := range k.ids {
			if !slices.Contains(merged.ids, id) {
				merged.ids = append(slices.Clone(merged.ids), id)
			}
		}
		r.keys[i] = &merged
		return
	}
	r.keys = append(r.keys, k)
}

func appendNew(to, from [][]byte) [][]byte {
	for _, b := range from {
		if !slices.ContainsFunc(to, func(have []byte) bool { return bytes.Equal(have, b) }) {
			to = append(to, b)
		}
	}
	return to
}

// find lists the keys that may have made a signature by key id.
func (r *Keyring) find(id uint64) []*key {
	var out []*key
	for _, k := range r.keys {
		if slices.Contains(k.ids, id) {
			out = append(out, k)
		}
	}
	return out
}

// entity parses the key anew. The library caches verdicts that depend on the time of the
// question inside its entities, so an entity is never shared between questions.
func (k *key) entity() (*openpgp.Entity, error) {
	var e *openpgp.Entity
	for _, block := range k.blocks {
		next, err := readEntity(block)
		if err != nil {
			return nil, err
		}
		if e == nil {
			e = next
			continue
		}
		mergeEntity(e, next)
	}
	for _, raw := range k.revocations {
		p, err := packet.Read(bytes.NewReader(raw))
		if sig, ok := p.(*packet.Signature); ok && err == nil {
			e.Revocations = append(e.Revocations, packet.NewVerifiableSig(sig))
		}
	}
	return e, nil
}

func readEntity(block []byte) (*openpgp.Entity, error) {
	return openpgp.ReadEntity(packet.NewReader(bytes.NewReader(block)))
}

// mergeEntity adds what b says about the same primary key to a.
func mergeEntity(a, b *openpgp.Entity) {
	a.Revocations = append(a.Revocations, b.Revocations...)
	a.DirectSignatures = append(a.DirectSignatures, b.DirectSignatures...)
	for name, id := range b.Identities {
		have, ok := a.Identities[name]
		if !ok {
			id.Primary = a
			a.Identities[name] = id
			continue
		}
		have.SelfCertifications = append(have.SelfCertifications, id.SelfCertifications...)
		have.Revocations = append(have.Revocations, id.Revocations...)
	}
	for _, sub := range b.Subkeys {
		i := slices.IndexFunc(a.Subkeys, func(s openpgp.Subkey) bool {
			return bytes.Equal(s.PublicKey.Fingerprint, sub.PublicKey.Fingerprint)
		})
		if i < 0 {
			sub.Primary = a
			a.Subkeys = append(a.Subkeys, sub)
			continue
		}
		a.Subkeys[i].Bindings = append(a.Subkeys[i].Bindings, sub.Bindings...)
		a.Subkeys[i].Revocations = append(a.Subkeys[i].Revocations, sub.Revocations...)
	}
}

// loader collects keys and revocations from the packets of one keyring.
type loader struct {
	ring  *Keyring
	loose [][]byte // revocation signatures outside a usable key
}

func (l *loader) armored(data []byte) error {
	found := false
	for len(data) > 0 {
		line, rest, _ := splitLine(data)
		text := string(bytes.TrimRight(line, " \t"))
		if !strings.HasPrefix(text, "-----BEGIN ") {
			data = rest
			continue
		}
		if text == "-----BEGIN "+armorPrivateKey+"-----" {
			return errors.New("it holds a private key; only public keys belong in a keyring")
		}
		body, rest, err := readArmor(data, armorPublicKey)
		if err != nil {
			return err
		}
		found = true
		if err := l.packets(body); err != nil {
			return err
		}
		data = rest
	}
	if !found {
		return errors.New("it is neither a binary nor an armored OpenPGP file")
	}
	return nil
}

// packets splits a sequence of transferable keys at its primary key packets.
func (l *loader) packets(data []byte) error {
	var block []byte
	var revocations [][]byte
	flush := func() {
		if block != nil {
			l.block(block, revocations)
		}
		block, revocations = nil, nil
	}
	for len(data) > 0 {
		p, rest, err := nextPacket(data)
		if err != nil {
			return err
		}
		data = rest
		switch p.tag {
		case tagSecretKey:
			return errors.New("it holds a private key; only public keys belong in a keyring")
		case tagPublicKey:
			flush()
			block = append([]byte{}, p.raw...)
			continue
		case tagMarker, tagTrust:
			continue // local notes of the program that wrote the file
		}
		if isKeyRevocation(p) {
			if block == nil {
				l.loose = append(l.loose, p.raw)
				continue
			}
			revocations = append(revocations, p.raw)
		}
		if block != nil {
			block = append(block, p.raw...)
		}
	}
	flush()
	return nil
}

func isKeyRevocation(p rawPacket) bool {
	return p.tag == tagSignature && len(p.body) > 1 && p.body[0] >= 4 && p.body[1] == byte(packet.SigTypeKeyRevocation)
}

func (l *loader) block(block []byte, revocations [][]byte) {
	e, err := readEntity(block)
	if err != nil {
		l.ring.Skipped = append(l.ring.Skipped, fmt.Sprintf("key %d: %v", len(l.ring.keys)+len(l.ring.Skipped)+1, err))
		l.loose = append(l.loose, revocations...)
		return
	}
	if e.PrimaryKey.Version != 4 {
		l.ring.Skipped = append(l.ring.Skipped, fmt.Sprintf("key %X: version %d keys are not used", e.PrimaryKey.Fingerprint, e.PrimaryKey.Version))
		return
	}
	k := &key{
		fingerprint: fmt.Sprintf("%X", e.PrimaryKey.Fingerprint),
		ids:         []uint64{e.PrimaryKey.KeyId},
		blocks:      [][]byte{block},
		revocations: revocations,
	}
	for name := range e.Identities {
		if k.userID == "" || name < k.userID {
			k.userID = name
		}
	}
	for _, s := range e.Subkeys {
		k.ids = append(k.ids, s.PublicKey.KeyId)
	}
	l.ring.add(k)
}

// attachLoose gives revocations that stood alone (gpg --gen-revoke writes them so) to every
// key; those that do not verify for a key are without effect there.
func (l *loader) attachLoose() {
	for _, raw := range l.loose {
		for _, k := range l.ring.keys {
			k.revocations = appendNew(k.revocations, [][]byte{raw})
		}
	}
}

// foreignKeyFile names the well-known kinds of key file that are not OpenPGP keys.
func foreignKeyFile(data []byte) string {
	if len(data) > 12 && string(data[8:12]) == "KBXf" {
		return "a GnuPG keybox"
	}
	for prefix, kind := range map[string]string{
		"ssh-":                   "an SSH public key",
		"ecdsa-sha2-":            "an SSH public key",
		"-----BEGIN OPENSSH":     "an SSH private key",
		"-----BEGIN SSH2":        "an SSH public key",
		"-----BEGIN CERTIFICATE": "an X.509 certificate",
		"-----BEGIN TRUSTED CER": "an X.509 certificate",
		"-----BEGIN PUBLIC KEY":  "a PEM public key",
		"-----BEGIN RSA":         "a PEM key",
		"-----BEGIN EC ":         "a PEM key",
		"-----BEGIN PRIVATE KEY": "a PEM private key",
		"-----BEGIN PGP SIG":     "an OpenPGP signature",
		"-----BEGIN PGP MESSAGE": "an OpenPGP message",
		"untrusted comment:":     "a minisign or signify key",
		"<":                      "an HTML or XML page",
	} {
		if bytes.HasPrefix(bytes.TrimLeft(data, " \t\r\n"), []byte(prefix)) {
			return kind
		}
	}
	return ""
}

func skippedText(skipped []string) string {
	if len(skipped) == 0 {
		return ""
	}
	return " (" + strings.Join(skipped, "; ") + ")"
}
