// SPDX-License-Identifier: Apache-2.0

// Package snapshot keeps trees: templates, the machines made from them, throw-away copies,
// and the layers that builds start from. docs/store.md describes what is on disk.
//
// It owns a machines directory, normally /var/lib/machines, which it shares with
// systemd-nspawn and systemd-machined: images of theirs are listed, cloned and removed here,
// and nothing that is locked by either side is touched by the other.
//
// It never looks into a tree beyond the identity of a machine, never opens a socket, and
// attaches no mount to the host: overlays are described (see Tree) for whoever runs them.
//
// Invariant: a name shows the old complete tree or the new complete tree. Every object is
// written to a journal before it is made and removed by its identity, never by its path alone;
// what a killed process left is collected by the next Open.
package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/event"
	"github.com/mkmachine/mkmachine/internal/fault"
)

// The backends, best first.
const (
	Btrfs   = "btrfs"   // subvolumes and snapshots
	Overlay = "overlay" // overlayfs over an immutable directory
	Reflink = "reflink" // copies that share their blocks until written
	Copy    = "copy"    // plain copies
)

// Layout below the machines directory.
const (
	stateDir    = ".mkmachine"
	treesDir    = stateDir + "/trees" // immutable trees by id
	stateSchema = 1
)

// Options change how a Store is opened. Nil means all defaults.
type Options struct {
	// Sink hears of copies that take long and of leftovers that were collected. Nil: nobody.
	Sink event.Sink
	// ReadOnly only looks: it creates, collects and locks nothing. It is implied without root.
	ReadOnly bool
	// Backend forces one of the backends; opening fails where it does not work. "": the best.
	Backend string
	// LockDir is where this host's systemd-nspawn keeps its locks. "": its usual place.
	LockDir string
	// Engine is the version of this program, recorded with every image. "": none.
	Engine string
	// Step is called with a name before each step that changes the disk. Tests use it to stop
	// the program there. Nil: nothing.
	Step func(name string)
}

// Store is an open machines directory. It is safe for concurrent use.
type Store struct {
	dir      string
	root     *os.File // the directory; nil when it does not exist (only when looking)
	sink     event.Sink
	readOnly bool
	backend  string
	reason   string
	lockDir  string
	engine   string
	boot     string
	onStep   func(string)
}

// Open opens the machines directory dir and creates it where it is missing. It chooses the
// backend, and collects what dead processes of ours left behind. It fails with fault.Policy
// when others could write to or reach into the directory, and with fault.Host when the file
// system cannot hold a store.
func Open(ctx context.Context, dir string, opts *Options) (*Store, error) {
	if opts == nil {
		opts = &Options{}
	}
	abs, err := filepath.Abs(dir)
	if err != nil || dir == "" {
		return nil, fault.New(fault.Config, "cannot open store %q: not a directory name", dir)
	}
	s := &Store{
		dir: abs, sink: opts.Sink, readOnly: opts.ReadOnly || os.Geteuid() != 0,
		lockDir: opts.LockDir, engine: opts.Engine, boot: bootID(), onStep: opts.Step,
	}
	if s.lockDir == "" {
		s.lockDir = nspawnLocks
	}
	if s.readOnly {
		return s, s.openToLook()
	}
	if err := prepareDir(abs); err != nil {
		return nil, err
	}
	if err := mountPool(ctx, abs); err != nil {
		return nil, err
	}
	if s.root, err = openDir(abs); err != nil {
		return nil, fault.New(fault.Host, "cannot open store %s: %w", abs, err)
	}
	if err := s.start(ctx, opts.Backend); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// openToLook opens the directory without changing anything; a missing one is an empty store.
func (s *Store) openToLook() error {
	root, err := openDir(s.dir)
	if errors.Is(err, os.ErrNotExist) {
		s.reason = s.dir + " does not exist"
		return nil
	}
	if errors.Is(err, os.ErrPermission) {
		return fault.Hint(fault.New(fault.Host, "cannot look into %s: only root may read it", s.dir),
			"run the same command with sudo")
	}
	if err != nil {
		return fault.New(fault.Host, "cannot open store %s: %w", s.dir, err)
	}
	s.root = root
	var st stored
	switch data, err := os.ReadFile(s.state("store.json")); {
	case err == nil && json.Unmarshal(data, &st) == nil && st.Backend != "":
		s.backend, s.reason = st.Backend, st.Reason
	case onBtrfs(s.dir):
		s.backend, s.reason = Btrfs, s.dir+" is on btrfs"
	case errors.Is(err, os.ErrPermission):
		s.reason = "the state in " + s.state() + " is readable by root only"
	default:
		s.reason = "not used by mkmachine yet"
	}
	return nil
}

// stored is the form of DIR/.mkmachine/store.json: the version of the layout, and what the
// probes found during this boot of the host.
type stored struct {
	Schema  int    `json:"schema"`
	Boot    string `json:"boot"`
	Device  uint64 `json:"device"` // of the directory; another one means that it was moved
	Backend string `json:"backend"`
	Reason  string `json:"reason"`
}

// start makes the directory a store that works: layout, backend, no leftovers.
func (s *Store) start(ctx context.Context, want string) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(s.root.Fd()), &st); err != nil {
		return fmt.Errorf("cannot open store %s: %w", s.dir, err)
	}
	var known stored
	data, err := os.ReadFile(s.state("store.json"))
	if err == nil {
		err = json.Unmarshal(data, &known)
	}
	if err == nil && known.Schema > stateSchema {
		return fault.Hint(fault.New(fault.State, "cannot open store %s: it was written by a newer version (schema %d)", s.dir, known.Schema),
			"update mkmachine")
	}
	fresh := err != nil || known.Boot != s.boot || known.Device != st.Dev
	if fresh {
		if err := s.layout(); err != nil {
			return err
		}
	}
	// A forced backend is the caller's wish, not a finding to remember.
	if s.backend, s.reason = known.Backend, known.Reason; fresh || known.Backend == "" && want == "" || want != "" && want != known.Backend {
		if err := s.choose(want); err != nil {
			return err
		}
		if want == "" {
			known.Backend, known.Reason = s.backend, s.reason
		} else if fresh {
			known.Backend, known.Reason = "", ""
		}
		if fresh || want == "" {
			known = stored{Schema: stateSchema, Boot: s.boot, Device: st.Dev, Backend: known.Backend, Reason: known.Reason}
			if err := s.writeState("store.json", known); err != nil {
				return err
			}
		}
	}
	if fresh {
		// First use since the host started: whatever is hidden and unclaimed is dead.
		_, err = s.sweep(ctx)
	} else {
		_, err = s.recover(ctx)
	}
	return err
}

