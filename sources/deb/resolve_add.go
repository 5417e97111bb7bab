// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"fmt"
	"slices"
	"strings"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// add marks what is asked for, as "apt-get install WANTS" does.
func (s *solver) add(wants []Want) error {
	if len(wants) == 0 {
		return nil
	}
	var asked []*pkg
	for _, w := range wants {
		v, err := s.find(w)
		if err != nil {
			return err
		}
		if slices.Contains(asked, v.p) && v.p.cand != v {
			return depFault("cannot add %s: %s is asked for in version %s too", w, v.p.name, v.p.cand.e.Version())
		}
		s.setCandidate(v)
		v.p.original = v
		v.p.fixed, v.p.protected = true, true
		asked = append(asked, v.p)
		s.markInstall(v.p, false, 0, true)
	}
	for _, p := range asked {
		s.markInstall(p, true, 0, true)
	}
	before := map[*pkg]bool{}
	for _, p := range s.order {
		before[p] = p.mode == install
	}
	solved := s.fix()
	if s.err != nil {
		return s.err
	}
	if !solved {
		return s.unsolved(asked)
	}
	for _, p := range s.order {
		if p.mode == install && p.status == 2 && !before[p] {
			p.auto = true
		}
	}
	s.sweep()
	if s.err == nil && s.brokenCount() > 0 {
		return s.unsolved(asked)
	}
	return s.err
}

// find chooses the version that a want means.
func (s *solver) find(w Want) (*ver, error) {
	archs := s.archs
	if w.Arch != "" {
		if archs = []string{w.Arch}; !slices.Contains(s.archs, w.Arch) {
			err := depFault("cannot add %s: the architecture %s is not enabled", w, w.Arch)
			return nil, fault.Hint(err, "add %s to the foreign architectures of the source", w.Arch)
		}
	}
	p := s.pkg(w.Name, archs[0])
	for _, arch := range archs {
		if q := s.pkg(w.Name, arch); len(q.vers) > 0 {
			p = q
			break
		}
	}
	if p.excluded {
		return nil, depFault("cannot add %s: the request excludes it", w)
	}
	if w.Version != "" {
		var have []string
		for _, v := range p.vers {
			if v.e.Version() == w.Version {
				return v, nil
			}
			have = append(have, v.e.Version())
		}
		err := depFault("cannot add %s: there is no such version in %s", w, s.u.names())
		if len(have) > 0 {
			err = fault.Hint(err, "the versions of %s are %s", w.Name, strings.Join(have, ", "))
		}
		return nil, err
	}
	if p.cand != nil {
		return p.cand, nil
	}
	return s.soleProvider(w, p)
}

// soleProvider stands in for a virtual name when all of its providers are one package.
func (s *solver) soleProvider(w Want, p *pkg) (*ver, error) {
	var chosen *ver
	names := map[string]bool{}
	for _, pr := range s.providers(p) {
		q := pr.v.p
		if q.cand != pr.v {
			continue
		}
		names[q.name] = true
		if chosen == nil || chosen.p.arch != p.arch && slices.Index(s.archs, q.arch) < slices.Index(s.archs, chosen.p.arch) {
			chosen = pr.v
		}
	}
	switch len(names) {
	case 0:
		return nil, depFault("cannot add %s: there is no package of that name for %s in %s", w, p.arch, s.u.names())
	case 1:
		return chosen, nil
	}
	err := depFault("cannot add %s: it is a virtual package with several providers", w)
	return nil, fault.Hint(err, "add one of %s", strings.Join(sorted(names), ", "))
}

// unsolved is the error for a request that has no solution apt would find.
func (s *solver) unsolved(asked []*pkg) error {
	seen := map[*ver]bool{}
	for _, p := range asked {
		if chain := s.why(p.original, seen, 0); len(chain) > 0 {
			return depFault("cannot add %s: %s", p.name, strings.Join(chain, "; "))
		}
	}
	for _, p := range s.selectedPackages() {
		if p.inst != nil && s.broken(p, planned, false) {
			return depFault("cannot add the packages: %s", s.explain(p.inst))
		}
	}
	return depFault("cannot add the packages: their dependencies cannot be met together")
}

// maxChain is how many links of a chain of reasons are told.
const maxChain = 12

