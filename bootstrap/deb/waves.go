// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"cmp"
	"slices"

	"github.com/mkmachine/mkmachine/sources"
	archive "github.com/mkmachine/mkmachine/sources/deb"
)

// plan divides packages into waves. The packages of a wave are made known to dpkg
// together: database, preinsts, one dpkg --configure -a.
//
// A preinst may count on its Pre-Depends being configured (Debian policy 7.2). The sets
// that a bootstrap consists of are proven to do without, so the required set is the first
// wave, the rest of the variant the second, what is added the third: nothing depends on
// Essential packages by name, yet scripts use them as they are when configured (su has its
// PAM file only then). An added package whose preinst leans on something that has still to
// be configured comes a wave later, and so does what depends on that package.
//
// The result holds facts in install order; waves are never empty.
func plan(facts []*Facts) [][]*Facts {
	g := newGraph(facts)
	level := make([]int, len(facts))
	// A wave number grows along edges that have no cycle, so this ends.
	for changed := true; changed; {
		changed = false
		for i := range facts {
			want := phaseWave(facts[i].Phase)
			for _, d := range g.needs[i] {
				want = max(want, level[d])
			}
			for _, d := range g.after[i] {
				want = max(want, level[d]+1)
			}
			if want > level[i] {
				level[i], changed = want, true
			}
		}
	}
	waves := make([][]*Facts, slices.Max(append(level, 0))+1)
	for i, f := range facts {
		waves[level[i]] = append(waves[level[i]], f)
	}
	return slices.DeleteFunc(waves, func(w []*Facts) bool { return len(w) == 0 })
}

// phaseWave is the earliest wave of a phase.
func phaseWave(p sources.Phase) int {
	switch p {
	case sources.PhaseAdded:
		return 2
	case sources.PhaseBase:
		return 1
	}
	return 0
}

// graph holds, by index into the facts, what each package depends on within the set.
type graph struct {
	facts []*Facts
	needs [][]int // Depends and Pre-Depends
	after [][]int // what the preinst must find configured
}

func newGraph(facts []*Facts) *graph {
	g := &graph{facts: facts, needs: make([][]int, len(facts)), after: make([][]int, len(facts))}
	providers := map[string][]int{}
	for i, f := range facts {
		providers[f.Name] = append(providers[f.Name], i)
	}
	for i, f := range facts {
		for _, a := range relations(f.Provides) {
			providers[a.Name] = append(providers[a.Name], i)
		}
	}
	pre := make([][]int, len(facts))
	for i, f := range facts {
		pre[i] = g.chosen(relations(f.PreDepends), providers)
		g.needs[i] = append(g.chosen(relations(f.Depends), providers), pre[i]...)
	}
	for i, f := range facts {
		if !f.Preinst || f.Phase != sources.PhaseAdded {
			continue
		}
		for d := range g.reach(pre[i]) {
			if g.facts[d].mustConfigure() && !g.reach(g.needs[d])[i] {
				g.after[i] = append(g.after[i], d)
			}
		}
		slices.Sort(g.after[i])
	}
	return g
}

// chosen are the packages that satisfy the groups: of each group the alternative that is
// earliest in install order, which is the first to be there.
func (g *graph) chosen(list []archive.Alternative, providers map[string][]int) []int {
	var out []int
	best := -1
	for _, a := range list {
		for _, i := range providers[a.Name] {
			if best < 0 || cmp.Compare(g.facts[i].Order, g.facts[best].Order) < 0 {
				best = i
			}
		}
		if !a.Or {
			if best >= 0 && !slices.Contains(out, best) {
				out = append(out, best)
			}
			best = -1
		}
	}
	return out
}

// reach is everything that the packages from depend on, themselves included.
func (g *graph) reach(from []int) map[int]bool {
	seen := map[int]bool{}
	todo := slices.Clone(from)
	for len(todo) > 0 {
		i := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if !seen[i] {
			seen[i] = true
			todo = append(todo, g.needs[i]...)
		}
	}
	return seen
}

// mustConfigure: unpacked is not good enough for those who Pre-Depend on the package.
// Essential packages have to work unconfigured (policy 3.8), a shared library needs no
// more than the linker's cache, which is made before preinsts run, and a package without
// scripts and conffiles is complete.
func (f *Facts) mustConfigure() bool {
	return !f.Essential && !f.Library && (f.Preinst || f.Postinst || f.Config || f.Conffiles)
}

// relations reads a relation field whose syntax the helper has checked already.
func relations(value string) []archive.Alternative {
	list, err := archive.ParseRelations(value)
	if err != nil {
		return nil
	}
	return list
}

// dependents are the packages of list that need one of the given ones, directly or not,
// with those themselves.
func dependents(facts, of []*Facts) []*Facts {
	g := newGraph(facts)
	var out []*Facts
	for i, f := range facts {
		reach := g.reach([]int{i})
		for d := range reach {
			if slices.Contains(of, facts[d]) {
				out = append(out, f)
				break
			}
		}
	}
	return out
}
