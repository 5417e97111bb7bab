// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"cmp"
	"slices"
)

// fix is apt's problem resolver: it orders packages by a score and, from the highest to
// the lowest, mends what is broken by keeping, removing or upgrading. What was asked for
// is never changed. The result says whether nothing is broken any more.
func (s *solver) fix() bool {
	if s.brokenCount() == 0 {
		return true
	}
	for again := true; again; {
		again = false
		for _, p := range s.selectedPackages() {
			if p.mode != install && s.broken(p, planned, false) {
				s.markInstall(p, false, 0, false)
				again = again || p.mode == install
			}
			p.preInstalled = p.mode == install
		}
	}
	for _, p := range s.order {
		p.upgradable = true
	}
	s.scores()
	list := slices.Clone(s.selectedPackages())
	slices.SortStableFunc(list, func(a, b *pkg) int { return b.score - a.score })
	for round, change := 0, true; round < 20 && change && s.err == nil; round++ {
		change = false
		for _, p := range list {
			s.reinstate(p)
			if p.inst == nil || !s.broken(p, planned, false) {
				continue
			}
			if !s.step() {
				return false
			}
			m := mending{solver: s, p: p, round: round}
			m.run()
			change = m.change || change
		}
	}
	return s.brokenCount() == 0
}

// selectedPackages are those that are or will be installed, by apt's numbers.
func (s *solver) selectedPackages() []*pkg {
	var out []*pkg
	for _, p := range s.order {
		if p.inst != nil || p.cur != nil {
			out = append(out, p)
		}
	}
	slices.SortStableFunc(out, func(a, b *pkg) int { return cmp.Compare(s.number(a), s.number(b)) })
	return out
}

func (s *solver) brokenCount() int {
	n := 0
	for i := 0; i < len(s.order); i++ { // looking makes packages
		if p := s.order[i]; p.inst != nil && s.broken(p, planned, false) {
			n++
		}
	}
	return n
}

// scores rates packages by priority and by what depends on them.
func (s *solver) scores() {
	byPriority := [...]int{0, 3, 2, 1, -1, -2}
	byKind := [...]int{preDepends: 1, depends: 1, conflicts: -1, breaks: -1, recommends: 1, suggests: 0}
	list := s.selectedPackages()
	for _, p := range s.order {
		p.score = 0
	}
	dependants := map[*pkg][]*pkg{} // target → packages with a positive relation on it
	for _, p := range list {
		if p.inst == nil {
			continue
		}
		if p.essential || p.important {
			p.score += 100
		}
		p.score += byPriority[p.inst.priority]
		if p.cur != nil && p.cand != nil {
			p.score++
		}
		deps := s.relations(p.inst)
		for i := range deps {
			d := &deps[i]
			if byKind[d.kind] == 0 {
				continue
			}
			if !d.negative() {
				dependants[d.target] = append(dependants[d.target], p)
			}
			t := d.target
			if !d.ignorable(t) {
				if d.op != None && (t.inst == nil || !d.op.Satisfied(t.inst.e.Version(), d.version)) {
					continue
				}
				t.score += byKind[d.kind]
			}
			for q := range s.installedProviders(t, d) {
				q.score += byKind[d.kind]
			}
		}
	}
	old := make(map[*pkg]int, len(s.order))
	for _, p := range s.order {
		old[p] = p.score
	}
	for t, from := range dependants {
		if t.inst == nil {
			continue
		}
		for _, p := range from {
			t.score += max(0, old[p])
		}
	}
	// What provides an important name is as important.
	gained := map[*pkg]int{}
	for _, p := range slices.Clone(s.order) {
		transfer := p.score - old[p]
		if transfer < 0 {
			transfer = -transfer
		}
		if transfer != 0 {
			for q := range s.installedProviders(p, nil) {
				gained[q] += transfer
			}
		}
	}
	for p, n := range gained {
		p.score += n
	}
	for _, p := range s.order {
		if p.fixed {
			p.score += 10000
		}
		if p.essential || p.important {
			p.score += 5000
		}
	}
}

// installedProviders is the set of packages that provide t, and satisfy d unless it is nil.
func (s *solver) installedProviders(t *pkg, d *dep) map[*pkg]bool {
	var out map[*pkg]bool
	provs := s.providers(t)
	for i := range provs {
		p := &provs[i]
		if p.v.p.inst != p.v {
			continue
		}
		if d == nil && p.implicit || d != nil && (d.ignorableProvider(p) || !d.op.Satisfied(p.version, d.version)) {
			continue
		}
		if out == nil {
			out = map[*pkg]bool{}
		}
		out[p.v.p] = true
	}
	return out
}

// reinstate tries once more to upgrade what was to be upgraded and then was kept.
func (s *solver) reinstate(p *pkg) {
	if p.cand == p.inst || p.cur == nil || p.inst == nil || !p.preInstalled || p.protected || p.reinstated {
		return
	}
	p.reinstated = true
	before := s.brokenCount()
	s.markInstall(p, false, 0, false)
	if s.broken(p, planned, false) || before < s.brokenCount() {
		s.markKeep(p, 0)
	}
}

