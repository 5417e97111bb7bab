// SPDX-License-Identifier: Apache-2.0

package deb

import "unsafe"

// text views bytes that never change as a string, without a copy.
func text(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// Universe is everything that a resolver may choose from: several indexes, in the order of
// the sources, which breaks ties. It may be used by several resolutions at once.
type Universe struct {
	indexes []*Index
	groups  map[string]int32 // name → first entry in all, -1 is never stored
	all     []ref
}

// ref chains the entries of one name, in the order of the sources.
type ref struct {
	entry      *Entry
	next, last int32 // indexes into all; next is -1 at the end; last is kept in the first
}

// NewUniverse joins indexes. Their order is that of the sources.
func NewUniverse(indexes ...*Index) *Universe {
	n := 0
	for _, x := range indexes {
		n += len(x.entries)
	}
	u := &Universe{indexes: indexes, groups: make(map[string]int32, n), all: make([]ref, 0, n)}
	for _, x := range indexes {
		for i := range x.entries {
			e := &x.entries[i]
			at := int32(len(u.all))
			u.all = append(u.all, ref{e, -1, at})
			name := e.Name()
			// Stanzas of one name follow each other in the indexes of Debian.
			first, ok := u.groups[name]
			if !ok {
				u.groups[name] = at
				continue
			}
			u.all[u.all[first].last].next = at
			u.all[first].last = at
		}
	}
	return u
}

// named calls f for every entry of a name in the order of the sources.
func (u *Universe) named(name string, f func(*Entry)) {
	at, ok := u.groups[name]
	for ok && at >= 0 {
		f(u.all[at].entry)
		at = u.all[at].next
	}
}

// Has says whether there is a package of that name.
func (u *Universe) Has(name string) bool {
	_, ok := u.groups[name]
	return ok
}
