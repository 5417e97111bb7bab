// SPDX-License-Identifier: Apache-2.0

package xz

import (
	"bytes"
	"context"
	"encoding/binary"
	"hash/crc32"
	"io"
	"sync"

	"github.com/mkmachine/mkmachine/internal/fault"
)

const (
	// maxIndex bounds the index, in bytes, that is read into memory; a block takes at most
	// eighteen of them.
	maxIndex = 16 << 20
	// scanSize is how much stream padding is looked at in one read.
	scanSize = 4096
)

// DecodeAll decodes a whole file that is in memory. More than most bytes of output, claimed
// or real, are a fault.Limit.
func DecodeAll(src []byte, most int64, o *Options) ([]byte, error) {
	r := bytes.NewReader(src)
	table, err := readIndexes(r, int64(len(src)))
	if err != nil {
		return nil, err
	}
	var total int64
	for _, b := range table {
		// Written so that sizes made up to overflow the sum cannot.
		if b.unpacked > most-total {
			return nil, fault.New(fault.Limit, "cannot decode xz: more than %d bytes of output", most)
		}
		total += b.unpacked
	}
	z, err := NewReader(r, o)
	if err != nil {
		return nil, err
	}
	// The index may lie; memory is taken on its word only within a plausible ratio.
	out := appender{b: make([]byte, 0, min(total, 64*int64(len(src)))), most: most}
	if _, err := z.WriteTo(&out); err != nil {
		return nil, err
	}
	return out.b, nil
}

type appender struct {
	b    []byte
	most int64
}

func (a *appender) Write(p []byte) (int, error) {
	if int64(len(p)) > a.most-int64(len(a.b)) {
		return 0, fault.New(fault.Limit, "cannot decode xz: more than %d bytes of output", a.most)
	}
	a.b = append(a.b, p...)
	return len(p), nil
}

// DecodeParallel decodes a file of size bytes to w, in order, with up to workers blocks in
// work at a time. The index at the end of the file tells where the blocks are. A file of one
// block, or with blocks that unpack to more than the dictionary limit, is decoded serially;
// so is everything with fewer than two workers.
//
// It uses workers times the largest block and two dictionaries of memory. Errors are as those
// of Reader, or w's, or ctx's.
func DecodeParallel(ctx context.Context, r io.ReaderAt, size int64, w io.Writer, workers int, o *Options) error {
	table, err := readIndexes(r, size)
	if err != nil {
		return err
	}
	var largest int64
	for _, b := range table {
		largest = max(largest, b.unpacked)
	}
	if workers < 2 || len(table) < 2 || largest > o.maxDict() {
		z, err := NewReader(io.NewSectionReader(r, 0, size), o)
		if err != nil {
			return err
		}
		_, err = z.WriteTo(contextWriter{ctx, w})
		return err
	}
	return decodeBlocks(ctx, r, table, w, min(workers, len(table)), o)
}

type contextWriter struct {
	ctx context.Context
	w   io.Writer
}

func (c contextWriter) Write(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.w.Write(p)
}

// blockRange is one line of an index and where its block lies.
type blockRange struct {
	at       int64
	unpadded int64 // header, data and check; padding to a multiple of four follows
	unpacked int64
	check    byte
}

func (b blockRange) padded() int64 { return (b.unpadded + 3) &^ 3 }

type decoded struct {
	data []byte
	err  error
}

