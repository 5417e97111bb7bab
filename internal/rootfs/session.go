// SPDX-License-Identifier: Apache-2.0

package rootfs

import (
	"cmp"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/event"
)

// SessionOptions says how the archives of one tree meet each other.
type SessionOptions struct {
	// FirstWins: where two archives have the same file, the one with the lower order
	// stays. Otherwise the one with the higher order does.
	FirstWins bool
	// KeepDirs leaves owner, mode and times of directories alone that were there before
	// the session, as dpkg does. The root itself counts as new.
	KeepDirs bool
	// Span gets the events; may be nil.
	Span *event.Span
}

// Session is the work of several unpackers on one tree. It makes the result independent of
// which of them is faster:
//
//   - a directory that several archives ship gets owner, mode and xattrs from the first in
//     order and its times from the last in order;
//   - a file that several archives ship is decided by FirstWins, never by time.
//
// A directory of one archive and a link to a directory of another must not meet: make
// such links before the session. It is safe for concurrent use.
type Session struct {
	root *Root
	o    SessionOptions

	mu       sync.Mutex
	dirs     map[inode]*dirMeta
	claims   map[claimKey]int
	overlaps []Overlap
	told     map[string]bool

	names [64]sync.Mutex // by name, see lock

	noCloneRange, noCopyRange atomic.Bool
}

// Overlap is a file that two archives have.
type Overlap struct {
	Path   string // as the later of the two calls it
	Winner int    // order of the archive whose file is in the tree
	Loser  int
}

type dirMeta struct {
	path      string // where it can be opened again
	made      bool   // by this session
	shipped   bool   // by an archive, not only as a parent
	first     int    // the order that owner, mode and xattrs are from
	last      int    // the order that the time is from
	mode      uint32
	uid, gid  int
	xattrs    []Xattr
	mtime     int64
	namesRoot bool
}

type claimKey struct {
	dir  inode
	name string
}

// NewSession begins work on the tree; nil options are the defaults.
func (r *Root) NewSession(o *SessionOptions) *Session {
	s := &Session{root: r, dirs: map[inode]*dirMeta{}, claims: map[claimKey]int{}, told: map[string]bool{}}
	if o != nil {
		s.o = *o
	}
	return s
}

// Overlaps lists the files that more than one archive had, sorted by path.
func (s *Session) Overlaps() []Overlap {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := slices.Clone(s.overlaps)
	slices.SortFunc(out, func(a, b Overlap) int {
		return cmp.Or(cmp.Compare(a.Path, b.Path), cmp.Compare(a.Winner, b.Winner), cmp.Compare(a.Loser, b.Loser))
	})
	return out
}

// fallback reports a slower way once per reason.
func (s *Session) fallback(reason string) {
	s.mu.Lock()
	told := s.told[reason]
	s.told[reason] = true
	s.mu.Unlock()
	if !told {
		s.o.Span.Fallback(reason)
	}
}

// made notes a directory that an unpacker of this session created.
func (s *Session) made(path string, id inode) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dir(path, id).made = true
}

func (s *Session) dir(path string, id inode) *dirMeta {
	d := s.dirs[id]
	if d == nil {
		d = &dirMeta{path: path, mode: 0o755}
		s.dirs[id] = d
	}
	return d
}

// shipped notes that the archive with this order has the directory.
func (s *Session) shipped(e *Entry, id inode, order int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.dir(e.Path, id)
	if e.Path == "" {
		d.namesRoot = true
	}
	if !d.shipped || order < d.first {
		d.first = order
		d.mode, d.uid, d.gid, d.xattrs = e.Mode, e.UID, e.GID, e.Xattrs
	}
	if !d.shipped || order >= d.last {
		d.last, d.mtime = order, e.ModTime
	}
	d.shipped = true
}

// lock keeps other unpackers of the session from working on the name until the result is
// called.
func (s *Session) lock(dir inode, name string) func() {
	h := fnv.New32a()
	h.Write([]byte(name))
	m := &s.names[(uint64(h.Sum32())+dir.ino)%uint64(len(s.names))]
	m.Lock()
	return m.Unlock
}

// claim asks whether the archive with this order may have the name, under the name's lock.
func (s *Session) claim(dir inode, name, path string, order int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := claimKey{dir, name}
	holder, held := s.claims[key]
	if !held || holder == order {
		s.claims[key] = order
		return true
	}
	wins := order > holder
	if s.o.FirstWins {
		wins = !wins
	}
	o := Overlap{path, order, holder}
	if wins {
		s.claims[key] = order
	} else {
		o = Overlap{path, holder, order}
	}
	if !slices.Contains(s.overlaps, o) {
		s.overlaps = append(s.overlaps, o)
	}
	return wins
}

// Finish gives the directories their owner, mode, xattrs and times. Call it once, after
// the last unpacker was closed.
func (s *Session) Finish() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	todo := make([]*dirMeta, 0, len(s.dirs))
	ids := make(map[*dirMeta]inode, len(s.dirs))
	for id, d := range s.dirs {
		if d.made || d.shipped && (!s.o.KeepDirs || d.namesRoot) {
			todo = append(todo, d)
			ids[d] = id
		}
	}
	// Deepest first: without privilege a directory's mode may close the way to its children.
	slices.SortFunc(todo, func(a, b *dirMeta) int { return cmp.Compare(b.path, a.path) })
	var errs []error
	for _, d := range todo {
		if err := s.finishDir(d, ids[d]); err != nil {
			errs = append(errs, cannot("finish directory", d.path, err))
		}
	}
	s.dirs = map[inode]*dirMeta{}
	return errors.Join(errs...)
}

func (s *Session) finishDir(d *dirMeta, id inode) error {
	fd, err := s.root.open(d.path, unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil // a later entry took its place
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if (inode{st.Dev, st.Ino}) != id {
		return nil
	}
	if err := unix.Fchown(fd, d.uid, d.gid); err != nil {
		return fmt.Errorf("owner %d:%d: %w", d.uid, d.gid, err)
	}
	if err := unix.Fchmod(fd, d.mode); err != nil {
		return fmt.Errorf("mode %o: %w", d.mode, err)
	}
	if err := setXattrs(fd, d.xattrs); err != nil {
		return err
	}
	if !d.shipped {
		return nil
	}
	return futimes(fd, d.mtime)
}
