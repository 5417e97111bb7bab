// SPDX-License-Identifier: Apache-2.0

// Package pgp decides whether a text was signed by a key that the user trusts for it.
//
// It owns the policy: the framing of clearsigned and detached signatures, which keys,
// algorithms and times count, and apt's rule (at least one good signature by a key of the
// keyring, no bad one by a key of the keyring, signatures by unknown keys ignored). The
// arithmetic is go-crypto's; of its verifying functions only those of openpgp/v2 are used,
// because the older package accepts SHA-1 and short RSA keys. It never fetches anything.
//
// Invariant: the text that VerifyClearsigned returns is, byte for byte, what was hashed
// (lines ended by LF instead of CRLF); callers parse that text and never the file.
package pgp

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	pgperrors "github.com/ProtonMail/go-crypto/openpgp/errors"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// Skew is how far in the future a signature or a Date may lie, for clocks that differ a little.
const Skew = 10 * time.Minute

// maxSignatures bounds how many signatures are looked at; archives carry up to four.
const maxSignatures = 32

// Policy says what counts. The zero Policy with Now set is the one for distribution archives.
type Policy struct {
	// Now is the time of the question; the zero Time is refused.
	Now time.Time
	// KeysAt is when keys must have been valid; zero means Now. A recipe that pins a
	// snapshot sets it to the snapshot's time, so that keys which expired since count.
	// Revoked keys never count.
	KeysAt time.Time
	// BinarySignature lets VerifyDetached take unarmored signatures (pacman's .sig).
	BinarySignature bool
	// AllowSHA1Bindings accepts keys whose self-signatures use SHA-1. Message signatures
	// by SHA-1 are never accepted.
	AllowSHA1Bindings bool
}

// Signer is a key that made a good signature.
type Signer struct {
	Fingerprint string    // of the primary key, 40 upper-case hex digits
	Subkey      string    // fingerprint of the key that signed, when it is a subkey
	UserID      string    // for display only
	Created     time.Time // of the signature
	Hash        string    // SHA256, SHA512, …
	Warning     string    // weak but accepted, for instance RSA below 3072 bits
}

// Fingerprints lists the primary fingerprints of signers.
func Fingerprints(signers []Signer) []string {
	out := make([]string, len(signers))
	for i, s := range signers {
		out[i] = s.Fingerprint
	}
	return out
}

// VerifyDetached checks an armored detached signature over data. An error is fault.Format
// when the signature file is malformed, fault.Verify when it proves nothing.
func VerifyDetached(data, signature []byte, ring *Keyring, p Policy) ([]Signer, error) {
	packets, err := detachedPackets(signature, p)
	if err != nil {
		return nil, fault.New(fault.Format, "cannot verify signature: %w", err)
	}
	v := &verifier{ring: ring, policy: p, data: data, detached: true}
	return v.run(packets)
}

func detachedPackets(signature []byte, p Policy) ([]byte, error) {
	if len(bytes.TrimSpace(signature)) == 0 {
		return nil, errors.New("signature file is empty")
	}
	if len(signature) > 1<<20 {
		return nil, errors.New("signature file is larger than 1 MiB")
	}
	if signature[0]&0x80 != 0 {
		if !p.BinarySignature {
			return nil, fault.Hint(errors.New("signature is binary, want an armored one"), "gpg --enarmor converts it")
		}
		return signature, nil
	}
	var packets []byte
	rest := signature
	for len(rest) > 0 {
		body, after, err := readArmor(rest, armorSignature)
		if err != nil {
			return nil, err
		}
		packets = append(packets, body...)
		rest = bytes.TrimLeft(after, "\r\n")
	}
	return packets, nil
}

// verifier carries one question through its signatures.
type verifier struct {
	ring     *Keyring
	policy   Policy
	data     []byte   // what was signed: CRLF text for clearsigned, the file for detached
	detached bool     // binary signatures are possible
	hashes   []string // what the clearsigned header announced; nil for detached

	good    []Signer
	bad     []string // known key, wrong signature
	useless []string // everything else, said when nothing was good
	future  bool
}

