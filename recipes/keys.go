// SPDX-License-Identifier: Apache-2.0

package recipes

import (
	"slices"
)

// Key is a signing key that this program trusts for one distribution: pinned by its full
// fingerprint, and only for the suites and pockets that its owner signs with it.
type Key struct {
	Distribution string
	Fingerprint  string   // 40 upper-case hex digits, of the primary key
	UserID       string   // as the key has it
	Suites       []string // codenames; nil means all
	Pockets      []string // nil means all
}

// Keys lists the embedded keys. Debian signs with the automatic keys of two releases at
// a time, whichever suite it is, so these are pinned for all suites; a release key signs
// the release pocket of its own suite. The keys come from debian-archive-keyring 2025.1
// and ubuntu-keyring 2023.11.28.1, without other people's signatures.
func Keys() []Key {
	archive := []string{"release", "updates", "backports", "proposed"}
	security := []string{"security"}
	release := []string{"release"}
	return []Key{
		{"debian", "1F89983E0081FDE018F3CC9673A4F27B8DD47936", "Debian Archive Automatic Signing Key (11/bullseye) <ftpmaster@debian.org>", nil, archive},
		{"debian", "AC530D520F2F3269F5E98313A48449044AAD5C5D", "Debian Security Archive Automatic Signing Key (11/bullseye) <ftpmaster@debian.org>", nil, security},
		{"debian", "A4285295FC7B1A81600062A9605C66F00D6C9793", "Debian Stable Release Key (11/bullseye) <debian-release@lists.debian.org>", []string{"bullseye"}, release},
		{"debian", "B8B80B5B623EAB6AD8775C45B7C5D7D6350947F8", "Debian Archive Automatic Signing Key (12/bookworm) <ftpmaster@debian.org>", nil, archive},
		{"debian", "05AB90340C0C5E797F44A8C8254CF3B5AEC0A8F0", "Debian Security Archive Automatic Signing Key (12/bookworm) <ftpmaster@debian.org>", nil, security},
		{"debian", "4D64FEC119C2029067D6E791F8D2585B8783D481", "Debian Stable Release Key (12/bookworm) <debian-release@lists.debian.org>", []string{"bookworm"}, release},
		{"debian", "04B54C3CDCA79751B16BC6B5225629DF75B188BD", "Debian Archive Automatic Signing Key (13/trixie) <ftpmaster@debian.org>", nil, archive},
		{"debian", "5E04A1E3223A19A20706E20F9904613D4CCE68C6", "Debian Security Archive Automatic Signing Key (13/trixie) <ftpmaster@debian.org>", nil, security},
		{"debian", "41587F7DB8C774BCCF131416762F67A0B2C39DE4", "Debian Stable Release Key (13/trixie) <debian-release@lists.debian.org>", []string{"trixie"}, release},
		{"ubuntu", "F6ECB3762474EDA9D21B7022871920D1991BC93C", "Ubuntu Archive Automatic Signing Key (2018) <ftpmaster@ubuntu.com>", nil, nil},
	}
}

// PinnedKeys are the keys that may sign a pocket of a suite (its codename or an alias).
func PinnedKeys(distribution, suite, pocket string) []Key {
	d, _ := DistributionOf(distribution)
	if s, ok := d.Suite(suite); ok {
		suite = s.Codename
	}
	return slices.DeleteFunc(Keys(), func(k Key) bool {
		return k.Distribution != distribution ||
			k.Suites != nil && !slices.Contains(k.Suites, suite) ||
			k.Pockets != nil && !slices.Contains(k.Pockets, pocket)
	})
}

// Keyring is the public key data of keys, one binary OpenPGP key after the other.
func Keyring(keys []Key) []byte {
	var out []byte
	for _, k := range keys {
		data, err := library.ReadFile("library/keys/" + k.Fingerprint + ".pgp")
		if err != nil {
			panic("recipes: no data of key " + k.Fingerprint) // a test reads them all
		}
		out = append(out, data...)
	}
	return out
}

// Signers says who may sign a pocket of the source: a keyring, binary or armored, and the
// full fingerprints of the keys in it that count. Without fingerprints nothing may be
// taken, unless s.Insecure gives a reason.
func (s *Source) Signers(pocket string) (keyring []byte, fingerprints []string) {
	if s.KeyFile.Value != "" {
		return s.KeyData, values(s.Keys)
	}
	keys := PinnedKeys(s.Distribution.Value, s.Suite.Value, pocket)
	if len(s.Keys) > 0 {
		keys = slices.DeleteFunc(keys, func(k Key) bool { return position(s.Keys, k.Fingerprint) < 0 })
	}
	for _, k := range keys {
		fingerprints = append(fingerprints, k.Fingerprint)
	}
	return Keyring(keys), fingerprints
}
