// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// Layer is a tree kept under the key of everything that went into it.
type Layer struct {
	Schema  int       `json:"schema"`
	Key     string    `json:"key"`
	Tree    string    `json:"tree"` // id below trees/
	Created time.Time `json:"created"`
	// Used is when a stage last started from it; the time stamp of the record's file.
	Used time.Time `json:"-"`
	LayerMeta
}

// LayerMeta is what the builder says about a layer.
type LayerMeta struct {
	// Final says that the stage will be published without further changes. The layer is then
	// the published tree itself and exists once that has happened; on file systems without
	// snapshots this saves a copy of everything.
	Final  bool   `json:"-"`
	Text   string `json:"text,omitempty"`   // what the layer holds, for people
	Recipe string `json:"recipe,omitempty"` // name of the recipe it was made for
	Parent string `json:"parent,omitempty"` // key of the layer below
	Engine string `json:"engine,omitempty"`
	Size   int64  `json:"size,omitempty"` // bytes of all regular files; 0 unknown
	// Manifest is the digest of the tree, for Verify; may be empty.
	Manifest string `json:"manifest,omitempty"`
}

func layerFile(key string) string { return filepath.Join("layers", key+".json") }

func checkKey(key string) error {
	if ok, _ := regexp.MatchString(`^[a-z0-9][a-z0-9-]{0,127}$`, key); !ok {
		return fault.New(fault.Internal, "internal error: layer key %q", key)
	}
	return nil
}

func (s *Store) treePath(id string) string { return s.state("trees", id) }

// readLayer reads a record; os.ErrNotExist where the layer or its tree is not there.
func (s *Store) readLayer(key string) (*Layer, error) {
	if err := checkKey(key); err != nil {
		return nil, err
	}
	file := s.state(layerFile(key))
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("cannot read layer %s: %w", key, err)
	}
	var l Layer
	if err := json.Unmarshal(data, &l); err != nil || l.Schema != metaSchema || l.Key != key || !treeID(l.Tree) {
		// An unreadable record is like none: the layer can be made again.
		return nil, fmt.Errorf("cannot read layer %s: its record is damaged: %w", key, os.ErrNotExist)
	}
	if st, err := os.Stat(file); err == nil {
		l.Used = st.ModTime()
	}
	if _, err := os.Lstat(s.treePath(l.Tree)); err != nil {
		return nil, fmt.Errorf("cannot read layer %s: %w", key, err)
	}
	return &l, nil
}

// HasLayer says whether a stage can start from this layer.
func (s *Store) HasLayer(key string) bool {
	_, err := s.readLayer(key)
	return err == nil
}

// Layer reads what is recorded of a layer; os.ErrNotExist (wrapped) where there is none.
func (s *Store) Layer(key string) (*Layer, error) { return s.readLayer(key) }

// Layers lists all layers, sorted by key.
func (s *Store) Layers() ([]Layer, error) {
	files, err := os.ReadDir(s.state("layers"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fault.New(fault.Host, "cannot list layers: %w", err)
	}
	var out []Layer
	for _, f := range files {
		key, ok := strings.CutSuffix(f.Name(), ".json")
		if !ok || checkKey(key) != nil {
			continue
		}
		if l, err := s.readLayer(key); err == nil {
			out = append(out, *l)
		}
	}
	return out, nil
}

// copyLayer makes dir a writable copy of a layer.
func (s *Store) copyLayer(ctx context.Context, key, dir string) error {
	l, hold, err := s.holdLayer(key)
	if err != nil {
		return err
	}
	defer hold.release()
	return s.copyTree(ctx, s.treePath(l.Tree), dir, false)
}

// holdLayer finds a layer to start from, keeps it from being collected until the lock is
// released, and notes that it was used. None is fault.State.
func (s *Store) holdLayer(key string) (*Layer, *treeLock, error) {
	l, err := s.readLayer(key)
	if err != nil {
		return nil, nil, fault.As(fault.State, err)
	}
	hold, err := s.holdTree(l.Tree)
	if err != nil {
		return nil, nil, fault.New(fault.State, "cannot start from layer %s: %w", key, err)
	}
	now := time.Now()
	if err := os.Chtimes(s.state(layerFile(key)), now, now); err != nil { // for Clean
		hold.release()
		return nil, nil, fault.New(fault.State, "cannot start from layer %s: %w", key, err)
	}
	return l, hold, nil
}

// holdTree keeps a tree from being collected until the lock is released.
func (s *Store) holdTree(id string) (*treeLock, error) {
	lock, err := s.lockTree(s.treePath(id), true)
	if err != nil {
		return nil, err
	}
	// Collected between the look at who names it and the lock?
	if _, err := os.Lstat(s.treePath(id)); err != nil {
		lock.release()
		return nil, err
	}
	return lock, nil
}

// SaveLayer keeps the tree as it is now under key. A layer that exists already stays. See
// LayerMeta.Final for the layer that is also the result.
func (st *Stage) SaveLayer(ctx context.Context, key string, meta LayerMeta) (err error) {
	s := st.s
	if err := checkKey(key); err != nil {
		return err
	}
	if s.HasLayer(key) {
		return nil
	}
	l := &Layer{Schema: metaSchema, Key: key, Created: time.Now().UTC(), LayerMeta: meta}
	if l.Engine == "" {
		l.Engine = s.engine
	}
	if meta.Final && s.backend != Btrfs {
		st.final = l
		return nil
	}
	if l.Tree, err = st.e.intendTree(); err != nil {
		return err
	}
	if err := s.copyTree(ctx, st.Dir(), s.treePath(l.Tree), true); err != nil {
		return err
	}
	s.step("layer tree")
	if s.backend != Btrfs { // a snapshot is on the disk when it exists
		if err := unix.Syncfs(int(s.root.Fd())); err != nil {
			return s.full(fmt.Errorf("cannot write layer %s to the disk: %w", key, err))
		}
	}
	return s.writeLayer(l)
}

// writeLayer records a layer unless there is one of its key by now: the first one stays, or
// its tree would lose its only reference. Then the tree of l is collected with its entry.
func (s *Store) writeLayer(l *Layer) error {
	dir, err := openDir(s.state("layers"))
	if err != nil {
		return fmt.Errorf("cannot record layer %s: %w", l.Key, err)
	}
	defer dir.Close()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil { // held for one small write
		return fmt.Errorf("cannot record layer %s: %w", l.Key, err)
	}
	if s.HasLayer(l.Key) {
		return nil
	}
	if err := s.writeState(layerFile(l.Key), l); err != nil {
		return err
	}
	s.step("layer record")
	return nil
}
