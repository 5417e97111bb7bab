// SPDX-License-Identifier: Apache-2.0

package recipes

import (
	"bytes"
	"errors"
	"fmt"
	"sort"
	"strings"
	"unicode/utf8"

	"github.com/pelletier/go-toml/v2/unstable"

	"github.com/mkmachine/mkmachine/internal/fault"
)

const (
	maxRecipeSize = 1 << 20
	maxNesting    = 32
	maxExcerpt    = 512 // bytes of a line that a position keeps
)

// notTOML begins the text of a syntax problem.
const notTOML = "not valid TOML"

// kind of a node; its text is how messages call it.
type kind string

const (
	kindTable  kind = "a table"
	kindArray  kind = "an array"
	kindString kind = "a string"
	kindBool   kind = "a boolean"
	kindInt    kind = "an integer"
	kindFloat  kind = "a float"
	kindTime   kind = "a date or time"
)

// origin says how a table came to be, which decides what may still be added to it.
type origin int

const (
	implied origin = iota // by a longer header: [a.b] makes a
	header                // by its own header
	dotted                // by a dotted key
	closed                // inline table, or any value
	element               // of an array of tables
)

// node is a TOML value with its place.
type node struct {
	kind    kind
	pos     fault.Pos
	text    string // scalars: the string's value, or the literal as written
	items   []*node
	entries []*entry // tables, in text order
	index   map[string]*entry
	origin  origin
	tables  bool // an array made by [[headers]]
}

type entry struct {
	name  string
	pos   fault.Pos
	value *node
}

func (n *node) get(name string) *entry { return n.index[name] }

func (n *node) put(name string, pos fault.Pos, value *node) {
	e := &entry{name, pos, value}
	n.entries = append(n.entries, e)
	if n.index == nil {
		n.index = map[string]*entry{}
	}
	n.index[name] = e
}

// document turns one TOML text into a tree, collecting duplicate keys as problems.
type document struct {
	file     string
	data     []byte
	lines    []int // offset of each line's first byte
	parser   unstable.Parser
	problems Problems
}

// parseTOML returns the tree of a text. A text that is not TOML has one problem, the
// first; what follows a syntax error cannot be trusted to mean anything.
func parseTOML(file string, data []byte) (*node, Problems) {
	d := &document{file: file, data: data, lines: []int{0}}
	for i, c := range data {
		if c == '\n' {
			d.lines = append(d.lines, i+1)
		}
	}
	if len(data) > maxRecipeSize {
		return nil, Problems{{Pos: fault.Pos{File: file}, Class: fault.Limit,
			Text: fmt.Sprintf("larger than %d bytes", maxRecipeSize)}}
	}
	if i := badRune(data); i >= 0 {
		d.problem(d.at(i), fault.Config, "", "byte 0x%02x is not allowed in a recipe", data[i])
		return nil, d.problems
	}
	root := &node{kind: kindTable, pos: d.at(0), origin: header}
	here := root
	d.parser.Reset(data)
	for d.parser.NextExpression() {
		e := d.parser.Expression()
		switch e.Kind {
		case unstable.Table, unstable.ArrayTable:
			here = d.enter(root, e)
		case unstable.KeyValue:
			d.assign(here, e, 1)
		}
	}
	if err := d.parser.Error(); err != nil {
		d.problems = nil
		d.syntax(err)
	}
	return root, d.problems
}

