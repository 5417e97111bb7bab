// SPDX-License-Identifier: Apache-2.0

package xz

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"io"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// The container, as in "The .xz File Format" 1.2.1 (tukaani.org/xz/xz-file-format.txt):
//
//	stream  = header block* index footer
//	header  = magic flags crc32                                  12 bytes
//	block   = header data padding check
//	index   = 0x00 count (unpadded unpacked)* padding crc32
//	footer  = crc32 backward-size flags "YZ"                     12 bytes
//	file    = (stream padding)+, padding = zero bytes, a multiple of four

const (
	headerMagic = "\xfd7zXZ\x00"
	footerMagic = "YZ"
	headerSize  = 12
	footerSize  = 12

	checkNone   = 0
	checkCRC32  = 1
	checkCRC64  = 4
	checkSHA256 = 10
)

var crc64Table = crc64.MakeTable(crc64.ECMA)

type streamState struct {
	open    bool
	any     bool // at least one stream was read to its end
	check   byte
	count   int64
	records hash.Hash // over the sizes of the blocks, to compare with the index in constant memory
}

type blockState struct {
	open         bool
	start        int64 // z.n at the block's first byte
	dataStart    int64 // z.n after the block's header
	headerSize   int64
	wantPacked   int64 // -1 where the header does not say
	wantUnpacked int64 // -1 where the header does not say
	unpacked     int64
	unpadded     int64 // header, data and check; known when the block is closed
	hash         hash.Hash
}

// newHash gives the running check of a block; nil, true for "none".
func newHash(check byte) (hash.Hash, bool) {
	switch check {
	case checkNone:
		return nil, true
	case checkCRC32:
		return crc32.NewIEEE(), true
	case checkCRC64:
		return crc64.New(crc64Table), true
	case checkSHA256:
		return sha256.New(), true
	}
	return nil, false
}

// parseStreamHeader returns the kind of check.
func parseStreamHeader(b []byte) (byte, error) {
	if string(b[:6]) != headerMagic {
		return 0, corrupt("not an xz stream")
	}
	if crc32.ChecksumIEEE(b[6:8]) != binary.LittleEndian.Uint32(b[8:]) {
		return 0, corrupt("stream header has a wrong CRC")
	}
	if b[6] != 0 || b[7]&0xf0 != 0 {
		return 0, corrupt("stream header has unknown flags")
	}
	if _, ok := newHash(b[7]); !ok {
		return 0, fault.New(fault.Format, "cannot decode xz: unsupported check %d", b[7])
	}
	return b[7], nil
}

func (z *Reader) openStream() error {
	var b [headerSize]byte
	z.n = 0
	if z.stream.any {
		// Between streams: padding in fours, or the end.
		for {
			n, err := io.ReadFull(z.src, b[:4])
			if n == 0 && err == io.EOF {
				return io.EOF
			}
			if err != nil {
				return sourceError(err)
			}
			if b != [headerSize]byte{} {
				break
			}
		}
		if err := z.readFull(b[4:]); err != nil {
			return err
		}
	} else if err := z.readFull(b[:]); err != nil {
		return err
	}
	check, err := parseStreamHeader(b[:])
	if err != nil {
		if z.stream.any && string(b[:6]) != headerMagic {
			return corrupt("junk after the end of the stream")
		}
		return err
	}
	z.n = headerSize
	z.beginBlocks(check)
	return nil
}

// beginBlocks makes a block header the next thing to be read.
func (z *Reader) beginBlocks(check byte) {
	z.stream.open, z.stream.check, z.stream.count = true, check, 0
	if z.stream.records == nil {
		z.stream.records = sha256.New()
	}
	z.stream.records.Reset()
}

