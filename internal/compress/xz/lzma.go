// SPDX-License-Identifier: Apache-2.0

package xz

import (
	"unsafe"
)

//go:generate go run ./gen

const (
	inSize  = 1 << 16 // largest compressed size of an LZMA2 chunk
	inMask  = inSize - 1
	litSize = 0x300 // nodes of the literal coder for one context
	// winStart is where the dictionary begins in the window: the byte before it is the
	// zero that the first literal takes as its predecessor. A multiple of 16, so that
	// positions in the window and in the stream agree in their lowest four bits.
	winStart = 16
	// copySlack is how far copyMatch may write past the end of a match.
	copySlack = 16
	probInit  = 1024
	// probZero is what a bit of value zero adds to a probability before it is divided by
	// 32 (rounding down) and subtracted: p -= (p-2048+31)>>5 equals p += (2048-p)>>5. It
	// is odd, so its lowest bit tells the decoded bit.
	probZero = ^uint32(2048-31) + 1
)

type lengthProbs struct {
	choice, choice2 uint16
	low, mid        [16][8]uint16
	high            [256]uint16
}

type probs struct {
	isMatch    [256]uint16 // by state<<4 | posState
	isRep0Long [256]uint16
	isRep      [16]uint16 // by state
	isRepG0    [16]uint16
	isRepG1    [16]uint16
	isRepG2    [16]uint16
	slot       [4][64]uint16
	special    [256]uint16 // 115 are used; the rest lets the children of a last node be loaded
	align      [16]uint16
	matchLen   lengthProbs
	repLen     lengthProbs
	lit        [16][litSize]uint16
}

// lzma is the state that lives from chunk to chunk.
type lzma struct {
	in       [inSize]byte // the compressed chunk
	win      []byte       // winStart bytes, dictionary and fresh output, copySlack bytes
	pos      int          // where the next byte goes
	dictSize int
	state    uint
	rep      [4]uint
	lc       uint
	lpMask   uint
	pbMask   uint
	probs    probs
}

// resetState is the "state reset" of LZMA2.
func (d *lzma) resetState() {
	d.state, d.rep = 0, [4]uint{}
	p := (*[unsafe.Sizeof(probs{}) / 2]uint16)(unsafe.Pointer(&d.probs))
	for i := range p {
		p[i] = probInit
	}
}

// setProps takes the properties byte of a chunk and tells whether it is allowed.
func (d *lzma) setProps(b byte) bool {
	if b > (4*5+4)*9+8 {
		return false
	}
	lc, lp, pb := uint(b%9), uint(b/9%5), uint(b/45)
	if lc+lp > 4 {
		return false
	}
	d.lc, d.lpMask, d.pbMask = lc, 1<<lp-1, 1<<pb-1
	return true
}

// copyMatch repeats n > 0 bytes from dist > 0 bytes back. The caller has checked that the
// source is inside the window and that win has copySlack bytes after the end of the match,
// which is why it may work on raw memory, eight bytes at a time.
func copyMatch(win []byte, pos, dist, n int) {
	dst := unsafe.Add(unsafe.Pointer(unsafe.SliceData(win)), pos)
	if dist < 8 {
		// Lay out the pattern until a multiple of the distance reaches eight bytes.
		wide := int("\x00\x08\x08\x09\x08\x0a\x0c\x0e"[dist&7])
		for i := 0; i < wide-dist; i++ {
			*(*byte)(unsafe.Add(dst, i)) = *(*byte)(unsafe.Add(dst, i-dist))
		}
		n -= wide - dist
		dst = unsafe.Add(dst, wide-dist)
		dist = wide
	}
	for i := 0; i < n; i += 8 {
		*(*uint64)(unsafe.Add(dst, i)) = *(*uint64)(unsafe.Add(dst, i-dist))
	}
}
