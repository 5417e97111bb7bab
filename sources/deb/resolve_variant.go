// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"slices"
	"strings"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// beforeBookworm are Debian's suites that are not forced to a merged /usr.
var beforeBookworm = []string{"etch", "lenny", "squeeze", "wheezy", "jessie", "stretch", "buster", "bullseye"}

// From bookworm on debootstrap never follows the dependency on usrmerge, which converts a
// running system; in bookworm it installs the empty package that says so.
const usrIsMerged, usrmerge = "usr-is-merged", "usrmerge"

// variantSet is what is installed before anything is added.
type variantSet struct {
	required, base []*ver // each sorted by name
}

// variant gives the sets of debootstrap 1.0.145 (its scripts debian-common and gutsy).
func (s *solver) variant(req Request) (*variantSet, error) {
	required, base, err := s.lists(req)
	if err != nil {
		return nil, err
	}
	mergedUsr := req.Distribution != "ubuntu" && !slices.Contains(beforeBookworm, req.Suite)
	if req.Variant == VariantEssential {
		if mergedUsr {
			if p := s.pkg(usrmerge, s.archs[0]); p.cur == nil {
				p.cand = nil
			}
		}
		return s.essentials(required)
	}
	var never []string
	if mergedUsr {
		never = append(never, usrmerge)
	}
	excluded := func(n string) bool { return slices.Contains(req.Exclude, n) }
	first, err := s.closure(slices.DeleteFunc(required, excluded), never)
	if err != nil {
		return nil, err
	}
	second, err := s.closure(slices.DeleteFunc(base, excluded), never)
	if err != nil {
		return nil, err
	}
	set := &variantSet{}
	for _, name := range sorted(first) {
		set.required = append(set.required, first[name])
	}
	for _, name := range sorted(second) {
		if first[name] == nil {
			set.base = append(set.base, second[name])
		}
	}
	return set, nil
}

// lists are the names that debootstrap starts from.
func (s *solver) lists(req Request) (required, base []string, err error) {
	ubuntu := req.Distribution == "ubuntu"
	old := slices.Contains(beforeBookworm, req.Suite) || req.Suite == "bookworm"
	essential := func(v *ver) bool { return v.e.Essential() }
	what := "Essential: yes"
	switch {
	case req.Variant == VariantEssential:
		required = s.all(essential)
	case req.Variant == VariantBuildd && !ubuntu && !old:
		required = s.all(essential)
	default:
		what = "Priority: required"
		required = s.all(func(v *ver) bool { return v.priority == 1 })
	}
	if len(required) == 0 {
		return nil, nil, depFault("cannot resolve variant %s: no package for %s has %q in %s", req.Variant, req.Arch, what, s.u.names())
	}
	switch req.Variant {
	case VariantMinbase:
		base = []string{"apt"}
	case VariantBuildd:
		base = []string{"apt", "build-essential"}
		if !ubuntu && !old {
			required = append(required, "mawk")
		}
	case VariantDefault:
		base = s.all(func(v *ver) bool { return v.priority == 2 })
	case VariantEssential:
	default:
		return nil, nil, fault.New(fault.Config, "cannot resolve variant %q: it is not one of essential, minbase, default, buildd", req.Variant)
	}
	if !ubuntu && req.Suite == "bookworm" && req.Variant != VariantEssential {
		required = append(required, usrIsMerged)
	}
	for _, name := range append(slices.Clone(required), base...) {
		if s.pkg(name, req.Arch).cand == nil && !slices.Contains(req.Exclude, name) {
			return nil, nil, depFault("cannot resolve variant %s: there is no package %s for %s in %s", req.Variant, name, req.Arch, s.u.names())
		}
	}
	return required, base, nil
}

// all lists the names whose candidate passes, in the order of the indexes.
func (s *solver) all(pass func(*ver) bool) []string {
	var out []string
	seen := map[string]bool{}
	probe := ver{}
	for _, e := range s.u.all {
		a := e.Arch()
		if a != s.archs[0] && a != "all" {
			continue
		}
		probe.e, probe.priority = e, priority(e.Priority())
		if !pass(&probe) || seen[e.Name()] {
			continue
		}
		seen[e.Name()] = true
		if c := s.pkg(e.Name(), s.archs[0]).cand; c != nil && pass(c) {
			out = append(out, e.Name())
		}
	}
	return out
}

// closure adds what the names depend on, as debootstrap does: of every group the first
// alternative, its version and qualifier dropped; names of no real package are ignored.
func (s *solver) closure(names, never []string) (map[string]*ver, error) {
	set := make(map[string]*ver)
	queue := slices.Clone(names)
	for len(queue) > 0 {
		name := queue[0]
		queue = queue[1:]
		if set[name] != nil || !s.u.Has(name) {
			continue
		}
		v := s.pkg(name, s.archs[0]).cand
		if v == nil {
			continue
		}
		if !s.step() {
			return nil, s.err
		}
		set[name] = v
		for _, f := range [...]field{fPreDepends, fDepends} {
			alternatives, err := v.e.relations(f)
			if err != nil {
				return nil, err
			}
			or := false
			for _, a := range alternatives {
				if !or && !slices.Contains(never, a.Name) {
					queue = append(queue, a.Name)
				}
				or = a.Or
			}
		}
	}
	return set, nil
}

// essentials is what apt chooses for the names on an empty system, without Recommends.
func (s *solver) essentials(names []string) (*variantSet, error) {
	follow := s.recommends
	s.recommends = false
	defer func() { s.recommends = follow }()
	wants := make([]Want, len(names))
	for i, n := range names {
		wants[i].Name = n
	}
	if err := s.add(wants); err != nil {
		return nil, err
	}
	set := &variantSet{}
	for _, p := range s.order {
		if p.inst != nil {
			set.required = append(set.required, p.inst)
		}
		p.protected, p.fixed, p.auto, p.mode = false, false, false, keep
		p.inst, p.cand, p.seen = nil, p.original, nil
	}
	s.stale = nil
	slices.SortFunc(set.required, func(a, b *ver) int { return strings.Compare(a.p.name, b.p.name) })
	return set, nil
}
