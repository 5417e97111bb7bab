// SPDX-License-Identifier: Apache-2.0

package deb

import "slices"

// maxDepth is how deep apt follows relations.
const maxDepth = 3000

// changeable says whether a package may get mode m. What a user asks for always may.
func (s *solver) changeable(p *pkg, m mode, depth int, user bool) bool {
	switch {
	case depth > maxDepth || len(p.vers) == 0:
		return false
	case user || p.mode == m:
		return true
	case p.protected:
		return false
	}
	return m != remove || !p.essential && !p.important
}

// update makes the relations on p, and on what p provides, see the latest candidates.
func (s *solver) update(p *pkg) {
	s.changes++
	s.stale = slices.DeleteFunc(s.stale, func(t *pkg) bool {
		hit := t == p
		for i := 0; i < len(t.provided) && !hit; i++ {
			v := t.provided[i].v
			hit = v == p.cur && p.cur != nil || v == p.cand && p.cand != nil
		}
		if hit {
			t.seen = nil
		}
		return hit
	})
}

// discard sets the candidate of p without the relations on it noticing, as apt does for
// candidates that turned out not to be installable.
func (s *solver) discard(p *pkg, to *ver) {
	if p.cand == to {
		return
	}
	targets := []*pkg{p}
	if p.cand != nil {
		list, _ := p.cand.e.relations(fProvides)
		names := []string{p.name}
		for _, a := range list {
			names = append(names, a.Name)
			for _, arch := range s.archs {
				targets = append(targets, s.pkg(a.Name, arch))
			}
		}
		for _, n := range names {
			targets = append(targets, s.pkg(n+":any", anyArch), s.pkg(n+":"+p.arch, anyArch))
		}
	}
	for _, t := range targets {
		if t.seen == nil {
			s.providers(t)
			t.seen = map[*pkg]*ver{}
			s.stale = append(s.stale, t)
		}
		if _, ok := t.seen[p]; !ok {
			t.seen[p] = p.cand
		}
	}
	p.cand = to
}

// restatus compares the candidate to the installed version.
func (p *pkg) restatus() {
	if p.cur == nil || p.cand == nil {
		p.status = 2
		return
	}
	p.status = 0
	if i, j := slices.Index(p.vers, p.cand), slices.Index(p.vers, p.cur); i < j {
		p.status = 1
	} else if i > j {
		p.status = -1
	}
}

// setCandidate makes v the candidate of its package.
func (s *solver) setCandidate(v *ver) {
	p := v.p
	if p.cand == v {
		return
	}
	if p.cand == p.inst && p.mode == install {
		p.inst = v
	}
	p.cand = v
	p.restatus()
	s.update(p)
}

func (s *solver) markKeep(p *pkg, depth int) bool {
	if !s.changeable(p, keep, depth, false) {
		return false
	}
	if p.mode == keep {
		return true
	}
	p.mode, p.inst = keep, p.cur
	s.update(p)
	return true
}

func (s *solver) markRemove(p *pkg, depth int) bool {
	if !s.changeable(p, remove, depth, false) {
		return false
	}
	if p.mode == remove || p.inst == nil {
		return true
	}
	if !s.removable(p) {
		return false
	}
	p.mode = remove
	if p.cur == nil {
		p.mode = keep
	}
	p.inst = nil
	s.update(p)
	return true
}

// removable: what was asked for stays.
func (s *solver) removable(p *pkg) bool {
	return !(p.cur == nil && p.inst != nil && p.status == 2 && !p.auto)
}

// better is the order in which versions that would satisfy a relation on t are tried.
func (s *solver) better(t *pkg, av, bv *ver) bool {
	a, b := av.p, bv.p
	if a.protected != b.protected {
		return a.protected
	}
	if av.same || bv.same {
		x, y := av.same && s.anyInstalled(a), bv.same && s.anyInstalled(b)
		if x != y {
			return x
		}
	}
	if (a.cur == nil || b.cur == nil) && a.cur != b.cur {
		return a.cur != nil
	}
	if a.name != b.name {
		if a.name == t.name {
			return true
		}
		if b.name == t.name {
			return false
		}
	}
	if a.essential != b.essential {
		return a.essential
	}
	if a.important != b.important {
		return a.important
	}
	if a.arch != b.arch {
		return slices.Index(s.archs, a.arch) < slices.Index(s.archs, b.arch)
	}
	if av.priority != bv.priority {
		return av.priority < bv.priority
	}
	return s.number(a) > s.number(b)
}

func (s *solver) anyInstalled(p *pkg) bool {
	for _, arch := range s.archs {
		if q := s.pkgs[pkgKey{p.name, arch}]; q != nil && q.cur != nil {
			return true
		}
	}
	return false
}

// matches appends the versions selected by w that satisfy one alternative.
func (s *solver) matches(out []*ver, d *dep, w which) []*ver {
	if w == candidate && !s.met(d, candidate) {
		return out
	}
	pick := func(p *pkg) *ver {
		if w == now {
			return p.cur
		}
		return p.cand
	}
	t := d.target
	if v := pick(t); v != nil && !d.ignorable(t) && d.op.Satisfied(v.e.Version(), d.version) {
		out = append(out, v)
	}
	provs := s.providers(t)
	for i := range provs {
		p := &provs[i]
		if !d.ignorableProvider(p) && pick(p.v.p) == p.v && d.op.Satisfied(p.version, d.version) {
			out = append(out, p.v)
		}
	}
	return out
}

