// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// finish ends an operation of this process: whatever it made and did not put under a name is
// removed. What somebody still uses stays, with the entry, for a later Open.
func (s *Store) finish(ctx context.Context, e *entry) error {
	ctx = context.WithoutCancel(ctx)
	data, err := os.ReadFile(s.state("journal", e.id))
	if err != nil {
		return errors.Join(fmt.Errorf("cannot read the journal: %w", err), e.file.Close())
	}
	rec, err := parseJournal(data)
	if err != nil {
		return errors.Join(err, e.file.Close())
	}
	kept, err := s.clear(ctx, e.id, rec)
	if err != nil || kept {
		return errors.Join(err, e.file.Close())
	}
	return e.end()
}

// recover finishes the operations of dead processes and says how many objects it removed.
func (s *Store) recover(ctx context.Context) (int, error) {
	names, err := entryNames(s.state("journal"))
	if err != nil {
		return 0, fmt.Errorf("cannot read the journal: %w", err)
	}
	count, dead := 0, false
	for _, name := range names {
		if !treeID(name) {
			continue
		}
		n, err := s.recoverEntry(ctx, name)
		if err != nil {
			return count, err
		}
		if _, err := os.Lstat(s.state("journal", name)); err != nil {
			dead = true
		}
		count += n
	}
	if dead {
		s.sweepLocks()
	}
	return count, nil
}

// sweepLocks unlinks the files of locks that their dead holders left. The protocol lets
// whoever holds a lock alone do that.
func (s *Store) sweepLocks() {
	free := func(path string) {
		// Only what exists: to lock is to create.
		if _, err := os.Lstat(path); err != nil {
			return
		}
		if l, err := lockFile(path, false); err == nil {
			l.release()
		}
	}
	for dir, pattern := range map[string]string{
		s.dir: `^\.#.+\.lck$`, s.state("trees"): `^\.#.+\.lck$`, s.lockDir: `^(name-.+|inode-[0-9]+:[0-9]+)$`,
	} {
		names, err := entryNames(dir)
		if err != nil {
			continue // an empty file that is left is no harm
		}
		for _, n := range names {
			if ok, _ := regexp.MatchString(pattern, n); ok { // the patterns are constants
				free(filepath.Join(dir, n))
			}
		}
	}
}

func entryNames(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

func (s *Store) recoverEntry(ctx context.Context, id string) (int, error) {
	path := s.state("journal", id)
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil // its owner just finished
	}
	if err != nil {
		return 0, fmt.Errorf("cannot read the journal: %w", err)
	}
	defer f.Close()
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		return 0, nil // its owner lives, or somebody else is recovering it
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("cannot read the journal: %w", err)
	}
	rec, err := parseJournal(data)
	sp := s.sink.Start("collect", rec.header.Name)
	defer func() { sp.End(err) }()
	if errors.Is(err, errSchema) {
		sp.Warn(fmt.Sprintf("%s: %v; left alone", path, err))
		return 0, nil
	}
	if err != nil {
		rec = s.objectsOf(id) // a power cut took the text; the names still tell
	}
	before := s.present(rec)
	kept, err := s.clear(ctx, id, rec)
	if err != nil {
		return 0, err
	}
	removed := before - s.present(rec)
	if removed > 0 {
		sp.Note(fmt.Sprintf("removed what %s (process %d) left behind", rec.header.Op, rec.header.Pid))
	}
	if kept {
		return removed, nil
	}
	s.step("recovered")
	if err := os.Remove(path); err != nil {
		return removed, fmt.Errorf("cannot close the journal entry: %w", err)
	}
	return removed, nil
}

func (s *Store) present(rec record) int {
	n := 0
	for _, o := range rec.objects {
		if _, err := os.Lstat(s.path(o.rel)); err == nil {
			n++
		}
	}
	return n
}

// objectsOf finds the objects of an entry by their names alone.
func (s *Store) objectsOf(id string) record {
	var rec record
	for _, prefix := range []string{"", treesDir + "/"} {
		names, err := entryNames(s.path(prefix))
		if err != nil {
			continue // nothing to find there
		}
		for _, n := range names {
			if owner, ok := objectOwner(prefix + n); ok && owner == id {
				rec.add(prefix+n, "")
			}
		}
	}
	return rec
}

