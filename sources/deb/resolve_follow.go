// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"cmp"
	"slices"
	"strings"
)

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
	slices.SortFunc(list, func(a, b *pkg) int { return cmp.Compare(m.number(a), m.number(b)) })
	for _, follow := range [...]bool{false, true} {
		for _, q := range list {
			m.markInstall(q, follow, m.depth+1, false)
		}
	}
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
