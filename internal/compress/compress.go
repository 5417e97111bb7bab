// SPDX-License-Identifier: Apache-2.0

// Package compress reads and writes compressed streams.
//
// It owns the choice of the decoder and the limits on what a stream may cost: memory, output
// bytes, and output for input. It never looks into archives and never starts a program. A
// stream that is not what its name declares, is damaged, cut short, or followed by junk is a
// fault.Format; one that goes over a limit is a fault.Limit; an error of the source keeps its
// own class.
//
// Invariant: io.EOF from a reader means that the whole input was consumed and every check of
// the format passed.
//
// For the best speed keep one Pool for all streams, and empty readers with WriteTo (io.Copy
// does): xz and zstd then hand out their windows without a copy. Sources need no bufio.
package compress

import (
	"bufio"
	"compress/bzip2"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz/lzma"

	"github.com/mkmachine/mkmachine/internal/compress/xz"
	"github.com/mkmachine/mkmachine/internal/fault"
)

// The limits where Options does not say one.
const (
	DefaultMaxOutput = 16 << 30
	DefaultMaxRatio  = 1000
	DefaultMaxMemory = 256 << 20
	// ratioGrace is how much output, in bytes, a stream may give before its ratio counts:
	// short streams of zeros are legitimate and harmless.
	ratioGrace = 64 << 20
)

// Options say what is expected of one stream. nil means the defaults.
type Options struct {
	// Name is how messages call the stream; empty means "stream".
	Name string
	// Kind is the declared kind. A stream of another kind is a fault.Format. Auto believes
	// the first bytes and takes what it does not know for Plain.
	Kind Kind
	// MaxOutput is the most bytes to give; 0 means DefaultMaxOutput, negative no limit.
	MaxOutput int64
	// MaxRatio is the most output bytes for one input byte; 0 means DefaultMaxRatio,
	// negative no limit. It counts after the first 64 MiB of output.
	MaxRatio int64
}

// Pool keeps decoders for reuse: their windows and tables are what makes opening a stream
// expensive. The zero Pool is ready; a nil *Pool makes a new decoder each time. Safe for
// concurrent use.
type Pool struct {
	// MaxMemory is the most memory, in bytes, that one stream may ask for as dictionary or
	// window; 0 means DefaultMaxMemory. Set it before the first use.
	MaxMemory int64

	xz, zstd, gzip, buffers sync.Pool
}

// Open starts reading a compressed stream without a pool; see Pool.Open.
func Open(r io.Reader, o *Options) (*Reader, error) { return (*Pool)(nil).Open(r, o) }

// Open reads the first bytes of r and returns a reader of its content. The caller must close
// it, which gives the decoder back to p and does not close r. Nothing may use r meanwhile;
// how far r was read afterwards is not specified.
func (p *Pool) Open(r io.Reader, o *Options) (*Reader, error) {
	if p == nil {
		p = &Pool{}
	}
	if o == nil {
		o = &Options{}
	}
	z := &Reader{pool: p, name: o.Name, maxOutput: limit(o.MaxOutput, DefaultMaxOutput), maxRatio: limit(o.MaxRatio, DefaultMaxRatio)}
	if z.name == "" {
		z.name = "stream"
	}
	z.src.r = r
	var ok bool
	if z.buf, ok = p.buffers.Get().(*bufio.Reader); !ok {
		z.buf = bufio.NewReaderSize(nil, 64<<10)
	}
	z.buf.Reset(&z.src)
	if err := z.start(o.Kind); err != nil {
		_ = z.Close()
		return nil, err
	}
	return z, nil
}

func limit(v, standard int64) int64 {
	switch {
	case v == 0:
		return standard
	case v < 0:
		return 1<<63 - 1
	}
	return v
}

func (p *Pool) maxMemory() int64 {
	if p.MaxMemory <= 0 {
		return DefaultMaxMemory
	}
	return p.MaxMemory
}

// Reader is an open stream. It is not safe for concurrent use.
type Reader struct {
	pool      *Pool
	name      string
	kind      Kind
	src       source
	buf       *bufio.Reader
	dec       io.Reader
	release   func()
	out       int64
	maxOutput int64
	maxRatio  int64
	err       error // sticky
}

