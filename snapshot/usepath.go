// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"path/filepath"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// UsePath leases a directory that need not be an image of this store, to run it; path is
// absolute. Links are followed once, here.
func (s *Store) UsePath(_ context.Context, path string, readOnly bool) (*Lease, error) {
	if err := s.writable("run a tree"); err != nil {
		return nil, err
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, fault.New(fault.State, "cannot use %s: %w", path, err)
	}
	if !readOnly && treeReadOnly(real) {
		return nil, fault.Hint(fault.New(fault.State, "cannot run %s: it is read-only", path), "run a throw-away copy with -x, or give --read-only")
	}
	lock, err := s.lockTree(real, readOnly)
	if err != nil {
		return nil, busy(err, "run", path)
	}
	return &Lease{s: s, locks: []*treeLock{lock}, Tree: Tree{Dir: real}}, nil
}
