// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"runtime"
	"strings"
	"sync"
	"unsafe"
)

// text views bytes that never change as a string, without a copy.
func text(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// Universe is everything that a resolver may choose from: several indexes, in the order of
// the sources, which breaks ties. It may be used by several resolutions at once.
type Universe struct {
	indexes []*Index
	all     []*Entry         // in the order of the sources
	next    []int32          // chains the entries of one name; -1 at the end
	first   map[string]int32 // name → its first entry in all

	once      sync.Once
	mentions  map[string]map[string]uint64 // architecture → name → where it is first named
	providers map[string][]int32           // name → entries that provide it, in order
}

// NewUniverse joins indexes. Their order is that of the sources in apt's configuration:
// by pocket, then component, then architecture with the tree's own first.
func NewUniverse(indexes ...*Index) *Universe {
	n := 0
	for _, x := range indexes {
		n += len(x.entries)
	}
	u := &Universe{indexes: indexes, all: make([]*Entry, 0, n), next: make([]int32, n), first: make(map[string]int32, n)}
	last := make(map[string]int32) // of the names that occur more than once
	for _, x := range indexes {
		for i := range x.entries {
			at := int32(len(u.all))
			e := &x.entries[i]
			u.all = append(u.all, e)
			u.next[at] = -1
			name := e.Name()
			head, ok := u.first[name]
			if !ok {
				u.first[name] = at
				continue
			}
			tail, ok := last[name]
			if !ok {
				tail = head
			}
			u.next[tail] = at
			last[name] = at
		}
	}
	return u
}

// named calls f for every entry of a name in the order of the sources.
func (u *Universe) named(name string, f func(at int32, e *Entry)) {
	at, ok := u.first[name]
	for ok && at >= 0 {
		f(at, u.all[at])
		at = u.next[at]
	}
}

// Has says whether there is a package of that name, for any architecture.
func (u *Universe) Has(name string) bool {
	_, ok := u.first[name]
	return ok
}

// names lists the indexes for messages.
func (u *Universe) names() string {
	out := make([]string, len(u.indexes))
	for i, x := range u.indexes {
		out[i] = x.Name
	}
	if len(out) == 0 {
		return "no index"
	}
	return strings.Join(out, ", ")
}

// mentionOrder are the fields in which apt reads names when it builds its cache, in its
// order.
var mentionOrder = [...]field{
	fPreDepends, fDepends, fConflicts, fBreaks, fRecommends, fSuggests, fReplaces, fEnhances, fProvides,
}

// link finds, once, who provides what and where each name is mentioned first: apt numbers
// packages in that order, and the number decides between equal providers.
func (u *Universe) link() {
	u.once.Do(func() {
		workers := max(1, min(runtime.GOMAXPROCS(0), len(u.all)/4096))
		parts := make([]linker, workers)
		var wg sync.WaitGroup
		for w := range parts {
			from, to := len(u.all)*w/workers, len(u.all)*(w+1)/workers
			wg.Go(func() { parts[w].run(u, from, to) })
		}
		wg.Wait()
		u.mentions, u.providers = parts[0].mentions, parts[0].providers
		for _, p := range parts[1:] {
			for arch, names := range p.mentions {
				have := u.mentions[arch]
				if have == nil {
					u.mentions[arch] = names
					continue
				}
				for name, at := range names {
					if _, ok := have[name]; !ok {
						have[name] = at
					}
				}
			}
			for name, at := range p.providers {
				u.providers[name] = append(u.providers[name], at...)
			}
		}
	})
}

// linker does the work of link for a part of the entries.
type linker struct {
	mentions  map[string]map[string]uint64
	providers map[string][]int32
}

func (l *linker) run(u *Universe, from, to int) {
	l.mentions = map[string]map[string]uint64{}
	l.providers = map[string][]int32{}
	for at := from; at < to; at++ {
		e := u.all[at]
		arch := e.Arch()
		names := l.mentions[arch]
		if names == nil {
			names = make(map[string]uint64, to-from)
			l.mentions[arch] = names
		}
		seq := uint64(at) << 24
		add := func(name string) {
			if _, ok := names[name]; !ok {
				names[name] = seq
			}
			seq++
		}
		add(e.Name())
		for _, f := range mentionOrder {
			s := e.get(f)
			if s == "" {
				continue
			}
			eachName(s, func(name string) {
				add(name)
				if f == fProvides {
					if i := strings.LastIndexByte(name, ':'); i > 0 {
						name = name[:i]
					}
					if have := l.providers[name]; len(have) == 0 || have[len(have)-1] != int32(at) {
						l.providers[name] = append(have, int32(at))
					}
				}
			})
		}
	}
}

// eachName calls f with the names, qualifiers included, of a relation field. It reads over
// what ParseRelations would refuse.
func eachName(s string, f func(string)) {
	i := 0
	for i < len(s) {
		for i < len(s) && (blank(s[i]) || s[i] == ',' || s[i] == '|') {
			i++
		}
		start := i
		for i < len(s) && s[i] > ' ' && s[i] != ',' && s[i] != '|' && s[i] != '(' && s[i] != '[' && s[i] != '<' {
			i++
		}
		if i > start {
			f(s[start:i])
		}
		for i < len(s) && s[i] != ',' && s[i] != '|' {
			i++
		}
	}
}
