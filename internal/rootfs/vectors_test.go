// SPDX-License-Identifier: Apache-2.0

package rootfs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// A vector is a text in testdata/hostile that describes an archive, one entry per line:
//
//	expect: CLASS | ok
//	why: a sentence
//	has: a line of Root.Tree that must be there afterwards
//	hasnot: the beginning of one that must not
//	setup: a line like those below, made in the tree before
//	option: holes | strip=N | max-size=N | max-entries=N | replace-dir-links
//	file NAME [key=value]…     keys: mode uid gid mtime data size major minor type sum fill
//	dir NAME … | symlink NAME TARGET … | hardlink NAME TARGET … | fifo NAME … | char NAME … | block NAME …
//	pax KEY VALUE | global KEY VALUE    records of the extended header before the next entry
//	paxraw BODY | longname NAME | longlink NAME
//	raw BYTES                  put into the archive as they are
//	noend | lonezero | trail BYTES
//
// Words may be quoted as in Go; {text*N} is text N times.
type vector struct {
	name    string
	expect  string
	has     []string
	hasNot  []string
	setup   [][]string
	options UnpackOptions
	tar     []byte
}

func loadVectors(t testing.TB) []vector {
	t.Helper()
	files, err := filepath.Glob("testdata/hostile/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no vectors: %v", err)
	}
	var out []vector
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		// One file may hold several vectors, parted by a line of dashes.
		for i, part := range strings.Split(string(text), "\n----\n") {
			v, err := parseVector(part)
			if err != nil {
				t.Fatalf("%s: %v", f, err)
			}
			v.name = strings.TrimSuffix(filepath.Base(f), ".txt")
			if i > 0 {
				v.name += fmt.Sprintf("-%d", i+1)
			}
			out = append(out, v)
		}
	}
	return out
}

func parseVector(text string) (vector, error) {
	var v vector
	var b tarBuilder
	why := false
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		key, rest, isHeader := strings.Cut(line, ": ")
		switch {
		case strings.TrimSpace(line) == "" || strings.HasPrefix(line, "#"):
			continue
		case isHeader && key == "expect":
			v.expect = rest
			continue
		case isHeader && key == "why":
			why = true
			continue
		case isHeader && key == "has":
			v.has = append(v.has, rest)
			continue
		case isHeader && key == "hasnot":
			v.hasNot = append(v.hasNot, rest)
			continue
		}
		words, err := splitWords(line)
		if err != nil {
			return v, fmt.Errorf("%q: %w", line, err)
		}
		switch words[0] {
		case "setup:":
			v.setup = append(v.setup, words[1:])
		case "option:":
			v.option(words[1])
		default:
			if err := b.line(words); err != nil {
				return v, fmt.Errorf("%q: %w", line, err)
			}
		}
	}
	if v.expect == "" || !why {
		return v, fmt.Errorf("vector without expect or why")
	}
	v.tar = b.finish()
	return v, nil
}

func (v *vector) option(o string) {
	key, value, _ := strings.Cut(o, "=")
	n, _ := strconv.ParseInt(value, 0, 64)
	switch key {
	case "holes":
		v.options.Holes = true
	case "strip":
		v.options.Strip = int(n)
	case "max-size":
		v.options.MaxSize = n
	case "max-entries":
		v.options.MaxEntries = n
	case "replace-dir-links":
		v.options.ReplaceDirLinks = true
	default:
		panic("unknown option " + o)
	}
}

var repeatRE = regexp.MustCompile(`\{([^{}*]+)\*([0-9]+)\}`)

func splitWords(line string) ([]string, error) {
	var words []string
	for line = strings.TrimSpace(line); line != ""; line = strings.TrimSpace(line) {
		var w string
		end := strings.IndexByte(line, ' ')
		if end < 0 {
			end = len(line)
		}
		prefix := ""
		if q := strings.IndexByte(line, '"'); q >= 0 && q < end {
			quoted, err := strconv.QuotedPrefix(line[q:])
			if err != nil {
				return nil, err
			}
			prefix = line[:q]
			if w, err = strconv.Unquote(quoted); err != nil {
				return nil, err
			}
			line = line[q+len(quoted):]
		} else {
			w, line = line[:end], line[end:]
		}
		w = prefix + repeatRE.ReplaceAllStringFunc(w, func(m string) string {
			p := repeatRE.FindStringSubmatch(m)
			n, _ := strconv.Atoi(p[2])
			return strings.Repeat(p[1], n)
		})
		words = append(words, w)
	}
	return words, nil
}

// tarBuilder writes archives that a well-behaved writer would refuse to.
type tarBuilder struct {
	bytes.Buffer
	pax   []byte
	end   string
	trail string
}

