// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"archive/tar"
	"strings"
)

// claim is who has a path of the tree. Packages are unpacked in parallel and in any
// order, so what happens to a path that two of them ship must not depend on who came
// first: the path is put aside and settled in install order when all are unpacked.
type claim struct {
	owner  *unpacked
	dir    bool
	attr   attributes
	contested bool
	done bool
}

// canonical is where an entry lands: below /usr for the top directories that are merged into it.
func (s *server) canonical(path string) string {
	if len(path) < 2 {
		return path
	}
	top, rest := path, ""
	if i := strings.IndexByte(path[1:], '/'); i >= 0 {
		top, rest = path[:i+1], path[i+1:]
	}
	if rest != "" && s.merged[top] {
		return "/usr" + top + rest
	}
	return path
}

// claim registers an entry and says whether the caller may write it now.
func (s *server) claim(u *unpacked, e *entry) bool {
	if e.Path == "/." {
		s.claimDir(u, "/", e)
		return true
	}
	p := s.canonical(e.Path)
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.claims[p]
	switch {
	case c == nil:
		s.claims[p] = &claim{owner: u, dir: e.Type == tar.TypeDir, attr: e.attributes}
		return true
	case c.dir && e.Type == tar.TypeDir:
		// dpkg lets the first package that brings a directory say how it looks.
		if u.Order < c.owner.Order {
			c.owner, c.attr = u, e.attributes
		}
		return true
	case c.owner == u:
		return !c.contested
	}
	c.contested = true
	return false
}

func (s *server) claimDir(u *unpacked, p string, e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.claims[p]; c == nil {
		s.claims[p] = &claim{owner: u, dir: true, attr: e.attributes}
	} else if u.Order < c.owner.Order {
		c.owner, c.attr = u, e.attributes
	}
}
