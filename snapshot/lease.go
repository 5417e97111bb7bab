// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// Lease is the right to run a tree. While it is open, nobody else runs the tree writable, and
// nothing that it stands on is removed. When the process dies, its locks are gone at once and
// its throw-away tree is removed by the next Open.
type Lease struct {
	Tree  Tree
	s     *Store
	e     *entry
	locks []*treeLock
}

// Close gives the tree back; a throw-away one is removed. The tree must not be mounted any
// more, at least not on the host. A second call does nothing.
func (l *Lease) Close(ctx context.Context) error {
	for _, k := range l.locks {
		k.release()
	}
	l.locks = nil
	if l.e == nil {
		return nil
	}
	e := l.e
	l.e = nil
	return l.s.finish(ctx, e)
}

// EphemeralOptions change what a throw-away tree is. Nil means all defaults.
type EphemeralOptions struct {
	// KeepIdentity leaves machine-id, host keys and the like as they are in the source.
	KeepIdentity bool
	// Hostname is the name that the machine will have; "": that of the source.
	Hostname string
}

// Ephemeral makes a throw-away copy of an image, or of any directory when source is an
// absolute path. Closing the lease removes it.
func (s *Store) Ephemeral(ctx context.Context, source string, o *EphemeralOptions) (_ *Lease, err error) {
	if o == nil {
		o = &EphemeralOptions{}
	}
	if err := s.writable("make a throw-away copy"); err != nil {
		return nil, err
	}
	src := &Image{Name: filepath.Base(source), Path: source, Kind: Directory}
	if !filepath.IsAbs(source) {
		if src, err = s.Image(source); err != nil {
			return nil, err
		}
	} else if src.Path, err = filepath.EvalSymlinks(source); err != nil {
		return nil, fault.New(fault.State, "cannot use %s: %w", source, err)
	}
	switch {
	case src.Kind == Raw:
		return nil, fault.New(fault.Host, "cannot copy %q: it is a disk image", source)
	case filepath.IsAbs(source) && isSubvolume(src.Path):
		src.Kind = Subvolume
	case filepath.IsAbs(source) && strings.HasSuffix(src.Path, stackSuffix):
		src.Kind = Stack
	}
	hold, err := s.holdSource(src)
	if err != nil {
		return nil, busy(err, "copy", source)
	}
	l := &Lease{s: s}
	if hold != nil {
		l.locks = append(l.locks, hold)
	}
	if l.e, err = s.begin(opEphemeral, src.Name); err == nil {
		err = l.make(ctx, src)
	}
	if err == nil && !o.KeepIdentity {
		name := o.Hostname
		if name == "" {
			name = src.Name
		}
		err = resetIdentity(l.Tree, name)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot make a throw-away copy of %q: %w", source, s.full(err)), l.Close(ctx))
	}
	s.step("ephemeral")
	return l, nil
}

// make makes the copy: a snapshot, an overlay over the source, or a copy of all files.
func (l *Lease) make(ctx context.Context, src *Image) error {
	s := l.s
	rel, err := l.e.intend()
	if err != nil {
		return err
	}
	path, from := s.path(rel), s.real(src)
	if s.snapshots(src) || src.Kind != Stack && !s.overlays() {
		if err := s.copyTree(ctx, from, path, false); err != nil {
			return err
		}
		l.Tree = Tree{Dir: path}
		s.step("copied")
		_, err = l.e.ownPath(rel)
		return err
	}
	t := Tree{Lower: []string{from}}
	if src.Kind == Stack {
		if t, err = stackTree(src.Path); err != nil {
			return err
		}
		if t.Upper != "" {
			t.Lower = append([]string{t.Upper}, t.Lower...)
		}
	}
	t.Upper, t.Work, t.Volatile = filepath.Join(path, "data"), filepath.Join(path, "work"), true
	if err := createUpper(path, t.Lower[0]); err != nil {
		return err
	}
	s.step("copied")
	l.Tree = t
	_, err = l.e.ownPath(rel)
	return err
}

// snapshots says whether this store can take a snapshot of the source.
func (s *Store) snapshots(src *Image) bool {
	return s.backend == Btrfs && src.Kind == Subvolume && sameBtrfs(s.real(src), s.dir)
}

// overlays says whether overlays work here: they are the next best thing for a btrfs store
// whose source is elsewhere.
func (s *Store) overlays() bool { return s.backend == Overlay || s.backend == Btrfs }

// Use leases an image as it is, to run it: alone, or beside others with readOnly. A machine
// that runs already, and a template that would be written to, are fault.State.
func (s *Store) Use(ctx context.Context, name string, readOnly bool) (*Lease, error) {
	if err := s.writable("run a machine"); err != nil {
		return nil, err
	}
	img, err := s.Image(name)
	if err != nil {
		return nil, err
	}
	if img.ReadOnly && !readOnly {
		return nil, fault.Hint(fault.New(fault.State, "cannot run %q: it is read-only", name),
			"run a throw-away copy with -x, or: mkmachine clone %s NEW", name)
	}
	if img.Kind == Raw {
		return nil, fault.New(fault.Host, "cannot run %q: it is a disk image", name)
	}
	lock, err := s.lockTree(img.Path, readOnly)
	if err != nil {
		return nil, busy(err, "run", name)
	}
	l := &Lease{s: s, locks: []*treeLock{lock}, Tree: Tree{Dir: s.real(img)}}
	// Nothing to remove; it tells who uses the image, and that files of locks may be left.
	// A full file system is no reason not to look at what it holds.
	l.e, err = s.begin(opUse, name)
	if err != nil && !(readOnly && errors.Is(err, unix.ENOSPC)) {
		return nil, errors.Join(err, l.Close(ctx))
	}
	if img.Kind != Stack {
		return l, nil
	}
	// The links of the stack protect its trees; a lock as well keeps writers out of them.
	for _, id := range stackTrees(img.Path) {
		hold, err := s.holdTree(id)
		if err != nil {
			return nil, errors.Join(busy(err, "run", name), l.Close(ctx))
		}
		l.locks = append(l.locks, hold)
	}
	if l.Tree, err = stackTree(img.Path); err != nil {
		return nil, errors.Join(err, l.Close(ctx))
	}
	if readOnly && l.Tree.Upper != "" {
		l.Tree = Tree{Lower: append([]string{l.Tree.Upper}, l.Tree.Lower...)}
	}
	return l, nil
}

// Mount makes the tree of an image readable at dir until release is called. It attaches
// nothing to the host: dir is good for this process and, as root, for its children.
func (s *Store) Mount(ctx context.Context, name string) (dir string, release func() error, err error) {
	l, err := s.Use(ctx, name, true)
	if err != nil {
		return "", nil, err
	}
	m, err := l.Tree.mount(true)
	if err != nil {
		return "", nil, errors.Join(err, l.Close(ctx))
	}
	return procDir(m), func() error { return errors.Join(m.Close(), l.Close(context.WithoutCancel(ctx))) }, nil
}
