// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"bytes"
	"cmp"
	"slices"
	"strconv"
	"strings"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// AptSource is a repository that the tree's own apt is to use: one stanza of a deb822
// .sources file.
type AptSource struct {
	URIs          []string
	Suites        []string // all pockets of one archive: trixie, trixie-updates
	Components    []string
	Architectures []string // none: what dpkg in the tree says
	// SignedBy is the keyring inside the tree that a package brought, an absolute path.
	// Where it is empty Keyring is put below /etc/apt/keyrings and named instead.
	SignedBy string
	Keyring  []byte // armored or binary
}

// AptSources gives the files that make apt in the tree use repositories:
// /etc/apt/sources.list.d/NAME.sources with the stanzas in their order, and keyrings.
// Every stanza names its keys: no repository can sign for another one.
func AptSources(name string, list []AptSource) ([]File, error) {
	if !aptFileName(name) {
		return nil, fault.New(fault.Config, "cannot configure apt: %q is not a name for a file of sources", name)
	}
	var files []File
	var b bytes.Buffer
	for i, s := range list {
		signedBy := s.SignedBy
		if signedBy == "" && len(s.Keyring) > 0 {
			suffix := ".pgp"
			if bytes.HasPrefix(bytes.TrimSpace(s.Keyring), []byte("-----BEGIN PGP")) {
				suffix = ".asc"
			}
			signedBy = "/etc/apt/keyrings/" + name + suffix
			if i > 0 {
				signedBy = "/etc/apt/keyrings/" + name + "-" + strconv.Itoa(i+1) + suffix
			}
			files = append(files, File{Path: signedBy, Mode: 0o644, Data: s.Keyring})
		}
		if i > 0 {
			b.WriteByte('\n')
		}
		for _, f := range []struct {
			name     string
			words    []string
			required bool
		}{
			{"Types", []string{"deb"}, true},
			{"URIs", s.URIs, true},
			{"Suites", s.Suites, true},
			{"Components", s.Components, false},
			{"Architectures", s.Architectures, false},
			{"Signed-By", []string{signedBy}, true},
		} {
			if len(f.words) == 0 && !f.required {
				continue
			}
			for _, w := range f.words {
				if w == "" || strings.IndexFunc(w, func(r rune) bool { return r <= ' ' || r == 0x7f }) >= 0 {
					return nil, fault.New(fault.Config, "cannot configure apt: %s of %s has the value %q", f.name, name, w)
				}
			}
			if len(f.words) == 0 {
				return nil, fault.New(fault.Config, "cannot configure apt: %s has no %s", name, f.name)
			}
			b.WriteString(f.name + ": " + strings.Join(f.words, " ") + "\n")
		}
	}
	return append(files, File{Path: "/etc/apt/sources.list.d/" + name + ".sources", Mode: 0o644, Data: b.Bytes()}), nil
}

// aptFileName: apt reads only files named like this (apt.conf(5)).
func aptFileName(s string) bool {
	return s != "" && len(s) <= 100 && s[0] != '.' && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") == ""
}

// autoInstalled is apt's list of packages that nobody asked for, sorted by name; nil
// where there are none. Packages for all architectures count as of the tree's own.
func autoInstalled(items []Item, arch string) []byte {
	items = slices.DeleteFunc(slices.Clone(items), func(i Item) bool { return !i.Package.Auto })
	slices.SortFunc(items, func(a, b Item) int {
		return cmp.Or(cmp.Compare(a.Package.Name, b.Package.Name), cmp.Compare(a.Package.Arch, b.Package.Arch))
	})
	var b bytes.Buffer
	for _, i := range items {
		own := i.Package.Arch
		if own == "all" {
			own = arch
		}
		b.WriteString("Package: " + i.Package.Name + "\nArchitecture: " + own + "\nAuto-Installed: 1\n\n")
	}
	return b.Bytes()
}
