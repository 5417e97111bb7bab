// SPDX-License-Identifier: Apache-2.0

package cas

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// Seen remembers the newest Date of every signed repository that was accepted, so that a
// mirror cannot replay an older one. The zero value is empty and usable.
type Seen map[string]time.Time

// maxSeen bounds seen.json in bytes; thousands of repositories fit.
const maxSeen = 4 << 20

func seenKey(family, suite, fingerprint string) string {
	return family + " " + suite + " " + fingerprint
}

// Newest is the newest Date seen for any of the keys; zero where none was.
func (s Seen) Newest(family, suite string, fingerprints []string) time.Time {
	var newest time.Time
	for _, fpr := range fingerprints {
		if t := s[seenKey(family, suite, fpr)]; t.After(newest) {
			newest = t
		}
	}
	return newest
}

// Note records that date was accepted, signed by the keys.
func (s Seen) Note(family, suite string, fingerprints []string, date time.Time) {
	for _, fpr := range fingerprints {
		k := seenKey(family, suite, fpr)
		if date.After(s[k]) {
			s[k] = date.UTC()
		}
	}
}

type seenFile struct {
	Schema int  `json:"schema"`
	Seen   Seen `json:"seen"`
}

// LoadSeen reads seen.json; a missing file is empty. A damaged one is an error, because
// dropping it silently would switch the protection off.
func (c *Cache) LoadSeen() (Seen, error) {
	f, err := os.Open(filepath.Join(c.dir, "seen.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return Seen{}, nil
	}
	if err != nil {
		return nil, c.fail("read", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSeen+1))
	if err != nil {
		return nil, c.fail("read", err)
	}
	var file seenFile
	err = json.Unmarshal(data, &file)
	if err == nil && file.Schema != 1 {
		err = fmt.Errorf("schema %d is not known", file.Schema)
	}
	if err != nil || len(data) > maxSeen {
		return nil, fault.Hint(fault.New(fault.State, "cannot read %s: %v", f.Name(), err),
			"remove %s to forget which repository dates were seen", f.Name())
	}
	if file.Seen == nil {
		file.Seen = Seen{}
	}
	return file.Seen, nil
}

// UpdateSeen merges what was seen into seen.json under a lock; dates only go up.
func (c *Cache) UpdateSeen(add Seen) error {
	lock, err := os.OpenFile(filepath.Join(c.dir, "seen.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return c.fail("write to", err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return c.fail("lock", err)
	}
	all, err := c.LoadSeen()
	if err != nil {
		return err
	}
	changed := false
	for k, t := range add {
		if t.After(all[k]) {
			all[k], changed = t.UTC(), true
		}
	}
	if !changed {
		return nil
	}
	data, err := json.MarshalIndent(seenFile{1, all}, "", "  ")
	if err != nil {
		return fault.New(fault.Internal, "internal error: cannot encode seen.json: %v", err)
	}
	tmp, err := os.CreateTemp(c.dir, ".seen-*")
	if err != nil {
		return c.fail("write to", err)
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(append(data, '\n'))
	// This file cannot be fetched again, so unlike blobs it is flushed before the rename.
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), filepath.Join(c.dir, "seen.json"))
	}
	return c.fail("write to", err)
}