// badRune is the offset of the first byte that is not UTF-8 or is a control character
// other than tab and newline, or -1.
func badRune(data []byte) int {
	for i := 0; i < len(data); {
		r, size := utf8.DecodeRune(data[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			return i
		case r == '\r' && i+1 < len(data) && data[i+1] == '\n', r == '\t', r == '\n':
		case r < ' ', r >= 0x7f && r < 0xa0:
			return i
		}
		i += size
	}
	return -1
}

func (d *document) syntax(err error) {
	pos := fault.Pos{File: d.file}
	var perr *unstable.ParserError
	if errors.As(err, &perr) {
		// The highlight is a part of the text: its distance from the end is its place.
		if offset := cap(d.data) - cap(perr.Highlight); perr.Highlight != nil && offset >= 0 && offset <= len(d.data) {
			pos = d.at(offset)
		}
	}
	class := fault.Config
	if strings.Contains(err.Error(), "nested more than") {
		class = fault.Limit
	}
	d.problem(pos, class, "", notTOML+": %s", err.Error())
}

func (d *document) problem(pos fault.Pos, c fault.Class, hint, format string, args ...any) {
	d.problems = append(d.problems, Problem{Pos: pos, Class: c, Text: redact(fmt.Sprintf(format, args...)), Hint: hint})
}

// at is the position of a byte offset.
func (d *document) at(offset int) fault.Pos {
	i := sort.SearchInts(d.lines, offset+1) - 1
	start := d.lines[i]
	line := d.data[start:]
	if end := bytes.IndexByte(line, '\n'); end >= 0 {
		line = line[:end]
	}
	line = bytes.TrimSuffix(line, []byte("\r"))
	if len(line) > maxExcerpt {
		line = line[:maxExcerpt]
	}
	text := redact(strings.ToValidUTF8(string(line), ""))
	return fault.Pos{File: d.file, Line: i + 1, Col: offset - start + 1, Text: text}
}

type part struct {
	name string
	pos  fault.Pos
	end  int // offset behind the key part
}

func (d *document) key(it unstable.Iterator) []part {
	var parts []part
	for it.Next() {
		n := it.Node()
		parts = append(parts, part{string(n.Data), d.at(int(n.Raw.Offset)), int(n.Raw.Offset + n.Raw.Length)})
		if len(parts) > maxNesting {
			d.problem(parts[0].pos, fault.Limit, "", "key has more than %d parts", maxNesting)
			return nil
		}
	}
	return parts
}

// enter resolves a [header] or [[header]]. After a problem it returns a table that
// nobody sees, so that the lines below it are still checked for syntax.
func (d *document) enter(root *node, e *unstable.Node) *node {
	lost := &node{kind: kindTable, origin: header}
	parts := d.key(e.Key())
	if len(parts) == 0 {
		return lost
	}
	t := root
	for _, p := range parts[:len(parts)-1] {
		if t = d.descend(t, p, implied); t == nil {
			return lost
		}
	}
	last := parts[len(parts)-1]
	old := t.get(last.name)
	if e.Kind == unstable.ArrayTable {
		item := &node{kind: kindTable, pos: last.pos, origin: element}
		if old == nil {
			t.put(last.name, last.pos, &node{kind: kindArray, pos: last.pos, items: []*node{item}, tables: true})
			return item
		}
		if !old.value.tables {
			d.duplicate(last, old)
			return lost
		}
		old.value.items = append(old.value.items, item)
		return item
	}
	if old == nil {
		n := &node{kind: kindTable, pos: last.pos, origin: header}
		t.put(last.name, last.pos, n)
		return n
	}
	if old.value.kind != kindTable || old.value.origin != implied {
		d.duplicate(last, old)
		return lost
	}
	old.value.origin, old.value.pos, old.pos = header, last.pos, last.pos
	return old.value
}

// descend finds or makes the table below t that a key part names.
func (d *document) descend(t *node, p part, made origin) *node {
	old := t.get(p.name)
	if old == nil {
		n := &node{kind: kindTable, pos: p.pos, origin: made}
		t.put(p.name, p.pos, n)
		return n
	}
	v := old.value
	switch {
	case v.tables && made == implied:
		return v.items[len(v.items)-1]
	case v.kind == kindTable && v.origin != closed && (made == implied || v.origin == dotted || v.origin == implied):
		return v
	}
	d.duplicate(p, old)
	return nil
}

func (d *document) duplicate(p part, old *entry) {
	d.problem(p.pos, fault.Config, "write it once", "duplicate key %q, first in line %d", p.name, old.pos.Line)
}

// assign puts one KEY = VALUE into t.
func (d *document) assign(t *node, e *unstable.Node, depth int) {
	parts := d.key(e.Key())
	if len(parts) == 0 {
		return
	}
	last := parts[len(parts)-1]
	value := d.value(e.Value(), d.valuePos(last.end), depth)
	for _, p := range parts[:len(parts)-1] {
		if t = d.descend(t, p, dotted); t == nil {
			return
		}
	}
	if old := t.get(last.name); old != nil {
		d.duplicate(last, old)
		return
	}
	t.put(last.name, last.pos, value)
}

// valuePos is where the value of a key that ends at offset begins.
func (d *document) valuePos(offset int) fault.Pos {
	for offset < len(d.data) && strings.IndexByte(" \t=", d.data[offset]) >= 0 {
		offset++
	}
	return d.at(offset)
}

// value copies a value out of the parser. pos is used where the parser gives none.
func (d *document) value(n *unstable.Node, pos fault.Pos, depth int) *node {
	if n.Raw.Length > 0 {
		pos = d.at(int(n.Raw.Offset))
	}
	out := &node{pos: pos, origin: closed}
	if depth > maxNesting {
		d.problem(pos, fault.Limit, "", "nested more than %d levels deep", maxNesting)
		out.kind = kindArray
		return out
	}
	switch n.Kind {
	case unstable.Array:
		out.kind = kindArray
		for it := n.Children(); it.Next(); {
			out.items = append(out.items, d.value(it.Node(), pos, depth+1))
		}
		return out
	case unstable.InlineTable:
		out.kind, out.origin = kindTable, dotted
		for it := n.Children(); it.Next(); {
			d.assign(out, it.Node(), depth+1)
		}
		out.origin = closed
		return out
	case unstable.String:
		out.kind = kindString
	case unstable.Bool:
		out.kind = kindBool
	case unstable.Integer:
		out.kind = kindInt
	case unstable.Float:
		out.kind = kindFloat
	default:
		out.kind = kindTime
	}
	out.text = string(n.Data)
	return out
}