// clear completes the moves of an entry and removes its objects, newest first. kept says that
// something is in use and must be tried again later. It can be repeated after any interruption.
func (s *Store) clear(ctx context.Context, id string, rec record) (kept bool, err error) {
	for _, m := range rec.moves {
		if err := s.completeMove(m); err != nil {
			return true, err
		}
	}
	for _, o := range slices.Backward(rec.objects) {
		if tree, ok := strings.CutPrefix(o.rel, treesDir+"/"); ok {
			err = s.collectTree(ctx, tree, id)
		} else {
			err = s.collectHidden(ctx, o)
		}
		if errors.Is(err, errBusy) {
			kept = true
			continue
		}
		if err != nil {
			return true, err
		}
		s.step("collected")
	}
	return kept, nil
}

// completeMove moves a settings file to the image that it belongs to, if the image got there.
func (s *Store) completeMove(m journalLine) error {
	_, hidden := objectOwner(m.Move)
	old, ok := strings.CutSuffix(m.Move, sidecar)
	if !hidden && (!ok || checkOldName(old) != nil) || checkOldName(m.To) != nil {
		return nil // not a move that we ever write
	}
	img, err := s.Image(m.To)
	if err != nil || img.identity != m.ID {
		return nil
	}
	fd := int(s.root.Fd())
	err = unix.Renameat2(fd, m.Move, fd, m.To+sidecar, unix.RENAME_NOREPLACE)
	if err == nil || err == unix.ENOENT || err == unix.EEXIST {
		return nil
	}
	return fmt.Errorf("cannot move the settings of %q: %w", m.To, err)
}

// collectHidden removes an object beside the images. One with another identity than recorded
// is somebody else's and stays.
func (s *Store) collectHidden(ctx context.Context, o object) error {
	path := s.path(o.rel)
	id, err := identify(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if len(o.ids) > 0 && !slices.Contains(o.ids, id) {
		sp := s.sink.Start("collect", o.rel)
		sp.Warn("not what was recorded under this name; left alone")
		sp.End(nil)
		return nil
	}
	if fi, err := os.Lstat(path); err == nil && fi.IsDir() {
		// An image that was replaced or removed may still be run by systemd-nspawn.
		lock, err := s.lockTree(path, false)
		if err != nil {
			return err
		}
		defer lock.release()
	}
	if err := removeTree(ctx, path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return s.removeMeta(id)
}

func (s *Store) removeMeta(identity string) error {
	err := os.Remove(s.state(metaFile(identity)))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cannot remove record: %w", err)
	}
	return nil
}

// collectTree removes a tree that nothing refers to. entry is the id of the journal entry that
// asks, or "": a tree that another entry is working on is errBusy, like one that is in use.
func (s *Store) collectTree(ctx context.Context, id, entry string) error {
	path := s.treePath(id)
	if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if owner := id[:16]; owner != entry && s.alive(owner) {
		return errBusy
	}
	// References are only made by who holds the tree: after this lock there will be no new ones.
	lock, err := s.lockTree(path, false)
	if err != nil {
		return err
	}
	defer lock.release()
	refs, err := s.references()
	if err != nil || refs[id] {
		return err
	}
	if err := removeTree(ctx, path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// alive says whether somebody works on a journal entry.
func (s *Store) alive(id string) bool {
	f, err := os.Open(s.state("journal", id))
	if err != nil {
		return false
	}
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil
}

// references finds the trees that templates, machines and layers stand on.
func (s *Store) references() (map[string]bool, error) {
	refs := map[string]bool{}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("cannot list images: %w", err)
	}
	for _, e := range entries {
		path := s.path(e.Name())
		_, hidden := objectOwner(e.Name())
		switch {
		case e.Type() == os.ModeSymlink && !hidden:
			// A hidden link is one that lost its name, or has none yet and is held by a lock.
			if id := treeOf(path); id != "" {
				refs[id] = true
			}
		case e.IsDir() && strings.HasSuffix(e.Name(), stackSuffix):
			for _, id := range stackTrees(path) {
				refs[id] = true
			}
		}
	}
	layers, err := s.Layers()
	for _, l := range layers {
		refs[l.Tree] = true
	}
	return refs, err
}

// CleanOptions say what to clean. Nil: leftovers only.
type CleanOptions struct {
	// Layers removes layers that no build has used for at least LayersUnused (0: all).
	Layers       bool
	LayersUnused time.Duration
}

// CleanReport says what was removed.
type CleanReport struct {
	Leftovers int      `json:"leftovers"` // objects of dead processes
	Layers    []string `json:"layers,omitempty"`
	Trees     int      `json:"trees"`   // trees without a reference, beside those of the layers
	Records   int      `json:"records"` // records of images that other tools removed
}

// Clean removes what nobody needs: leftovers, layers if asked for, trees without a reference,
// records without a tree. It looks at everything, where Open only follows the journal.
func (s *Store) Clean(ctx context.Context, o *CleanOptions) (CleanReport, error) {
	var r CleanReport
	if err := s.writable("clean"); err != nil {
		return r, err
	}
	var err error
	if o != nil && o.Layers {
		if r.Layers, err = s.removeLayers(ctx, o.LayersUnused); err != nil {
			return r, err
		}
	}
	swept, err := s.sweep(ctx)
	swept.Layers = r.Layers
	if err == nil && s.backend == Btrfs {
		err = wakeCleaner(s.root)
	}
	return swept, err
}

// removeLayers removes the records of layers that were not used for some time, and their trees.
func (s *Store) removeLayers(ctx context.Context, unused time.Duration) (removed []string, err error) {
	layers, err := s.Layers()
	if err != nil {
		return nil, err
	}
	e, err := s.begin(opClean, "")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.finish(ctx, e)) }()
	for _, l := range layers {
		if time.Since(l.Used) < unused {
			continue
		}
		if err := e.own(treesDir+"/"+l.Tree, ""); err != nil {
			return removed, err
		}
		if err := os.Remove(s.state(layerFile(l.Key))); err != nil && !errors.Is(err, os.ErrNotExist) {
			return removed, fmt.Errorf("cannot remove layer %s: %w", l.Key, err)
		}
		removed = append(removed, l.Key)
		s.step("layer removed")
	}
	return removed, nil
}

