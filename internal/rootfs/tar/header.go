// SPDX-License-Identifier: Apache-2.0

package tar

import (
	"bytes"
	"fmt"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// Places of the fields in a header block: POSIX.1-1988 ustar, and what GNU put into the
// prefix field ("OLDGNU").
const (
	atName, atMode, atUID, atGID         = 0, 100, 108, 116
	atSize, atMTime, atSum, atType       = 124, 136, 148, 156
	atLink, atMagic, atMajor, atMinor    = 157, 257, 329, 337
	atPrefix, atSparse, atMore, atRealSz = 345, 386, 482, 483
)

const (
	magicPOSIX = "ustar\x0000"
	magicGNU   = "ustar  \x00"
	magicNone  = "\x00\x00\x00\x00\x00\x00\x00\x00" // seventh edition
)

// pending is what the special headers before an entry said about it.
type pending struct {
	name, link       string // GNU L and K
	hasName, hasLink bool
	pax              *pax
}

// next reads headers up to and including one of a real entry.
func (t *Reader) next() (*Header, error) {
	var p pending
	first := t.off
	for {
		at := t.off
		b, err := t.block()
		if err != nil {
			return nil, err
		}
		if b[0] == 0 && allZero(b) {
			if at != first {
				return nil, t.formatError(at, "the archive ends behind an extended header")
			}
			return nil, t.end(at)
		}
		if err := t.checkSum(b, at); err != nil {
			return nil, err
		}
		t.started = true
		switch typ := b[atType]; typ {
		case 'x', 'g', 'L', 'K':
			if err := t.special(typ, b, at, &p); err != nil {
				return nil, err
			}
		default:
			if err := t.entry(b, at, &p); err != nil {
				return nil, err
			}
			t.hdr.Offset = first
			return &t.hdr, nil
		}
	}
}

func (t *Reader) checkSum(b []byte, at int64) error {
	var unsigned, signed int64
	for i, c := range b {
		if i >= atSum && i < atSum+8 {
			c = ' '
		}
		unsigned += int64(c)
		signed += int64(int8(c))
	}
	want, err := parseNumber(b[atSum : atSum+8])
	if err == nil && (want == unsigned || want == signed) {
		switch string(b[atMagic : atMagic+8]) {
		case magicPOSIX, magicGNU, magicNone:
			return nil
		}
		return t.formatError(at, "unknown magic %q", b[atMagic:atMagic+8])
	}
	if !t.started {
		if kind := Sniff(b); kind != "" {
			return t.fail(fault.New(fault.Format, "not a tar archive: looks like %s", kind))
		}
		return t.fail(fault.New(fault.Format, "not a tar archive: bad header checksum at byte 0"))
	}
	return t.formatError(at, "bad checksum")
}

// Sniff names the format that data begins with, or "" where it does not know.
func Sniff(data []byte) string {
	for _, m := range []struct{ magic, name string }{
		{"PK\x03\x04", "a zip archive"}, {"\x7fELF", "an ELF program"}, {"\x1f\x8b", "gzip data"},
		{"\xfd7zXZ\x00", "xz data"}, {"\x28\xb5\x2f\xfd", "zstd data"}, {"BZh", "bzip2 data"},
		{"!<arch>\n", "an ar archive"}, {"\xed\xab\xee\xdb", "an rpm package"}, {"#!", "a script"},
		{"hsqs", "a squashfs image"}, {"070701", "a cpio archive"}, {"%PDF", "a PDF document"},
	} {
		if bytes.HasPrefix(data, []byte(m.magic)) {
			return m.name
		}
	}
	if text := bytes.ToLower(bytes.TrimSpace(data[:min(len(data), 64)])); bytes.HasPrefix(text, []byte("<!doctype")) ||
		bytes.HasPrefix(text, []byte("<html")) || bytes.HasPrefix(text, []byte("<?xml")) {
		return "an HTML or XML page"
	}
	return ""
}

// special reads the body of an extended header into p.
func (t *Reader) special(typ byte, b []byte, at int64, p *pending) error {
	size, err := parseNumber(b[atSize : atSize+12])
	if err != nil || size < 0 {
		return t.formatError(at, "bad size of an extended header")
	}
	limit := int64(t.lim.PAX)
	if typ == 'L' || typ == 'K' {
		limit = int64(t.lim.Name) + 1
	}
	if size > limit {
		return t.limitError(at, "extended header of %d bytes, at most %d are read", size, limit)
	}
	t.left, t.pad = size, -size&(BlockSize-1)
	body := make([]byte, 0, size)
	for t.left > 0 {
		c, err := t.Chunk()
		if err != nil {
			return err
		}
		body = append(body, c...)
	}
	if err := t.skipPadding(); err != nil {
		return err
	}
	switch typ {
	case 'L', 'K':
		return t.longName(typ, body, at, p)
	case 'g':
		g, err := t.parsePAX(body, at)
		if err != nil {
			return err
		}
		for _, key := range g.keys {
			if key != "comment" {
				return t.formatError(at, "global extended header sets %q", key)
			}
		}
		return nil
	}
	if p.pax != nil {
		return t.formatError(at, "two extended headers for one entry")
	}
	p.pax, err = t.parsePAX(body, at)
	return err
}

func (t *Reader) longName(typ byte, body []byte, at int64, p *pending) error {
	name := cString(body)
	if rest := body[len(name):]; !allZero(rest) {
		return t.formatError(at, "NUL inside a long name")
	}
	if name == "" {
		return t.formatError(at, "empty long name")
	}
	seen, dst := &p.hasName, &p.name
	if typ == 'K' {
		seen, dst = &p.hasLink, &p.link
	}
	if *seen {
		return t.formatError(at, "two long names for one entry")
	}
	*seen, *dst = true, name
	return nil
}

// entry decodes a real header block into t.hdr and sets up its body.
func (t *Reader) entry(b []byte, at int64, p *pending) error {
	h := &t.hdr
	*h = Header{Type: b[atType], Name: cString(b[atName:atMode]), Link: cString(b[atLink:atMagic])}
	gnu := string(b[atMagic:atMagic+8]) == magicGNU
	if prefix := cString(b[atPrefix : atPrefix+155]); !gnu && prefix != "" && string(b[atMagic:atMagic+8]) == magicPOSIX {
		h.Name = prefix + "/" + h.Name
	}
	numbers := []struct {
		dst      *int64
		from, to int
		name     string
		signed   bool
	}{
		{&h.Mode, atMode, atUID, "mode", false}, {&h.UID, atUID, atGID, "uid", false},
		{&h.GID, atGID, atSize, "gid", false}, {&h.Stored, atSize, atMTime, "size", false},
		{&h.ModTime, atMTime, atSum, "time", true},
		{&h.Major, atMajor, atMinor, "device number", false}, {&h.Minor, atMinor, atPrefix, "device number", false},
	}
	device := h.Type == TypeChar || h.Type == TypeBlock
	for _, n := range numbers {
		if n.from >= atMajor && !device {
			continue
		}
		v, err := parseNumber(b[n.from:n.to])
		if err != nil {
			return t.formatError(at, "bad %s: %v", n.name, err)
		}
		if v < 0 && !n.signed {
			return t.formatError(at, "negative %s", n.name)
		}
		*n.dst = v
	}
	sparse := h.Type == 'S'
	switch h.Type {
	case 0, '7', 'S':
		h.Type = TypeFile
	case TypeFile, TypeHardlink, TypeSymlink, TypeChar, TypeBlock, TypeDir, TypeFifo:
	default:
		return t.formatError(at, "unknown entry type %q", h.Type)
	}
	// The block is gone once more is read: nothing below may look at b.
	if sparse {
		if !gnu {
			return t.formatError(at, "sparse entry outside of the GNU format")
		}
		if err := t.oldSparse(b, at); err != nil {
			return err
		}
	} else {
		h.Size = h.Stored
	}
	if err := t.applyPending(h, p, at, sparse); err != nil {
		return err
	}
	return t.begin(h, at)
}

func (t *Reader) applyPending(h *Header, p *pending, at int64, sparse bool) error {
	if p.hasName {
		h.Name = p.name
	}
	if p.hasLink {
		h.Link = p.link
	}
	if p.pax != nil {
		if p.hasName && p.pax.has("path") || p.hasLink && p.pax.has("linkpath") {
			return t.formatError(at, "a GNU long name and an extended header name the same entry")
		}
		if sparse && (p.pax.sparse() || p.pax.has("size")) {
			return t.formatError(at, "two descriptions of one sparse file")
		}
		return t.applyPAX(h, p.pax, at)
	}
	return nil
}

// begin checks the finished header and makes its body current.
func (t *Reader) begin(h *Header, at int64) error {
	switch {
	case h.Name == "":
		return t.formatError(at, "empty name")
	case len(h.Name) > t.lim.Name:
		return t.limitError(at, "name of %d bytes", len(h.Name))
	case len(h.Link) > t.lim.Name:
		return t.limitError(at, "link target of %d bytes", len(h.Link))
	case h.Type != TypeFile && h.Stored != 0:
		return t.formatError(at, "entry %q is no regular file but has %d bytes", h.Name, h.Stored)
	case h.Size > 1<<60 || h.Stored > 1<<60: // no medium holds that: not big but wrong
		return t.formatError(at, "entry %q claims %d bytes", h.Name, max(h.Size, h.Stored))
	case h.Size > t.lim.File:
		return t.limitError(at, "entry %q has %d bytes, at most %d are unpacked", h.Name, h.Size, t.lim.File)
	}
	t.left, t.pad = h.Stored, -h.Stored&(BlockSize-1)
	if h.Sparse != nil {
		return t.checkSparse(h, at)
	}
	return nil
}

// cString is b up to its first NUL.
func cString(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

// parseNumber reads an octal field, or the GNU base-256 form where the top bit is set.
func parseNumber(b []byte) (int64, error) {
	if b[0]&0x80 != 0 {
		return parseBinary(b)
	}
	i, n := 0, len(b)
	for i < n && b[i] == ' ' {
		i++
	}
	for n > i && (b[n-1] == 0 || b[n-1] == ' ') {
		n--
	}
	var v int64
	for ; i < n; i++ {
		c := b[i] - '0'
		if c > 7 {
			// Some writers leave old bytes behind the terminating NUL.
			if b[i] == 0 {
				break
			}
			return 0, fmt.Errorf("%q is no octal number", b)
		}
		if v > (1<<63-1)>>3 {
			return 0, fmt.Errorf("%q is too big", b)
		}
		v = v<<3 | int64(c)
	}
	return v, nil
}

func parseBinary(b []byte) (int64, error) {
	negative := b[0]&0x40 != 0
	var inv byte
	if negative {
		inv = 0xff
	}
	var v uint64
	for i, c := range b {
		c ^= inv
		if i == 0 {
			c &= 0x7f
		}
		if v>>56 != 0 {
			return 0, fmt.Errorf("number beyond 64 bits")
		}
		v = v<<8 | uint64(c)
	}
	if v>>63 != 0 {
		return 0, fmt.Errorf("number beyond 64 bits")
	}
	if negative {
		return ^int64(v), nil
	}
	return int64(v), nil
}
