// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/runner/cgroup"
)

// A lease is a file that says what a running machine has outside of itself. It is written
// before any of that is made and stays locked as long as the supervisor lives, so that a lease
// that can be locked belongs to a machine whose supervisor is gone.
type lease struct {
	Name    string       `json:"name"`
	Pid     int          `json:"pid"`
	Cgroups []cgroup.Dir `json:"cgroups"`
	IDBase  uint32       `json:"id_base,omitempty"`

	file *os.File
	path string
}

// DefaultRuntime is where leases are kept unless Options say otherwise.
const DefaultRuntime = "/run/mkmachine"

func leaseDir(runtime string) string { return filepath.Join(runtime, "leases") }
func idDir(runtime string) string    { return filepath.Join(runtime, "ids") }

// newLease creates and locks an empty lease under a unique leaf name.
func newLease(runtime, leaf string) (*lease, error) {
	if err := os.MkdirAll(leaseDir(runtime), 0o700); err != nil {
		return nil, fault.New(fault.Failed, "cannot make the directory of leases: %w", err)
	}
	path := filepath.Join(leaseDir(runtime), leaf+".json")
	file, err := lockFile(path)
	if err == nil && file == nil {
		err = fault.New(fault.State, "cannot create lease %q: it is in use", leaf)
	}
	if err != nil {
		return nil, err
	}
	return &lease{Name: leaf, Pid: os.Getpid(), file: file, path: path}, nil
}

// write makes the file say what the lease says.
func (l *lease) write() error {
	data, err := json.Marshal(l)
	if err == nil {
		_, err = l.file.WriteAt(data, 0)
	}
	// Cut afterwards: killed in between, this process leaves a lease that can be read, with
	// something behind it, and never one that says nothing of what exists.
	if err == nil {
		err = l.file.Truncate(int64(len(data)))
	}
	if err != nil {
		return fault.New(fault.Failed, "cannot write a lease: %w", err)
	}
	return nil
}

func (l *lease) release() error { return releaseFile(l.file, l.path) }

// maxLease bounds what is read of a lease, in bytes.
const maxLease = 64 << 10

// Clean kills what machines whose supervisor is gone have left and removes it. It never
// touches anything of a machine that is looked after, nor anything that is not written in a
// lease below runtime (empty: DefaultRuntime). It gives the names of what it cleaned.
func Clean(ctx context.Context, runtime string) ([]string, error) {
	if runtime == "" {
		runtime = DefaultRuntime
	}
	entries, err := os.ReadDir(leaseDir(runtime))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fault.New(fault.Failed, "cannot list leases: %w", err)
	}
	var cleaned []string
	var errs []error
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return cleaned, errors.Join(append(errs, err)...)
		}
		name, isLease := strings.CutSuffix(e.Name(), ".json")
		if !isLease {
			continue
		}
		done, err := cleanLease(filepath.Join(leaseDir(runtime), e.Name()))
		if err != nil {
			errs = append(errs, err)
		}
		if done {
			cleaned = append(cleaned, name)
		}
	}
	errs = append(errs, cleanIDs(idDir(runtime)))
	return cleaned, errors.Join(errs...)
}

func cleanLease(path string) (bool, error) {
	file, err := lockFile(path)
	if err != nil || file == nil {
		return false, err
	}
	data := make([]byte, maxLease)
	n, _ := file.ReadAt(data, 0)
	var l lease
	// A lease that was never finished says that nothing was made yet.
	if json.NewDecoder(bytes.NewReader(data[:n])).Decode(&l) == nil {
		for _, d := range l.Cgroups {
			// What is written there is not trusted further than its shape goes.
			if filepath.Base(filepath.Dir(d.Path)) != cgroup.Parent || filepath.Base(d.Path) != l.Name || filepath.Clean(d.Path) != d.Path {
				file.Close()
				return false, fault.New(fault.State, "cannot clean %s: it names %q, which is no control group of a machine", path, d.Path)
			}
		}
		if err := cgroup.Remove(l.Cgroups); err != nil {
			file.Close()
			return false, err
		}
	}
	return true, releaseFile(file, path)
}

// cleanIDs removes range files that nobody holds; they are harmless, and only clutter.
func cleanIDs(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return fault.New(fault.Failed, "cannot list id leases: %w", err)
	}
	var errs []error
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		file, err := lockFile(path)
		if err == nil && file != nil {
			err = releaseFile(file, path)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
