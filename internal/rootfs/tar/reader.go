// SPDX-License-Identifier: Apache-2.0

// Package tar reads tar archives, strictly.
//
// It owns the container format: ustar, the GNU long names and sparse headers, and PAX.
// It never touches a file system and never decides whether an entry is acceptable in a
// root; that is internal/rootfs. Its invariant: what two readers could understand in two
// ways (doubled headers, bodies behind links, a missing end, bytes after the end) is an
// error of class E_FORMAT with the byte offset, and nothing is allocated from a number
// that the archive merely claims.
package tar

import (
	"bytes"
	"io"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// BlockSize is the unit of the format, in bytes.
const BlockSize = 512

// Types of entries, after the differences between the dialects are gone.
const (
	TypeFile     = '0'
	TypeHardlink = '1'
	TypeSymlink  = '2'
	TypeChar     = '3'
	TypeBlock    = '4'
	TypeDir      = '5'
	TypeFifo     = '6'
)

// Limits bound what a header may ask for. A zero field means its default.
type Limits struct {
	Name    int   // bytes in a name or link target; default 4096
	PAX     int   // bytes in one extended header; default 1 MiB
	Xattrs  int   // bytes of names and values of extended attributes of one entry; default 64 KiB
	Sparse  int   // regions of a sparse file; default 65536
	File    int64 // logical size of one file; default 64 GiB
	Padding int64 // zero bytes behind the end mark; default 10 MiB
}

func (l Limits) withDefaults() Limits {
	def := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	def(&l.Name, 4096)
	def(&l.PAX, 1<<20)
	def(&l.Xattrs, 64<<10)
	def(&l.Sparse, 1<<16)
	if l.File == 0 {
		l.File = 64 << 30
	}
	if l.Padding == 0 {
		l.Padding = 10 << 20
	}
	return l
}

// Extent is a region of a sparse file that has data, in bytes.
type Extent struct{ Offset, Length int64 }

// Xattr is one extended attribute.
type Xattr struct {
	Name  string
	Value []byte
}

// Header describes one entry. Numbers are as the archive has them: unchecked but for sign.
type Header struct {
	Name   string // as stored, never empty
	Type   byte   // one of the Type constants
	Link   string // target of a link, as stored
	Mode   int64
	UID    int64
	GID    int64
	Size   int64 // bytes of a regular file once written
	Stored int64 // bytes of its body in the archive; differs from Size for sparse files
	// ModTime is in whole seconds since 1970, rounded down.
	ModTime      int64
	Major, Minor int64
	// Xattrs are sorted by name. POSIX ACLs in text form are under their PAX key "SCHILY.acl.*".
	Xattrs []Xattr
	// Sparse lists the data of a sparse file in order; nil for an ordinary one.
	Sparse []Extent
	// Offset of the entry's first header block in the archive.
	Offset int64
}

// Reader reads one archive, once. It is not safe for concurrent use.
type Reader struct {
	src     io.Reader
	lim     Limits
	buf     []byte
	r, w    int
	off     int64 // stream offset of buf[r]
	srcErr  error
	left    int64 // stored body bytes not yet handed out
	pad     int64 // padding behind the body
	err     error
	hdr     Header
	started bool
}

// NewReader reads from src; limits as given, zero fields are defaults.
func NewReader(src io.Reader, lim Limits) *Reader {
	return &Reader{src: src, lim: lim.withDefaults(), buf: make([]byte, 256<<10)}
}

// Offset is how many bytes of the archive were consumed.
func (t *Reader) Offset() int64 { return t.off }

func (t *Reader) formatError(at int64, format string, args ...any) error {
	return t.fail(fault.New(fault.Format, "tar header at byte %d: "+format, append([]any{at}, args...)...))
}

func (t *Reader) limitError(at int64, format string, args ...any) error {
	return t.fail(fault.New(fault.Limit, "tar header at byte %d: "+format, append([]any{at}, args...)...))
}

func (t *Reader) fail(err error) error {
	if t.err == nil {
		t.err = err
	}
	return t.err
}

// fill makes at least n bytes available (n <= len(buf)), or reports how the source ended.
func (t *Reader) fill(n int) error {
	if t.w-t.r >= n {
		return nil
	}
	if t.r > 0 {
		copy(t.buf, t.buf[t.r:t.w])
		t.w -= t.r
		t.r = 0
	}
	empty := 0
	for t.w < n {
		if t.srcErr != nil {
			return t.srcErr
		}
		m, err := t.src.Read(t.buf[t.w:])
		t.w += m
		t.srcErr = err
		if m == 0 && err == nil {
			if empty++; empty > 100 {
				t.srcErr = io.ErrNoProgress
			}
		}
	}
	return nil
}

// block returns the next block; the slice is valid until the next call of any method.
func (t *Reader) block() ([]byte, error) {
	if err := t.fill(BlockSize); err != nil {
		if err == io.EOF {
			what := "archive ends in the middle of a block"
			if t.w == t.r {
				what = "archive ends without its two zero blocks"
			}
			return nil, t.formatError(t.off, "%s", what)
		}
		return nil, t.fail(err)
	}
	b := t.buf[t.r : t.r+BlockSize]
	t.r += BlockSize
	t.off += BlockSize
	return b, nil
}

// Next moves to the next entry, skipping what is left of the current body. The header is
// valid until the next call. io.EOF means that the archive ended as it must: with two zero
// blocks, nothing but zeros behind them, and the source read to its end.
func (t *Reader) Next() (*Header, error) {
	if t.err != nil {
		return nil, t.err
	}
	for t.left > 0 {
		if _, err := t.Chunk(); err != nil {
			return nil, err
		}
	}
	if err := t.skipPadding(); err != nil {
		return nil, err
	}
	return t.next()
}

func (t *Reader) skipPadding() error {
	for t.pad > 0 {
		if t.w == t.r {
			if err := t.fill(1); err != nil {
				return t.sourceEnded(err)
			}
		}
		n := min(int64(t.w-t.r), t.pad)
		t.advance(n)
		t.pad -= n
	}
	return nil
}

func (t *Reader) advance(n int64) {
	t.r += int(n)
	t.off += n
}

func (t *Reader) sourceEnded(err error) error {
	if err == io.EOF {
		return t.fail(fault.New(fault.Format, "tar archive ends at byte %d inside an entry", t.off))
	}
	return t.fail(err)
}

// Chunk returns the next piece of the current body, io.EOF after the last. The slice is
// valid until the next call of any method. For a sparse file these are the stored bytes.
func (t *Reader) Chunk() ([]byte, error) {
	if t.err != nil {
		return nil, t.err
	}
	if t.left == 0 {
		return nil, io.EOF
	}
	if t.w == t.r {
		if err := t.fill(1); err != nil {
			return nil, t.sourceEnded(err)
		}
	}
	n := min(int64(t.w-t.r), t.left)
	b := t.buf[t.r : t.r+int(n)]
	t.advance(n)
	t.left -= n
	return b, nil
}

// Read reads the current body, as io.Reader.
func (t *Reader) Read(p []byte) (int, error) {
	if t.err != nil {
		return 0, t.err
	}
	if t.left == 0 {
		return 0, io.EOF
	}
	if t.w == t.r {
		if err := t.fill(1); err != nil {
			return 0, t.sourceEnded(err)
		}
	}
	n := copy(p, t.buf[t.r:t.r+int(min(int64(t.w-t.r), t.left))])
	t.advance(int64(n))
	t.left -= int64(n)
	return n, nil
}

// end checks what follows the first zero block.
func (t *Reader) end(at int64) error {
	b, err := t.block()
	if err != nil {
		return err
	}
	if !allZero(b) {
		return t.formatError(at, "a lone zero block in the middle of the archive")
	}
	var pad int64
	for {
		if t.w == t.r {
			if err := t.fill(1); err == io.EOF {
				return t.fail(io.EOF)
			} else if err != nil {
				return t.fail(err)
			}
		}
		n := t.w - t.r
		if !allZero(t.buf[t.r:t.w]) {
			return t.formatError(t.off, "bytes behind the end of the archive")
		}
		t.advance(int64(n))
		if pad += int64(n); pad > t.lim.Padding {
			return t.limitError(t.off, "more than %d bytes of padding behind the end", t.lim.Padding)
		}
	}
}

var zeros [4096]byte

func allZero(b []byte) bool {
	for len(b) > len(zeros) {
		if !bytes.Equal(b[:len(zeros)], zeros[:]) {
			return false
		}
		b = b[len(zeros):]
	}
	return bytes.Equal(b, zeros[:len(b)])
}