// decodeBlocks deals the blocks out in turn, so that the order of the results is known: block
// i comes from worker i mod workers. A worker reuses its buffer when it has been written.
func decodeBlocks(ctx context.Context, r io.ReaderAt, table []blockRange, w io.Writer, workers int, o *Options) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	results := make([]chan decoded, workers)
	written := make([]chan struct{}, workers)
	for i := range workers {
		results[i], written[i] = make(chan decoded), make(chan struct{})
		wg.Go(func() {
			z, err := NewReader(nil, o)
			var buf []byte
			for k := i; k < len(table); k += workers {
				if err == nil {
					buf, err = z.oneBlock(ctx, r, table[k], buf[:0])
				}
				select {
				case results[i] <- decoded{buf, err}:
				case <-ctx.Done():
					return
				}
				select {
				case <-written[i]:
				case <-ctx.Done():
					return
				}
			}
		})
	}
	for k := range table {
		var d decoded
		select {
		case d = <-results[k%workers]:
		case <-ctx.Done():
			return ctx.Err()
		}
		if d.err != nil {
			return d.err
		}
		if _, err := w.Write(d.data); err != nil {
			return err
		}
		select {
		case written[k%workers] <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// oneBlock appends the content of a block to buf.
func (z *Reader) oneBlock(ctx context.Context, r io.ReaderAt, b blockRange, buf []byte) ([]byte, error) {
	if err := z.Reset(io.NewSectionReader(r, b.at, b.padded())); err != nil {
		return buf, err
	}
	z.beginBlocks(b.check)
	z.lz.hint = b.unpacked
	for started := false; !started || z.block.open; started = true {
		if err := ctx.Err(); err != nil {
			return buf, err
		}
		if err := z.next(); err != nil {
			return buf, err
		}
		buf = append(buf, z.out...)
		if int64(len(buf)) > b.unpacked {
			return buf, corrupt("block is longer than the index says")
		}
	}
	if z.n != b.padded() || z.block.unpadded != b.unpadded || int64(len(buf)) != b.unpacked {
		return buf, corrupt("index has other sizes than the blocks")
	}
	return buf, nil
}

// readIndexes lists the blocks of all streams of a file, from its end backwards, after
// checking headers, footers and indexes.
func readIndexes(r io.ReaderAt, size int64) ([]blockRange, error) {
	var streams [][]blockRange
	blocks := 0
	for end := size; end > 0 || len(streams) == 0; {
		var err error
		if end, err = skipPadding(r, end); err != nil {
			return nil, err
		}
		if end < headerSize+footerSize+8 {
			return nil, fault.New(fault.Format, "cannot decode xz: truncated: %w", io.ErrUnexpectedEOF)
		}
		table, start, err := readStreamIndex(r, end)
		if err != nil {
			return nil, err
		}
		streams = append(streams, table)
		if blocks += len(table); blocks > maxIndex {
			return nil, fault.New(fault.Limit, "cannot decode xz: more than %d blocks", maxIndex)
		}
		end = start
	}
	out := make([]blockRange, 0, blocks)
	for i := len(streams) - 1; i >= 0; i-- {
		out = append(out, streams[i]...)
	}
	return out, nil
}

// skipPadding returns the end of the last stream before end.
func skipPadding(r io.ReaderAt, end int64) (int64, error) {
	var buf [scanSize]byte
	for end > 0 {
		n := min(end, scanSize)
		if err := readAt(r, buf[:n], end-n); err != nil {
			return 0, err
		}
		for ; n >= 4; n -= 4 {
			if !allZero(buf[n-4 : n]) {
				return end, nil
			}
			end -= 4
		}
		if n > 0 {
			break
		}
	}
	return 0, corrupt("stream has no footer")
}

// readStreamIndex reads the index of the stream that ends at end and returns where the stream
// starts.
func readStreamIndex(r io.ReaderAt, end int64) ([]blockRange, int64, error) {
	var b [footerSize]byte
	if err := readAt(r, b[:], end-footerSize); err != nil {
		return nil, 0, err
	}
	size, check, err := parseFooter(b[:])
	if err != nil {
		return nil, 0, err
	}
	indexAt := end - footerSize - size
	if indexAt < headerSize {
		return nil, 0, corrupt("footer has another index size")
	}
	if size > maxIndex {
		return nil, 0, fault.New(fault.Limit, "cannot decode xz: index of %d bytes is over the limit of %d", size, maxIndex)
	}
	index := make([]byte, size)
	if err := readAt(r, index, indexAt); err != nil {
		return nil, 0, err
	}
	table, err := parseIndex(index, check)
	if err != nil {
		return nil, 0, err
	}
	start := indexAt
	for i := len(table) - 1; i >= 0; i-- {
		start -= table[i].padded()
		table[i].at = start
		if start < headerSize {
			return nil, 0, corrupt("index has more blocks than the stream")
		}
	}
	start -= headerSize
	if err := readAt(r, b[:headerSize], start); err != nil {
		return nil, 0, err
	}
	got, err := parseStreamHeader(b[:headerSize])
	if err != nil {
		return nil, 0, err
	}
	if got != check {
		return nil, 0, corrupt("footer has other flags than the header")
	}
	return table, start, nil
}

// parseIndex takes a whole index, from its zero byte to its CRC.
func parseIndex(index []byte, check byte) ([]blockRange, error) {
	body := len(index) - 4
	if index[0] != 0 || crc32.ChecksumIEEE(index[:body]) != binary.LittleEndian.Uint32(index[body:]) {
		return nil, corrupt("index has a wrong CRC")
	}
	rest := index[1:body]
	count, n := parseInt(rest)
	if n == 0 || count > int64(len(rest))/2 {
		return nil, corrupt("index has a malformed number")
	}
	rest = rest[n:]
	table := make([]blockRange, count)
	for i := range table {
		unpadded, n := parseInt(rest)
		rest = rest[n:]
		unpacked, m := parseInt(rest)
		rest = rest[m:]
		// The smallest block is a header of eight bytes and the end mark.
		if n == 0 || m == 0 || unpadded < 9 || unpadded > 1<<62 {
			return nil, corrupt("index has a malformed number")
		}
		table[i] = blockRange{unpadded: unpadded, unpacked: unpacked, check: check}
	}
	if len(rest) > 3 || !allZero(rest) {
		return nil, corrupt("index padding is not zero")
	}
	return table, nil
}

func readAt(r io.ReaderAt, p []byte, at int64) error {
	n, err := r.ReadAt(p, at)
	if n == len(p) {
		return nil
	}
	return sourceError(err)
}
