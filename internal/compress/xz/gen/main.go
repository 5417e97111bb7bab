// SPDX-License-Identifier: Apache-2.0

// Command gen writes lzma_gen.go: the loop that decodes the symbols of one LZMA2 chunk.
//
// The loop is generated because its speed hangs on things that Go has no macros for. The
// state of the range coder must stay in registers, so nothing may be a call, and every bit
// is one of three shapes:
//
//   - a decision: the next code depends on the bit, so it is a branch;
//   - a bit of a tree whose value is just collected: no branch, because such bits are close
//     to random and a wrong guess of the processor costs more than the arithmetic. The
//     probabilities of both possible next bits are loaded before the bit is known, which
//     takes the load off the chain of dependent instructions;
//   - a direct bit, probability one half.
package main

import (
	"bytes"
	"fmt"
	"go/format"
	"os"
	"strings"
)

const normalise = `if rng < 1<<24 {
	rng <<= 8
	code = code<<8 | uint32(in[ip&inMask])
	ip++
}
`

// decision decodes one bit with the probability variable named by ptr (an expression of type
// *uint16) and runs one of two pieces of code.
func decision(ptr, zero, one string) string {
	return normalise + fmt.Sprintf(`pp = %s
p = uint32(*pp)
bound = (rng >> 11) * p
if code < bound {
	rng = bound
	*pp = uint16(p + (2048-p)>>5)
	%s
} else {
	rng -= bound
	code -= bound
	*pp = uint16(p - p>>5)
	%s
}
`, ptr, zero, one)
}

// step is one branch-free bit. It expects p = probability of the node and leaves the bit in
// bit; store is where the updated probability goes, extra are further choices.
//
// The compiler makes a conditional move of an "if" that assigns one variable, unless that
// variable goes into the address of a load. So the bit, which does, is made from the
// comparison itself, and nothing else may flow from the range coder into an index.
func step(store string, extra ...string) string {
	var b strings.Builder
	b.WriteString(`bound = (rng >> 11) * p
rng -= bound
q = code - bound
adj = 0
bit = 0
if code >= bound {
	bit = 1
}
if code < bound {
	rng = bound
}
if code < bound {
	adj = probZero
}
`)
	for _, e := range extra {
		b.WriteString(e)
	}
	b.WriteString(`if code >= bound {
	code = q
}
`)
	fmt.Fprintf(&b, "%s = uint16(p - uint32(int32(p+adj)>>5))\n", store)
	return b.String()
}

// tree decodes n bits, highest first, with the nodes node(i); sym ends in [1<<n, 1<<(n+1)).
func tree(n int, node func(i string) string) string {
	var b strings.Builder
	b.WriteString("sym = 1\n")
	fmt.Fprintf(&b, "p = uint32(%s)\n", node("1"))
	for i := range n {
		b.WriteString(normalise)
		if i == n-1 {
			b.WriteString(step(node("sym")))
			b.WriteString("sym = sym*2 + bit\n")
			break
		}
		fmt.Fprintf(&b, "p0, p1 = uint32(%s), uint32(%s)\n", node("(sym*2)"), node("(sym*2+1)"))
		b.WriteString(step(node("sym"), "if code < bound {\np1 = p0\n}\n"))
		b.WriteString("sym = sym*2 + bit\np = p1\n")
	}
	return b.String()
}

// reverseTree decodes n bits, lowest first, and adds them to *into.
func reverseTree(n int, into string, node func(i string) string) string {
	var b strings.Builder
	b.WriteString("sym = 1\n")
	for i := range n {
		b.WriteString(normalise)
		fmt.Fprintf(&b, "p = uint32(%s)\n", node("sym"))
		b.WriteString(step(node("sym")))
		b.WriteString("sym = sym*2 + bit\n")
		fmt.Fprintf(&b, "%s += bit << %d\n", into, i)
	}
	return b.String()
}

func matchedLiteral() string {
	var b strings.Builder
	b.WriteString("sym, offset = 1, 0x100\n")
	for range 8 {
		b.WriteString(`matchByte <<= 1
matchBit = matchByte & offset
`)
		b.WriteString(normalise)
		b.WriteString("p = uint32(lit[(offset+matchBit+sym)&litMask])\n")
		b.WriteString("node = offset + matchBit + sym\n")
		b.WriteString(step("lit[node&litMask]"))
		b.WriteString(`sym = sym*2 + bit
offset &= matchBit ^ (bit - 1)
`)
	}
	return b.String()
}

func length(coder string) string {
	at := func(arr, mask string) func(string) string {
		return func(i string) string { return arr + "[" + i + "&" + mask + "]" }
	}
	three := func(arr string, add int) string {
		return fmt.Sprintf("lp = &%s.%s[ps&15]\n", coder, arr) + tree(3, at("lp", "7")) +
			fmt.Sprintf("n = int(sym) - 8 + %d\n", add)
	}
	return decision("&"+coder+".choice",
		three("low", 2),
		decision("&"+coder+".choice2",
			three("mid", 10),
			"hp = &"+coder+".high\nsym = 1\nfor sym < 256 {\n"+
				normalise+"p = uint32(hp[sym&255])\n"+step("hp[sym&255]")+"sym = sym*2 + bit\n}\nn = int(sym) - 256 + 18\n"))
}