// layout creates the directories of the state.
func (s *Store) layout() error {
	for _, d := range []string{"", "meta", "layers", "trees", "journal"} {
		if err := os.Mkdir(s.state(d), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return s.full(fault.New(fault.Host, "cannot create store %s: %w", s.dir, err))
		}
		// The umask can only have taken away; an inherited ACL could have given.
		if err := os.Chmod(s.state(d), 0o700); err != nil {
			return fault.New(fault.Host, "cannot create store %s: %w", s.dir, err)
		}
	}
	return nil
}

// Close lets the directory go. Leases and stages that are still open stay valid.
func (s *Store) Close() error {
	if s.root == nil {
		return nil
	}
	return s.root.Close()
}

// Dir is the machines directory.
func (s *Store) Dir() string { return s.dir }

// Backend is how this store makes copies: one of the constants, or "" where nothing is known.
func (s *Store) Backend() string { return s.backend }

// Reason says why this backend was chosen.
func (s *Store) Reason() string { return s.reason }

// path is the path of a name in the machines directory.
func (s *Store) path(rel string) string { return filepath.Join(s.dir, rel) }

// state is a path inside our own state.
func (s *Store) state(parts ...string) string {
	return filepath.Join(append([]string{s.dir, stateDir}, parts...)...)
}

func (s *Store) step(name string) {
	if s.onStep != nil {
		s.onStep(name)
	}
}

// writable is the error of every change to a store that was opened to look.
func (s *Store) writable(verb string) error {
	switch {
	case !s.readOnly:
		return nil
	case os.Geteuid() != 0:
		return fault.Hint(fault.New(fault.Host, "cannot %s in %s: this needs root", verb, s.dir), "run the same command with sudo")
	}
	return fault.New(fault.Internal, "internal error: cannot %s: the store was opened read-only", verb)
}

// writeState replaces a file of the state, durably: it is the old or the new one after a power cut.
func (s *Store) writeState(rel string, value any) error {
	data, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return fmt.Errorf("internal error: %s: %w", rel, err)
	}
	fail := func(err error) error { return s.full(fmt.Errorf("cannot write %s: %w", s.state(rel), err)) }
	f, err := os.CreateTemp(filepath.Dir(s.state(rel)), ".new-*")
	if err != nil {
		return fail(err)
	}
	_, err = f.Write(append(data, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), s.state(rel))
	}
	if err != nil {
		os.Remove(f.Name())
		return fail(err)
	}
	return nil
}

// ExplainFull adds to an error about a full file system that the file system is the store's,
// how full that is, and what to do about it. Other errors, and those that have a hint already,
// are returned as they are.
func (s *Store) ExplainFull(err error) error { return s.full(err) }

func (s *Store) full(err error) error {
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) || len(fault.Hints(err)) > 0 {
		return err
	}
	var fs unix.Statfs_t
	if unix.Statfs(s.dir, &fs) != nil {
		return err
	}
	mib := func(blocks uint64) uint64 { return blocks * uint64(fs.Bsize) >> 20 }
	free := fmt.Sprintf("%d of %d MiB", mib(fs.Bavail), mib(fs.Blocks))
	if fs.Files > 0 { // btrfs does not count them
		free += fmt.Sprintf(" and %d inodes", fs.Ffree)
	}
	return fault.Hint(fmt.Errorf("%w (the file system of %s has %s free)", err, s.dir, free),
		"free space there: mkmachine clean, or mkmachine remove NAME")
}
