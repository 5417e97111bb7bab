// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// Remove removes images. All names are checked first; then each is gone at once or, if the
// process is killed, wholly there. A running machine is fault.State. Removing a template
// never harms what was made from it: a tree that clones or running copies stand on stays
// until the last of them is gone.
func (s *Store) Remove(ctx context.Context, names ...string) error {
	if err := s.writable("remove images"); err != nil {
		return err
	}
	if len(names) == 0 {
		return fault.New(fault.Config, "cannot remove: no name given")
	}
	names = slices.Clone(names)
	slices.Sort(names)
	names = slices.Compact(names)
	for _, n := range names {
		if _, err := s.Image(n); err != nil {
			return err
		}
	}
	for _, n := range names {
		if err := s.remove(ctx, n); err != nil {
			return err
		}
	}
	if s.backend == Btrfs && len(names) > 1 {
		return wakeCleaner(s.root)
	}
	return nil
}

func (s *Store) remove(ctx context.Context, name string) error {
	lock, err := s.lockName(ctx, name)
	if err != nil {
		return err
	}
	defer lock.release()
	img, err := s.Image(name)
	if err != nil {
		return err
	}
	// Copies hold a template's tree shared; only somebody who runs it writable is in the way.
	use, err := s.lockTree(img.Path, img.tree != "")
	if err != nil {
		return busy(err, "remove", name)
	}
	defer func() { use.release() }()
	e, err := s.begin(opRemove, name)
	if errors.Is(err, unix.ENOSPC) {
		return s.removeFull(ctx, img)
	}
	if err != nil {
		return err
	}
	if err := s.unname(e, img); err != nil {
		return errors.Join(fmt.Errorf("cannot remove %q: %w", name, err), s.finish(ctx, e))
	}
	use.release() // nobody can find it any more
	use = nil
	return s.finish(ctx, e)
}

// unname takes the name from an image: from here on it is gone, and the rest is cleaning up.
func (s *Store) unname(e *entry, img *Image) error {
	rel, err := e.intend()
	if err != nil {
		return err
	}
	file := fileOf(img)
	if err := e.own(rel, img.identity); err != nil {
		return err
	}
	if img.tree != "" {
		if err := e.own(treesDir+"/"+img.tree, ""); err != nil {
			return err
		}
	}
	for _, tree := range stackTrees(img.Path) {
		if err := e.own(treesDir+"/"+tree, ""); err != nil {
			return err
		}
	}
	if _, err := os.Lstat(s.path(img.Name + sidecar)); err == nil {
		settings, err := e.intend()
		if err != nil {
			return err
		}
		// Moved away before the image: settings without an image would wait for the next of this name.
		if err := e.write(journalLine{Move: settings, To: img.Name, ID: img.identity}); err != nil {
			return err
		}
		if err := os.Rename(s.path(img.Name+sidecar), s.path(settings)); err != nil {
			return err
		}
	}
	s.step("remove")
	if err := s.move(img, file, rel); err != nil {
		return err
	}
	s.step("removed")
	return nil
}

// move renames an image, also a directory that is marked as immutable, which must lose the
// mark for it; the record of the image keeps it.
func (s *Store) move(img *Image, from, to string) error {
	if img.Kind == Directory && img.tree == "" && treeReadOnly(img.Path) {
		if err := changeAttributes(img.Path, false); err != nil {
			return err
		}
	}
	fd := int(s.root.Fd())
	return unix.Renameat2(fd, from, fd, to, unix.RENAME_NOREPLACE)
}

// fileOf is the entry of the machines directory that an image is.
func fileOf(img *Image) string {
	switch img.Kind {
	case Stack:
		return img.Name + stackSuffix
	case Raw:
		return img.Name + rawSuffix
	}
	return img.Name
}