func (v *verifier) run(packets []byte) ([]Signer, error) {
	if v.policy.Now.IsZero() {
		return nil, fault.New(fault.Internal, "internal error: verification without a time")
	}
	if v.policy.KeysAt.IsZero() {
		v.policy.KeysAt = v.policy.Now
	}
	if v.ring == nil || len(v.ring.keys) == 0 {
		return nil, fault.New(fault.Verify, "cannot verify signature: no keys to verify it with")
	}
	for n := 0; len(packets) > 0; n++ {
		p, rest, err := nextPacket(packets)
		if err != nil {
			return nil, fault.New(fault.Verify, "cannot verify signature: %w", err)
		}
		if p.tag != tagSignature {
			return nil, fault.New(fault.Verify, "cannot verify signature: packet of type %d among the signatures", p.tag)
		}
		if n == maxSignatures {
			return nil, fault.New(fault.Limit, "cannot verify signature: more than %d signatures", maxSignatures)
		}
		if err := v.signature(p); err != nil {
			return nil, err
		}
		packets = rest
	}
	return v.verdict()
}

func (v *verifier) verdict() ([]Signer, error) {
	if len(v.bad) > 0 {
		return nil, fault.New(fault.Verify, "cannot verify signature: bad signature: %s", strings.Join(v.bad, "; "))
	}
	if len(v.good) > 0 {
		return v.good, nil
	}
	if len(v.useless) == 0 {
		return nil, fault.New(fault.Verify, "cannot verify signature: there is none")
	}
	err := fault.New(fault.Verify, "cannot verify signature: %s", strings.Join(v.useless, "; "))
	if v.future {
		return nil, fault.Hint(err, "check this machine's clock, it says %s", v.policy.Now.UTC().Format(time.RFC3339))
	}
	return nil, fault.Hint(err, "the keyring has %s", strings.Join(v.ring.Fingerprints(), ", "))
}

func (v *verifier) ignore(format string, args ...any) {
	v.useless = append(v.useless, fmt.Sprintf(format, args...))
}

// signature judges one signature packet. Its error ends the whole verification.
func (v *verifier) signature(raw rawPacket) error {
	if len(raw.body) < 1 {
		return fault.New(fault.Verify, "cannot verify signature: empty signature packet")
	}
	if version := raw.body[0]; version != 4 {
		v.ignore("signature of version %d is not used", version)
		return nil
	}
	p, err := packet.Read(bytes.NewReader(raw.raw))
	var unsupported pgperrors.UnsupportedError
	if errors.As(err, &unsupported) {
		v.ignore("unusable signature: %v", err)
		return nil
	}
	sig, ok := p.(*packet.Signature)
	if err != nil || !ok {
		return fault.New(fault.Verify, "cannot verify signature: malformed signature packet: %v", err)
	}
	if sig.IssuerKeyId == nil {
		v.ignore("signature names no key")
		return nil
	}
	name := fmt.Sprintf("%016X", *sig.IssuerKeyId)
	if len(sig.IssuerFingerprint) == 20 {
		name = fmt.Sprintf("%X", sig.IssuerFingerprint)
	}
	keys := v.ring.find(*sig.IssuerKeyId)
	if len(keys) == 0 {
		v.ignore("signed by unknown key %s", name)
		return nil
	}
	if reason := v.acceptable(sig); reason != "" {
		v.ignore("signature by %s: %s", name, reason)
		return nil
	}
	wrong, weak := "", ""
	for _, k := range keys {
		signer, reason, bad := v.judge(k, sig)
		switch {
		case bad:
			wrong = reason
		case reason != "":
			weak = reason
		default:
			v.good = append(v.good, signer)
			return nil
		}
	}
	if weak != "" {
		v.ignore("signature by %s: %s", name, weak)
	} else {
		v.bad = append(v.bad, name+" ("+wrong+")")
	}
	return nil
}