func (b *tarBuilder) line(w []string) error {
	switch w[0] {
	case "pax":
		b.pax = append(b.pax, paxRecord(w[1], w[2])...)
		return nil
	case "global":
		b.header(map[string]string{"name": "g", "type": "g"}, []byte(paxRecord(w[1], w[2])))
		return nil
	case "paxraw":
		b.header(map[string]string{"name": "x", "type": "x"}, []byte(w[1]))
		return nil
	case "longname", "longlink":
		typ := map[string]string{"longname": "L", "longlink": "K"}[w[0]]
		b.header(map[string]string{"name": "././@LongLink", "type": typ, "magic": "gnu"}, []byte(w[1]+"\x00"))
		return nil
	case "raw":
		b.WriteString(w[1])
		return nil
	case "noend", "lonezero":
		b.end = w[0]
		return nil
	case "trail":
		b.trail = w[1]
		return nil
	}
	types := map[string]string{"file": "0", "hardlink": "1", "symlink": "2", "char": "3", "block": "4", "dir": "5", "fifo": "6"}
	typ, ok := types[w[0]]
	if !ok {
		return fmt.Errorf("unknown line")
	}
	f := map[string]string{"type": typ, "name": w[1]}
	w = w[2:]
	if typ == "1" || typ == "2" {
		f["link"], w = w[0], w[1:]
	}
	for _, kv := range w {
		k, v, ok := strings.Cut(kv, "=")
		if !ok {
			return fmt.Errorf("%q is no key=value", kv)
		}
		f[k] = v
	}
	if b.pax != nil {
		b.header(map[string]string{"name": "x", "type": "x"}, b.pax)
		b.pax = nil
	}
	b.header(f, []byte(f["data"]))
	if n, _ := strconv.Atoi(f["fill"]); n > 0 {
		b.Write(make([]byte, n))
	}
	return nil
}

func paxRecord(key, value string) string {
	n := len(key) + len(value) + 3
	for {
		s := fmt.Sprintf("%d %s=%s\n", n, key, value)
		if len(s) == n {
			return s
		}
		n = len(s)
	}
}

// number is octal with a NUL; "bin:N" is base 256, "raw:TEXT" as it stands.
func number(field []byte, s string) {
	if v, ok := strings.CutPrefix(s, "raw:"); ok {
		copy(field, v)
		return
	}
	if v, ok := strings.CutPrefix(s, "bin:"); ok {
		n, err := strconv.ParseInt(v, 0, 64)
		if err != nil {
			panic(err)
		}
		for i := range field {
			field[i] = byte(n >> 63)
		}
		if len(field) >= 8 {
			binary.BigEndian.PutUint64(field[len(field)-8:], uint64(n))
		}
		field[0] |= 0x80
		return
	}
	if s == "" {
		s = "0"
	}
	n, err := strconv.ParseInt(s, 0, 64)
	if err != nil {
		panic(err)
	}
	copy(field, fmt.Sprintf("%0*o", len(field)-1, n))
}

func (b *tarBuilder) header(f map[string]string, body []byte) {
	var h [512]byte
	copy(h[0:100], f["name"])
	mode := f["mode"]
	if mode == "" {
		mode = map[string]string{"5": "0755"}[f["type"]]
	}
	if mode == "" {
		mode = "0644"
	}
	number(h[100:108], mode)
	number(h[108:116], f["uid"])
	number(h[116:124], f["gid"])
	size := f["size"]
	if size == "" {
		size = strconv.Itoa(len(body))
	}
	number(h[124:136], size)
	number(h[136:148], f["mtime"])
	copy(h[157:257], f["link"])
	if t := f["type"]; t != "" {
		h[156] = t[0]
	}
	copy(h[257:265], "ustar\x0000")
	if f["magic"] == "gnu" || f["sparse"] != "" {
		copy(h[257:265], "ustar  \x00")
	}
	if f["major"] != "" {
		number(h[329:337], f["major"])
		number(h[337:345], f["minor"])
	}
	if s := f["sparse"]; s != "" { // REALSIZE:OFF:LEN…
		p := strings.Split(s, ":")
		number(h[483:495], p[0])
		for i, v := range p[1:] {
			number(h[386+12*i:398+12*i], v)
		}
	}
	copy(h[148:156], "        ")
	var sum int64
	for _, c := range h {
		sum += int64(c)
	}
	if f["sum"] == "bad" {
		sum++
	}
	copy(h[148:156], fmt.Sprintf("%06o\x00 ", sum))
	b.Write(h[:])
	b.Write(body)
	b.Write(make([]byte, -len(body)&511))
}

func (b *tarBuilder) finish() []byte {
	switch b.end {
	case "noend":
	case "lonezero":
		b.Write(make([]byte, 512))
	default:
		b.Write(make([]byte, 1024))
	}
	b.WriteString(b.trail)
	return b.Bytes()
}
