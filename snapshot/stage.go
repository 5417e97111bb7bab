// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// Stage is a tree that is being built. It ends with Publish or Discard; if the process dies,
// the next Open discards it. It is not safe for concurrent use.
type Stage struct {
	s   *Store
	e   *entry
	rel string
	// final is the layer that the published tree itself is going to be.
	final *Layer
	done  bool
}

// NewStage starts a tree: empty, or a writable copy of the layer base.
func (s *Store) NewStage(ctx context.Context, base string) (_ *Stage, err error) {
	if err := s.writable("build"); err != nil {
		return nil, err
	}
	e, err := s.begin(opStage, base)
	if err != nil {
		return nil, err
	}
	st := &Stage{s: s, e: e}
	defer func() {
		if err != nil {
			err = errors.Join(err, st.Discard(ctx))
		}
	}()
	if st.rel, err = e.intend(); err != nil {
		return nil, err
	}
	if base == "" {
		err = s.createTree(st.Dir())
	} else {
		err = s.copyLayer(ctx, base, st.Dir())
	}
	if err != nil {
		return nil, err
	}
	s.step("stage")
	_, err = e.ownPath(st.rel)
	return st, err
}

// Dir is the tree, an absolute path.
func (st *Stage) Dir() string { return st.s.path(st.rel) }

// Discard removes the tree. After Publish it does nothing, so it can be deferred.
func (st *Stage) Discard(ctx context.Context) error {
	if st.done {
		return nil
	}
	st.done = true
	return st.s.finish(ctx, st.e)
}

// Publish makes the tree a template called name. With replace it takes the place of a
// template of that name, which goes away when nothing runs from it any more; without, a name
// in use is fault.State. When it returns nil, the template is on disk: a power cut cannot
// take it back, nor show a part of it.
//
// ID, Name, Role, Created and Engine of meta are filled in here.
func (st *Stage) Publish(ctx context.Context, name string, meta Meta, replace bool) (_ *Image, err error) {
	s := st.s
	if err := CheckName(name); err != nil {
		return nil, err
	}
	if err := s.replaceable(name, replace); err != nil {
		return nil, err // before the work
	}
	rel, identity, unlock, err := st.seal(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := s.publish(ctx, st.e, rel, identity, name, meta, replace); err != nil {
		return nil, err
	}
	if st.final != nil && st.final.Tree != "" {
		if err := s.writeLayer(st.final); err != nil {
			// The template is there; a layer can be made again.
			sp := s.sink.Start("layer", st.final.Key)
			sp.Warn(err.Error())
			sp.End(err)
		}
	}
	unlock()
	if err := st.Discard(ctx); err != nil {
		return nil, err
	}
	return s.Image(name)
}

// PublishLayer makes a layer a template called name without building anything; the rest is as
// in Stage.Publish. It copies nothing: on btrfs it is a snapshot, elsewhere the layer's own tree.
func (s *Store) PublishLayer(ctx context.Context, key, name string, meta Meta, replace bool) (_ *Image, err error) {
	if err := s.writable("build"); err != nil {
		return nil, err
	}
	if err := CheckName(name); err != nil {
		return nil, err
	}
	l, hold, err := s.holdLayer(key)
	if err != nil {
		return nil, err
	}
	defer hold.release()
	e, err := s.begin(opStage, name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.finish(ctx, e)) }()
	rel, err := e.intend()
	if err != nil {
		return nil, err
	}
	var identity string
	if s.backend == Btrfs {
		if err = s.copyTree(ctx, s.treePath(l.Tree), s.path(rel), true); err == nil {
			identity, err = e.ownPath(rel)
		}
	} else {
		identity, err = e.link(rel, l.Tree)
	}
	if err != nil {
		return nil, err
	}
	if err := s.publish(ctx, e, rel, identity, name, meta, replace); err != nil {
		return nil, err
	}
	return s.Image(name)
}

// publish gives the sealed object at rel the name, and returns when that is on disk.
func (s *Store) publish(ctx context.Context, e *entry, rel, identity, name string, meta Meta, replace bool) error {
	lock, err := s.lockName(ctx, name)
	if err != nil {
		return err
	}
	defer lock.release()
	if err := s.replaceable(name, replace); err != nil {
		return err
	}
	meta.ID, meta.Name, meta.Role, meta.Created, meta.Engine = newUUID(), name, Template, time.Now().UTC(), s.engine
	if err := s.writeMeta(identity, &meta); err != nil {
		return err
	}
	s.step("record")
	if err := e.put(rel, name); err != nil {
		return err
	}
	if err := unix.Syncfs(int(s.root.Fd())); err != nil {
		// The template is there, but maybe not after a power cut: that is no success.
		return s.full(fmt.Errorf("cannot write %q to the disk: %w", name, err))
	}
	s.step("synced")
	return nil
}

