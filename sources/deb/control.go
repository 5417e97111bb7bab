// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"bytes"
	"strings"
)

// Field is a field of a stanza. Value has no blanks around its first line; continuation
// lines follow after a newline each, with their leading blank.
type Field struct {
	Name  string
	Value string
}

// Control is one deb822 stanza in its order.
type Control struct {
	Fields []Field
	// Text is the stanza as it was read, with its final newline.
	Text []byte
}

// Value is the value of a field, whose name is compared without case; empty where absent.
func (c *Control) Value(name string) string {
	v, _ := c.Lookup(name)
	return v
}

// Lookup is Value, and whether the field is there.
func (c *Control) Lookup(name string) (string, bool) {
	for _, f := range c.Fields {
		if strings.EqualFold(f.Name, name) {
			return f.Value, true
		}
	}
	return "", false
}

// ParseControl reads the control file of a package: exactly one stanza of deb-control(5).
// Comments, carriage returns and other control characters, a field given twice, and a last
// line without a newline are fault.Format with the number of the line.
func ParseControl(text []byte) (*Control, error) {
	c := &Control{}
	stanza := bytes.TrimRight(text, "\n")
	if len(stanza) == len(text) {
		return nil, malformed("control: no newline at the end")
	}
	if len(stanza) == 0 {
		return nil, malformed("control: empty")
	}
	c.Text = text[:len(stanza)+1]
	seen := map[string]bool{}
	for n, line := range strings.Split(string(stanza), "\n") {
		bad := func(what string) (*Control, error) { return nil, malformed("control line %d: %s", n+1, what) }
		if i := strings.IndexFunc(line, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }); i >= 0 {
			return bad("control character")
		}
		if strings.Trim(line, " \t") == "" {
			return bad("blank line inside the stanza")
		}
		if line[0] == ' ' || line[0] == '\t' {
			if len(c.Fields) == 0 {
				return bad("continuation without a field")
			}
			c.Fields[len(c.Fields)-1].Value += "\n" + line
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok || name == "" || !printable(name) || name[0] == '-' || name[0] == '#' {
			return bad("not a field")
		}
		key := strings.ToLower(name)
		if seen[key] {
			return bad("field " + name + " twice")
		}
		seen[key] = true
		c.Fields = append(c.Fields, Field{name, strings.TrimLeft(value, " \t")})
	}
	// As dpkg does: blanks count inside a value of several lines, not at its end.
	for i := range c.Fields {
		c.Fields[i].Value = strings.TrimRight(c.Fields[i].Value, " \t")
	}
	return c, nil
}

// checkIdentity makes sure that the fields which name the package are there and are names.
func (c *Control) checkIdentity() error {
	for _, f := range []struct {
		name  string
		least int
		more  string // characters besides lower-case letters and digits
	}{
		{"Package", 2, "+-."},
		{"Version", 1, "+-.~:ABCDEFGHIJKLMNOPQRSTUVWXYZ"},
		{"Architecture", 1, "-"},
	} {
		v, ok := c.Lookup(f.name)
		if !ok {
			return malformed("control: no field %s", f.name)
		}
		const plain = "abcdefghijklmnopqrstuvwxyz0123456789"
		if len(v) < f.least || len(v) > 255 || strings.Trim(v, plain+f.more) != "" || strings.IndexByte(f.more, v[0]) >= 0 {
			return malformed("control: field %s is malformed: %q", f.name, v)
		}
	}
	return nil
}

// Conffile is a line of a conffiles file.
type Conffile struct {
	// Path is absolute, as the package gives it.
	Path string
	// RemoveOnUpgrade says that the package no longer ships the file and dpkg is to remove
	// it: it has no entry in data.tar.
	RemoveOnUpgrade bool
}

// ParseConffiles reads the file conffiles of a package, deb-conffiles(5): a path a line, each
// absolute and without "." and ".." components, optionally after the flag remove-on-upgrade.
func ParseConffiles(text []byte) ([]Conffile, error) {
	if len(text) == 0 {
		return nil, nil
	}
	body, ok := strings.CutSuffix(string(text), "\n")
	if !ok {
		return nil, malformed("conffiles: no newline at the end")
	}
	var out []Conffile
	seen := map[string]bool{}
	for n, line := range strings.Split(body, "\n") {
		var c Conffile
		c.Path = strings.TrimRight(line, " \t")
		if !strings.HasPrefix(c.Path, "/") {
			flag, path, _ := strings.Cut(c.Path, " ")
			if flag != "remove-on-upgrade" {
				return nil, malformed("conffiles line %d: %q is neither a path nor a known flag", n+1, flag)
			}
			c.Path, c.RemoveOnUpgrade = strings.TrimLeft(path, " \t"), true
		}
		if !cleanPath(c.Path) {
			return nil, malformed("conffiles line %d: %q is not a plain absolute path", n+1, c.Path)
		}
		if seen[c.Path] {
			return nil, malformed("conffiles line %d: %q twice", n+1, c.Path)
		}
		seen[c.Path] = true
		out = append(out, c)
	}
	return out, nil
}

// cleanPath tells whether s is absolute and names a file without empty, "." and ".." parts.
func cleanPath(s string) bool {
	if len(s) < 2 || s[0] != '/' || len(s) > 4096 {
		return false
	}
	for _, part := range strings.Split(s[1:], "/") {
		if part == "" || part == "." || part == ".." {
			return false
		}
	}
	return strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) < 0
}
