// SPDX-License-Identifier: Apache-2.0

package build

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/mkmachine/mkmachine/internal/event"
	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/recipes"
	"github.com/mkmachine/mkmachine/sources"
)

// LockResult says what a lock pins and what an update changed.
type LockResult struct {
	File    string           `json:"file"`
	Lock    *sources.Lock    `json:"lock"`
	Written bool             `json:"written"`
	Changes []sources.Change `json:"changes"`
}

// Lock makes or checks the lock of a job; with job.Update it resolves anew and says what
// changed. It never builds.
func (e *Engine) Lock(ctx context.Context, job *Job) (_ *LockResult, err error) {
	span := e.Sink.Start("lock", job.Recipe.Name)
	defer func() { span.End(err) }()
	old, err := readLock(job.LockFile)
	if err != nil && !job.Update {
		return nil, err
	}
	lock, err := e.lockOf(ctx, job, span)
	if err != nil {
		return nil, err
	}
	fam, err := familyOf(job.Recipe)
	if err != nil {
		return nil, err
	}
	out := &LockResult{File: job.LockFile, Lock: lock, Changes: sources.Diff(old, lock, fam.compareVersions)}
	out.Written = old == nil || job.Update
	return out, nil
}

// lockOf returns the lock to build from: the one beside the recipe when it fits, else a
// new one, which is written there.
func (e *Engine) lockOf(ctx context.Context, job *Job, span *event.Span) (*sources.Lock, error) {
	arch, err := jobArch(job)
	if err != nil {
		return nil, err
	}
	if !job.Update {
		lock, err := readLock(job.LockFile)
		if err != nil {
			return nil, err
		}
		if lock != nil {
			return lock, fits(lock, job, arch)
		}
		if job.Locked {
			err := fault.New(fault.Lock, "cannot build %q as locked: there is no lock %s", job.Recipe.Name, job.LockFile)
			return nil, fault.Hint(err, "mkmachine lock %s", job.Recipe.Origin)
		}
	}
	if job.Locked {
		return nil, fault.New(fault.Config, "--locked and --update exclude each other")
	}
	fam, err := familyOf(job.Recipe)
	if err != nil {
		return nil, err
	}
	sp := span.Start("resolve", job.Recipe.Name)
	lock, err := fam.resolve(ctx, e, job.Recipe, arch, sp)
	sp.End(err)
	if err != nil {
		return nil, err
	}
	lock.Schema, lock.Recipe, lock.Arch = sources.LockSchema, job.Recipe.Name, arch
	lock.Asked, lock.Request = job.Recipe.Request(), job.Recipe.RequestDigest()
	return lock, writeLock(job.LockFile, lock)
}

// fits says which line of the recipe a lock does not answer.
func fits(lock *sources.Lock, job *Job, arch string) error {
	name := job.Recipe.Name
	stale := func(pos fault.Pos, format string, args ...any) error {
		err := fault.New(fault.Lock, "cannot build %q: the lock is stale: %s", name, fmt.Sprintf(format, args...))
		return fault.Hint(fault.At(err, pos), "mkmachine lock --update %s", origin(job.Recipe))
	}
	if lock.Arch != arch {
		return stale(fault.Pos{}, "it is for %s, not %s", lock.Arch, arch)
	}
	added, removed := job.Recipe.Changed(lock.Asked)
	switch {
	case len(added) > 0:
		return stale(added[0].Pos, "it does not answer %q", added[0].Line)
	case len(removed) > 0:
		return stale(fault.Pos{}, "the recipe no longer asks for %q", removed[0])
	case lock.Request != job.Recipe.RequestDigest():
		return stale(fault.Pos{}, "its request digest does not match the recipe")
	}
	return nil
}

// origin is how the user named the recipe.
func origin(r *recipes.Recipe) string { return strings.TrimPrefix(r.Origin, "library:") }

// readLock is nil where there is no file.
func readLock(path string) (*sources.Lock, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fault.As(fault.Lock, fmt.Errorf("cannot read lock: %w", err))
	}
	return sources.ParseLock(data, path)
}

// writeLock replaces the file by rename, durably, and leaves it alone when nothing changes.
func writeLock(path string, lock *sources.Lock) (err error) {
	text, err := sources.FormatLock(lock)
	if err != nil {
		return err
	}
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, text) {
		return nil
	}
	fail := func(err error) error {
		err = fault.New(fault.Failed, "cannot write lock: %w", err)
		return fault.Hint(err, "choose another place with --lock FILE")
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fail(err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".lock-*")
	if err != nil {
		return fail(err)
	}
	defer os.Remove(tmp.Name())
	if _, err = tmp.Write(text); err == nil {
		err = tmp.Chmod(0o644)
	}
	if err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return fail(err)
	}
	return nil
}
