// SPDX-License-Identifier: Apache-2.0

// Package cas is the cache: a directory of blobs named by their SHA-256, and of named
// objects that the caller derives from blobs.
//
// It owns the layout below its directory, the locks that let two processes do one piece
// of work once, and the removal of what is old. It never talks to the network and never
// reads what it stores.
//
// Invariant: an object becomes visible under its name by one rename of a complete file.
// A blob is published only when the bytes that were written hash to its name. Files are
// not fsynced: after a power cut a blob may hold anything, so Verified hashes it again
// before the first byte is used and throws it away when it differs. What cannot be
// fetched or derived again does not belong here.
//
// Layout, everything mode 0700 and 0600:
//
//	blobs/ab/abcd…      complete blobs
//	partial/abcd…       blobs on their way in; the open file's flock is the right to write
//	partial/abcd….from  what a server said names its version (for If-Range)
//	named/KIND/KEY      derived objects
//	tmp/KIND,KEY        derived objects on their way in, locked like partial
//	seen.json           newest Date seen of each signed repository
package cas

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
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

// DefaultDir is where the cache is when nobody says otherwise.
const DefaultDir = "/var/cache/mkmachine"

var (
	// ErrMiss is returned (wrapped) when the cache does not have the object.
	ErrMiss = errors.New("not in the cache")
	// ErrExists is returned by the Create functions when the object is there already,
	// for instance because another process finished it while this one waited.
	ErrExists = errors.New("already in the cache")
	// ErrCorrupt is returned (wrapped) by Verified for an object that did not match its
	// name. The object is gone; errors.Is(err, ErrMiss) holds too.
	ErrCorrupt = errors.New("cached file does not match its digest")
)

// Cache is an open cache directory. It is safe for concurrent use, also by several processes.
type Cache struct {
	dir string
}

// touchAfter is how old an object's time stamp may get before a use renews it; Clean goes by it.
const touchAfter = time.Hour

// Open creates dir (mode 0700) where needed and removes temporaries that no living process
// holds. An unusable directory is a fault.Host error with a hint.
func Open(dir string) (*Cache, error) {
	c := &Cache{dir: dir}
	for _, sub := range []string{"", "blobs", "partial", "named", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return nil, c.fail("open", err)
		}
	}
	if err := syscall.Access(dir, 2); err != nil {
		return nil, c.fail("open", &fs.PathError{Op: "write", Path: dir, Err: err})
	}
	info, err := os.Stat(dir)
	if err != nil {
		return nil, c.fail("open", err)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return nil, fault.Hint(fault.New(fault.Policy, "cannot open the cache %s: others may write to it (mode %04o)", dir, info.Mode().Perm()),
			"chmod go-w %s", dir)
	}
	if err := c.sweep(); err != nil {
		return nil, c.fail("open", err)
	}
	return c, nil
}

// Dir is the cache's directory.
func (c *Cache) Dir() string { return c.dir }

// fail gives a file system error its class and, where the user can do something, a hint.
func (c *Cache) fail(verb string, err error) error {
	if err == nil {
		return nil
	}
	wrapped := fmt.Errorf("cannot %s the cache %s: %w", verb, c.dir, err)
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fault.Hint(fault.As(fault.Failed, wrapped), "free space on the file system of %s, or choose another place with --cache DIR", c.dir)
	case errors.Is(err, syscall.EROFS), errors.Is(err, fs.ErrPermission):
		return fault.Hint(fault.As(fault.Host, wrapped), "choose a directory you can write to with --cache DIR")
	case errors.Is(err, syscall.ENOTDIR):
		return fault.Hint(fault.As(fault.Host, wrapped), "%s must be a directory; choose another place with --cache DIR", c.dir)
	}
	return fault.As(fault.Host, wrapped)
}

