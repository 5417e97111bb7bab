// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"io"
	"maps"
	"os"
	"slices"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/internal/rootfs"
	archive "github.com/mkmachine/mkmachine/sources/deb"
)

// A pack is an unpacked package in one file:
//
//	0      magic, offset and length of the table, SHA-256 of everything from 4096 on
//	4096   bodies of the files, each at a multiple of 4096, so that they can be shared
//	       with a tree by reflink
//	…      the table: the .deb's digest, the control members, the entries
//
// Numbers are little-endian; the table is made of varints and length-prefixed strings.
// The digest guards against damage, not against forgery: the cache directory is trusted.
// Nothing of a pack is used before all of it was checked.

const (
	packMagic = "mkmpack1"
	packBlock = 4096
	packHead  = 8 + 8 + 8 + sha256.Size
	// PackVersion names the format; it belongs into the key that packs are kept under.
	PackVersion = "1"
	// packTableLimit bounds the table, in bytes: 2 M entries of the usual size.
	packTableLimit = 512 << 20
)

// packWriter fills a pack while a .deb is unpacked. Errors are kept until finish: a pack
// that cannot be written is no reason to fail.
type packWriter struct {
	f       *os.File
	sum     hash.Hash
	off     int64
	buf     []byte
	entries []packEntry
	at      int64 // where the current body begins
	err     error
}

type packEntry struct {
	entry
	offset int64
}

func newPackWriter(f *os.File) *packWriter {
	w := &packWriter{f: f, sum: sha256.New(), off: packBlock, buf: make([]byte, 0, 1<<20)}
	return w
}

// begin starts the body of a file.
func (w *packWriter) begin(*entry) {
	if pad := -w.size() & (packBlock - 1); pad > 0 {
		w.write(make([]byte, pad))
	}
	w.at = w.size()
}

func (w *packWriter) size() int64 { return w.off + int64(len(w.buf)) }

func (w *packWriter) write(b []byte) {
	if len(w.buf)+len(b) > cap(w.buf) {
		w.flush()
	}
	if len(b) >= cap(w.buf) {
		w.emit(b)
		return
	}
	w.buf = append(w.buf, b...)
}

func (w *packWriter) flush() {
	w.emit(w.buf)
	w.buf = w.buf[:0]
}

func (w *packWriter) emit(b []byte) {
	if w.err != nil || len(b) == 0 {
		return
	}
	w.sum.Write(b)
	_, w.err = w.f.WriteAt(b, w.off)
	w.off += int64(len(b))
}

// add ends an entry.
func (w *packWriter) add(e *entry) {
	p := packEntry{entry: *e}
	if e.Type == rootfs.File {
		p.offset = w.at
	}
	w.entries = append(w.entries, p)
}

// finish writes table and header.
func (w *packWriter) finish(u *unpacked) error {
	table := w.table(u)
	w.flush()
	start := w.off
	w.emit(table)
	head := append(make([]byte, 0, packHead), packMagic...)
	head = binary.LittleEndian.AppendUint64(head, uint64(start))
	head = binary.LittleEndian.AppendUint64(head, uint64(len(table)))
	head = w.sum.Sum(head)
	if w.err == nil {
		_, w.err = w.f.WriteAt(head, 0)
	}
	if w.err != nil {
		return fmt.Errorf("cannot write the pack of %s: %w", u, w.err)
	}
	return nil
}

func (w *packWriter) table(u *unpacked) []byte {
	var t packTable
	t.text(u.Package.SHA256)
	t.number(int64(len(u.members)))
	for _, name := range slices.Sorted(maps.Keys(u.members)) {
		t.text(name)
		t.number(u.members[name].Mode)
		t.text(string(u.members[name].Data))
	}
	t.number(int64(len(w.entries)))
	for i := range w.entries {
		e := &w.entries[i]
		t.text(e.Path)
		for _, n := range []int64{int64(e.Type), int64(e.Mode), int64(e.UID), int64(e.GID), e.Size, e.ModTime, e.offset} {
			t.number(n)
		}
		t.text(e.Link)
		t.text(e.MD5)
		t.number(int64(len(e.Xattrs)))
		for _, x := range e.Xattrs {
			t.text(x.Name)
			t.text(string(x.Value))
		}
	}
	return t.b
}

// packTable encodes, and decodes with err sticky.
type packTable struct {
	b   []byte
	err error
}

func (t *packTable) number(n int64) { t.b = binary.AppendVarint(t.b, n) }

func (t *packTable) text(s string) {
	t.number(int64(len(s)))
	t.b = append(t.b, s...)
}

