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
// With a label, bit i can be entered at label+i with sym and p set.
func tree(n int, label string, node func(i string) string) string {
	var b strings.Builder
	b.WriteString("sym = 1\n")
	fmt.Fprintf(&b, "p = uint32(%s)\n", node("1"))
	for i := range n {
		if label != "" && i > 0 {
			fmt.Fprintf(&b, "%s%d:\n", label, i)
		}
		b.WriteString(normalise)
		b.WriteString(treeStep(node, i == n-1))
	}
	return b.String()
}

// treeStep goes from a node to one of its children, whose probability is loaded into p.
func treeStep(node func(i string) string, last bool) string {
	if last {
		return step(node("sym")) + "sym = sym*2 + bit\n"
	}
	return fmt.Sprintf("p0, p1 = uint32(%s), uint32(%s)\n", node("(sym*2)"), node("(sym*2+1)")) +
		step(node("sym"), "if code < bound {\np1 = p0\n}\n") +
		"sym = sym*2 + bit\np = p1\n"
}

// reverseTree decodes n bits, lowest first, and adds them to *into.
func reverseTree(n int, into string, node func(i string) string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "sym = 1\np = uint32(%s)\n", node("1"))
	for i := range n {
		b.WriteString(normalise)
		b.WriteString(treeStep(node, i == n-1))
		fmt.Fprintf(&b, "%s += bit << %d\n", into, i)
	}
	return b.String()
}

// matchedLiteral decodes a literal where a match has just ended. As long as its bits agree
// with the byte that would have continued the match, the nodes are known beforehand and the
// loads wait for nothing. The first bit that differs, and there nearly always is one (else the
// match would have been longer), is one wrong guess of the processor; the rest of the byte is
// an ordinary literal.
func matchedLiteral(node func(i string) string) string {
	var b strings.Builder
	b.WriteString("matchByte |= 0x100\n")
	for i := range 8 {
		b.WriteString(normalise)
		fmt.Fprintf(&b, "expect = matchByte >> %d & 1\n", 7-i)
		fmt.Fprintf(&b, "base = 0x100 + expect<<8 + matchByte>>%d\n", 8-i)
		fmt.Fprintf(&b, "p = uint32(%s)\n", node("base"))
		b.WriteString(step(node("base")))
		target := fmt.Sprintf("literal%d", i+1)
		load := fmt.Sprintf("p = uint32(%s)\n", node("sym"))
		if i == 7 {
			target, load = "literalDone", ""
		}
		fmt.Fprintf(&b, "if bit != expect {\nsym = matchByte>>%d<<1 | bit\n%sgoto %s\n}\n", 8-i, load, target)
	}
	b.WriteString("sym = matchByte\ngoto literalDone\n")
	return b.String()
}

func length(coder string) string {
	at := func(arr, mask string) func(string) string {
		return func(i string) string { return "*(*uint16)(unsafe.Add(" + arr + ", " + i + "*2))" }
	}
	three := func(arr string, add int) string {
		return fmt.Sprintf("lp = unsafe.Pointer(&%s.%s[ps&15])\n", coder, arr) + tree(3, "", at("lp", "7")) +
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
	lit := func(i string) string { return "*(*uint16)(unsafe.Add(lit, " + i + "*2))" }
	slot := func(i string) string { return "*(*uint16)(unsafe.Add(slots, " + i + "*2))" }
	// special points one node before the root of the tree, which has the number one.
	node := func(i string) string { return "*(*uint16)(unsafe.Add(special, (" + i + "-1)*2))" }
	align := func(i string) string { return "*(*uint16)(unsafe.Add(unsafe.Pointer(&pr.align), " + i + "*2))" }

	literal := `
literal:
	lit = unsafe.Pointer(&pr.lit[(uint(pos)&lpMask<<lc|prev>>(8-lc))&15])
	if state >= 7 {
		if rep0 >= uint(pos-winStart) {
			goto corrupt
		}
		if state < 10 {
			state -= 3
		} else {
			state -= 6
		}
		matchByte = uint(win[pos-int(rep0)-1])
		` + matchedLiteral(lit) + `
	}
	if state < 4 {
		state = 0
	} else {
		state -= 3
	}
	` + tree(8, "literal", lit) + `
literalDone:
	prev = sym & 0xff
	win[pos] = byte(sym)
	pos++
`
	match := `
	rep3, rep2, rep1 = rep2, rep1, rep0
	if state < 7 {
		state = 7
	} else {
		state = 10
	}
	` + length("pr.matchLen") + `
	slots = unsafe.Pointer(&pr.slot[min(n-2, 3)&3])
	` + tree(6, "", slot) + `
	sym -= 64
	if sym < 4 {
		rep0 = sym
	} else {
		extra = sym>>1 - 1
		rep0 = (2 | sym&1) << extra
		if sym < 14 {
			special = unsafe.Pointer(&pr.special[(rep0-sym)&127])
			sym = 1
			p = uint32(` + node("1") + `)
			for k = 0; k < extra; k++ {
				` + normalise + treeStep(node, false) + `
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
			prev = uint(win[pos-int(rep0)-1])
			win[pos] = byte(prev)
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

import ("encoding/binary"
"unsafe")

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
		sym, bit, ps              uint
		matchByte, expect         uint
		base, extra, k, direct    uint
		n                         int
		lit, lp, slots, special, dst, src unsafe.Pointer
		hp                        *[256]uint16
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

	prev := uint(win[pos-1])
	for pos < limit {
		ps = uint(pos) & pbMask
		` + decision("&pr.isMatch[(state<<4|ps)&255]", "goto literal", "") + `
		` + decision("&pr.isRep[state&15]", match, rep) + `
		if rep0 >= uint(pos-winStart) || rep0 >= dictSize || n > limit-pos {
			goto corrupt
		}
		if rep0 >= 7 {
			dst = unsafe.Add(unsafe.Pointer(unsafe.SliceData(win)), pos)
			src = unsafe.Add(dst, -int(rep0)-1)
			pos += n
			for {
				*(*uint64)(dst) = *(*uint64)(src)
				if n <= 8 {
					break
				}
				dst, src = unsafe.Add(dst, 8), unsafe.Add(src, 8)
				n -= 8
			}
		} else {
			copyMatch(win, pos, int(rep0)+1, n)
			pos += n
		}
		prev = uint(win[pos-1])
		continue
		` + literal + `
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
