// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// solver holds the state of one resolution in apt's terms: per package the version that is
// installed, the candidate and the version that is to be installed. Packages, their
// relations and who provides them come to life when they are first looked at, so a
// resolution costs what it touches.
//
// The rules are those of apt 2.6's own resolver (apt-pkg/depcache.cc, algorithms.cc).
type solver struct {
	ctx        context.Context
	u          *Universe
	archs      []string // the tree's own first
	recommends bool

	pkgs    map[pkgKey]*pkg
	order   []*pkg // in the order of their making
	stale   []*pkg // targets whose relations have not seen the latest candidates
	work    int    // relations looked at
	changes int    // of what is selected
	err     error  // the first malformed relation, the context's error, or the limit
}

// maxWork bounds the relations looked at, so that no index can keep a resolution going for
// more than some seconds. The largest real requests need about a million.
const maxWork = 100_000_000

// anyArch is apt's architecture of names with a qualifier ("python3:any").
const anyArch = "any"

type pkgKey struct{ name, arch string }

// pkg is a package in apt's sense: a name for one architecture.
type pkg struct {
	name, arch string
	vers       []*ver // highest version first
	essential  bool
	important  bool
	cur        *ver // installed

	provided  []provider // who provides it, apt's order
	haveProvs bool
	id        uint64 // apt's number, up to the order; 0 when not yet looked up

	cand, inst *ver
	original   *ver // the candidate before anything was discarded
	status     int8 // 2 not installed, else how the candidate compares to the installed
	mode       mode
	protected  bool
	auto       bool
	// seen holds candidates that the relations on this package still count with, though
	// they have been discarded.
	seen map[*pkg]*ver

	marked, explored  bool // by the search for garbage
	score             int  // of the problem resolver
	fixed, upgradable bool // asked for; may be tried again
	preInstalled      bool // marked for installation before problems were resolved
	reinstated        bool
	excluded          bool // by the request
}

type mode uint8

const (
	keep mode = iota
	install
	remove
)

// ver is one version of a package.
type ver struct {
	p        *pkg
	e        *Entry
	at       int32 // of the entry in Universe.all
	pin      int
	priority int8 // 1 required … 5 extra, 0 none
	same     bool // Multi-Arch: same
	foreign  bool
	allowed  bool
	deps     []dep
	haveDeps bool
}

// kind is a kind of relation.
type kind uint8

const (
	preDepends kind = iota
	depends
	conflicts
	breaks
	recommends
	suggests
)

func (k kind) String() string {
	return [...]string{"pre-depends on", "depends on", "conflicts with", "breaks", "recommends", "suggests"}[k]
}

// dep is one alternative of a relation.
type dep struct {
	owner    *ver
	target   *pkg
	version  string
	kind     kind
	op       Op
	or       bool // the next one is an alternative to it
	implicit bool // made by the multi-arch rules
}

func (d *dep) negative() bool { return d.kind == conflicts || d.kind == breaks }

func (d *dep) critical() bool { return d.kind <= breaks }

// provider is a version that provides a package, as version ("" for none).
type provider struct {
	v        *ver
	version  string
	implicit bool
	at       int32
}

func newSolver(ctx context.Context, u *Universe, req Request) (*solver, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	u.link()
	for _, arch := range append([]string{req.Arch}, req.ForeignArchs...) {
		if !validArch(arch) || arch == "all" || arch == anyArch {
			return nil, fault.New(fault.Config, "cannot resolve for architecture %q: the name is not valid", arch)
		}
		if _, ok := u.mentions[arch]; !ok {
			return nil, depFault("cannot resolve for architecture %s: there is no package for it in %s", arch, u.names())
		}
	}
	return &solver{
		ctx: ctx, u: u, archs: append([]string{req.Arch}, req.ForeignArchs...),
		recommends: req.Recommends, pkgs: map[pkgKey]*pkg{},
	}, nil
}

// pkg finds or makes a package. A name with a qualifier has the architecture anyArch.
func (s *solver) pkg(name, arch string) *pkg {
	key := pkgKey{name, arch}
	if p := s.pkgs[key]; p != nil {
		return p
	}
	p := &pkg{name: name, arch: arch, status: 2}
	s.pkgs[key] = p
	s.order = append(s.order, p)
	if arch == anyArch {
		return p
	}
	s.u.named(name, func(at int32, e *Entry) {
		a := e.Arch()
		if a != arch && !(a == "all" && arch == s.archs[0]) {
			return
		}
		p.essential = p.essential || e.Essential()
		p.important = p.important || e.yes(fImportant) || e.yes(fProtected)
		s.addVersion(p, at, e)
	})
	if name == "apt" && len(p.vers) > 0 { // as apt does for itself
		p.essential, p.important = true, true
	}
	best := -1
	for _, v := range p.vers {
		if v.pin > best {
			best, p.cand = v.pin, v
		}
	}
	p.original = p.cand
	return p
}