// Kind is what the stream turned out to be; never Auto.
func (z *Reader) Kind() Kind { return z.kind }

// source counts bytes and remembers the first error of the reader below, so that it is not
// taken for damage of the stream.
type source struct {
	r   io.Reader
	n   int64
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.n += int64(n)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// start detects the kind, compares it with the declared one and makes the decoder.
func (z *Reader) start(declared Kind) error {
	head, err := z.buf.Peek(detectSize)
	if err != nil && err != io.EOF {
		return fmt.Errorf("cannot read %s: %w", z.name, err)
	}
	detected, what := Detect(head)
	if declared == Auto {
		declared = detected
	}
	// A .lzma header is too weak a sign to reject a plain file by, and the only sign not
	// to look for where lzma was declared.
	if declared != detected && declared != LZMA && !(declared == Plain && detected == LZMA) {
		return fault.New(fault.Format, "cannot decompress %s: declared as %s, but it is %s", z.name, declared, what)
	}
	z.kind = declared
	err = z.decoder()
	if err == io.EOF { // in the middle of a header
		err = io.ErrUnexpectedEOF
	}
	return z.classify(err)
}

func (z *Reader) decoder() error {
	p := z.pool
	switch z.kind {
	case Plain:
		z.dec = z.buf
	case Bzip2:
		z.dec = bzip2.NewReader(z.buf)
	case LZMA:
		return z.lzma()
	case XZ:
		d, ok := p.xz.Get().(*xz.Reader)
		if !ok {
			var err error
			if d, err = xz.NewReader(nil, &xz.Options{MaxDict: p.maxMemory()}); err != nil {
				return err
			}
		}
		d.Reset(z.buf)
		z.dec, z.release = d, func() { d.Reset(nil); p.xz.Put(d) }
	case Zstd:
		d, ok := p.zstd.Get().(*zstd.Decoder)
		if !ok {
			var err error
			d, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(false),
				zstd.WithDecoderMaxWindow(uint64(max(p.maxMemory(), 1<<10))), zstd.WithDecoderMaxMemory(1<<62))
			if err != nil {
				return err
			}
		}
		z.dec, z.release = d, func() {
			if d.Reset(nil) == nil {
				p.zstd.Put(d)
			}
		}
		return d.Reset(z.buf)
	case Gzip:
		d, ok := p.gzip.Get().(*gzip.Reader)
		if !ok {
			d = new(gzip.Reader)
		}
		z.release = func() { p.gzip.Put(d) }
		if err := d.Reset(z.buf); err != nil {
			return err
		}
		d.Multistream(false)
		z.dec = &members{d, z.buf}
	default:
		return fault.New(fault.Config, "unknown compression %q", string(z.kind))
	}
	return nil
}

// lzma opens the old format, whose header asks for the dictionary.
func (z *Reader) lzma() error {
	head, err := z.buf.Peek(lzma.HeaderLen)
	if err != nil {
		return io.ErrUnexpectedEOF
	}
	dict := int64(head[1]) | int64(head[2])<<8 | int64(head[3])<<16 | int64(head[4])<<24
	if most := z.pool.maxMemory(); dict > most {
		return fault.New(fault.Limit, "dictionary of %d bytes is over the limit of %d", dict, most)
	}
	d, err := lzma.ReaderConfig{DictCap: int(max(dict, lzma.MinDictCap))}.NewReader(z.buf)
	if err != nil {
		return err
	}
	z.dec = d
	return nil
}

// classify gives an error of the decoder its class. io.EOF and nil pass.
func (z *Reader) classify(err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	if z.src.err != nil {
		if errors.Is(z.src.err, context.Canceled) || errors.Is(z.src.err, context.DeadlineExceeded) {
			return z.src.err
		}
		return fmt.Errorf("cannot read %s: %w", z.name, z.src.err)
	}
	switch c := fault.ClassOf(err); c {
	case fault.Limit, fault.Config, fault.Format:
		return fault.As(c, fmt.Errorf("cannot decompress %s: %w", z.name, err))
	}
	switch {
	case errors.Is(err, zstd.ErrWindowSizeExceeded), errors.Is(err, zstd.ErrDecoderSizeExceeded):
		return fault.New(fault.Limit, "cannot decompress %s: window is over the limit of %d bytes", z.name, z.pool.maxMemory())
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fault.New(fault.Format, "cannot decompress %s: truncated %s: %w", z.name, z.kind, err)
	}
	return fault.New(fault.Format, "cannot decompress %s: damaged %s: %w", z.name, z.kind, err)
}

