// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"context"
	"slices"
	"strings"
)

// beforeBookworm are Debian's suites that are not forced to a merged /usr.
var beforeBookworm = []string{"etch", "lenny", "squeeze", "wheezy", "jessie", "stretch", "buster", "bullseye"}

// variantSet gives the sets of debootstrap 1.0.145 (scripts debian-common and gutsy).
func variantSet(ctx context.Context, u *Universe, req Request) (*base, error) {
	w := walker{ctx: ctx, u: u, arch: req.Arch}
	required, lists, err := w.lists(req)
	if err != nil {
		return nil, err
	}
	without := func(names []string) []string {
		return slices.DeleteFunc(names, func(n string) bool { return slices.Contains(req.Exclude, n) })
	}
	first, err := w.closure(without(required))
	if err != nil {
		return nil, err
	}
	second, err := w.closure(without(lists))
	if err != nil {
		return nil, err
	}
	b := &base{}
	for _, name := range sorted(first) {
		b.required = append(b.required, first[name])
	}
	for _, name := range sorted(second) {
		if first[name] == nil {
			b.base = append(b.base, second[name])
		}
	}
	return b, nil
}

// lists are the names that debootstrap starts from, and the names it never follows.
func (w *walker) lists(req Request) (required, base []string, err error) {
	codename, ubuntu := req.Suite, req.Distribution == "ubuntu"
	old := !ubuntu && (slices.Contains(beforeBookworm, codename) || codename == "bookworm")
	switch {
	case req.Variant == VariantEssential:
		required = w.all(func(e *Entry) bool { return e.Essential() })
	case req.Variant == VariantBuildd && !ubuntu && !old:
		required = append(w.all(func(e *Entry) bool { return e.Essential() }), "mawk")
	default:
		required = w.all(func(e *Entry) bool { return e.Priority() == "required" })
	}
	if len(required) == 0 {
		what := "Priority: required"
		if req.Variant == VariantEssential {
			what = "Essential: yes"
		}
		return nil, nil, depFault("cannot resolve variant %s: no package for %s has %q in %s", req.Variant, w.arch, what, w.u.names())
	}
	switch req.Variant {
	case VariantMinbase:
		base = []string{"apt"}
	case VariantBuildd:
		base = []string{"apt", "build-essential"}
	case VariantDefault:
		base = w.all(func(e *Entry) bool { return e.Priority() == "important" })
	case VariantEssential:
	default:
		return nil, nil, depFault("cannot resolve variant %q: it is not one of essential, minbase, default, buildd", req.Variant)
	}
	if !ubuntu && !slices.Contains(beforeBookworm, codename) {
		if codename == "bookworm" && req.Variant != VariantEssential {
			required = append(required, "usr-is-merged")
		}
		w.never = append(w.never, "usrmerge")
	}
	for _, name := range append(slices.Clone(required), base...) {
		if w.u.candidate(name, w.arch) == nil && !slices.Contains(req.Exclude, name) {
			return nil, nil, depFault("cannot resolve variant %s: there is no package %s for %s in %s", req.Variant, name, w.arch, w.u.names())
		}
	}
	return required, base, nil
}

// walker follows dependencies as debootstrap does.
type walker struct {
	ctx   context.Context
	u     *Universe
	arch  string
	never []string // names that are not followed
}

// all lists the names whose candidate passes, in the order of the indexes.
func (w *walker) all(pass func(*Entry) bool) []string {
	var out []string
	seen := map[string]bool{}
	for i := range w.u.all {
		e := w.u.all[i].entry
		if !pass(e) {
			continue
		}
		name := e.Name()
		if c := w.u.candidate(name, w.arch); c != nil && !seen[name] && pass(c) {
			seen[name] = true
			out = append(out, name)
		}
	}
	return out
}

// closure adds what the names depend on: of every group the first alternative, its version
// and qualifier dropped; names of no real package are ignored.
func (w *walker) closure(names []string) (map[string]*Entry, error) {
	set := make(map[string]*Entry)
	queue := slices.Clone(names)
	for len(queue) > 0 {
		if err := w.ctx.Err(); err != nil {
			return nil, err
		}
		name := queue[0]
		queue = queue[1:]
		if set[name] != nil {
			continue
		}
		e := w.u.candidate(name, w.arch)
		if e == nil {
			continue
		}
		set[name] = e
		for _, f := range [...]field{fPreDepends, fDepends} {
			alternatives, err := e.relations(f)
			if err != nil {
				return nil, err
			}
			or := false
			for _, a := range alternatives {
				if !or && !slices.Contains(w.never, a.Name) {
					queue = append(queue, a.Name)
				}
				or = a.Or
			}
		}
	}
	return set, nil
}

// names lists the indexes for messages.
func (u *Universe) names() string {
	out := make([]string, len(u.indexes))
	for i, x := range u.indexes {
		out[i] = x.Name
	}
	return strings.Join(out, ", ")
}
