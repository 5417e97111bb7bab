// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"context"
	"sort"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/sources"
)

// Variant is a named set of packages to start from.
type Variant string

// The variants. Their sets are debootstrap's of the same name; VariantEssential is
// mmdebstrap's.
const (
	VariantEssential Variant = "essential" // Essential: yes and what that needs
	VariantMinbase   Variant = "minbase"   // Priority required, and apt
	VariantDefault   Variant = "default"   // Priority required and important
	VariantBuildd    Variant = "buildd"    // essential or required, apt, build-essential
)

// Request says what to resolve.
type Request struct {
	// Arch is the architecture of the tree, ForeignArchs are those that dpkg is told to
	// accept besides, in their order.
	Arch         string
	ForeignArchs []string
	// Distribution picks debootstrap's rules: "ubuntu", or anything else for Debian's.
	Distribution string
	// Suite is the code name of the release ("trixie"), on which some rules depend.
	Suite   string
	Variant Variant
	// Add is installed on top of the variant, in this order, as apt-get install would.
	Add []Want
	// Recommends: what is added pulls in what it recommends, as apt does by default.
	Recommends bool
	// Exclude takes packages out of the variant's lists (debootstrap --exclude; they come
	// back where something depends on them) and forbids them to what is added.
	Exclude []string
}

// Want is a package asked for by name; a virtual name stands for its only provider.
type Want struct {
	Name string
	// Arch is an architecture, or empty for the tree's own.
	Arch string
	// Version is one exact version, or empty for the candidate of apt's policy.
	Version string
}

// String is the form of apt's command line: NAME[:ARCH][=VERSION].
func (w Want) String() string {
	s := w.Name
	if w.Arch != "" {
		s += ":" + w.Arch
	}
	if w.Version != "" {
		s += "=" + w.Version
	}
	return s
}

// Resolve chooses the packages of a tree, in install order: the required set sorted by
// name, the rest of the variant sorted by name, then what is added, each after what it
// depends on. The same universe and request always give the same result.
//
// The variant's sets are those of debootstrap, whose way of resolving is simple on
// purpose; what is added is what apt-get install chooses when the variant is installed.
// A set that cannot be made is fault.Dep with the chain of reasons.
func Resolve(ctx context.Context, u *Universe, req Request) ([]sources.Package, error) {
	b, err := variantSet(ctx, u, req)
	if err != nil {
		return nil, err
	}
	var out []sources.Package
	add := func(entries []*Entry, phase sources.Phase) error {
		for _, e := range entries {
			p, err := e.choose(phase, false)
			if err != nil {
				return err
			}
			out = append(out, p)
		}
		return nil
	}
	if err := add(b.required, sources.PhaseRequired); err != nil {
		return nil, err
	}
	if err := add(b.base, sources.PhaseBase); err != nil {
		return nil, err
	}
	return out, nil
}

// base is a variant's set.
type base struct {
	required, base []*Entry // each sorted by name
}

// candidate is apt's choice among the entries of a name for an architecture: the highest
// pin priority, then the highest version, then the first source. Entries of "all" count
// for every architecture. nil when there is none.
func (u *Universe) candidate(name, arch string) *Entry {
	var best *Entry
	u.named(name, func(e *Entry) {
		if a := e.Arch(); a != arch && a != "all" {
			return
		}
		if best != nil {
			if p, q := e.index.pin(), best.index.pin(); p != q {
				if p > q {
					best = e
				}
				return
			}
			if CompareVersions(e.Version(), best.Version()) <= 0 {
				return
			}
		}
		best = e
	})
	return best
}

// sorted returns the keys of a set in the order of their bytes.
func sorted[V any](set map[string]V) []string {
	out := make([]string, 0, len(set))
	for name := range set {
		out = append(out, name)
	}
	sort.Strings(out)
	return out
}

func depFault(format string, args ...any) error { return fault.New(fault.Dep, format, args...) }