// acceptable checks what the signature says about itself, before any key is looked at.
func (v *verifier) acceptable(sig *packet.Signature) string {
	switch sig.Hash {
	case crypto.SHA256, crypto.SHA384, crypto.SHA512:
	default:
		return "hash " + sig.Hash.String() + " is too weak or not supported"
	}
	if v.hashes != nil && !slices.Contains(v.hashes, hashName(sig.Hash)) {
		return "made with " + hashName(sig.Hash) + ", which the message header does not announce"
	}
	if sig.SigType != packet.SigTypeText && (!v.detached || sig.SigType != packet.SigTypeBinary) {
		return fmt.Sprintf("signature type 0x%02x", int(sig.SigType))
	}
	for _, n := range sig.Notations {
		if n.IsCritical {
			return fmt.Sprintf("critical notation %q is not known", n.Name)
		}
	}
	if sig.CreationTime.After(v.policy.Now.Add(Skew)) {
		v.future = true
		return "made in the future, at " + sig.CreationTime.UTC().Format(time.RFC3339)
	}
	if sig.SigLifetimeSecs != nil && *sig.SigLifetimeSecs != 0 &&
		v.policy.KeysAt.After(sig.CreationTime.Add(time.Duration(*sig.SigLifetimeSecs)*time.Second)) {
		return "expired"
	}
	return ""
}

// judge checks the signature with one key. reason is empty for a good one; bad says that the
// arithmetic failed, as opposed to a key or an algorithm that does not count.
func (v *verifier) judge(k *key, sig *packet.Signature) (s Signer, reason string, bad bool) {
	e, err := k.entity()
	if err != nil {
		return s, err.Error(), false
	}
	pk := publicKey(e, *sig.IssuerKeyId)
	if pk == nil || (len(sig.IssuerFingerprint) > 0 && !bytes.Equal(sig.IssuerFingerprint, pk.Fingerprint)) {
		return s, "fingerprint does not match the key id", false
	}
	h, err := sig.PrepareVerify()
	if err != nil {
		return s, err.Error(), false
	}
	if sig.SigType == packet.SigTypeText {
		openpgp.NewCanonicalTextHash(h).Write(v.data)
	} else {
		h.Write(v.data)
	}
	if err := pk.VerifySignature(h, sig); err != nil {
		return s, strings.TrimPrefix(err.Error(), "openpgp: "), true
	}
	if reason := v.keyCounts(e, pk, sig); reason != "" {
		return s, reason, false
	}
	s = Signer{Fingerprint: k.fingerprint, UserID: k.userID, Created: sig.CreationTime, Hash: hashName(sig.Hash)}
	if pk != e.PrimaryKey {
		s.Subkey = fmt.Sprintf("%X", pk.Fingerprint)
	}
	if bits, err := pk.BitLength(); err == nil && bits < 3072 && isRSA(pk) {
		s.Warning = fmt.Sprintf("RSA key of only %d bits", bits)
	}
	return s, "", false
}

func publicKey(e *openpgp.Entity, id uint64) *packet.PublicKey {
	if e.PrimaryKey.KeyId == id {
		return e.PrimaryKey
	}
	for _, s := range e.Subkeys {
		if s.PublicKey.KeyId == id {
			return s.PublicKey
		}
	}
	return nil
}

func isRSA(pk *packet.PublicKey) bool {
	return pk.PubKeyAlgo == packet.PubKeyAlgoRSA || pk.PubKeyAlgo == packet.PubKeyAlgoRSASignOnly
}

