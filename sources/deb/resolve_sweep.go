// SPDX-License-Identifier: Apache-2.0

package deb

import "slices"

// sweep drops new packages that nothing needs, which attempts that failed leave behind.
func (s *solver) sweep() {
	for _, p := range s.order {
		p.marked, p.explored = false, false
	}
	for _, p := range s.selectedPackages() {
		if !p.boring() && (!p.auto || p.protected || p.essential || p.important || p.cur != nil && p.cur.priority == 1) {
			s.reach(p, p.will(), 0)
		}
	}
	var dropped []*pkg
	for _, p := range s.selectedPackages() {
		if !p.marked && p.mode == install && p.cur == nil {
			dropped = append(dropped, p)
			s.markRemove(p, 0)
			if p.inst != nil { // asked for, or protected
				dropped = dropped[:len(dropped)-1]
			}
		}
	}
	for changed := len(dropped) > 0 && s.anyBroken(); changed; {
		changed = false
		for i, p := range dropped {
			if s.neededBy(p) {
				s.markInstall(p, false, 0, false)
				dropped = slices.Delete(dropped, i, i+1)
				changed = true
				break
			}
		}
	}
}

// anyBroken says whether some selected package misses something it needs or wants.
func (s *solver) anyBroken() bool {
	for i := 0; i < len(s.order); i++ { // looking makes packages
		if p := s.order[i]; p.inst != nil && s.broken(p, planned, true) {
			return true
		}
	}
	return false
}

// neededBy says whether something selected has a relation on p or on what p provides.
func (s *solver) neededBy(p *pkg) bool {
	for i := 0; i < len(s.order); i++ {
		q := s.order[i]
		if q.inst == nil {
			continue
		}
		deps := s.relations(q.inst)
		for j := range deps {
			d := &deps[j]
			if d.negative() || !s.wanted(d.kind) {
				continue
			}
			if d.target == p || slices.ContainsFunc(s.providers(d.target), func(pr provider) bool { return pr.v == p.cand && p.cand != nil }) {
				return true
			}
		}
	}
	return false
}

// boring packages are neither installed nor going to be.
func (p *pkg) boring() bool {
	if p.cur == nil {
		return p.mode == keep
	}
	return p.mode == remove
}

func (p *pkg) will() *ver {
	if p.mode == install {
		return p.inst
	}
	return p.cur
}

// reach marks what is needed, recommended or suggested by v.
func (s *solver) reach(p *pkg, v *ver, depth int) {
	if v == nil || p.marked || depth > maxDepth {
		return
	}
	if p.boring() {
		p.explored = true
		return
	}
	p.marked = true
	deps := s.relations(v)
	for i := range deps {
		d := &deps[i]
		t := d.target
		if t.explored || d.negative() {
			continue
		}
		var found []*ver
		unsatisfied := false
		if !t.boring() {
			if tv := t.will(); tv != nil {
				if d.op.Satisfied(tv.e.Version(), d.version) {
					found = append(found, tv)
				} else {
					unsatisfied = true
				}
			}
		}
		provs := s.providers(t)
		for j := range provs {
			q := &provs[j]
			if q.v.p.boring() || q.v.p.will() != q.v {
				continue
			}
			if d.op.Satisfied(q.version, d.version) {
				found = append(found, q.v)
			} else {
				unsatisfied = true
			}
		}
		t.explored = t.explored || !unsatisfied
		for _, f := range s.newestOfSource(found) {
			s.reach(f.p, f, depth+1)
		}
	}
}

// newestOfSource leaves, per source package, only the versions of the newest source.
func (s *solver) newestOfSource(list []*ver) []*ver {
	if len(list) < 2 {
		return list
	}
	newest := map[string]string{}
	for _, v := range list {
		name, version := source(v.e)
		if have, ok := newest[name]; !ok || CompareVersions(version, have) > 0 {
			newest[name] = version
		}
	}
	return slices.DeleteFunc(list, func(v *ver) bool {
		name, version := source(v.e)
		return newest[name] != version
	})
}
