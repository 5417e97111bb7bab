// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/internal/rootfs"
	"github.com/mkmachine/mkmachine/sources"
	archive "github.com/mkmachine/mkmachine/sources/deb"
)

// conflict is a path that two packages ship and neither may replace. A diversion made by
// a preinst can still resolve it; final says that no more preinsts will come.
type conflict struct {
	path   string
	first  *unpacked
	second *unpacked
}

// settle gives the contested paths to whom dpkg would, had it unpacked one package after
// the other in install order: the paths are removed and the packages' entries at and
// below them written again in that order. What stays in conflict is absent from the tree;
// it is an error when final is set.
func (s *server) settle(ctx context.Context, final bool) ([]string, error) {
	paths := s.settlePaths()
	if len(paths) == 0 {
		return nil, nil
	}
	var involved []*unpacked
	for _, u := range s.pkgs {
		if !u.held && slices.ContainsFunc(u.entries, func(e entry) bool { return within(s.canonical(e.Path), paths) }) {
			involved = append(involved, u)
		}
	}
	slices.SortFunc(involved, func(a, b *unpacked) int { return cmp.Compare(a.Order, b.Order) })
	for _, p := range paths {
		if err := s.removeAll(p); err != nil {
			return nil, err
		}
	}
	r := replay{s: s, paths: paths, session: s.root.NewSession(&rootfs.SessionOptions{KeepDirs: true}), owners: map[string][]*owner{}}
	for _, u := range involved {
		for i := range u.entries {
			if within(s.canonical(u.entries[i].Path), paths) {
				u.entries[i].Dropped = false
			}
		}
		if err := r.unpack(ctx, u); err != nil {
			return nil, cannotUnpack(u, err)
		}
	}
	if err := r.session.Finish(); err != nil {
		return nil, err
	}
	return r.notes, s.conclude(r.conflicts, final)
}

// settlePaths are the topmost contested paths, and the hard links to them.
func (s *server) settlePaths() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	paths := slices.Clone(s.contested)
	if len(paths) == 0 {
		return nil
	}
	for _, u := range s.pkgs {
		for _, e := range u.entries {
			if e.Type == rootfs.Hardlink && within(s.canonical(e.Link), s.contested) {
				paths = append(paths, s.canonical(e.Path))
			}
		}
	}
	slices.Sort(paths)
	top := paths[:0]
	for _, p := range paths {
		if len(top) == 0 || !within(p, top[len(top)-1:]) {
			top = append(top, p)
		}
	}
	return top
}

func within(p string, tops []string) bool {
	return slices.ContainsFunc(tops, func(q string) bool {
		return p == q || strings.HasPrefix(p, q) && p[len(q)] == '/'
	})
}

// conclude keeps what is still in conflict for the next time, or fails.
func (s *server) conclude(left []conflict, final bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.contested = nil
	for _, c := range left {
		if final {
			return fault.Hint(fault.New(fault.Dep, "cannot unpack %s: it has %q, which is also in %s", c.second, "/"+c.path, c.first),
				"the two packages cannot be installed together unless one of them declares Replaces")
		}
		s.contested = append(s.contested, c.path)
	}
	for _, c := range s.claims {
		c.contested = false
	}
	for _, p := range s.contested {
		if c := s.claims[p]; c != nil {
			c.contested = true
		}
	}
	return nil
}

// replay unpacks parts of packages again, in order.
type replay struct {
	s         *server
	paths     []string
	session   *rootfs.Session
	owners    map[string][]*owner // by canonical path, in order
	conflicts []conflict
	notes     []string
}

type owner struct {
	u *unpacked
	e *entry
}