// keyCounts asks whether pk was allowed to sign: bound to its primary key (and the binding
// signed back by a signing subkey), neither revoked, expired nor weak. The newest
// self-signatures decide, also when they are newer than the message: keyrings are refreshed
// while old snapshots stay.
func (v *verifier) keyCounts(e *openpgp.Entity, pk *packet.PublicKey, sig *packet.Signature) string {
	if sig.CreationTime.Before(pk.CreationTime) {
		return "made before its key"
	}
	if pk.CreationTime.After(v.policy.Now.Add(Skew)) {
		v.future = true
		return "key was made in the future"
	}
	if revoked(e) {
		return "key is revoked"
	}
	cfg := &packet.Config{
		MinRSABits: 2048,
		Time:       func() time.Time { return v.policy.Now },
	}
	if !v.policy.AllowSHA1Bindings {
		cfg.RejectHashAlgorithms = map[crypto.Hash]bool{crypto.SHA1: true, crypto.MD5: true, crypto.RIPEMD160: true}
	}
	// The zero time switches the library's own expiry checks off; they follow below.
	chosen, err := signingKey(e, pk, cfg)
	if err != nil {
		return "key does not count: " + strings.TrimPrefix(err.Error(), "openpgp: ")
	}
	at := v.policy.KeysAt
	if at.Before(sig.CreationTime) {
		at = sig.CreationTime
	}
	selfSigs := []*packet.Signature{chosen.PrimarySelfSignature, chosen.SelfSignature}
	if direct, err := e.LatestValidDirectSignature(time.Time{}, cfg); err == nil {
		selfSigs = append(selfSigs, direct)
		if e.PrimaryKey.KeyExpired(direct, at) {
			return "key is expired"
		}
	}
	for _, self := range selfSigs {
		if self.SigLifetimeSecs != nil && *self.SigLifetimeSecs != 0 &&
			at.After(self.CreationTime.Add(time.Duration(*self.SigLifetimeSecs)*time.Second)) {
			return "the key's self-signature is expired"
		}
	}
	if e.PrimaryKey.KeyExpired(chosen.PrimarySelfSignature, at) || pk.KeyExpired(chosen.SelfSignature, at) {
		return "key is expired"
	}
	if back := chosen.SelfSignature.EmbeddedSignature; pk != e.PrimaryKey && (back == nil || cfg.RejectHashAlgorithm(back.Hash)) {
		return "subkey is not cross-certified"
	}
	return ""
}

// revoked says whether any key revocation in the keyring is valid, whatever its reason and
// date: a key that its owner gave up proves nothing any more.
func revoked(e *openpgp.Entity) bool {
	for _, r := range e.Revocations {
		if e.PrimaryKey.VerifyRevocationSignature(r.Packet) == nil {
			return true
		}
	}
	return false
}

// signingKey asks the library for exactly pk.
func signingKey(e *openpgp.Entity, pk *packet.PublicKey, cfg *packet.Config) (openpgp.Key, error) {
	for _, s := range e.Subkeys {
		if s.PublicKey == pk && s.Revoked(nil, time.Time{}) {
			return openpgp.Key{}, errors.New("subkey is revoked")
		}
	}
	chosen, ok := e.SigningKeyById(time.Time{}, pk.KeyId, cfg)
	if ok && chosen.PublicKey == pk {
		return chosen, nil
	}
	// SigningKeyById says only that there is none; name the likely causes.
	if isRSA(pk) {
		if bits, err := pk.BitLength(); err == nil && bits < cfg.MinimumRSABits() {
			return chosen, fmt.Errorf("RSA with %d bits is too weak", bits)
		}
	}
	if cfg.RejectPublicKeyAlgorithm(pk.PubKeyAlgo) || cfg.RejectPublicKeyAlgorithm(e.PrimaryKey.PubKeyAlgo) {
		return chosen, errors.New("its algorithm is too weak")
	}
	if curve, err := pk.Curve(); err == nil && cfg.RejectCurve(curve) {
		return chosen, fmt.Errorf("curve %s is not accepted", curve)
	}
	return chosen, errors.New("no valid self-signature allows it to sign")
}

func hashName(h crypto.Hash) string {
	return strings.ReplaceAll(h.String(), "-", "")
}
