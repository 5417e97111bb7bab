// SPDX-License-Identifier: Apache-2.0

package xz

import (
	"encoding/binary"
	"math/bits"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// filter undoes one filter of a chain. apply may keep a few bytes back until the next call;
// with last set there is no next call. It never changes data, which is the dictionary, and
// what it returns stays valid until the next call.
type filter interface {
	apply(data []byte, last bool) []byte
}

// chain makes the filters that stand before LZMA2, in the order of the header (which is the
// order of the encoder).
func (h *blockHeader) chain() ([]filter, error) {
	var out []filter
	for _, f := range h.filters[:len(h.filters)-1] {
		switch {
		case f.id == filterDelta && len(f.props) == 1:
			out = append(out, &delta{distance: int(f.props[0]) + 1})
		case f.id == filterX86 && len(f.props) == 0:
			out = append(out, &x86{})
		case f.id == filterX86 && len(f.props) == 4:
			out = append(out, &x86{pos: binary.LittleEndian.Uint32(f.props)})
		case f.id == filterDelta || f.id == filterX86:
			return nil, corrupt("filter properties are malformed")
		default:
			return nil, fault.New(fault.Format, "cannot decode xz: unsupported filter 0x%x", f.id)
		}
	}
	return out, nil
}

// delta adds the byte that lies distance bytes back.
type delta struct {
	distance int
	history  [256]byte
	at       uint8
	buf      []byte
}

func (d *delta) apply(data []byte, _ bool) []byte {
	d.buf = append(d.buf[:0], data...)
	for i := range d.buf {
		d.buf[i] += d.history[uint8(int(d.at)+d.distance)]
		d.history[d.at] = d.buf[i]
		d.at--
	}
	return d.buf
}

// x86 turns the absolute targets of CALL (e8) and JMP (e9) back into relative ones.
//
// The encoder leaves an instruction alone when the bytes just before it look like the start
// of another one; mask remembers those bytes so that the decoder takes the same decisions.
// Bits 0-3 say which of the last four positions held an opcode, bits 4-6 which of those had
// a target that looked convertible.
type x86 struct {
	pos     uint32 // in the stream, of buf[0]
	last    uint32 // in the stream, of the last opcode seen
	begun   bool
	mask    uint32
	buf     []byte
	handled int // bytes of buf that were handed out
}

func (x *x86) apply(data []byte, last bool) []byte {
	x.buf = append(x.buf[:copy(x.buf, x.buf[x.handled:])], data...)
	n := x.convert()
	if last {
		n = len(x.buf)
	}
	x.handled = n
	x.pos += uint32(n)
	return x.buf[:n]
}

// convert works on as much of buf as can be decided and returns how much that is: an
// instruction is five bytes.
func (x *x86) convert() int {
	if !x.begun || x.pos-x.last > 5 {
		x.begun, x.last = true, x.pos-5
	}
	i := 0
	for i+5 <= len(x.buf) {
		if x.buf[i]&0xfe != 0xe8 {
			i++
			continue
		}
		here := x.pos + uint32(i)
		if gap := here - x.last; gap > 5 {
			x.mask = 0
		} else {
			for range gap {
				x.mask = x.mask & 0x77 << 1
			}
		}
		x.last = here
		operand := x.buf[i+1 : i+5]
		if !signByte(operand[3]) {
			x.mask |= 1
			i++
			continue
		}
		if before := x.mask >> 1; before >= 0x10 || !convertible(before&7) {
			x.mask |= 0x11
			i++
			continue
		}
		target := relative(binary.LittleEndian.Uint32(operand), here+5, x.mask)
		// Twenty-five bits of the target are kept, sign-extended.
		binary.LittleEndian.PutUint32(operand, uint32(int32(target<<7)>>7))
		x.mask = 0
		i += 5
	}
	return i
}

// signByte tells whether b could be the highest byte of a near target.
func signByte(b byte) bool { return b == 0 || b == 0xff }

// convertible tells whether an instruction is touched when the three bytes before it held
// opcodes at these positions: none, or one.
func convertible(before uint32) bool { return before&(before-1) == 0 }

// relative undoes the addition of the instruction's end, repeatedly where an overlapping
// opcode made the encoder do so.
func relative(v, end, mask uint32) uint32 {
	for {
		out := v - end
		if mask == 0 {
			return out
		}
		shift := 24 - 8*uint32(bits.Len32(mask>>1))
		if !signByte(byte(out >> shift)) {
			return out
		}
		v = out ^ (1<<(shift+8) - 1)
	}
}
