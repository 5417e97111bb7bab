// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// CloneOptions change what a clone is. Nil means all defaults.
type CloneOptions struct {
	// KeepIdentity leaves machine-id, host keys and the like as they are in the source.
	KeepIdentity bool
	// ReadOnly makes a clone that cannot be changed.
	ReadOnly bool
}

// Clone makes the machine name from a template or another machine, in milliseconds where the
// backend can. A name in use, and a source that would change while it is copied, are fault.State.
// The settings file beside the source (NAME.nspawn) is copied unless name has one already.
func (s *Store) Clone(ctx context.Context, source, name string, o *CloneOptions) (_ *Image, err error) {
	if o == nil {
		o = &CloneOptions{}
	}
	if err := s.writable("clone"); err != nil {
		return nil, err
	}
	if err := CheckName(name); err != nil {
		return nil, err
	}
	src, err := s.Image(source)
	if err != nil {
		return nil, err
	}
	if src.Kind == Raw {
		return nil, fault.New(fault.Host, "cannot clone %q: it is a disk image; only trees can be cloned", source)
	}
	lock, err := s.lockName(ctx, name)
	if err != nil {
		return nil, err
	}
	defer lock.release()
	if err := s.free(name); err != nil {
		return nil, err
	}
	hold, err := s.holdSource(src)
	if err != nil {
		return nil, busy(err, "clone", source)
	}
	defer hold.release()
	e, err := s.begin(opClone, name)
	if err != nil {
		return nil, err
	}
	if err := s.clone(ctx, e, src, name, o); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot clone %q as %q: %w", source, name, s.full(err)), s.finish(ctx, e))
	}
	if err := s.finish(ctx, e); err != nil {
		return nil, err
	}
	return s.Image(name)
}

func (s *Store) clone(ctx context.Context, e *entry, src *Image, name string, o *CloneOptions) error {
	rel, err := e.intend()
	if err != nil {
		return err
	}
	path, file := s.path(rel), name
	switch {
	case s.backend == Overlay && src.tree != "":
		file, err = name+stackSuffix, createStack(path, src.tree)
	case src.Kind == Stack:
		file, err = name+stackSuffix, copyStack(ctx, src.Path, path)
	default:
		err = s.copyTree(ctx, s.real(src), path, false)
	}
	if err != nil {
		return err
	}
	s.step("copied")
	identity, err := identify(path)
	if err != nil {
		return err
	}
	if err := e.own(rel, identity); err != nil {
		return err
	}
	if !o.KeepIdentity {
		t := Tree{Dir: path}
		if file != name {
			if t, err = stackTree(path); err != nil {
				return err
			}
		}
		if err := resetIdentity(t, name); err != nil {
			return err
		}
	}
	m := Meta{ID: newUUID(), Name: name, Role: Machine, Created: time.Now().UTC(), Engine: s.engine, Source: src.Name, ReadOnly: o.ReadOnly}
	if src.Meta != nil {
		m.SourceID, m.Recipe, m.Lock, m.Verified, m.Taints = src.Meta.ID, src.Meta.Recipe, src.Meta.Lock, src.Meta.Verified, src.Meta.Taints
	}
	if err := s.writeMeta(identity, &m); err != nil {
		return err
	}
	if o.ReadOnly {
		if err := s.freeze(ctx, path, file != name); err != nil {
			return err
		}
	}
	if err := s.copySidecar(e, src.Name, name, identity); err != nil {
		return err
	}
	s.step("record")
	if err := e.put(rel, file); err != nil {
		return err
	}
	if o.ReadOnly && file == name {
		// An immutable directory cannot be renamed, so it gets its mark under its name.
		if err := setTreeReadOnly(s.path(name), true); err != nil {
			return err
		}
	}
	// One commit of the directory makes all of the above durable in its order.
	if err := s.root.Sync(); err != nil {
		return err
	}
	s.step("synced")
	return nil
}

// freeze makes a new machine read-only as far as it can be before it has its name.
func (s *Store) freeze(ctx context.Context, path string, stack bool) error {
	switch {
	case stack:
		return setStackReadOnly(ctx, path, true)
	case isSubvolume(path):
		return setSubvolumeReadOnly(path, true)
	}
	return nil
}

// real is where the tree of an image is, links followed.
func (s *Store) real(img *Image) string {
	if img.tree != "" {
		return s.treePath(img.tree)
	}
	if real, err := filepath.EvalSymlinks(img.Path); err == nil {
		return real
	}
	return img.Path
}

// holdSource keeps the source of a copy from changing or going away meanwhile. A snapshot is
// taken in one instant, so a running machine on btrfs may be copied.
func (s *Store) holdSource(src *Image) (*treeLock, error) {
	if src.tree != "" {
		return s.holdTree(src.tree)
	}
	if s.backend == Btrfs && src.Kind == Subvolume {
		return nil, nil
	}
	return s.lockTree(src.Path, true)
}

// copySidecar prepares the settings file of a clone; it gets its name once the clone has its own.
func (s *Store) copySidecar(e *entry, source, name, identity string) error {
	from, err := os.OpenFile(s.path(source+sidecar), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer from.Close()
	rel, err := e.intend()
	if err != nil {
		return err
	}
	to, err := os.OpenFile(s.path(rel), os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(to, from)
	if err == nil {
		err = to.Sync()
	}
	if err := errors.Join(err, to.Close()); err != nil {
		return err
	}
	return e.write(journalLine{Move: rel, To: name, ID: identity})
}
