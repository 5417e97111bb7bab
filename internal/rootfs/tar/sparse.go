// SPDX-License-Identifier: Apache-2.0

package tar

import "strings"

// oldSparse reads the region table of the old GNU format: four regions in the header
// block, then blocks of 21 while the byte "isextended" is set.
func (t *Reader) oldSparse(b []byte, at int64) error {
	h := &t.hdr
	size, err := parseNumber(b[atRealSz : atRealSz+12])
	if err != nil || size < 0 {
		return t.formatError(at, "bad size of a sparse file")
	}
	h.Size = size
	h.Sparse = []Extent{}
	table, more := b[atSparse:atMore], b[atMore] != 0
	for {
		done := false
		for ; len(table) >= 24; table = table[24:] {
			if table[0] == 0 {
				done = true
				continue
			}
			off, err1 := parseNumber(table[:12])
			length, err2 := parseNumber(table[12:24])
			if err1 != nil || err2 != nil || done {
				return t.formatError(at, "bad sparse region")
			}
			if len(h.Sparse) >= t.lim.Sparse {
				return t.limitError(at, "more than %d sparse regions", t.lim.Sparse)
			}
			h.Sparse = append(h.Sparse, Extent{off, length})
		}
		if !more {
			return nil
		}
		if b, err = t.block(); err != nil {
			return err
		}
		table, more = b[:504], b[504] != 0
	}
}

// paxSparse handles the versions 0.0, 0.1 and 1.0 of GNU's sparse files in PAX headers.
func (t *Reader) paxSparse(h *Header, p *pax, at int64) error {
	if h.Type != TypeFile {
		return t.formatError(at, "sparse records on an entry that is no regular file")
	}
	if name, ok := p.values["GNU.sparse.name"]; ok {
		h.Name = name
	}
	sizeKey := "GNU.sparse.size"
	if p.has("GNU.sparse.realsize") {
		if p.has(sizeKey) {
			return t.formatError(at, "two sizes of one sparse file")
		}
		sizeKey = "GNU.sparse.realsize"
	}
	if !p.has(sizeKey) {
		return t.formatError(at, "sparse file without a size")
	}
	if err := t.paxNumber(&h.Size, sizeKey, p.values[sizeKey], at); err != nil {
		return err
	}
	version := p.values["GNU.sparse.major"] + "." + p.values["GNU.sparse.minor"]
	list, hasMap := p.values["GNU.sparse.map"]
	switch {
	case version == "1.0" && !hasMap && p.extents == nil:
		return t.sparseMap(h, at)
	case version != "." && version != "0.0" && version != "0.1", hasMap && p.extents != nil:
		return t.formatError(at, "sparse file of unknown version %q", version)
	case hasMap:
		return t.sparseList(h, list, at)
	}
	if n := len(p.extents); n > 0 && p.extents[n-1].Length < 0 {
		return t.formatError(at, "sparse region without a length")
	}
	h.Sparse = append([]Extent{}, p.extents...)
	return nil
}

// sparseList reads version 0.1: "offset,length,offset,length…".
func (t *Reader) sparseList(h *Header, list string, at int64) error {
	fields := strings.Split(list, ",")
	if len(fields)/2 > t.lim.Sparse {
		return t.limitError(at, "more than %d sparse regions", t.lim.Sparse)
	}
	if len(fields)%2 != 0 {
		return t.formatError(at, "odd sparse map")
	}
	h.Sparse = make([]Extent, 0, len(fields)/2)
	for i := 0; i < len(fields); i += 2 {
		off, ok1 := decimal(fields[i])
		length, ok2 := decimal(fields[i+1])
		if !ok1 || !ok2 {
			return t.formatError(at, "bad sparse map")
		}
		h.Sparse = append(h.Sparse, Extent{off, length})
	}
	return nil
}

// sparseMap reads version 1.0: decimal lines at the start of the body, padded to a block.
func (t *Reader) sparseMap(h *Header, at int64) error {
	left := h.Stored
	var line []byte
	var block []byte
	number := func() (int64, error) {
		line = line[:0]
		for {
			if len(block) == 0 {
				if left < BlockSize {
					return 0, t.formatError(at, "sparse map runs out of the entry")
				}
				b, err := t.block()
				if err != nil {
					return 0, err
				}
				left -= BlockSize
				block = b
			}
			c := block[0]
			block = block[1:]
			if c == '\n' {
				n, ok := decimal(string(line))
				if !ok {
					return 0, t.formatError(at, "bad sparse map")
				}
				return n, nil
			}
			if line = append(line, c); len(line) > 20 {
				return 0, t.formatError(at, "bad sparse map")
			}
		}
	}
	n, err := number()
	if err != nil {
		return err
	}
	if n > int64(t.lim.Sparse) {
		return t.limitError(at, "%d sparse regions, at most %d are read", n, t.lim.Sparse)
	}
	h.Sparse = []Extent{}
	for range n {
		off, err := number()
		if err != nil {
			return err
		}
		length, err := number()
		if err != nil {
			return err
		}
		h.Sparse = append(h.Sparse, Extent{off, length})
	}
	h.Stored = left
	return nil
}

// checkSparse proves that the regions are in order, inside the file, and as long as the body.
func (t *Reader) checkSparse(h *Header, at int64) error {
	var end, sum int64
	for _, e := range h.Sparse {
		if e.Offset < end || e.Length < 0 || e.Offset > h.Size || e.Length > h.Size-e.Offset {
			return t.formatError(at, "sparse regions overlap or leave the file")
		}
		end = e.Offset + e.Length
		sum += e.Length
	}
	if sum != h.Stored {
		return t.formatError(at, "sparse regions hold %d bytes, the entry %d", sum, h.Stored)
	}
	return nil
}