// admit counts n more output bytes.
func (z *Reader) admit(n int) error {
	z.out += int64(n)
	if z.out > z.maxOutput {
		return fault.New(fault.Limit, "cannot decompress %s: more than %d bytes of output", z.name, z.maxOutput)
	}
	if z.out > ratioGrace && z.out/max(z.src.n, 1) >= z.maxRatio {
		return fault.New(fault.Limit, "cannot decompress %s: more than %d bytes of output for each byte of input", z.name, z.maxRatio)
	}
	return nil
}

// Read implements io.Reader.
func (z *Reader) Read(p []byte) (int, error) {
	if z.err != nil {
		return 0, z.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := z.dec.Read(p)
	z.err = z.classify(err)
	if err := z.admit(n); err != nil {
		z.err = err
		return 0, err
	}
	if z.err == nil || n > 0 {
		return n, nil
	}
	return 0, z.err
}

// WriteTo implements io.WriterTo. w gets the decoder's own memory and must not keep it. An
// error of w is returned as it is.
func (z *Reader) WriteTo(w io.Writer) (int64, error) {
	if z.err == io.EOF {
		return 0, nil
	}
	if z.err != nil {
		return 0, z.err
	}
	g := &guard{z: z, w: w}
	_, err := io.Copy(g, z.dec)
	switch {
	case g.err != nil:
		z.err = g.err
	case err != nil:
		z.err = z.classify(err)
	default:
		z.err = io.EOF
		return g.n, nil
	}
	return g.n, z.err
}

// guard applies the limits to what a decoder writes.
type guard struct {
	z   *Reader
	w   io.Writer
	n   int64
	err error
}

func (g *guard) Write(p []byte) (int, error) {
	if g.err = g.z.admit(len(p)); g.err != nil {
		return 0, g.err
	}
	n, err := g.w.Write(p)
	g.n += int64(n)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	g.err = err
	return n, err
}

// Close gives the memory back to the pool. The reader is void afterwards.
func (z *Reader) Close() error {
	if z.err == nil || z.err == io.EOF {
		z.err = errClosed
	}
	if z.release != nil {
		z.release()
		z.release = nil
	}
	if z.buf != nil {
		z.buf.Reset(nil)
		z.pool.buffers.Put(z.buf)
		z.buf = nil
	}
	z.dec, z.src.r = nil, nil
	return nil
}

var errClosed = errors.New("cannot read: the stream is closed")

// members reads a file of gzip members. Zero bytes after the last one are padding (tapes and
// block devices leave them); anything else there is damage.
type members struct {
	*gzip.Reader
	src *bufio.Reader
}

func (m *members) Read(p []byte) (int, error) {
	for {
		n, err := m.Reader.Read(p)
		if err != io.EOF {
			return n, err
		}
		if n > 0 {
			return n, nil
		}
		if err := m.another(); err != nil {
			return 0, err
		}
	}
}

// WriteTo implements io.WriterTo.
func (m *members) WriteTo(w io.Writer) (int64, error) {
	var total int64
	for {
		n, err := m.Reader.WriteTo(w)
		total += n
		if err != nil {
			return total, err
		}
		if err := m.another(); err == io.EOF {
			return total, nil
		} else if err != nil {
			return total, err
		}
	}
}

// another goes on to the next member; io.EOF says that there is none.
func (m *members) another() error {
	c, err := m.src.ReadByte()
	if err != nil {
		return err
	}
	if c != 0 {
		if err := m.src.UnreadByte(); err != nil {
			return err
		}
		if head, err := m.src.Peek(2); len(head) < 2 || string(head) != "\x1f\x8b" {
			if err != nil && err != io.EOF {
				return err
			}
			return errors.New("junk after the end")
		}
		if err := m.Reset(m.src); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		m.Multistream(false)
		return nil
	}
	for {
		c, err := m.src.ReadByte()
		if err != nil {
			return err
		}
		if c != 0 {
			return errors.New("junk after the end")
		}
	}
}