// removeFull removes an image when there is no room for a journal entry: deleting is what
// makes room. What is left by a kill in between has a hidden name, which Clean collects.
func (s *Store) removeFull(ctx context.Context, img *Image) error {
	rel := hiddenPrefix + newUUID()[:8] + newUUID()[:8]
	if err := s.move(img, fileOf(img), rel); err != nil {
		if img.Kind != Subvolume || !errors.Is(err, unix.ENOSPC) {
			return s.full(fmt.Errorf("cannot remove %q: %w", img.Name, err))
		}
		rel = fileOf(img)
	}
	err := removeTree(context.WithoutCancel(ctx), s.path(rel))
	os.Remove(s.path(img.Name + sidecar))
	os.Remove(s.state(metaFile(img.identity)))
	return err
}

// Rename gives an image another name. A running machine is fault.State. The settings file
// beside it goes along.
func (s *Store) Rename(ctx context.Context, name, to string) error {
	if err := s.writable("rename images"); err != nil {
		return err
	}
	if err := CheckName(to); err != nil {
		return err
	}
	if _, err := s.Image(name); err != nil {
		return err
	}
	if name == to {
		return fault.New(fault.Config, "cannot rename %q: the new name is the old one", name)
	}
	// In the order of the names: two renames that cross must not wait for each other.
	for _, n := range []string{min(name, to), max(name, to)} {
		lock, err := s.lockName(ctx, n)
		if err != nil {
			return err
		}
		defer lock.release()
	}
	img, err := s.Image(name)
	if err != nil {
		return err
	}
	if err := s.free(to); err != nil {
		return err
	}
	use, err := s.lockTree(img.Path, img.tree != "")
	if err != nil {
		return busy(err, "rename", name)
	}
	defer use.release()
	e, err := s.begin(opRename, name)
	if err != nil {
		return err
	}
	if err := s.rename(e, img, to); err != nil {
		return errors.Join(fmt.Errorf("cannot rename %q to %q: %w", name, to, s.full(err)), s.finish(ctx, e))
	}
	return s.finish(ctx, e)
}

func (s *Store) rename(e *entry, img *Image, to string) error {
	if _, err := os.Lstat(s.path(img.Name + sidecar)); err == nil {
		if err := e.write(journalLine{Move: img.Name + sidecar, To: to, ID: img.identity}); err != nil {
			return err
		}
	}
	target := *img
	target.Name = to
	s.step("rename")
	if err := s.move(img, fileOf(img), fileOf(&target)); err != nil {
		return err
	}
	s.step("renamed")
	if img.ReadOnly && img.Kind == Directory && img.tree == "" {
		if err := setTreeReadOnly(s.path(to), true); err != nil {
			return err
		}
	}
	if img.Meta != nil {
		m := *img.Meta
		m.Name = to
		if err := s.writeMeta(img.identity, &m); err != nil {
			return err
		}
	}
	return s.root.Sync()
}

// SetReadOnly makes a machine unchangeable, or changeable again. Templates stay read-only:
// what was made from them relies on it.
func (s *Store) SetReadOnly(ctx context.Context, name string, readOnly bool) error {
	if err := s.writable("change images"); err != nil {
		return err
	}
	lock, err := s.lockName(ctx, name)
	if err != nil {
		return err
	}
	defer lock.release()
	img, err := s.Image(name)
	if err != nil {
		return err
	}
	if img.Meta != nil && img.Role == Template {
		if readOnly {
			return nil
		}
		return fault.Hint(fault.New(fault.State, "cannot make %q writable: it is a template", name), "mkmachine clone %s NEW", name)
	}
	use, err := s.lockTree(img.Path, false)
	if err != nil {
		return busy(err, "change", name)
	}
	defer use.release()
	switch img.Kind {
	case Stack:
		err = setStackReadOnly(ctx, img.Path, readOnly)
	case Raw:
		err = os.Chmod(img.Path, map[bool]os.FileMode{true: 0o444, false: 0o644}[readOnly])
	default:
		err = setTreeReadOnly(s.real(img), readOnly)
	}
	if err == nil && img.Meta != nil && img.Meta.ReadOnly != readOnly {
		m := *img.Meta
		m.ReadOnly = readOnly
		err = s.writeMeta(img.identity, &m)
	}
	if err != nil {
		return fmt.Errorf("cannot change %q: %w", name, err)
	}
	return nil
}