// openBlock reads a block header, or the index and footer.
func (z *Reader) openBlock() error {
	start := z.n
	first, err := z.readByte()
	if err != nil {
		return err
	}
	if first == 0 {
		return z.closeStream()
	}
	size := (int(first) + 1) * 4
	var buf [1024]byte
	b := buf[:size]
	b[0] = first
	if err := z.readFull(b[1:]); err != nil {
		return err
	}
	h, err := parseBlockHeader(b)
	if err != nil {
		return err
	}
	if h.dictSize > z.maxDict {
		return fault.Hint(fault.New(fault.Limit, "cannot decode xz: dictionary of %d bytes is over the limit of %d", h.dictSize, z.maxDict),
			"raise the memory limit of the decoder, or repack with a smaller dictionary")
	}
	z.chain, err = h.chain()
	if err != nil {
		return err
	}
	check, _ := newHash(z.stream.check)
	z.block = blockState{open: true, start: start, dataStart: z.n, headerSize: int64(size),
		wantPacked: h.packed, wantUnpacked: h.unpacked, hash: check}
	z.lz.open(int(h.dictSize), h.unpacked)
	return nil
}

// closeBlock runs after the last chunk.
func (z *Reader) closeBlock() error {
	if err := z.emit(nil, true); err != nil {
		return err
	}
	packed := z.n - z.block.dataStart
	if z.block.wantPacked >= 0 && packed != z.block.wantPacked {
		return corrupt("block has another compressed size than its header says")
	}
	if z.block.wantUnpacked >= 0 && z.block.unpacked != z.block.wantUnpacked {
		return corrupt("block is shorter than its header says")
	}
	var buf [64]byte
	pad := buf[:-packed&3]
	if err := z.readFull(pad); err != nil {
		return err
	}
	if !allZero(pad) {
		return corrupt("block padding is not zero")
	}
	z.block.unpadded = z.block.headerSize + packed
	if z.block.hash != nil {
		sum := checkBytes(z.stream.check, z.block.hash)
		got := buf[:len(sum)]
		if err := z.readFull(got); err != nil {
			return err
		}
		if !bytes.Equal(got, sum) {
			return corrupt("block has a wrong checksum")
		}
		z.block.unpadded += int64(len(sum))
	}
	z.block.open = false
	z.stream.count++
	addRecord(z.stream.records, z.block.unpadded, z.block.unpacked)
	return nil
}

// checkBytes is the check in the byte order of the file: CRCs are little-endian.
func checkBytes(check byte, h hash.Hash) []byte {
	switch check {
	case checkCRC32:
		return binary.LittleEndian.AppendUint32(nil, h.(hash.Hash32).Sum32())
	case checkCRC64:
		return binary.LittleEndian.AppendUint64(nil, h.(hash.Hash64).Sum64())
	}
	return h.Sum(nil)
}

func addRecord(h hash.Hash, unpadded, unpacked int64) {
	var b [16]byte
	binary.LittleEndian.PutUint64(b[:], uint64(unpadded))
	binary.LittleEndian.PutUint64(b[8:], uint64(unpacked))
	h.Write(b[:])
}

// closeStream reads the index, whose first byte was taken already, and the footer.
func (z *Reader) closeStream() error {
	start := z.n - 1
	crc := crc32.NewIEEE()
	crc.Write([]byte{0})
	count, err := z.readIndexInt(crc)
	if err != nil {
		return err
	}
	if count != z.stream.count {
		return corrupt("index has another number of blocks than the stream")
	}
	seen := sha256.New()
	for range count {
		unpadded, err := z.readIndexInt(crc)
		if err != nil {
			return err
		}
		unpacked, err := z.readIndexInt(crc)
		if err != nil {
			return err
		}
		addRecord(seen, unpadded, unpacked)
	}
	if !bytes.Equal(seen.Sum(nil), z.stream.records.Sum(nil)) {
		return corrupt("index has other sizes than the blocks")
	}
	var b [footerSize]byte
	pad := b[:-(z.n-start)&3]
	if err := z.readFull(pad); err != nil {
		return err
	}
	if !allZero(pad) {
		return corrupt("index padding is not zero")
	}
	crc.Write(pad)
	if err := z.readFull(b[:4]); err != nil {
		return err
	}
	if binary.LittleEndian.Uint32(b[:]) != crc.Sum32() {
		return corrupt("index has a wrong CRC")
	}
	indexSize := z.n - start
	if err := z.readFull(b[:]); err != nil {
		return err
	}
	backward, check, err := parseFooter(b[:])
	if err != nil {
		return err
	}
	if backward != indexSize {
		return corrupt("footer has another index size")
	}
	if check != z.stream.check {
		return corrupt("footer has other flags than the header")
	}
	z.stream.open, z.stream.any = false, true
	return nil
}

