// SPDX-License-Identifier: Apache-2.0

// Package xz decodes .xz streams, about as fast as liblzma.
//
// It owns the container (headers, blocks, index, footer, padding, concatenated streams), the
// LZMA2 decoder and the delta and x86 filters. It never writes .xz, never reads the old .lzma
// format, and never decides how much output is too much: it bounds its own memory only.
//
// Invariant: io.EOF is returned only after every check that the format has was made and
// passed (CRC of each header, sizes and check of each block, index, footer). Bytes are handed
// out before the check of their block is reached, so a consumer must treat what it has as
// void when an error follows.
//
// The fastest use is a Reader that is kept and Reset from stream to stream (its window and
// tables are then allocated once) and emptied with WriteTo, which hands out the window in
// pieces of up to 2 MiB without copying. Reading through Read costs one copy.
package xz

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// DefaultMaxDict is the limit on the dictionary where Options does not say one: what the
// xz program needs for its strongest presets, four times over.
const DefaultMaxDict = 256 << 20

// Options are the limits of a decoder; nil means the defaults.
type Options struct {
	// MaxDict is the largest dictionary, in bytes, that a stream may ask for; 0 means
	// DefaultMaxDict. A stream that asks for more is a fault.Limit.
	MaxDict int64
}

func (o *Options) maxDict() int64 {
	if o == nil || o.MaxDict <= 0 {
		return DefaultMaxDict
	}
	return o.MaxDict
}

var errClosed = errors.New("cannot decode xz: reader has no source")

// Reader decodes a sequence of xz streams. It is not safe for concurrent use.
type Reader struct {
	src     *bufio.Reader
	maxDict int64
	n       int64 // bytes taken from src since the start of the current stream

	stream streamState
	block  blockState
	lz     chunker
	chain  []filter

	out []byte // decoded, not handed out yet; part of the window or of a filter's buffer
	err error  // sticky
}

// NewReader returns a Reader over r. Nothing is read yet; a bad header is found by the first
// Read. r needs no buffering of its own.
func NewReader(r io.Reader, o *Options) (*Reader, error) {
	z := &Reader{src: bufio.NewReaderSize(nil, 32<<10), maxDict: o.maxDict()}
	if err := z.Reset(r); err != nil {
		return nil, err
	}
	return z, nil
}

// Reset makes z read from r, keeping its memory. A nil r drops the reference to the old
// source and leaves a Reader fit only for another Reset.
func (z *Reader) Reset(r io.Reader) error {
	z.src.Reset(r)
	z.n, z.out, z.err, z.chain = 0, nil, nil, nil
	z.stream = streamState{}
	z.block = blockState{}
	z.lz.hint = 0
	if r == nil {
		z.err = errClosed
	}
	return nil
}

// Read implements io.Reader.
func (z *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for len(z.out) == 0 {
		if z.err != nil {
			return 0, z.err
		}
		z.err = z.next()
	}
	n := copy(p, z.out)
	z.out = z.out[n:]
	return n, nil
}

// WriteTo implements io.WriterTo: it decodes to the end and gives w the window itself, which
// w must not keep or change.
func (z *Reader) WriteTo(w io.Writer) (int64, error) {
	var total int64
	for {
		for len(z.out) > 0 {
			n, err := w.Write(z.out)
			total += int64(n)
			z.out = z.out[n:]
			if err != nil {
				return total, err
			}
			if n == 0 {
				return total, io.ErrShortWrite
			}
		}
		if z.err == io.EOF {
			return total, nil
		}
		if z.err != nil {
			return total, z.err
		}
		z.err = z.next()
	}
}

// next makes one step: a header, a chunk, or the end of a block or stream. It leaves decoded
// bytes in z.out.
func (z *Reader) next() error {
	switch {
	case !z.stream.open:
		return z.openStream()
	case !z.block.open:
		return z.openBlock()
	}
	data, err := z.lz.chunk(z)
	if err == io.EOF {
		return z.closeBlock()
	}
	if err != nil {
		return err
	}
	return z.emit(data, false)
}

// emit counts, filters and checks bytes that the LZMA2 decoder made, and offers them.
func (z *Reader) emit(data []byte, last bool) error {
	for i := len(z.chain) - 1; i >= 0; i-- {
		data = z.chain[i].apply(data, last)
	}
	z.block.unpacked += int64(len(data))
	if z.block.wantUnpacked >= 0 && z.block.unpacked > z.block.wantUnpacked {
		return corrupt("block is longer than its header says")
	}
	if z.block.hash != nil {
		z.block.hash.Write(data)
	}
	z.out = data
	return nil
}

func corrupt(what string) error {
	return fault.New(fault.Format, "cannot decode xz: %s", what)
}

// readFull fills p from the source. Running out of bytes is a truncated stream.
func (z *Reader) readFull(p []byte) error {
	n, err := io.ReadFull(z.src, p)
	z.n += int64(n)
	return sourceError(err)
}

func (z *Reader) readByte() (byte, error) {
	b, err := z.src.ReadByte()
	if err != nil {
		return 0, sourceError(err)
	}
	z.n++
	return b, nil
}

func sourceError(err error) error {
	switch err {
	case nil:
		return nil
	case io.EOF, io.ErrUnexpectedEOF:
		return fault.New(fault.Format, "cannot decode xz: truncated: %w", io.ErrUnexpectedEOF)
	}
	return fmt.Errorf("cannot read xz: %w", err)
}
