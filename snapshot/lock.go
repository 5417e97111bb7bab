// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// nspawnLocks is where systemd-nspawn and systemd-machined keep the locks of this host.
const nspawnLocks = "/run/systemd/nspawn/locks"

// errBusy: somebody else holds the lock.
var errBusy = errors.New("locked by another process")

// fileLock is an open-file-description lock in the manner of systemd: taken without waiting,
// and its file is unlinked by whoever holds it alone last.
type fileLock struct {
	path   string
	file   *os.File
	shared bool
}

// lockFile takes the lock at path, errBusy when it is held in a conflicting way.
func lockFile(path string, shared bool) (*fileLock, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NOCTTY, 0o600)
		if err != nil {
			return nil, fmt.Errorf("cannot open lock: %w", err)
		}
		if err := setLock(f, shared); err != nil {
			f.Close()
			return nil, err
		}
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			f.Close()
			return nil, fmt.Errorf("cannot read lock %s: %w", path, err)
		}
		if st.Nlink > 0 {
			return &fileLock{path: path, file: f, shared: shared}, nil
		}
		f.Close() // the last holder unlinked it between our open and our lock
	}
}

func setLock(f *os.File, shared bool) error {
	l := unix.Flock_t{Type: unix.F_WRLCK, Whence: 0}
	if shared {
		l.Type = unix.F_RDLCK
	}
	err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &l)
	if err == unix.EAGAIN || err == unix.EACCES {
		return errBusy
	}
	if err != nil {
		return fmt.Errorf("cannot lock %s: %w", f.Name(), err)
	}
	return nil
}

// release gives the lock back. A nil lock is nothing to release.
func (l *fileLock) release() {
	if l == nil {
		return
	}
	if !l.shared || setLock(l.file, false) == nil {
		os.Remove(l.path) // nobody else holds it; failing to unlink leaves an empty file, not a lock
	}
	l.file.Close()
}

// lockName reserves a name of an image against systemd-machined and other processes of ours,
// waiting until it is free or ctx ends.
func (s *Store) lockName(ctx context.Context, name string) (*fileLock, error) {
	if err := os.MkdirAll(s.lockDir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot lock the name %q: %w", name, err)
	}
	pause := 2 * time.Millisecond
	for {
		l, err := lockFile(filepath.Join(s.lockDir, "name-"+name), false)
		if err == nil {
			return l, nil
		}
		if !errors.Is(err, errBusy) {
			return nil, fmt.Errorf("cannot lock the name %q: %w", name, err)
		}
		select {
		case <-ctx.Done():
			return nil, fault.New(fault.State, "cannot lock the name %q: %w", name, errors.Join(err, ctx.Err()))
		case <-time.After(pause):
		}
		pause = min(2*pause, 100*time.Millisecond)
	}
}

// treeLock says that a tree is in use: shared by readers, alone by a writer. It is the pair
// of locks that systemd-nspawn takes, so neither tool starts what the other one runs.
type treeLock struct{ global, local *fileLock }

func (l *treeLock) release() {
	if l != nil {
		l.local.release()
		l.global.release()
	}
}

// lockTree locks the tree at path, a directory; links are followed as systemd-nspawn does.
// errBusy (wrapped) when somebody uses the tree. It waits a moment first: a reader that lets
// go holds the lock alone for an instant, to see whether it may unlink the file.
func (s *Store) lockTree(path string, shared bool) (l *treeLock, err error) {
	for pause := time.Millisecond; pause < 64*time.Millisecond; pause *= 2 {
		if l, err = s.tryLockTree(path, shared); !errors.Is(err, errBusy) {
			return l, err
		}
		time.Sleep(pause)
	}
	return nil, err
}

func (s *Store) tryLockTree(path string, shared bool) (*treeLock, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, fmt.Errorf("cannot lock %s: %w", path, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(real, &st); err != nil {
		return nil, fmt.Errorf("cannot lock %s: %w", path, err)
	}
	if err := os.MkdirAll(s.lockDir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot lock %s: %w", path, err)
	}
	l := &treeLock{}
	l.global, err = lockFile(filepath.Join(s.lockDir, fmt.Sprintf("inode-%d:%d", st.Dev, st.Ino)), shared)
	if err != nil {
		return nil, fmt.Errorf("cannot lock %s: %w", path, err)
	}
	l.local, err = lockFile(filepath.Join(filepath.Dir(real), ".#"+filepath.Base(real)+".lck"), shared)
	if err != nil && !(shared && errors.Is(err, unix.EROFS)) { // nobody can write there anyway
		l.global.release()
		return nil, fmt.Errorf("cannot lock %s: %w", path, err)
	}
	return l, nil
}

// busy turns errBusy into what the user can act on; other errors pass.
func busy(err error, verb, name string) error {
	if !errors.Is(err, errBusy) {
		return err
	}
	return fault.Hint(fault.New(fault.State, "cannot %s %q: it is in use", verb, name),
		"end the run that uses it first, or wait for it")
}
