// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/internal/rootfs"
)

// Limits of the account files, in bytes. They are a tree's, and a tree may be hostile.
const (
	maxTable = 8 << 20
	maxLine  = 64 << 10
)

// table is a file of lines with fields parted by colons: passwd(5), group(5), shadow(5),
// gshadow(5), subuid(5). Lines that do not have the right number of fields are kept as they are.
type table struct {
	path    string
	fields  int
	rows    []row
	present bool
	changed bool
	// Of the file as it was, or as it is made.
	mode     uint32
	uid, gid int
}

type row struct {
	f   []string // nil for a line that is not understood
	raw string
}

func parseTable(path string, fields int, data []byte) (*table, error) {
	t := &table{path: path, fields: fields}
	for len(data) > 0 {
		line, rest, _ := bytes.Cut(data, []byte("\n"))
		data = rest
		if len(line) > maxLine {
			return nil, fault.New(fault.Limit, "/%s has a line of %d bytes", path, len(line))
		}
		if bytes.IndexByte(line, 0) >= 0 {
			return nil, fault.New(fault.Format, "/%s has a NUL", path)
		}
		r := row{raw: string(line)}
		f := strings.Split(r.raw, ":")
		if len(f) == fields && f[0] != "" && strings.IndexByte("#+-", f[0][0]) < 0 {
			r.f = f
		}
		t.rows = append(t.rows, r)
	}
	return t, nil
}

// format is the file's bytes. Lines that were not touched keep theirs.
func (t *table) format() []byte {
	var b bytes.Buffer
	for _, r := range t.rows {
		b.WriteString(r.raw)
		b.WriteByte('\n')
	}
	return b.Bytes()
}

// find is the fields of the row with that name, or nil. They may be changed through set only.
func (t *table) find(name string) []string {
	if i := t.index(name); i >= 0 {
		return t.rows[i].f
	}
	return nil
}

func (t *table) index(name string) int {
	for i := range t.rows {
		if t.rows[i].f != nil && t.rows[i].f[0] == name {
			return i
		}
	}
	return -1
}

// set replaces the row with the name in the first field, or appends one.
func (t *table) set(f ...string) error {
	if len(f) != t.fields || f[0] == "" {
		return fault.New(fault.Internal, "row of %d fields for /%s", len(f), t.path)
	}
	for _, v := range f {
		if strings.ContainsAny(v, ":\n\r\x00") {
			return fault.New(fault.Config, "%q cannot stand in /%s", v, t.path)
		}
	}
	r := row{f: f, raw: strings.Join(f, ":")}
	if len(r.raw) > maxLine {
		return fault.New(fault.Limit, "line of %d bytes for /%s", len(r.raw), t.path)
	}
	t.changed = true
	if i := t.index(f[0]); i >= 0 {
		t.rows[i] = r
	} else {
		t.rows = append(t.rows, r)
	}
	return nil
}

// loadTable reads the file; one that is missing is an empty table with the given owner and mode.
func loadTable(root *rootfs.Root, path string, fields int, mode uint32, gid int) (*table, error) {
	data, err := root.ReadFile(path, maxTable)
	if rootfs.IsNotExist(err) {
		return &table{path: path, fields: fields, mode: mode, gid: gid}, nil
	}
	if err != nil {
		return nil, err
	}
	st, err := root.Stat(path)
	if err != nil {
		return nil, err
	}
	t, err := parseTable(path, fields, data)
	if err != nil {
		return nil, fmt.Errorf("cannot read accounts: %w", err)
	}
	t.present, t.mode, t.uid, t.gid = true, st.Mode, st.UID, st.GID
	return t, nil
}

func (t *table) save(root *rootfs.Root) error {
	if !t.changed {
		return nil
	}
	t.changed = false
	t.present = true
	return root.Put(t.path, t.mode, t.uid, t.gid, t.format())
}