// doUpgrade tries to make a package installable by upgrading what it needs.
func (s *solver) doUpgrade(p *pkg) bool {
	if !p.upgradable || p.status < 1 || p.cand == nil || p.fixed {
		return false
	}
	p.upgradable = false
	kept := p.mode == keep
	if !s.markInstall(p, false, 0, false) || p.inst == nil {
		return false
	}
	failed := false
	s.groups(p.inst, func(g []dep) bool {
		if !g[len(g)-1].critical() {
			return true
		}
		seen := -1
		for i := range g {
			if s.changes != seen && s.groupOK(g, planned) {
				break
			}
			seen = s.changes
			d := &g[i]
			t := s.smartTarget(d)
			if t.protected {
				failed = true
				continue
			}
			if s.ok(d, candidate) {
				if failed = !s.doUpgrade(t); !failed {
					break
				}
				continue
			}
			if d.negative() {
				break
			}
			failed = true
		}
		return !failed
	})
	if failed {
		if kept {
			s.markKeep(p, 0)
		} else {
			s.markRemove(p, 0)
		}
	}
	return !failed
}

// smartTarget is the only provider of a purely virtual target, else the target.
func (s *solver) smartTarget(d *dep) *pkg {
	t := d.target
	if len(t.vers) > 0 {
		return t
	}
	for _, p := range s.providers(t) {
		if p.v.p != d.owner.p {
			return p.v.p
		}
	}
	return t
}

// targets lists all versions that could satisfy a relation, whatever their state.
func (s *solver) targets(d *dep) []*ver {
	var out []*ver
	t := d.target
	if !d.ignorable(t) {
		for _, v := range t.vers {
			if d.op.Satisfied(v.e.Version(), d.version) {
				out = append(out, v)
			}
		}
	}
	provs := s.providers(t)
	for i := range provs {
		if p := &provs[i]; !d.ignorableProvider(p) && d.op.Satisfied(p.version, d.version) {
			out = append(out, p.v)
		}
	}
	return out
}

// mending is the work on one broken package.
type mending struct {
	*solver
	p      *pkg
	round  int
	change bool
	kill   []kill
	done   bool // the package itself was changed
	orKeep bool // the group's failure is solved by keeping
}

// kill is a package in the way of a relation.
type kill struct {
	p     *pkg
	group []dep
}

func (m *mending) run() {
	m.groups(m.p.inst, func(g []dep) bool {
		if !g[len(g)-1].critical() || m.groupOK(g, planned) {
			return true
		}
		inOr := len(g) > 1
		m.orKeep, m.done = false, false
		before := len(m.kill)
		seen := m.changes
		for i := range g {
			if m.changes != seen && m.groupOK(g, planned) {
				return true
			}
			seen = m.changes
			if stop := m.alternative(g, &g[i], inOr); stop {
				return false
			}
			if m.p.inst == nil {
				return false
			}
		}
		if inOr && len(m.kill) == before {
			if m.orKeep {
				m.markKeep(m.p, 0)
				m.change = true
			} else if !m.p.protected {
				m.markRemove(m.p, 0)
				m.change = true
			}
			return m.p.inst != nil
		}
		return !m.done
	})
	if m.p.inst == nil {
		return
	}
	for _, k := range m.kill {
		found := false
		if !m.groupOK(k.group, now) {
			found = k.group[0].negative() && m.markRemove(k.p, 0)
		} else {
			found = m.markKeep(k.p, 0)
		}
		if (!found || m.round > 1) && m.p.score > k.p.score {
			k.p.score = m.p.score
			m.change = true
		}
		m.change = m.change || found
	}
}

// alternative works on one member of a broken group; true ends the work on the package.
func (m *mending) alternative(g []dep, d *dep, inOr bool) bool {
	list := m.targets(d)
	if len(list) == 0 && !m.p.protected && !d.negative() && !m.broken(m.p, now, false) {
		if inOr {
			return false
		}
		m.change = true
		m.markKeep(m.p, 0)
		return true
	}
	for _, v := range list {
		q := v.p
		if q.inst != v && d.negative() {
			continue
		}
		if m.p.score <= q.score || !m.ok(d, now) && !d.negative() {
			if m.p.protected {
				if m.doUpgrade(q) {
					q.score = min(q.score, m.p.score)
					break
				}
				continue
			}
			m.changeSelf(d, q, inOr)
			break
		}
		if d.kind == breaks && m.groupOK(g, candidate) {
			m.markInstall(q, false, 0, false)
			continue
		}
		if q.protected && q.mode != remove {
			continue
		}
		m.kill = append(m.kill, kill{q, g})
		if !d.negative() {
			break
		}
	}
	if len(list) == 0 && !d.negative() && !m.p.protected {
		was := m.p.mode == install
		m.markKeep(m.p, 0)
		if !m.broken(m.p, planned, false) {
			m.orKeep = true
			if inOr && was {
				m.markInstall(m.p, false, 0, false)
			}
		} else if !inOr {
			m.markRemove(m.p, 0)
		}
		m.change, m.done = true, true
	}
	return !inOr && m.done
}

// changeSelf keeps, upgrades or removes the broken package rather than q.
func (m *mending) changeSelf(d *dep, q *pkg, inOr bool) {
	was := m.p.mode == install
	m.markKeep(m.p, 0)
	switch {
	case !m.broken(m.p, planned, false):
		m.orKeep = true
		if inOr && was {
			m.markInstall(m.p, false, 0, false)
		}
	case m.doUpgrade(m.p):
	case !inOr:
		m.markRemove(m.p, 0)
		if m.round > 1 && q.score > m.p.score {
			m.p.score = q.score
		}
	case d.target.cur == nil && d.target.mode != remove && d.target.cand != nil:
		before := m.brokenCount()
		m.markInstall(d.target, true, 1, false)
		if m.broken(d.target, planned, false) || m.brokenCount() > before {
			m.markRemove(d.target, 1)
		}
	}
	m.change, m.done = true, true
}