// sweep looks for garbage everywhere: by the journal first, then by names and references.
func (s *Store) sweep(ctx context.Context) (CleanReport, error) {
	var r CleanReport
	n, err := s.recover(ctx)
	if err != nil {
		return r, err
	}
	s.sweepLocks()
	r.Leftovers = n
	names, err := entryNames(s.dir)
	if err != nil {
		return r, fmt.Errorf("cannot list images: %w", err)
	}
	for _, name := range names {
		owner, ok := objectOwner(name)
		if !ok {
			continue
		}
		if _, err := os.Lstat(s.state("journal", owner)); err == nil {
			continue // in use, or kept for later
		}
		if err := s.collectHidden(ctx, object{rel: name}); err == nil {
			r.Leftovers++
			s.step("swept")
		} else if !errors.Is(err, errBusy) {
			return r, err
		}
	}
	trees, err := entryNames(s.state("trees"))
	if err != nil {
		return r, fmt.Errorf("cannot list trees: %w", err)
	}
	for _, id := range trees {
		if !treeID(id) {
			continue
		}
		if err := s.collectTree(ctx, id, ""); err != nil && !errors.Is(err, errBusy) {
			return r, err
		}
		if _, err := os.Lstat(s.treePath(id)); errors.Is(err, os.ErrNotExist) {
			r.Trees++
			s.step("swept")
		}
	}
	if r.Records, err = s.sweepRecords(); err != nil {
		return r, err
	}
	return r, s.sweepNew()
}

// sweepRecords removes records of images that other tools removed.
func (s *Store) sweepRecords() (int, error) {
	// Records first: one that is written after this list is not touched.
	records, err := entryNames(s.state("meta"))
	if err != nil {
		return 0, fmt.Errorf("cannot list records: %w", err)
	}
	names, err := entryNames(s.dir)
	if err != nil {
		return 0, fmt.Errorf("cannot list images: %w", err)
	}
	have := map[string]bool{}
	for _, n := range names {
		if id, err := identify(s.path(n)); err == nil {
			have[id] = true
		}
	}
	removed := 0
	for _, r := range records {
		id, ok := strings.CutSuffix(r, ".json")
		if !ok || have[id] {
			continue
		}
		if err := s.removeMeta(id); err != nil {
			return removed, err
		}
		removed++
	}
	return removed, nil
}

// newAge is how old a half-written file of the state must be to count as left behind.
const newAge = 10 * time.Minute

// sweepNew removes half-written files of the state.
func (s *Store) sweepNew() error {
	for _, dir := range []string{"", "meta", "layers", "journal"} {
		entries, err := os.ReadDir(s.state(dir))
		if err != nil {
			return fmt.Errorf("cannot list the state: %w", err)
		}
		for _, e := range entries {
			info, err := e.Info()
			if err != nil || !strings.HasPrefix(e.Name(), ".new-") || time.Since(info.ModTime()) < newAge {
				continue
			}
			if err := os.Remove(s.state(dir, e.Name())); err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("cannot remove a leftover: %w", err)
			}
		}
	}
	return nil
}
