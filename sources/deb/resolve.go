// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"

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
// purpose; what is added is what apt-get install chooses when the variant is installed,
// and what apt would remove from the variant for it is left out. A set that cannot be made
// is fault.Dep with the chain of reasons.
func Resolve(ctx context.Context, u *Universe, req Request) ([]sources.Package, error) {
	s, err := newSolver(ctx, u, req)
	if err != nil {
		return nil, err
	}
	set, err := s.variant(req)
	if err != nil {
		return nil, err
	}
	if err := s.settle(set, req); err != nil {
		return nil, err
	}
	if err := s.add(req.Add); err != nil {
		return nil, err
	}
	return s.result(set)
}

// settle takes the variant as installed. It has to be consistent, or nothing on top can be.
func (s *solver) settle(set *variantSet, req Request) error {
	for _, v := range slices.Concat(set.required, set.base) {
		v.p.cur, v.p.inst, v.p.cand = v, v, v
		v.p.restatus()
	}
	for _, name := range req.Exclude {
		for _, arch := range s.archs {
			if p := s.pkg(name, arch); p.cur == nil {
				p.cand, p.excluded = nil, true
			}
		}
	}
	for _, v := range slices.Concat(set.required, set.base) {
		if s.broken(v.p, planned, false) && s.err == nil {
			return depFault("cannot resolve variant %s: %s", req.Variant, s.explain(v))
		}
	}
	return s.err
}

// result lists what is selected, in install order.
func (s *solver) result(set *variantSet) ([]sources.Package, error) {
	var out []sources.Package
	choose := func(v *ver, phase sources.Phase, auto bool) error {
		p, err := v.e.choose(phase, auto)
		if err == nil {
			out = append(out, p)
		}
		return err
	}
	for _, part := range [...]struct {
		vers  []*ver
		phase sources.Phase
	}{{set.required, sources.PhaseRequired}, {set.base, sources.PhaseBase}} {
		for _, v := range part.vers {
			if v.p.inst == nil {
				continue
			}
			if err := choose(v.p.inst, part.phase, false); err != nil {
				return nil, err
			}
		}
	}
	for _, v := range s.installOrder() {
		if err := choose(v, sources.PhaseAdded, v.p.auto); err != nil {
			return nil, err
		}
	}
	return out, s.err
}

// installOrder lists what is added, each after what it depends on where no cycle forbids
// that, else by name.
func (s *solver) installOrder() []*ver {
	var list []*pkg
	for _, p := range s.order {
		if p.cur == nil && p.inst != nil {
			list = append(list, p)
		}
	}
	slices.SortFunc(list, func(a, b *pkg) int {
		return cmp.Or(strings.Compare(a.name, b.name), strings.Compare(a.arch, b.arch))
	})
	var out []*ver
	done := make(map[*pkg]bool, len(list))
	var visit func(p *pkg)
	visit = func(p *pkg) {
		if done[p] || p.cur != nil || p.inst == nil {
			return
		}
		done[p] = true
		deps := s.relations(p.inst)
		for i := range deps {
			d := &deps[i]
			if d.kind != preDepends && d.kind != depends {
				continue
			}
			if v := d.target.inst; v != nil && d.op.Satisfied(v.e.Version(), d.version) {
				visit(d.target)
			}
			provs := s.providers(d.target)
			for j := range provs {
				if pr := &provs[j]; pr.v.p.inst == pr.v && d.op.Satisfied(pr.version, d.version) {
					visit(pr.v.p)
				}
			}
		}
		out = append(out, p.inst)
	}
	for _, p := range list {
		visit(p)
	}
	return out
}

// sorted returns the keys of a set in the order of their bytes.
func sorted[V any](set map[string]V) []string { return slices.Sorted(maps.Keys(set)) }

func depFault(format string, args ...any) error { return fault.New(fault.Dep, format, args...) }