func (r *replay) unpack(ctx context.Context, u *unpacked) error {
	w := r.s.unpacker(r.session, u)
	defer w.Close()
	next := 0
	return u.src.each(ctx, w, func(found *entry, put func() error) error {
		e := &u.entries[next]
		next++
		p := r.s.canonical(e.Path)
		if e.Path == "" || !within(p, r.paths) {
			return nil
		}
		write, err := r.decide(u, e, p)
		if err != nil || !write {
			return err
		}
		if err := r.clear(e, p); err != nil {
			return err
		}
		if err := put(); err != nil {
			return err
		}
		e.MD5 = found.MD5
		if i, ok := u.conffile[e.Path]; ok {
			u.conffiles[i].MD5 = e.MD5
		}
		return nil
	})
}

// decide is dpkg's rule for one entry, given what lies in the tree now.
func (r *replay) decide(u *unpacked, e *entry, p string) (write bool, err error) {
	others := r.owners[p]
	r.owners[p] = append(others, &owner{u, e})
	if d, ok := r.s.diverted[e.Path]; ok && d.Package != u.Package.Name {
		p = r.s.canonical(d.To[1:])
	}
	there, err := r.s.root.Lstat(p)
	exists := err == nil
	if err != nil && !rootfs.IsNotExist(err) {
		return false, err
	}
	if exists {
		behind, err := r.s.root.Stat(p)
		leadsToDir := err == nil && behind.Type == rootfs.Dir
		switch {
		case e.Type == rootfs.Dir && leadsToDir:
			return there.Type == rootfs.Dir, nil // the first package's attributes stay
		case e.Type == rootfs.Symlink && there.Type == rootfs.Dir:
			return false, nil
		case e.Type == rootfs.Symlink && there.Type == rootfs.Symlink && leadsToDir:
			if text, err := r.s.root.Readlink(p); err == nil && text == e.Link {
				return false, nil
			}
		}
	} else if e.Type == rootfs.Dir {
		return true, nil
	}
	write = true
	for _, o := range others {
		if o.u == u || o.e.Dropped {
			continue
		}
		if !r.against(u, e, o, p) {
			write = false
		}
	}
	return write, nil
}

// against decides between an entry and the same path of an earlier package, and says
// whether the entry may be written.
func (r *replay) against(u *unpacked, e *entry, o *owner, p string) bool {
	d, diverted := r.s.diverted[e.Path]
	switch {
	case o.u.Package.Name == u.Package.Name && u.Key != u.Package.Name && o.u.Key != o.u.Package.Name:
		// Multi-Arch: same, of two architectures: the file is shared and must be the same one.
		if e.Type != o.e.Type || e.Size != o.e.Size || e.Link != o.e.Link || u.digest(e) != o.u.digest(o.e) {
			r.conflicts = append(r.conflicts, conflict{p, o.u, u})
		}
		return false
	case diverted && (d.Package == u.Package.Name || d.Package == o.u.Package.Name):
		return true
	case e.Path != o.e.Path:
		// The same place by way of a merged directory: dpkg does not see it, the later wins.
		r.notes = append(r.notes, fmt.Sprintf("%s and %s both have %q", o.u, u, "/"+p))
		return true
	case u.canReplace(o.u):
		o.e.Dropped = true
		return true
	case o.u.canReplace(u):
		e.Dropped = true
		return false
	}
	r.conflicts = append(r.conflicts, conflict{p, o.u, u})
	return false
}

// digest is the MD5 of a file in hex, as it was read or else as the package's md5sums has it;
// "" where it is in neither.
func (u *unpacked) digest(e *entry) string {
	if e.MD5 != "" || e.Type != rootfs.File {
		return e.MD5
	}
	for line := range strings.Lines(string(u.members["md5sums"].Data)) {
		if sum, path, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "  "); ok && strings.TrimPrefix(path, "./") == e.Path {
			return sum
		}
	}
	return ""
}

// clear refuses to put a file in the place of a directory.
func (r *replay) clear(e *entry, p string) error {
	if e.Type == rootfs.Dir {
		return nil
	}
	there, err := r.s.root.Lstat(p)
	if err == nil && there.Type == rootfs.Dir {
		return fault.New(fault.Dep, "%q is a directory in another package", "/"+p)
	}
	return nil
}