// addVersion puts an entry into the versions of a package, which stay sorted. The same
// package seen in another source counts once, with the higher priority.
func (s *solver) addVersion(p *pkg, at int32, e *Entry) {
	pin := e.index.pin()
	i := 0
	for ; i < len(p.vers); i++ {
		v := p.vers[i]
		c := CompareVersions(e.Version(), v.e.Version())
		if c > 0 {
			break
		}
		if c == 0 && sameBuild(v.e, e) {
			if pin > v.pin {
				v.pin, v.e, v.at = pin, e, at
			}
			return
		}
	}
	ma := e.word(fMultiArch)
	v := &ver{p: p, e: e, at: at, pin: pin, priority: priority(e.Priority())}
	v.same = ma == "same" && e.Arch() != "all"
	v.foreign = ma == "foreign"
	v.allowed = ma == "allowed"
	p.vers = slices.Insert(p.vers, i, v)
}

// sameBuild compares what apt's hash of a version covers.
func sameBuild(a, b *Entry) bool {
	for _, f := range [...]field{
		fSize, fInstalledSize, fDepends, fPreDepends, fConflicts, fBreaks, fReplaces, fMultiArch,
	} {
		if a.get(f) != b.get(f) {
			return false
		}
	}
	return true
}

func priority(s string) int8 {
	switch strings.ToLower(s) {
	case "required":
		return 1
	case "important":
		return 2
	case "standard":
		return 3
	case "optional":
		return 4
	case "":
		return 0
	}
	return 5
}

// depFields are the relation fields that count, in apt's order.
var depFields = [...]struct {
	f field
	k kind
}{{fPreDepends, preDepends}, {fDepends, depends}, {fConflicts, conflicts}, {fBreaks, breaks}, {fRecommends, recommends}, {fSuggests, suggests}}

// relations are those of a version, in apt's order.
func (s *solver) relations(v *ver) []dep {
	if v.haveDeps {
		return v.deps
	}
	v.haveDeps = true
	for _, df := range depFields {
		list, err := v.e.relations(df.f)
		if err != nil {
			s.err = cmp.Or(s.err, err)
		}
		for i := range list {
			s.addRelation(v, df.k, &list[i])
		}
	}
	// Only one architecture of a package can be installed, unless it is Multi-Arch: same
	// and all have one version.
	for _, arch := range s.archs {
		if arch == v.p.arch || len(s.archs) == 1 {
			continue
		}
		if sibling := s.pkg(v.p.name, arch); len(sibling.vers) > 0 {
			d := dep{owner: v, target: sibling, kind: conflicts, implicit: true}
			if v.same {
				d.kind, d.op, d.version = breaks, notEqual, v.e.Version()
			}
			v.deps = append(v.deps, d)
		}
	}
	return v.deps
}

func (s *solver) addRelation(v *ver, k kind, a *Alternative) {
	if !a.AppliesTo(s.archs[0]) {
		return
	}
	d := dep{owner: v, kind: k, op: a.Op, version: a.Version, or: a.Or}
	switch a.Arch {
	case "":
		if !d.negative() {
			d.target = s.pkg(a.Name, v.p.arch)
			break
		}
		// Conflicts and Breaks mean the package of every architecture.
		d.or = false
		for _, arch := range s.archs {
			d.target = s.pkg(a.Name, arch)
			v.deps = append(v.deps, d)
		}
		return
	case "native":
		d.target = s.pkg(a.Name+":"+s.archs[0], anyArch)
	default:
		d.target = s.pkg(a.Name+":"+a.Arch, anyArch)
	}
	v.deps = append(v.deps, d)
}

// providers are the versions that provide a package, last source first, as apt has them.
func (s *solver) providers(t *pkg) []provider {
	if t.haveProvs {
		return t.provided
	}
	t.haveProvs = true
	name, qualifier := t.name, ""
	if t.arch == anyArch {
		i := strings.LastIndexByte(t.name, ':')
		name, qualifier = t.name[:i], t.name[i+1:]
	}
	s.u.providing(name, func(at int32) {
		e := s.u.all[at]
		v := s.version(at, e)
		if v == nil {
			return
		}
		list, err := e.relations(fProvides)
		if err != nil {
			s.err = cmp.Or(s.err, err)
			return
		}
		for _, a := range list {
			if a.Name == name && (a.Op == None || a.Op == Equal) && s.provides(v, &a, t, qualifier) {
				t.provided = append(t.provided, provider{v: v, version: a.Version, at: at})
			}
		}
	})
	s.u.named(name, func(at int32, e *Entry) { // a real package for other names of itself
		v := s.version(at, e)
		if v == nil || v.p == t {
			return
		}
		own := false
		switch qualifier {
		case "":
			own = v.foreign
		case anyArch:
			own = v.allowed
		default:
			own = v.p.arch == qualifier
		}
		if own {
			t.provided = append(t.provided, provider{v: v, version: e.Version(), implicit: true, at: at})
		}
	})
	slices.Reverse(t.provided)
	slices.SortStableFunc(t.provided, func(a, b provider) int { return int(b.at) - int(a.at) })
	return t.provided
}