// ValidDigest reports whether s is a SHA-256 in lower-case hex, the only form that becomes a path.
func ValidDigest(s string) bool {
	if len(s) != 64 {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

func checkDigest(digest string) error {
	if !ValidDigest(digest) {
		return fault.New(fault.Format, "cannot use %q as a digest: want 64 lower-case hex digits", digest)
	}
	return nil
}

// validName keeps kinds and keys of named objects from being anything but one plain component.
func validName(s string) bool {
	if s == "" || len(s) > 128 || s[0] == '.' || s[0] == '-' {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '.' && c != '_' && c != '-' && c != '+' {
			return false
		}
	}
	return true
}

func (c *Cache) blobPath(digest string) string {
	return filepath.Join(c.dir, "blobs", digest[:2], digest)
}

func (c *Cache) namedPath(kind, key string) (string, error) {
	if !validName(kind) || !validName(key) {
		return "", fault.New(fault.Internal, "internal error: %q/%q is no name for a cached object", kind, key)
	}
	return filepath.Join(c.dir, "named", kind, key), nil
}

// Get opens a blob for reading without looking at its bytes; see Verified. ErrMiss when absent.
func (c *Cache) Get(digest string) (*os.File, error) {
	if err := checkDigest(digest); err != nil {
		return nil, err
	}
	return c.open(c.blobPath(digest), digest)
}

// GetNamed opens a derived object for reading. Its integrity is the caller's business.
// ErrMiss when absent.
func (c *Cache) GetNamed(kind, key string) (*os.File, error) {
	path, err := c.namedPath(kind, key)
	if err != nil {
		return nil, err
	}
	return c.open(path, kind+" "+key)
}

func (c *Cache) open(path, what string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", what, ErrMiss)
	}
	if err != nil {
		return nil, c.fail("read", err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: path, Err: errors.New("not a regular file")}
	}
	if err != nil {
		f.Close()
		return nil, c.fail("read", err)
	}
	if time.Since(info.ModTime()) > touchAfter {
		// A failure here only makes the object look older to Clean.
		now := syscall.NsecToTimeval(time.Now().UnixNano())
		_ = syscall.Futimes(int(f.Fd()), []syscall.Timeval{now, now})
	}
	return f, nil
}

// Verified opens a blob and hashes all of it before it returns the file at offset 0.
// A blob whose bytes do not match is removed and reported as ErrCorrupt, which is an
// ErrMiss too. size is checked where it is not negative.
func (c *Cache) Verified(digest string, size int64) (*os.File, error) {
	f, err := c.Get(digest)
	if err != nil {
		return nil, err
	}
	h := sha256.New()
	n, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{f}, make([]byte, 256<<10))
	if err == nil && hex.EncodeToString(h.Sum(nil)) == digest && (size < 0 || n == size) {
		if _, err = f.Seek(0, io.SeekStart); err == nil {
			return f, nil
		}
	}
	f.Close()
	if err != nil {
		return nil, c.fail("read", err)
	}
	if size >= 0 && n != size && hex.EncodeToString(h.Sum(nil)) == digest {
		return nil, fault.New(fault.Verify, "cannot use %s: it has %d bytes, %d were promised", digest, n, size)
	}
	if err := os.Remove(c.blobPath(digest)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, c.fail("clean", err)
	}
	return nil, fmt.Errorf("%s: %w (%w)", digest, ErrCorrupt, ErrMiss)
}

// Has says whether a blob is there, without reading it.
func (c *Cache) Has(digest string) bool {
	if !ValidDigest(digest) {
		return false
	}
	_, err := os.Lstat(c.blobPath(digest))
	return err == nil
}

// Remove deletes a blob. A missing one is fine.
func (c *Cache) Remove(digest string) error {
	if err := checkDigest(digest); err != nil {
		return err
	}
	return c.remove(c.blobPath(digest))
}

// RemoveNamed deletes a derived object. A missing one is fine.
func (c *Cache) RemoveNamed(kind, key string) error {
	path, err := c.namedPath(kind, key)
	if err != nil {
		return err
	}
	return c.remove(path)
}

func (c *Cache) remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return c.fail("clean", err)
	}
	return nil
}

// lockWait bounds how often a waiting process looks again; flock has no wait with a context.
const (
	lockWaitMin = time.Millisecond
	lockWaitMax = 50 * time.Millisecond
)

// claim opens path for writing and takes its lock, waiting for whoever holds it. done tells
// whether the object was finished meanwhile; then claim returns ErrExists.
func (c *Cache) claim(ctx context.Context, path string, done func() bool) (*os.File, error) {
	wait := lockWaitMin
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, c.fail("write to", err)
		}
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			// The file may have been published or removed between open and lock.
			if !sameFile(f, path) {
				f.Close()
				if done() {
					return nil, ErrExists
				}
				continue
			}
			if done() {
				os.Remove(path)
				f.Close()
				return nil, ErrExists
			}
			return f, nil
		}
		f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return nil, c.fail("lock", err)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(wait):
		}
		wait = min(wait*2, lockWaitMax)
	}
}

func sameFile(f *os.File, path string) bool {
	open, err1 := f.Stat()
	named, err2 := os.Lstat(path)
	return err1 == nil && err2 == nil && os.SameFile(open, named)
}
