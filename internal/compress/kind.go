// SPDX-License-Identifier: Apache-2.0

package compress

import (
	"bytes"
	"strings"
)

// Kind is a compression.
type Kind string

// The kinds. Auto is only for Options: it means what the first bytes say.
const (
	Auto  Kind = ""
	Plain Kind = "plain"
	XZ    Kind = "xz"
	LZMA  Kind = "lzma" // the old .lzma format
	Zstd  Kind = "zstd"
	Gzip  Kind = "gzip"
	Bzip2 Kind = "bzip2"
)

// KindByName is the kind that a file name's suffix announces; Plain where it announces none.
func KindByName(name string) Kind {
	name = strings.ToLower(name)
	for _, s := range []struct {
		suffix string
		kind   Kind
	}{
		{".xz", XZ}, {".txz", XZ}, {".lzma", LZMA}, {".tlz", LZMA}, {".zst", Zstd}, {".zstd", Zstd}, {".tzst", Zstd},
		{".gz", Gzip}, {".tgz", Gzip}, {".bz2", Bzip2}, {".tbz", Bzip2}, {".tbz2", Bzip2},
	} {
		if strings.HasSuffix(name, s.suffix) {
			return s.kind
		}
	}
	return Plain
}

// detectSize is how many first bytes detection looks at: up to the magic of a tar header.
const detectSize = 265

// Detect tells from its first bytes (265 are enough) what a file is: its kind, and a name for
// messages ("xz", "a zip archive", "an HTML page", "data"). Everything that is no known
// compression is Plain.
func Detect(head []byte) (Kind, string) {
	for _, m := range []struct {
		magic string
		kind  Kind
	}{
		{"\xfd7zXZ\x00", XZ}, {"\x28\xb5\x2f\xfd", Zstd}, {"\x1f\x8b", Gzip},
	} {
		if bytes.HasPrefix(head, []byte(m.magic)) {
			return m.kind, string(m.kind)
		}
	}
	switch {
	case len(head) >= 4 && head[0]&0xf0 == 0x50 && string(head[1:4]) == "\x2a\x4d\x18":
		return Zstd, "zstd" // a skippable frame
	case len(head) >= 10 && string(head[:3]) == "BZh" && head[3] >= '1' && head[3] <= '9' &&
		(string(head[4:10]) == "1AY&SY" || string(head[4:10]) == "\x17\x72\x45\x38\x50\x90"):
		return Bzip2, "bzip2"
	case looksLikeLZMA(head):
		return LZMA, "lzma"
	}
	return Plain, describe(head)
}

// looksLikeLZMA tells .lzma, which has no magic, by what its writers put into the header:
// the common properties, a dictionary of 2^n or 3*2^n bytes, a size below 256 GiB or unknown,
// and the zero byte every range coder starts with.
func looksLikeLZMA(head []byte) bool {
	if len(head) < 14 || head[0] != 0x5d || head[1] != 0 || head[2] != 0 || head[13] != 0 {
		return false
	}
	dict := uint32(head[3])<<16 | uint32(head[4])<<24
	size := head[5:13]
	unknown := string(size) == "\xff\xff\xff\xff\xff\xff\xff\xff"
	for dict > 3 && dict&1 == 0 {
		dict >>= 1
	}
	return (dict == 1 || dict == 2 || dict == 3) && (unknown || size[5] == 0 && size[6] == 0 && size[7] == 0)
}

// describe names what is no compression that we read.
func describe(head []byte) string {
	for _, m := range []struct {
		at          int
		magic, name string
	}{
		{0, "PK\x03\x04", "a zip archive"}, {0, "PK\x05\x06", "a zip archive"},
		{0, "\x7fELF", "an ELF program"},
		{0, "!<arch>\n", "an ar archive"}, {0, "!<thin>\n", "a thin ar archive"},
		{0, "7z\xbc\xaf\x27\x1c", "a 7z archive"},
		{0, "\xed\xab\xee\xdb", "an RPM package"},
		{0, "\x04\x22\x4d\x18", "lz4"}, {0, "LZIP", "lzip"}, {0, "\x1f\x9d", "compress (.Z)"},
		{0, "Rar!", "a RAR archive"}, {0, "hsqs", "a squashfs image"}, {0, "QFI\xfb", "a qcow2 image"},
		{0, "070701", "a cpio archive"}, {0, "%PDF-", "a PDF document"},
		{0, "-----BEGIN PGP", "an OpenPGP text"}, {0, "#!", "a script"},
		{257, "ustar", "a tar archive"},
	} {
		if len(head) >= m.at && bytes.HasPrefix(head[m.at:], []byte(m.magic)) {
			return m.name
		}
	}
	start := strings.ToLower(string(bytes.TrimLeft(head, "\ufeff \t\r\n")))
	switch {
	case len(head) == 0:
		return "an empty file"
	case strings.HasPrefix(start, "<!doctype html"), strings.HasPrefix(start, "<html"), strings.HasPrefix(start, "<head"):
		return "an HTML page"
	case strings.HasPrefix(start, "<?xml"):
		return "an XML document"
	case strings.HasPrefix(start, "{"):
		return "a JSON text"
	}
	for _, c := range head {
		if c < 0x20 && c != '\n' && c != '\r' && c != '\t' || c == 0x7f {
			return "data"
		}
	}
	return "a text"
}
