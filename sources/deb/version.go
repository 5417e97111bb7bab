// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"strings"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// maxVersion is the longest version accepted, in bytes: a package's version is part of
// the name of its file, and no file system takes a longer name.
const maxVersion = 255

// maxEpoch is dpkg's largest epoch (INT_MAX).
const maxEpoch = 1<<31 - 1

// Version is a Debian version, [epoch:]upstream[-revision].
type Version struct {
	Epoch    int
	Upstream string
	Revision string // empty when there is none, which compares as "0"
}

// ParseVersion parses s as strictly as dpkg does for a package that is built: no
// warnings are let pass. It differs from dpkg in one point: a second colon is refused,
// as Debian Policy §5.6.12 does. Errors are fault.Format.
func ParseVersion(s string) (Version, error) {
	bad := func(why string) (Version, error) {
		if len(s) > 60 {
			s = s[:60] + "…"
		}
		return Version{}, fault.New(fault.Format, "cannot read version %q: %s", s, why)
	}
	if s == "" {
		return bad("it is empty")
	}
	if len(s) > maxVersion {
		return bad("it is too long")
	}
	var v Version
	rest := s
	if epoch, after, ok := strings.Cut(s, ":"); ok {
		if epoch == "" {
			return bad("the epoch is empty")
		}
		for i := 0; i < len(epoch); i++ {
			if !digit(epoch[i]) {
				return bad("the epoch is not a number")
			}
			if v.Epoch = v.Epoch*10 + int(epoch[i]-'0'); v.Epoch > maxEpoch {
				return bad("the epoch is too big")
			}
		}
		rest = after
	}
	v.Upstream = rest
	if i := strings.LastIndexByte(rest, '-'); i >= 0 {
		v.Upstream, v.Revision = rest[:i], rest[i+1:]
		if v.Revision == "" {
			return bad("the revision is empty")
		}
	}
	if v.Upstream == "" {
		return bad("the upstream part is empty")
	}
	if !digit(v.Upstream[0]) {
		return bad("the upstream part does not start with a digit")
	}
	for i := 0; i < len(v.Upstream); i++ {
		if c := v.Upstream[i]; !digit(c) && !letter(c) && c != '.' && c != '+' && c != '-' && c != '~' {
			return bad("the upstream part has a character that is not allowed")
		}
	}
	for i := 0; i < len(v.Revision); i++ {
		if c := v.Revision[i]; !digit(c) && !letter(c) && c != '.' && c != '+' && c != '~' {
			return bad("the revision has a character that is not allowed")
		}
	}
	return v, nil
}

// Compare is negative, zero or positive as v sorts before, with or after w (Debian
// Policy §5.6.12, dpkg-deb-version(7)).
func (v Version) Compare(w Version) int {
	if v.Epoch != w.Epoch {
		if v.Epoch < w.Epoch {
			return -1
		}
		return 1
	}
	if c := compareFragment(v.Upstream, w.Upstream); c != 0 {
		return c
	}
	return compareFragment(v.Revision, w.Revision)
}

// CompareVersions compares two versions that need not be valid, as relations of old
// packages hold some ("2.0-"): an epoch that is no number counts as part of the rest.
func CompareVersions(a, b string) int {
	if a == b {
		return 0
	}
	ea, a := cutEpoch(a)
	eb, b := cutEpoch(b)
	if ea != eb {
		if len(ea) != len(eb) {
			return len(ea) - len(eb)
		}
		return strings.Compare(ea, eb)
	}
	ra, rb := "", ""
	if i := strings.LastIndexByte(a, '-'); i >= 0 {
		a, ra = a[:i], a[i+1:]
	}
	if i := strings.LastIndexByte(b, '-'); i >= 0 {
		b, rb = b[:i], b[i+1:]
	}
	if c := compareFragment(a, b); c != 0 {
		return c
	}
	return compareFragment(ra, rb)
}

// cutEpoch splits a numeric epoch off, without its leading zeros.
func cutEpoch(s string) (epoch, rest string) {
	for i := 0; i < len(s); i++ {
		if s[i] == ':' {
			return strings.TrimLeft(s[:i], "0"), s[i+1:]
		}
		if !digit(s[i]) {
			break
		}
	}
	return "", s
}

// compareFragment compares upstream parts or revisions: alternately runs of other
// characters by order and runs of digits by value.
func compareFragment(a, b string) int {
	i, j := 0, 0
	for i < len(a) || j < len(b) {
		for (i < len(a) && !digit(a[i])) || (j < len(b) && !digit(b[j])) {
			x, y := 0, 0
			if i < len(a) {
				x = order(a[i])
			}
			if j < len(b) {
				y = order(b[j])
			}
			if x != y {
				return x - y
			}
			i++
			j++
		}
		for i < len(a) && a[i] == '0' {
			i++
		}
		for j < len(b) && b[j] == '0' {
			j++
		}
		first := 0
		for i < len(a) && j < len(b) && digit(a[i]) && digit(b[j]) {
			if first == 0 {
				first = int(a[i]) - int(b[j])
			}
			i++
			j++
		}
		if i < len(a) && digit(a[i]) {
			return 1
		}
		if j < len(b) && digit(b[j]) {
			return -1
		}
		if first != 0 {
			return first
		}
	}
	return 0
}

// order is the weight of a character: tilde, then the end and digits, letters, the rest.
func order(c byte) int {
	switch {
	case digit(c):
		return 0
	case letter(c):
		return int(c)
	case c == '~':
		return -1
	}
	return int(c) + 256
}

func digit(c byte) bool { return '0' <= c && c <= '9' }

func letter(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' }