// version finds the version made from an entry; nil when the entry stands for one of
// another source or for an architecture that is not used.
func (s *solver) version(at int32, e *Entry) *ver {
	arch := e.Arch()
	if arch == "all" {
		arch = s.archs[0]
	} else if !slices.Contains(s.archs, arch) {
		return nil
	}
	for _, v := range s.pkg(e.Name(), arch).vers {
		if v.at == at {
			return v
		}
	}
	return nil
}

// provides says whether item a of v's Provides counts for target t, whose name has the
// given qualifier.
func (s *solver) provides(v *ver, a *Alternative, t *pkg, qualifier string) bool {
	switch {
	case qualifier == "" && a.Arch == "":
		if v.p == t && (a.Version == "" || a.Version == v.e.Version()) {
			return false
		}
		return v.foreign || v.p.arch == t.arch
	case qualifier == "":
		return a.Arch == t.arch
	case a.Arch == qualifier:
		return true
	case a.Arch != "":
		return false
	case qualifier == anyArch:
		return v.allowed
	}
	return v.p.arch == qualifier
}

// ignorable: a package never conflicts with itself, nor with what it provides, nor do
// architectures of a Multi-Arch: same package by name.
func (d *dep) ignorable(t *pkg) bool {
	if !d.negative() || d.owner.p.name != t.name {
		return false
	}
	return d.owner.p == t || d.owner.same && !d.implicit
}

func (d *dep) ignorableProvider(p *provider) bool {
	return d.negative() && (p.v.p.name == d.owner.p.name || d.implicit)
}

// which selects the version of a package that counts.
type which uint8

const (
	now       which = iota // installed
	planned                // to be installed
	candidate              // that could be installed
)

// selected is the version of p that counts for relations on t.
func selected(t, p *pkg, w which) *ver {
	switch w {
	case now:
		return p.cur
	case planned:
		return p.inst
	}
	if v, ok := t.seen[p]; ok {
		return v
	}
	return p.cand
}

// met says whether something selected matches the relation; for a negative one that is
// bad, see ok.
func (s *solver) met(d *dep, w which) bool {
	t := d.target
	s.work++
	if !d.ignorable(t) {
		if v := selected(t, t, w); v != nil && d.op.Satisfied(v.e.Version(), d.version) {
			return true
		}
	}
	provs := s.providers(t)
	s.work += len(provs)
	for i := range provs {
		p := &provs[i]
		if !d.ignorableProvider(p) && selected(t, p.v.p, w) == p.v && d.op.Satisfied(p.version, d.version) {
			return true
		}
	}
	return false
}

func (s *solver) ok(d *dep, w which) bool { return s.met(d, w) != d.negative() }

// groupOK says whether one alternative of a group is.
func (s *solver) groupOK(group []dep, w which) bool {
	if !s.step() {
		return false
	}
	for i := range group {
		if s.ok(&group[i], w) {
			return true
		}
	}
	return false
}

// groups calls f for each group of alternatives of a version until f returns false.
func (s *solver) groups(v *ver, f func(group []dep) bool) {
	deps := s.relations(v)
	for i := 0; i < len(deps); {
		j := i
		for deps[j].or && j+1 < len(deps) {
			j++
		}
		if !f(deps[i : j+1]) {
			return
		}
		i = j + 1
	}
}

// wanted says whether a kind of relation is followed at all.
func (s *solver) wanted(k kind) bool { return k <= breaks || k == recommends && s.recommends }

// broken says whether the critical relations of what is selected of p are not met; with
// policy also those that are only wanted.
func (s *solver) broken(p *pkg, w which, policy bool) bool {
	v := selected(p, p, w)
	if v == nil {
		return false
	}
	bad := false
	s.groups(v, func(g []dep) bool {
		k := g[0].kind
		if g[0].critical() || policy && s.wanted(k) {
			bad = !s.groupOK(g, w)
		}
		return !bad
	})
	return bad
}

// number is apt's number of a package, up to the order.
func (s *solver) number(p *pkg) uint64 {
	if p.id != 0 {
		return p.id
	}
	p.id = 1<<63 - 1
	archs := [...]string{p.arch, "all"}
	if p.arch != s.archs[0] {
		archs[1] = p.arch
	}
	for _, a := range archs {
		if at := s.u.mentioned(p.name, a); at != 0 {
			p.id = min(p.id, at)
		}
	}
	return p.id
}

// step says whether to go on: no error, the limit not reached, not cancelled.
func (s *solver) step() bool {
	if s.err != nil {
		return false
	}
	if s.work > maxWork {
		s.err = depFault("cannot resolve the dependencies: gave up after looking at %d relations", s.work)
	} else if s.work&0xff == 0 {
		s.err = s.ctx.Err()
	}
	return s.err == nil
}