// canReplace says whether u declares that it replaces files of o.
func (u *unpacked) canReplace(o *unpacked) bool {
	return slices.ContainsFunc(u.replaces, func(a archive.Alternative) bool {
		return a.Name == o.Package.Name && a.Op.Satisfied(o.Package.Version, a.Version)
	})
}

// removeAll removes a path and what is below it; none there is no error.
func (s *server) removeAll(p string) error {
	st, err := s.root.Lstat(p)
	if rootfs.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Type == rootfs.Dir {
		names, err := s.root.Readdir(p)
		if err != nil {
			return err
		}
		for _, n := range names {
			if err := s.removeAll(p + "/" + n); err != nil {
				return err
			}
		}
	}
	return s.root.Remove(p)
}

// diversion is an entry of dpkg's diversions file; Package is ":" for a local one.
type diversion struct{ From, To, Package string }

// parseDiversions reads dpkg's diversions: three lines each.
func parseDiversions(data []byte) ([]diversion, error) {
	if len(data) == 0 {
		return nil, nil
	}
	lines := strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
	if len(lines)%3 != 0 {
		return nil, fault.New(fault.State, "cannot read diversions: %d lines are not a multiple of three", len(lines))
	}
	var out []diversion
	for i := 0; i < len(lines); i += 3 {
		d := diversion{lines[i], lines[i+1], lines[i+2]}
		if !cleanPath(d.From) || !cleanPath(d.To) {
			return nil, fault.New(fault.State, "cannot read diversions: bad path near line %d", i+1)
		}
		out = append(out, d)
	}
	return out, nil
}

// divert takes in the diversions that preinsts made. dpkg runs a preinst before it
// unpacks, so that the diversion is there when the file comes; here the file may be there
// already, under the name that is now diverted: it is moved, unless dpkg-divert did.
func (s *server) divert() error {
	data, err := s.readOptional(admin + "/diversions")
	if err != nil {
		return err
	}
	list, err := parseDiversions(data)
	if err != nil {
		return err
	}
	old := s.diverted
	s.diverted = map[string]diversion{}
	for _, d := range list {
		from := d.From[1:]
		s.diverted[from] = d
		if _, known := old[from]; known {
			continue
		}
		for _, u := range s.pkgs {
			if u.Package.Name == d.Package || u.held {
				continue
			}
			if dir := u.directory(from); dir != nil && u.Package.Phase != sources.PhaseRequired {
				// dpkg would have made it by its other name; the first set is there before diversions are.
				if _, err := s.root.Mkdir(d.To[1:], dir.Mode, dir.UID, dir.GID); err != nil {
					return err
				}
			}
			if !u.ships(from) {
				continue
			}
			if err := s.moveDiverted(u, d); err != nil {
				return err
			}
		}
	}
	return nil
}

// directory is the package's entry for a directory, or nil.
func (u *unpacked) directory(path string) *entry {
	i := slices.IndexFunc(u.entries, func(e entry) bool { return e.Path == path && e.Type == rootfs.Dir })
	if i < 0 {
		return nil
	}
	return &u.entries[i]
}

func (u *unpacked) ships(path string) bool {
	return slices.ContainsFunc(u.entries, func(e entry) bool {
		return e.Path == path && e.Type != rootfs.Dir && !e.Dropped
	})
}

func (s *server) moveDiverted(u *unpacked, d diversion) error {
	from, to := s.canonical(d.From[1:]), s.canonical(d.To[1:])
	if _, conffile := u.conffile[d.From[1:]]; conffile {
		from, to = from+".dpkg-new", to+".dpkg-new"
	}
	if from == to {
		return nil
	}
	_, ferr := s.root.Lstat(from)
	_, terr := s.root.Lstat(to)
	if rootfs.IsNotExist(ferr) || terr == nil {
		return nil
	}
	if err := errors.Join(ferr, s.root.Rename(from, to)); err != nil {
		return fault.New(fault.Failed, "cannot divert %q of %s: %w", d.From, u, err)
	}
	return nil
}
