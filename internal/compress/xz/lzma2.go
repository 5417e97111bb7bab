// SPDX-License-Identifier: Apache-2.0

package xz

import "io"

const (
	maxUnpacked = 1 << 21 // largest unpacked size of an LZMA2 chunk
	// minSlack is the room for new bytes behind a full dictionary. Whenever it is used up
	// the dictionary moves to the front, so the room is as large as the dictionary where
	// that is larger: one byte moved for each byte made, about one per cent of the time.
	minSlack = 2 * maxUnpacked
)

// chunker decodes the LZMA2 chunks of one block after another.
type chunker struct {
	lzma
	needDict  bool  // the next chunk must reset the dictionary
	needProps bool  // the next LZMA chunk must bring properties
	hint      int64 // unpacked size of the block; 0 where unknown
	window    []byte
}

// open prepares for a block. unpacked is the size from its header, or -1.
func (c *chunker) open(dictSize int, unpacked int64) {
	c.needDict, c.needProps = true, true
	// LZMA2 rounds a tiny dictionary up; the decoder of the reference does the same.
	c.dictSize = max(dictSize, 4096)
	if unpacked >= 0 {
		c.hint = unpacked
	}
	c.pos = winStart
	c.win = nil
}

// room makes place for n bytes at c.pos.
func (c *chunker) room(n int) {
	need := c.pos + n + copySlack
	if need <= len(c.win) {
		return
	}
	full := winStart + c.dictSize + max(c.dictSize, minSlack) + copySlack
	if len(c.win) < full {
		// Without a size to go by the window grows with the output: most streams are far
		// smaller than their dictionary.
		want := max(2*len(c.win), cap(c.window), maxUnpacked/4)
		if c.hint > 0 {
			want = int(min(c.hint, int64(full))) + winStart + copySlack
		}
		c.grow(min(max(want, need), full))
		if need <= len(c.win) {
			return
		}
	}
	// The window is full: keep one dictionary, shifted by a multiple of 16 bytes.
	shift := (c.pos - winStart - c.dictSize) &^ 15
	copy(c.win[winStart:], c.win[winStart+shift:c.pos])
	c.pos -= shift
}

// grow makes the window size bytes long.
func (c *chunker) grow(size int) {
	if cap(c.window) < size {
		window := make([]byte, size)
		if c.win != nil {
			copy(window, c.win[:c.pos])
		}
		c.window = window
	}
	c.win = c.window[:size]
	c.win[winStart-1] = 0
}

// chunk decodes the next chunk and returns its bytes, which stay valid until the next call.
// io.EOF is the regular end of the block.
func (c *chunker) chunk(z *Reader) ([]byte, error) {
	control, err := z.readByte()
	if err != nil {
		return nil, err
	}
	if control == 0 {
		return nil, io.EOF
	}
	if control >= 0xe0 || control == 1 {
		c.needDict, c.needProps = false, true
		c.pos = winStart
	} else if c.needDict {
		return nil, corrupt("LZMA2 data does not start with a new dictionary")
	}
	if control < 0x80 {
		if control > 2 {
			return nil, corrupt("LZMA2 chunk has an unknown type")
		}
		return c.stored(z)
	}
	var head [5]byte
	if err := z.readFull(head[:4]); err != nil {
		return nil, err
	}
	unpacked := int(control&0x1f)<<16 + int(head[0])<<8 + int(head[1]) + 1
	packed := int(head[2])<<8 + int(head[3]) + 1
	switch {
	case control >= 0xc0:
		props, err := z.readByte()
		if err != nil {
			return nil, err
		}
		if !c.setProps(props) {
			return nil, corrupt("LZMA properties are out of range")
		}
		c.needProps = false
		c.resetState()
	case c.needProps:
		return nil, corrupt("LZMA2 chunk lacks properties")
	case control >= 0xa0:
		c.resetState()
	}
	c.room(unpacked)
	if err := z.readFull(c.in[:packed]); err != nil {
		return nil, err
	}
	start := c.pos
	if !c.symbols(packed, start+unpacked) {
		return nil, corrupt("LZMA2 chunk is damaged")
	}
	return c.win[start:c.pos:c.pos], nil
}

// stored reads an uncompressed chunk.
func (c *chunker) stored(z *Reader) ([]byte, error) {
	var head [2]byte
	if err := z.readFull(head[:]); err != nil {
		return nil, err
	}
	n := int(head[0])<<8 + int(head[1]) + 1
	c.room(n)
	start := c.pos
	if err := z.readFull(c.win[start : start+n]); err != nil {
		return nil, err
	}
	c.pos += n
	return c.win[start:c.pos:c.pos], nil
}