func source() string {
	lit := func(i string) string { return "lit[" + i + "&litMask]" }
	slot := func(i string) string { return "slots[" + i + "&63]" }
	align := func(i string) string { return "pr.align[" + i + "&15]" }

	literal := `
	lit = &pr.lit[(uint(pos)&lpMask<<lc|uint(win[pos-1])>>(8-lc))&15]
	if state < 7 {
		` + tree(8, lit) + `
		if state < 4 {
			state = 0
		} else {
			state -= 3
		}
	} else {
		if rep0 >= uint(pos-winStart) {
			goto corrupt
		}
		matchByte = uint(win[pos-int(rep0)-1])
		` + matchedLiteral() + `
		if state < 10 {
			state -= 3
		} else {
			state -= 6
		}
	}
	win[pos] = byte(sym)
	pos++
	continue
`
	match := `
	rep3, rep2, rep1 = rep2, rep1, rep0
	if state < 7 {
		state = 7
	} else {
		state = 10
	}
	` + length("pr.matchLen") + `
	slots = &pr.slot[min(n-2, 3)&3]
	` + tree(6, slot) + `
	sym -= 64
	if sym < 4 {
		rep0 = sym
	} else {
		extra = sym>>1 - 1
		rep0 = (2 | sym&1) << extra
		if sym < 14 {
			base = rep0 - sym - 1
			node = 1
			for k = 0; k < extra; k++ {
				` + normalise + `p = uint32(pr.special[(base+node)&127])
				` + step("pr.special[(base+node)&127]") + `
				node = node*2 + bit
				rep0 += bit << k
			}
		} else {
			direct = 0
			for k = 4; k < extra; k++ {
				` + normalise + `rng >>= 1
				code -= rng
				bit = 0
				if int32(code) >= 0 {
					bit = 1
				}
				if int32(code) < 0 {
					code += rng
				}
				direct = direct<<1 + bit
			}
			rep0 += direct << 4
			` + reverseTree(4, "rep0", align) + `
		}
	}
`
	rep := decision("&pr.isRepG0[state&15]",
		decision("&pr.isRep0Long[(state<<4|ps)&255]",
			`if rep0 >= uint(pos-winStart) {
				goto corrupt
			}
			win[pos] = win[pos-int(rep0)-1]
			pos++
			if state < 7 {
				state = 9
			} else {
				state = 11
			}
			continue
`, ""),
		decision("&pr.isRepG1[state&15]",
			"rep0, rep1 = rep1, rep0",
			decision("&pr.isRepG2[state&15]",
				"rep0, rep1, rep2 = rep2, rep0, rep1",
				"rep0, rep1, rep2, rep3 = rep3, rep0, rep1, rep2"))) + `
	if state < 7 {
		state = 8
	} else {
		state = 11
	}
	` + length("pr.repLen")

	return `// SPDX-License-Identifier: Apache-2.0
// Code generated by internal/compress/xz/gen. DO NOT EDIT.

package xz

import "encoding/binary"

// symbols decodes one chunk: the first size bytes of d.in are range-coded symbols that unpack
// to exactly d.win[d.pos:limit]. The window has copySlack bytes after limit.
// It reports whether the chunk is well formed; after false the decoder must be reset.
//
// Reads of input wrap around in d.in, so a chunk that lies about its size decodes to garbage
// and is found out at the end, where the position must be the size.
func (d *lzma) symbols(size, limit int) bool {
	var (
		pp                        *uint16
		p, p0, p1, bound, adj, q  uint32
		sym, node, offset, bit    uint
		matchByte, matchBit       uint
		base, extra, k, direct    uint
		n                         int
		lit                       *[litSize]uint16
		lp                        *[8]uint16
		hp                        *[256]uint16
		slots                     *[64]uint16
	)
	in, pr := &d.in, &d.probs
	win, pos := d.win, d.pos
	if limit+copySlack > len(win) || pos < winStart || size < 5 || in[0] != 0 {
		return false
	}
	rng, code := uint32(0xffffffff), binary.BigEndian.Uint32(in[1:])
	ip := uint(5)
	state, rep0, rep1, rep2, rep3 := d.state, d.rep[0], d.rep[1], d.rep[2], d.rep[3]
	lc, lpMask, pbMask := d.lc, d.lpMask, d.pbMask
	dictSize := uint(d.dictSize)

	for pos < limit {
		ps := uint(pos) & pbMask
		` + decision("&pr.isMatch[(state<<4|ps)&255]", literal, "") + `
		` + decision("&pr.isRep[state&15]", match, rep) + `
		if rep0 >= uint(pos-winStart) || rep0 >= dictSize || n > limit-pos {
			goto corrupt
		}
		copyMatch(win, pos, int(rep0)+1, n)
		pos += n
	}
	` + normalise + `
	d.pos, d.state = pos, state
	d.rep = [4]uint{rep0, rep1, rep2, rep3}
	return ip == uint(size) && code == 0

corrupt:
	return false
}
`
}

func main() {
	out, err := format.Source([]byte(source()))
	if err != nil {
		out = []byte(source())
	}
	out = bytes.ReplaceAll(out, []byte("\n\n\n"), []byte("\n\n"))
	if werr := os.WriteFile("lzma_gen.go", out, 0o644); err == nil {
		err = werr
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "gen: cannot write lzma_gen.go:", err)
		os.Exit(1)
	}
}