// seal makes the stage immutable and complete on disk. The object at rel is what will get
// the name: a read-only subvolume, or a link to a tree that others may come to depend on.
// Until unlock is called, nobody takes the tree for garbage.
func (st *Stage) seal(ctx context.Context) (rel, identity string, unlock func(), err error) {
	s, e := st.s, st.e
	if rel, err = e.intend(); err != nil {
		return "", "", nil, err
	}
	if s.backend == Btrfs {
		// A read-only subvolume cannot change its directory, so it is made where it stays.
		// The snapshot commits all data of the stage before it exists.
		if err := s.copyTree(ctx, st.Dir(), s.path(rel), true); err != nil {
			return "", "", nil, err
		}
		s.step("sealed")
		identity, err = e.ownPath(rel)
		return rel, identity, func() {}, err
	}
	// Data first: a name must not be on disk before what it names.
	if err := unix.Syncfs(int(s.root.Fd())); err != nil {
		return "", "", nil, s.full(fmt.Errorf("cannot write %s to the disk: %w", st.Dir(), err))
	}
	id, err := e.intendTree()
	if err != nil {
		return "", "", nil, err
	}
	tree := s.treePath(id)
	if err := os.Rename(st.Dir(), tree); err != nil {
		return "", "", nil, s.full(fmt.Errorf("cannot seal the tree: %w", err))
	}
	s.step("sealed")
	if err := setTreeReadOnly(tree, true); err != nil {
		return "", "", nil, err
	}
	lock, err := s.lockTree(tree, true)
	if err != nil {
		return "", "", nil, err
	}
	if st.final != nil {
		st.final.Tree = id
	}
	if identity, err = e.link(rel, id); err != nil {
		lock.release()
		return "", "", nil, err
	}
	return rel, identity, func() { lock.release(); lock = nil }, nil
}

// link makes the object at rel a link to a tree.
func (e *entry) link(rel, tree string) (identity string, err error) {
	if err := os.Symlink(filepath.Join(treesDir, tree), e.s.path(rel)); err != nil {
		return "", e.s.full(fmt.Errorf("cannot link to a tree: %w", err))
	}
	return e.ownPath(rel)
}

// ownPath records the identity of the object at rel, which was just made.
func (e *entry) ownPath(rel string) (identity string, err error) {
	if identity, err = identify(e.s.path(rel)); err != nil {
		return "", err
	}
	return identity, e.own(rel, identity)
}

// replaceable says whether name may be given to a new template.
func (s *Store) replaceable(name string, replace bool) error {
	err := s.free(name)
	if err == nil || !replace {
		return err
	}
	img, err := s.Image(name)
	if err != nil {
		return err
	}
	if img.Meta == nil || img.Role != Template || img.Path != s.path(name) {
		return fault.Hint(fault.New(fault.State, "cannot replace %q: it is not a template of mkmachine", name),
			"use another name, or: mkmachine remove %s", name)
	}
	return nil
}

// put gives the object at rel the name, in one step. An object that had the name before is
// at rel afterwards and belongs to this entry.
func (e *entry) put(rel, name string) error {
	s := e.s
	fd := int(s.root.Fd())
	flags := uint(unix.RENAME_NOREPLACE)
	old, err := identify(s.path(name))
	if err == nil {
		flags = unix.RENAME_EXCHANGE
		if err := e.own(rel, old); err != nil {
			return err
		}
		if id := treeOf(s.path(name)); id != "" {
			if err := e.own(treesDir+"/"+id, ""); err != nil {
				return err
			}
		}
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	s.step("rename")
	err = unix.Renameat2(fd, rel, fd, name, flags)
	switch {
	case errors.Is(err, unix.EEXIST):
		return fault.New(fault.State, "cannot make %q: it exists already", name)
	case errors.Is(err, unix.EINVAL):
		return fault.New(fault.Host, "cannot make %q: the file system of %s cannot rename without overwriting", name, s.dir)
	case err != nil:
		return s.full(fmt.Errorf("cannot make %q: %w", name, err))
	}
	s.step("renamed")
	return nil
}

func newUUID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
