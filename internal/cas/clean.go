// SPDX-License-Identifier: Apache-2.0

package cas

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// partialAge is how long an interrupted download may wait to be resumed.
const partialAge = 7 * 24 * time.Hour

// Cleaned says what Clean removed.
type Cleaned struct {
	Files int   `json:"files"`
	Bytes int64 `json:"bytes"`
}

// Clean removes objects that nobody used for maxAge (0: all), and what is left of
// interrupted work. Objects being written are left alone; open ones stay readable.
func (c *Cache) Clean(ctx context.Context, maxAge time.Duration) (Cleaned, error) {
	var done Cleaned
	oldest := time.Now().Add(-maxAge)
	for _, sub := range []string{"blobs", "named", "partial", "tmp"} {
		held := sub == "partial" || sub == "tmp"
		err := filepath.WalkDir(filepath.Join(c.dir, sub), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil || (maxAge > 0 && info.ModTime().After(oldest)) {
				return nil
			}
			if held && !removeUnheld(path) {
				return nil
			}
			if !held {
				if err := os.Remove(path); err != nil {
					return err
				}
			}
			done.Files++
			done.Bytes += info.Size()
			return nil
		})
		if err != nil {
			return done, c.fail("clean", err)
		}
	}
	return done, nil
}

// sweep removes temporaries that no process holds, and partial blobs too old to resume.
func (c *Cache) sweep() error {
	for _, sub := range []string{"tmp", "partial"} {
		entries, err := os.ReadDir(filepath.Join(c.dir, sub))
		if err != nil {
			return err
		}
		for _, e := range entries {
			path := filepath.Join(c.dir, sub, e.Name())
			if sub == "partial" {
				info, err := e.Info()
				if err != nil || (time.Since(info.ModTime()) < partialAge && info.Size() > 0) {
					continue
				}
			}
			removeUnheld(path)
		}
	}
	// What a killed UpdateSeen left; a living one needs its file for milliseconds.
	left, _ := filepath.Glob(filepath.Join(c.dir, ".seen-*"))
	for _, path := range left {
		if info, err := os.Lstat(path); err == nil && time.Since(info.ModTime()) > time.Hour {
			os.Remove(path)
		}
	}
	return nil
}

// removeUnheld deletes a temporary if its lock is free. Side files follow their partial.
func removeUnheld(path string) bool {
	if base, ok := strings.CutSuffix(path, ".from"); ok {
		if _, err := os.Lstat(base); err == nil {
			return false
		}
		return os.Remove(path) == nil
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil || !sameFile(f, path) {
		return false
	}
	os.Remove(path + ".from")
	return os.Remove(path) == nil
}