// readIndexInt reads one integer of the index and adds its bytes to crc.
func (z *Reader) readIndexInt(crc hash.Hash32) (int64, error) {
	var b [9]byte
	for i := range b {
		c, err := z.readByte()
		if err != nil {
			return 0, err
		}
		b[i] = c
		if c < 0x80 {
			crc.Write(b[:i+1])
			v, n := parseInt(b[:i+1])
			if n == 0 {
				break
			}
			return v, nil
		}
	}
	return 0, corrupt("index has a malformed number")
}

// parseFooter returns the size of the index and the kind of check.
func parseFooter(b []byte) (int64, byte, error) {
	if string(b[10:12]) != footerMagic {
		return 0, 0, corrupt("stream has no footer")
	}
	if crc32.ChecksumIEEE(b[4:10]) != binary.LittleEndian.Uint32(b) {
		return 0, 0, corrupt("stream footer has a wrong CRC")
	}
	if b[8] != 0 || b[9]&0xf0 != 0 {
		return 0, 0, corrupt("stream footer has unknown flags")
	}
	return (int64(binary.LittleEndian.Uint32(b[4:])) + 1) * 4, b[9], nil
}

// parseInt decodes a variable-length integer: seven bits a byte, lowest first, at most nine
// bytes, no superfluous zero byte. n is the number of bytes used, 0 when malformed.
func parseInt(b []byte) (v int64, n int) {
	for i, c := range b {
		if i == 9 {
			return 0, 0
		}
		v |= int64(c&0x7f) << (7 * i)
		if c < 0x80 {
			if c == 0 && i > 0 {
				return 0, 0
			}
			return v, i + 1
		}
	}
	return 0, 0
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

type filterSpec struct {
	id    int64
	props []byte
}

type blockHeader struct {
	packed, unpacked int64 // -1 where absent
	filters          []filterSpec
	dictSize         int64
}

const (
	filterDelta = 0x03
	filterX86   = 0x04
	filterLZMA2 = 0x21
)

// parseBlockHeader takes a whole block header, size byte and CRC included.
func parseBlockHeader(b []byte) (*blockHeader, error) {
	end := len(b) - 4
	if crc32.ChecksumIEEE(b[:end]) != binary.LittleEndian.Uint32(b[end:]) {
		return nil, corrupt("block header has a wrong CRC")
	}
	flags := b[1]
	if flags&0x3c != 0 {
		return nil, corrupt("block header has unknown flags")
	}
	rest := b[2:end]
	bad := false
	number := func() int64 {
		v, n := parseInt(rest)
		if n == 0 {
			bad = true
		}
		rest = rest[n:]
		return v
	}
	h := &blockHeader{packed: -1, unpacked: -1}
	if flags&0x40 != 0 {
		h.packed = number()
		bad = bad || h.packed == 0
	}
	if flags&0x80 != 0 {
		h.unpacked = number()
	}
	for range int(flags&3) + 1 {
		f := filterSpec{id: number()}
		n := number()
		if bad || n > int64(len(rest)) {
			return nil, corrupt("block header is malformed")
		}
		f.props, rest = rest[:n], rest[n:]
		h.filters = append(h.filters, f)
	}
	if !allZero(rest) {
		return nil, corrupt("block header padding is not zero")
	}
	last := h.filters[len(h.filters)-1]
	if last.id != filterLZMA2 {
		return nil, fault.New(fault.Format, "cannot decode xz: unsupported filter 0x%x", last.id)
	}
	if len(last.props) != 1 || last.props[0] > 40 {
		return nil, corrupt("LZMA2 properties are malformed")
	}
	if p := last.props[0]; p == 40 {
		h.dictSize = 1<<32 - 1
	} else {
		h.dictSize = int64(2|p&1) << (p/2 + 11)
	}
	return h, nil
}
