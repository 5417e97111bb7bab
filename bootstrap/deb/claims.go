// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"strings"

	"github.com/mkmachine/mkmachine/internal/rootfs"
)

// claim says who has a path of the tree. Packages are unpacked in parallel and in any
// order, so what becomes of a path that two of them ship must not depend on who came
// first: it is left as it is, noted as contested, and settled in install order when all
// are unpacked. Directories are shared.
type claim struct {
	owner     *unpacked
	dir       bool
	contested bool
}

// canonical is where a path lands: below usr for the top directories that are merged into it.
func (s *server) canonical(path string) string {
	if top, _, ok := strings.Cut(path, "/"); ok && s.merged[top] {
		return "usr/" + path
	}
	return path
}

// claim registers an entry and says whether it may be written now.
func (s *server) claim(u *unpacked, e *entry) bool {
	dir := e.Type == rootfs.Dir
	if e.Path == "" || s.merged[e.Path] {
		// The root, and the links that layout made. A directory entry is about what is behind
		// the link, as dpkg has it; anything else than that very link would be refused below.
		return dir || e.Type == rootfs.Symlink
	}
	p := s.canonical(e.Path)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.below(p) {
		return false
	}
	c := s.claims[p]
	if c == nil {
		c = &claim{owner: u, dir: dir}
		s.claims[p] = c
		if e.Type == rootfs.Hardlink && s.lost(u, e.Link) {
			s.contest(p, c)
		}
		return !c.contested
	}
	if c.dir && dir || c.owner == u {
		return true
	}
	s.contest(p, c)
	return false
}

func (s *server) contest(p string, c *claim) {
	c.contested = true
	s.contested = append(s.contested, p)
}

// below says whether p is contested or lies below a path that is: what is written there
// now might go through a link that does not stay.
func (s *server) below(p string) bool {
	for _, q := range s.contested {
		if p == q || strings.HasPrefix(p, q) && p[len(q)] == '/' {
			return true
		}
	}
	return false
}

// lost: the path that a hard link of u's leads to is not u's.
func (s *server) lost(u *unpacked, target string) bool {
	c := s.claims[s.canonical(target)]
	return c != nil && (c.contested || c.owner != u)
}
