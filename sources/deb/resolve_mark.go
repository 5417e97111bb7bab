// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"slices"
	"strings"
)

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

// marking is the state of one call of markInstall that follows relations.
type marking struct {
	*solver
	p       *pkg
	v       *ver
	depth   int
	user    bool
	already bool // p was protected before
	early   bool // stop at the first failure
	failed  bool

	needs    [][]dep
	bad      []*dep
	upgrade  []*pkg
	removals []*pkg
}

// fail notes a failure; the result says whether to go on.
func (m *marking) fail() bool {
	m.failed = true
	return !m.early
}

// collect finds the relations that are not met yet. What is asked for passes its
// protection on, so all of its relations count.
func (m *marking) collect() bool {
	m.groups(m.v, func(g []dep) bool {
		if !m.p.protected && m.groupOK(g, planned) || !m.wanted(g[0].kind) {
			return true
		}
		if g[0].negative() {
			m.bad = append(m.bad, &g[0])
		} else {
			m.needs = append(m.needs, g)
		}
		return true
	})
	return m.err == nil
}

// conflicts drops the candidates that p conflicts with, and finds the installed packages
// that have to change or go.
func (m *marking) conflicts() bool {
	stop := !m.p.protected && !m.user
	var dropped []*pkg
	for _, d := range m.bad {
		failed := false
		for _, v := range m.solutions([]dep{*d}, candidate) {
			q := v.p
			if q.cand != v {
				continue
			}
			switch {
			case q.cur == v:
				failed = !m.removeLater(q) || failed
			case q.mode == install && !m.markKeep(q, m.depth):
				failed = true
			case m.p.protected:
				m.discard(q, q.inst)
				if q.cur == nil {
					q.protected = true
				}
			default:
				dropped = append(dropped, q)
			}
			if failed && stop {
				break
			}
		}
		if failed && !m.fail() {
			return false
		}
		for _, v := range m.matches(nil, d, now) {
			q := v.p
			switch {
			case q.cand != v && q.cand != nil && !slices.Contains(dropped, q):
				m.upgrade = append(m.upgrade, q)
			case q.cand == q.cur:
			case !m.removeLater(q):
				if !m.fail() {
					return false
				}
			}
		}
	}
	m.rdepends()
	return true
}

// removeLater removes an installed package that p conflicts with: at once when p was asked
// for, else when everything p needs is found.
func (m *marking) removeLater(q *pkg) bool {
	if !m.p.protected {
		if q.mode == remove {
			return true
		}
		if !m.changeable(q, remove, m.depth, false) || !m.removable(q) {
			return false
		}
		m.removals = append(m.removals, q)
		return true
	}
	if q.mode != remove && !m.markRemove(q, m.depth+1) {
		return false
	}
	m.discard(q, q.inst)
	q.protected = true
	return true
}

// rdepends finds installed packages whose relations on p are met now and would not be met
// by its candidate.
func (m *marking) rdepends() {
	if m.p.cur == nil || m.p.cur == m.v {
		return
	}
	for _, q := range m.order {
		if q.cur == nil || q.mode == install || slices.Contains(m.upgrade, q) {
			continue
		}
		deps := m.relations(q.cur)
		for i := range deps {
			d := &deps[i]
			if d.target == m.p && !d.negative() && m.wanted(d.kind) &&
				d.op.Satisfied(m.p.cur.e.Version(), d.version) && !d.op.Satisfied(m.v.e.Version(), d.version) {
				m.upgrade = append(m.upgrade, q)
				break
			}
		}
	}
}

// follow upgrades, installs and removes what p needs. The result is false when it stopped
// at a failure.
func (m *marking) follow() bool {
	m.otherBinaries()
	for _, q := range m.upgrade {
		if q.mode == install || m.markInstall(q, true, m.depth+1, false) {
			continue
		}
		if !m.markRemove(q, m.depth+1) {
			if !m.fail() {
				return false
			}
		} else if m.already {
			q.protected = true
		}
	}
	for _, g := range m.needs {
		if !m.need(g) && !m.fail() {
			return false
		}
	}
	for _, q := range m.removals {
		if !m.markRemove(q, m.depth) && !m.fail() {
			return false
		}
	}
	return true
}

// otherBinaries upgrades installed packages of the same source together with p.
func (m *marking) otherBinaries() {
	var list []*pkg
	for _, q := range m.order {
		if q == m.p || q.cur == nil || q.cand == nil || q.cand == q.cur || q.mode == install && q.inst == q.cand {
			continue
		}
		sn, sv := source(q.cand.e)
		if pn, pv := source(m.v.e); sn == pn && sv == pv {
			list = append(list, q)
		}
	}
	slices.SortFunc(list, func(a, b *pkg) int { return compareNumbers(m.number(a), m.number(b)) })
	for _, follow := range [...]bool{false, true} {
		for _, q := range list {
			m.markInstall(q, follow, m.depth+1, false)
		}
	}
}

func compareNumbers(a, b uint64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// source is the name and version of the source package of an entry.
func source(e *Entry) (name, version string) {
	name, version = e.Name(), e.Version()
	s := e.word(fSource)
	if s == "" {
		return name, version
	}
	name, rest, _ := strings.Cut(s, " ")
	if _, v, ok := strings.Cut(rest, "("); ok {
		version, _, _ = strings.Cut(v, ")")
	}
	return name, version
}

// need satisfies one group of alternatives.
func (m *marking) need(g []dep) bool {
	critical := g[0].critical()
	if m.groupOK(g, planned) {
		if !m.already || !critical {
			return true
		}
		v := m.soleSolution(g)
		if v == nil || v.p.protected {
			return true
		}
		v.p.protected = true
		return m.markInstall(v.p, true, m.depth+1, false)
	}
	if m.p.cur != nil && !critical && !m.newlyWanted(&g[0]) {
		return true
	}
	solutions := m.solutions(g, candidate)
	for _, v := range solutions {
		q := v.p
		if q.cand != v {
			continue
		}
		if m.already && critical && len(solutions) == 1 {
			if !m.markInstall(q, false, m.depth+1, false) {
				continue
			}
			q.protected = true
		}
		if m.markInstall(q, true, m.depth+1, false) {
			return true
		}
	}
	return !critical
}

// newlyWanted: an upgrade follows a Recommends only if the installed version did not have
// it, or had it met.
func (m *marking) newlyWanted(d *dep) bool {
	isNew, met := true, false
	m.groups(m.p.cur, func(g []dep) bool {
		for i := range g {
			if !g[i].critical() && m.wanted(g[i].kind) && g[i].target == d.target {
				isNew = false
				met = m.groupOK(g, now)
				return !met
			}
		}
		return true
	})
	return isNew || met
}
