// SPDX-License-Identifier: Apache-2.0

package cas

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// resumeFrom is the size in bytes from which a partial blob is worth a side file that
// lets a later process resume it.
const resumeFrom = 1 << 20

// Writer takes the bytes of one blob. It hashes while it writes; Commit publishes.
// It holds the blob's lock until Commit, Discard or Close. Not safe for concurrent use.
type Writer struct {
	cache     *Cache
	f         *os.File
	path      string
	digest    string
	size      int64 // expected, -1 where unknown
	offset    int64
	hash      hash.Hash
	validator string
	closed    bool
}

// Create starts or resumes a blob of size bytes (-1: unknown). It waits while another
// process writes the same blob; ErrExists says that the blob is there now.
// The caller must end with Commit, Discard or Close.
func (c *Cache) Create(ctx context.Context, digest string, size int64) (*Writer, error) {
	if err := checkDigest(digest); err != nil {
		return nil, err
	}
	path := filepath.Join(c.dir, "partial", digest)
	f, err := c.claim(ctx, path, func() bool { return c.Has(digest) })
	if err != nil {
		return nil, err
	}
	w := &Writer{cache: c, f: f, path: path, digest: digest, size: size, hash: sha256.New()}
	if err := w.resume(); err != nil {
		w.Discard()
		return nil, err
	}
	return w, nil
}

// resume hashes what an earlier attempt left, if it said what version of the file it read.
func (w *Writer) resume() error {
	info, err := w.f.Stat()
	if err != nil {
		return w.cache.fail("read", err)
	}
	if info.Size() == 0 {
		return nil
	}
	from, err := os.ReadFile(w.path + ".from")
	if err != nil || len(from) == 0 || len(from) > 1024 || (w.size >= 0 && info.Size() > w.size) {
		return w.Restart()
	}
	n, err := io.Copy(w.hash, struct{ io.Reader }{w.f})
	if err != nil {
		return w.Restart()
	}
	w.offset, w.validator = n, string(from)
	return nil
}

// Offset is how many bytes the blob has so far.
func (w *Writer) Offset() int64 { return w.offset }

// Validator is what SetValidator was given for the bytes that are there.
func (w *Writer) Validator() string { return w.validator }

// SetValidator records the server's name for the version it sends (a strong ETag or a
// modification time), so that a later attempt can resume. An empty one forbids resuming.
func (w *Writer) SetValidator(v string) error {
	if strings.ContainsAny(v, "\r\n") || len(v) > 1024 {
		v = ""
	}
	w.validator = v
	if v == "" {
		return w.cache.remove(w.path + ".from")
	}
	if w.size >= 0 && w.size < resumeFrom {
		return nil
	}
	return w.cache.fail("write to", os.WriteFile(w.path+".from", []byte(v), 0o600))
}

// Restart throws away the bytes that are there.
func (w *Writer) Restart() error {
	w.hash.Reset()
	w.offset, w.validator = 0, ""
	if err := w.f.Truncate(0); err != nil {
		return w.cache.fail("write to", err)
	}
	if _, err := w.f.Seek(0, io.SeekStart); err != nil {
		return w.cache.fail("write to", err)
	}
	return w.cache.remove(w.path + ".from")
}

// Write appends to the blob. More bytes than the expected size are a fault.Verify error.
func (w *Writer) Write(p []byte) (int, error) {
	if w.size >= 0 && w.offset+int64(len(p)) > w.size {
		return 0, fault.New(fault.Verify, "file is longer than the %d bytes promised", w.size)
	}
	n, err := w.f.Write(p)
	w.hash.Write(p[:n])
	w.offset += int64(n)
	if err != nil {
		return n, w.cache.fail("write to", err)
	}
	return n, nil
}

// Commit checks size and digest of the whole blob, publishes it and returns it opened for
// reading at offset 0. A mismatch is a fault.Verify error; the bytes are thrown away and the
// writer starts over at offset 0, so that another server can be asked.
func (w *Writer) Commit() (*os.File, error) {
	offset, got := w.offset, hex.EncodeToString(w.hash.Sum(nil))
	if (w.size >= 0 && offset != w.size) || got != w.digest {
		if err := w.Restart(); err != nil {
			return nil, err
		}
		if w.size >= 0 && offset != w.size {
			return nil, fault.New(fault.Verify, "size is %d, want %d", offset, w.size)
		}
		return nil, fault.New(fault.Verify, "SHA-256 is %s, want %s", got, w.digest)
	}
	defer w.unlock()
	final := w.cache.blobPath(w.digest)
	if err := os.Rename(w.path, final); errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(final), 0o700); err != nil {
			return nil, w.cache.fail("write to", err)
		}
		if err := os.Rename(w.path, final); err != nil {
			return nil, w.cache.fail("write to", err)
		}
	} else if err != nil {
		return nil, w.cache.fail("write to", err)
	}
	if w.size < 0 || w.size >= resumeFrom {
		os.Remove(w.path + ".from")
	}
	return w.cache.Get(w.digest)
}

// Discard ends the attempt and removes its bytes.
func (w *Writer) Discard() {
	if w.closed {
		return
	}
	os.Remove(w.path + ".from")
	os.Remove(w.path)
	w.unlock()
}

// Close ends the attempt. Bytes that can be resumed are kept, others removed. After
// Commit or Discard it does nothing.
func (w *Writer) Close() error {
	if w.closed {
		return nil
	}
	if w.offset == 0 || w.validator == "" {
		w.Discard()
		return nil
	}
	err := os.WriteFile(w.path+".from", []byte(w.validator), 0o600)
	w.unlock()
	return w.cache.fail("write to", err)
}

func (w *Writer) unlock() {
	if !w.closed {
		w.closed = true
		w.f.Close()
	}
}

// NamedWriter takes the bytes of one derived object. File is there for callers that
// write at offsets, align or share extents.
type NamedWriter struct {
	cache  *Cache
	f      *os.File
	path   string
	final  string
	closed bool
}

// CreateNamed starts a derived object. Like Create it waits for a process that makes the
// same one and returns ErrExists when that succeeded. It never resumes.
func (c *Cache) CreateNamed(ctx context.Context, kind, key string) (*NamedWriter, error) {
	final, err := c.namedPath(kind, key)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(c.dir, "tmp", kind+","+key)
	f, err := c.claim(ctx, path, func() bool { _, err := os.Lstat(final); return err == nil })
	if err != nil {
		return nil, err
	}
	w := &NamedWriter{cache: c, f: f, path: path, final: final}
	if err := f.Truncate(0); err != nil {
		w.Close()
		return nil, c.fail("write to", err)
	}
	return w, nil
}

// File is the file being written. It must not be closed by the caller.
func (w *NamedWriter) File() *os.File { return w.f }

// Write appends at the file's offset.
func (w *NamedWriter) Write(p []byte) (int, error) {
	n, err := w.f.Write(p)
	return n, w.cache.fail("write to", err)
}

// Commit publishes the object and returns it opened for reading at offset 0.
func (w *NamedWriter) Commit() (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(w.final), 0o700); err != nil {
		return nil, w.cache.fail("write to", err)
	}
	if err := os.Rename(w.path, w.final); err != nil {
		return nil, w.cache.fail("write to", err)
	}
	w.closed = true
	w.f.Close()
	return w.cache.open(w.final, w.final)
}

// Close removes what was written unless Commit published it.
func (w *NamedWriter) Close() error {
	if w.closed {
		return nil
	}
	w.closed = true
	os.Remove(w.path)
	return w.f.Close()
}
