// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"hash/maphash"
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
	seed      maphash.Seed
	mentions  map[string]*table // architecture → name → where it is first named
	providers table             // name → its first provision
	provision []provision
}

// provision says that an entry provides some name. Those of one name are chained in the
// order of the sources.
type provision struct {
	name uint64 // hash
	at   int32  // the entry in all
	next int32  // -1 at the end
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
		u.seed = maphash.MakeSeed()
		parts := make([]linker, max(1, min(runtime.GOMAXPROCS(0), len(u.all)/4096)))
		var wg sync.WaitGroup
		for w := range parts {
			from, to := len(u.all)*w/len(parts), len(u.all)*(w+1)/len(parts)
			wg.Go(func() { parts[w].run(u, from, to) })
		}
		wg.Wait()
		u.mentions, u.provision = parts[0].mentions, parts[0].provision
		for _, p := range parts[1:] {
			for arch, names := range p.mentions {
				if have := u.mentions[arch]; have == nil {
					u.mentions[arch] = names
				} else {
					names.each(have.putFirst)
				}
			}
			u.provision = append(u.provision, p.provision...)
		}
		u.chain()
	})
}

// chain connects the provisions of each name. It goes backwards, so that the table ends
// with the first one.
func (u *Universe) chain() {
	for i := len(u.provision) - 1; i >= 0; i-- {
		p := &u.provision[i]
		slot := u.providers.slot(p.name)
		p.next = int32(slot.value) - 1
		slot.value = uint64(i) + 1
	}
}

// providing calls f for every entry that provides a name, and perhaps for others.
func (u *Universe) providing(name string, f func(at int32)) {
	last := int32(-1)
	for i := int32(u.providers.get(maphash.String(u.seed, name))) - 1; i >= 0; i = u.provision[i].next {
		if at := u.provision[i].at; at != last {
			last = at
			f(at)
		}
	}
}

// mentioned is the place where a name is first mentioned by packages of an architecture;
// 0 when it never is.
func (u *Universe) mentioned(name, arch string) uint64 {
	t := u.mentions[arch]
	if t == nil {
		return 0
	}
	return t.get(maphash.String(u.seed, name))
}

// linker does the work of link for a part of the entries.
type linker struct {
	mentions  map[string]*table
	provision []provision
}

func (l *linker) run(u *Universe, from, to int) {
	l.mentions = map[string]*table{}
	arch, names := "", (*table)(nil)
	for at := from; at < to; at++ {
		e := u.all[at]
		if names == nil || e.Arch() != arch {
			arch = e.Arch()
			if names = l.mentions[arch]; names == nil {
				names = &table{}
				l.mentions[arch] = names
			}
		}
		seq := uint64(at)<<24 + 1
		add := func(name string) {
			names.putFirst(maphash.String(u.seed, name), seq)
			seq++
		}
		add(e.Name())
		for _, f := range mentionOrder {
			if s := e.get(f); s != "" {
				eachName(s, add)
			}
		}
		if s := e.get(fProvides); s != "" {
			eachName(s, func(name string) {
				if i := strings.LastIndexByte(name, ':'); i > 0 {
					name = name[:i]
				}
				l.provision = append(l.provision, provision{maphash.String(u.seed, name), int32(at), -1})
			})
		}
	}
}

// table maps hashes of names to numbers above 0. It never looks at the names again, which
// a map of strings does whenever it grows. Names with equal hashes count as one; the seed
// is random, so nobody can make such names.
type table struct {
	slots []tableSlot
	used  int
}

type tableSlot struct{ key, value uint64 }

// slot finds or makes the place of a key.
func (t *table) slot(key uint64) *tableSlot {
	if t.used*2 >= len(t.slots) {
		old := t.slots
		t.slots = make([]tableSlot, max(1024, 2*len(old)))
		for _, o := range old {
			if o.value != 0 {
				*t.probe(o.key) = o
			}
		}
	}
	s := t.probe(key)
	if s.value == 0 {
		s.key = key
		t.used++
	}
	return s
}

func (t *table) probe(key uint64) *tableSlot {
	mask := uint64(len(t.slots) - 1)
	for i := key & mask; ; i = (i + 1) & mask {
		if s := &t.slots[i]; s.value == 0 || s.key == key {
			return s
		}
	}
}

func (t *table) get(key uint64) uint64 {
	if len(t.slots) == 0 {
		return 0
	}
	return t.probe(key).value
}

// putFirst stores a value unless there is one.
func (t *table) putFirst(key, value uint64) {
	if s := t.slot(key); s.value == 0 {
		s.value = value
	}
}

func (t *table) each(f func(key, value uint64)) {
	for _, s := range t.slots {
		if s.value != 0 {
			f(s.key, s.value)
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