// solutions lists what could satisfy a group, in the order to try: what is installed
// before what is new, then alternative by alternative.
func (s *solver) solutions(group []dep, w which) []*ver {
	var upgrades, fresh, list []*ver
	for i := range group {
		d := &group[i]
		list = s.matches(list[:0], d, w)
		slices.SortStableFunc(list, func(a, b *ver) int {
			switch {
			case a == b:
				return 0
			case s.better(d.target, a, b):
				return -1
			}
			return 1
		})
		for _, v := range list {
			if v.p.cur != nil {
				upgrades = append(upgrades, v)
			} else {
				fresh = append(fresh, v)
			}
		}
	}
	all := slices.Compact(append(upgrades, fresh...))
	if group[0].negative() {
		return all
	}
	return slices.DeleteFunc(all, func(v *ver) bool { return v.p.forbidden() })
}

// forbidden: it was decided that the package does not get installed.
func (p *pkg) forbidden() bool {
	return p.protected && (p.mode == remove || p.mode == keep && p.cur == nil)
}

// soleSolution is the only version, candidate or installed, that satisfies a group.
func (s *solver) soleSolution(group []dep) *ver {
	set := map[*ver]bool{}
	for i := range group {
		for _, w := range [...]which{candidate, now} {
			for _, v := range s.matches(nil, &group[i], w) {
				if !v.p.forbidden() {
					set[v] = true
				}
			}
		}
	}
	if len(set) == 1 {
		for v := range set {
			return v
		}
	}
	return nil
}

// installable: the candidate's critical relations can be met by candidates. A candidate
// for which they cannot is given up.
func (s *solver) installable(p *pkg) bool {
	if p.cand == nil || p.cand == p.cur {
		return true
	}
	good := true
	s.groups(p.cand, func(g []dep) bool {
		if !g[0].critical() || g[0].negative() || s.groupOK(g, planned) || s.groupOK(g, candidate) {
			return true
		}
		good = false
		return false
	})
	if !good && !p.protected {
		if p.cur != nil {
			s.setCandidate(p.cur)
		} else {
			s.discard(p, nil)
		}
		if p.mode != remove {
			p.mode = keep
			p.restatus()
		}
	}
	return good
}

// inSync: a Multi-Arch: same package must have the version of its installed siblings.
func (s *solver) inSync(p *pkg) bool {
	v := p.cand
	if p.mode == install && p.inst == v || v == nil || v == p.cur || !v.same {
		return true
	}
	for _, arch := range s.archs {
		q := s.pkgs[pkgKey{p.name, arch}]
		if q == nil || q == p || q.cur == nil || q.cand == nil || !q.cand.same {
			continue
		}
		if q.cand.e.Version() != v.e.Version() {
			return false
		}
	}
	return true
}

// setInstall targets the candidate.
func (s *solver) setInstall(p *pkg, user bool) {
	if p.protected && p.inst == p.cand {
		return
	}
	p.mode, p.inst = install, p.cand
	if user {
		p.auto = false
	} else if p.status == 2 {
		p.auto = true
	}
	if p.cand == p.cur {
		p.mode = keep
	}
	s.update(p)
}

// giveUp takes back an installation and the candidate with it.
func (s *solver) giveUp(p *pkg) {
	if p.mode == keep && p.inst == p.cand && p.cand == p.cur {
		return
	}
	p.inst, p.mode = p.cur, keep
	s.update(p)
	s.discard(p, p.inst)
}

// markInstall marks a package for installation; with follow also what it needs. The result
// says whether that is possible as far as one can see.
func (s *solver) markInstall(p *pkg, follow bool, depth int, user bool) bool {
	if !s.step() {
		return false
	}
	if !(p.protected && p.mode == keep && p.cand != nil && p.cand == p.cur) && !s.changeable(p, install, depth, user) {
		return false
	}
	if p.cand == nil {
		return false
	}
	if !p.protected && !s.broken(p, planned, true) {
		if p.cand == p.cur {
			if p.inst == nil {
				return s.markKeep(p, depth+1)
			}
			return true
		}
		if p.mode == install {
			return true
		}
	}
	if !user && !s.inSync(p) || follow && !s.installable(p) {
		return false
	}
	if user {
		s.setInstall(p, true)
	}
	m := marking{solver: s, p: p, v: p.cand, depth: depth, user: user, early: !p.protected && !user}
	if follow && (!m.collect() || !m.conflicts()) {
		return false
	}
	if !user {
		s.setInstall(p, false)
	}
	if !follow {
		return !m.failed
	}
	m.already = p.protected
	p.protected = true
	done := m.follow()
	if !m.already {
		p.protected = false
	}
	if !done {
		s.giveUp(p)
		return false
	}
	return !m.failed
}