// explain tells the chain of relations that leads to what cannot be met.
func (s *solver) explain(v *ver) string {
	chain := s.why(v, map[*ver]bool{}, 0)
	if len(chain) == 0 {
		return fmt.Sprintf("the dependencies of %s cannot be met", v.name())
	}
	return strings.Join(chain, "; ")
}

func (v *ver) name() string { return v.p.name + " " + v.e.Version() }

// why is the chain for one version; empty when nothing is wrong with it.
func (s *solver) why(v *ver, seen map[*ver]bool, depth int) []string {
	if seen[v] || depth > maxChain {
		return nil
	}
	seen[v] = true
	var chain []string
	s.groups(v, func(g []dep) bool {
		if !g[0].critical() {
			return true
		}
		if s.groupOK(g, planned) {
			chain = s.whySelected(v, g, seen, depth)
			return len(chain) == 0
		}
		if g[0].negative() {
			chain = s.whyConflict(v, &g[0])
			return len(chain) == 0
		}
		link := v.name() + " " + g[0].kind.String() + " " + describe(g)
		found := false
		for i := range g {
			for _, c := range s.targets(&g[i]) {
				if c.p.original != c || c.p.excluded {
					continue
				}
				found = true
				if sub := s.why(c, seen, depth+1); len(sub) > 0 {
					chain = append([]string{link}, sub...)
					return false
				}
			}
		}
		if !found {
			chain = []string{link, s.absent(&g[0])}
		}
		return found
	})
	if len(chain) == 0 && v.p.inst != v {
		chain = s.whyHit(v)
	}
	return chain
}

// whySelected looks behind a relation that is met for what is wrong with what meets it.
func (s *solver) whySelected(v *ver, g []dep, seen map[*ver]bool, depth int) []string {
	if g[0].negative() {
		return nil
	}
	for i := range g {
		for _, c := range s.targets(&g[i]) {
			if c.p.inst != c {
				continue
			}
			if sub := s.why(c, seen, depth+1); len(sub) > 0 {
				return append([]string{v.name() + " " + g[0].kind.String() + " " + describe(g)}, sub...)
			}
		}
	}
	return nil
}

// whyConflict names what v conflicts with among the selected.
func (s *solver) whyConflict(v *ver, d *dep) []string {
	for _, c := range s.targets(d) {
		if c.p.inst == c {
			return []string{v.name() + " " + d.kind.String() + " " + describe([]dep{*d}), c.name() + " is " + c.p.role()}
		}
	}
	return nil
}

// whyHit finds a selected package that conflicts with v.
func (s *solver) whyHit(v *ver) []string {
	for _, q := range s.selectedPackages() {
		if q.inst == nil || q.inst == v {
			continue
		}
		deps := s.relations(q.inst)
		for i := range deps {
			d := &deps[i]
			if d.negative() && slices.Contains(s.targets(d), v) {
				return []string{q.inst.name() + " " + d.kind.String() + " " + describe([]dep{*d}), q.name + " is " + q.role()}
			}
		}
	}
	return nil
}

// role says why a package is there.
func (p *pkg) role() string {
	switch {
	case p.fixed:
		return "asked for"
	case p.cur != nil:
		return "part of the variant"
	}
	return "needed by another package"
}

func describe(g []dep) string {
	parts := make([]string, 0, min(len(g), 4))
	for i := range g {
		if i == 3 && len(g) > 4 {
			parts = append(parts, fmt.Sprintf("%d more", len(g)-3))
			break
		}
		a := Alternative{Name: g[i].target.name, Op: g[i].op, Version: g[i].version}
		parts = append(parts, a.String())
	}
	return strings.Join(parts, " | ")
}

// absent says what there is in place of a target that nothing satisfies.
func (s *solver) absent(d *dep) string {
	t := d.target
	switch {
	case t.excluded:
		return t.name + " is excluded by the request"
	case len(t.vers) > 0:
		return "only " + t.vers[0].name() + " is available"
	}
	for _, pr := range s.providers(t) {
		if pr.v.p.excluded {
			return pr.v.p.name + ", which provides it, is excluded by the request"
		}
		return "it is provided only by " + pr.v.name() + " in a version that does not match"
	}
	for _, arch := range s.archs {
		if q := s.pkgs[pkgKey{t.name, arch}]; q != nil && arch != t.arch && len(q.vers) > 0 {
			return t.name + " of " + arch + " does not satisfy packages of " + t.arch
		}
	}
	return "no package of that name is available"
}