func (t *packTable) readNumber() int64 {
	n, size := binary.Varint(t.b)
	if size <= 0 || n < 0 {
		t.fail()
		return 0
	}
	t.b = t.b[size:]
	return n
}

func (t *packTable) readText() string {
	n := t.readNumber()
	if n > int64(len(t.b)) {
		t.fail()
		return ""
	}
	s := string(t.b[:n])
	t.b = t.b[n:]
	return s
}

// count reads the length of a list whose members take at least least bytes each.
func (t *packTable) count(least int) int {
	n := t.readNumber()
	if n > int64(len(t.b)/least) {
		t.fail()
		return 0
	}
	return int(n)
}

func (t *packTable) fail() {
	if t.err == nil {
		t.err = fault.New(fault.Verify, "the pack's table is damaged")
	}
	t.b = nil
}

// packSource reads a pack.
type packSource struct {
	f       *os.File
	entries []packEntry
}

// openPack checks u's pack and reads its table.
func (s *server) openPack(u *unpacked) error {
	src, files, err := readPack(u.blob, u.Package.SHA256)
	if err == nil {
		err = u.read(files)
	}
	if err != nil {
		return fault.As(fault.Verify, err)
	}
	u.src = src
	return nil
}

// readPack checks a pack from end to end and returns its content. digest is the SHA-256
// of the .deb that it must be made from.
func readPack(f *os.File, digest string) (*packSource, map[string]archive.ControlFile, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	head := make([]byte, packHead)
	if _, err := f.ReadAt(head, 0); err != nil || string(head[:8]) != packMagic {
		return nil, nil, fault.New(fault.Verify, "the file is not a pack of this version")
	}
	start, length := int64(binary.LittleEndian.Uint64(head[8:])), int64(binary.LittleEndian.Uint64(head[16:]))
	if start < packBlock || length < 0 || length > packTableLimit || start+length != st.Size() {
		return nil, nil, fault.New(fault.Verify, "the pack has the wrong size")
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(f, packBlock, st.Size()-packBlock)); err != nil {
		return nil, nil, err
	}
	if !bytes.Equal(sum.Sum(nil), head[24:]) {
		return nil, nil, fault.New(fault.Verify, "the pack's digest does not match")
	}
	table := make([]byte, length)
	if _, err := f.ReadAt(table, start); err != nil {
		return nil, nil, err
	}
	return parsePack(f, table, start, digest)
}

// parsePack reads a table; bodies lie before start.
func parsePack(f *os.File, table []byte, start int64, digest string) (*packSource, map[string]archive.ControlFile, error) {
	t := packTable{b: table}
	if got := t.readText(); t.err == nil && got != digest {
		return nil, nil, fault.New(fault.Verify, "the pack is of another package")
	}
	files := map[string]archive.ControlFile{}
	for n := t.count(3); n > 0 && t.err == nil; n-- {
		name := t.readText()
		mode := t.readNumber()
		files[name] = archive.ControlFile{Mode: mode, Data: []byte(t.readText())}
	}
	p := &packSource{f: f}
	n := t.count(11)
	p.entries = make([]packEntry, 0, n)
	for ; n > 0 && t.err == nil; n-- {
		var e packEntry
		e.Path = t.readText()
		e.Type, e.Mode = rootfs.Type(t.readNumber()), uint32(t.readNumber())
		e.UID, e.GID = int(t.readNumber()), int(t.readNumber())
		e.Size, e.ModTime, e.offset = t.readNumber(), t.readNumber(), t.readNumber()
		e.Link, e.MD5 = t.readText(), t.readText()
		for x := t.count(2); x > 0 && t.err == nil; x-- {
			e.Xattrs = append(e.Xattrs, rootfs.Xattr{Name: t.readText(), Value: []byte(t.readText())})
		}
		if clean, err := rootfs.Clean(e.Path); err != nil || clean != e.Path {
			t.fail()
		}
		if e.Type == rootfs.File && (e.offset > start || e.Size > start-e.offset) {
			t.fail()
		}
		p.entries = append(p.entries, e)
	}
	if t.err == nil && len(t.b) > 0 {
		t.fail()
	}
	return p, files, t.err
}

func (p *packSource) each(ctx context.Context, w *rootfs.Unpacker, visit func(*entry, func() error) error) error {
	for i := range p.entries {
		if i%64 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		e := &p.entries[i]
		found := e.entry
		err := visit(&found, func() error {
			moving := e.Entry // WriteFile and Add change the path
			if e.Type == rootfs.File {
				return w.WriteFile(ctx, &moving, rootfs.FileRange{File: p.f, Offset: e.offset, Size: e.Size})
			}
			return w.Add(ctx, &moving, nil)
		})
		if err != nil {
			return err
		}
	}
	return nil
}
