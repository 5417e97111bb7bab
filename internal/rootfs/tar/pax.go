// SPDX-License-Identifier: Apache-2.0

package tar

import (
	"bytes"
	"math"
	"slices"
	"strconv"
	"strings"
)

// pax is one extended header: POSIX.1-2001, pax interchange format.
type pax struct {
	keys   []string // as stored, each once
	values map[string]string
	// The pairs of the sparse format 0.0, whose two keys repeat by design.
	extents []Extent
}

func (p *pax) has(key string) bool { _, ok := p.values[key]; return ok }

// sparse reports whether a GNU sparse file is described, in any of the three versions.
func (p *pax) sparse() bool {
	for _, k := range p.keys {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// parsePAX splits the records "LENGTH KEY=VALUE\n".
func (t *Reader) parsePAX(body []byte, at int64) (*pax, error) {
	p := &pax{values: map[string]string{}}
	for len(body) > 0 {
		sp := bytes.IndexByte(body[:min(len(body), 20)], ' ')
		if sp <= 0 {
			return nil, t.formatError(at, "extended header record without a length")
		}
		n, ok := decimal(string(body[:sp]))
		if !ok || n <= int64(sp)+1 || n > int64(len(body)) || body[n-1] != '\n' {
			return nil, t.formatError(at, "extended header record with a wrong length")
		}
		key, value, ok := bytes.Cut(body[sp+1:n-1], []byte("="))
		body = body[n:]
		if !ok || len(key) == 0 {
			return nil, t.formatError(at, "extended header record without a key")
		}
		if err := t.addPAX(p, string(key), string(value), at); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (t *Reader) addPAX(p *pax, key, value string, at int64) error {
	binary := strings.HasPrefix(key, "SCHILY.xattr.")
	if strings.IndexByte(key, 0) >= 0 || !binary && strings.IndexByte(value, 0) >= 0 {
		return t.formatError(at, "NUL in extended header record %q", key)
	}
	if key == "GNU.sparse.offset" || key == "GNU.sparse.numbytes" {
		n, ok := decimal(value)
		if !ok {
			return t.formatError(at, "bad %s %q", key, value)
		}
		return t.addExtent(p, key == "GNU.sparse.offset", n, at)
	}
	if p.has(key) {
		return t.formatError(at, "extended header has %q twice", key)
	}
	if value == "" && !binary && key != "comment" && key != "uname" && key != "gname" {
		return t.formatError(at, "extended header record %q is empty", key)
	}
	p.keys = append(p.keys, key)
	p.values[key] = value
	return nil
}

func (t *Reader) addExtent(p *pax, offset bool, n, at int64) error {
	last := len(p.extents) - 1
	if !offset {
		if last < 0 || p.extents[last].Length >= 0 {
			return t.formatError(at, "sparse region without an offset")
		}
		p.extents[last].Length = n
		return nil
	}
	if last >= 0 && p.extents[last].Length < 0 {
		return t.formatError(at, "sparse region without a length")
	}
	if len(p.extents) >= t.lim.Sparse {
		return t.limitError(at, "more than %d sparse regions", t.lim.Sparse)
	}
	p.extents = append(p.extents, Extent{n, -1})
	return nil
}

// applyPAX overrides the fields of h by the records of p.
func (t *Reader) applyPAX(h *Header, p *pax, at int64) error {
	xattrs := 0
	for _, key := range p.keys {
		value := p.values[key]
		var err error
		switch key {
		case "path":
			h.Name = value
		case "linkpath":
			h.Link = value
		case "size":
			err = t.paxNumber(&h.Stored, key, value, at)
			h.Size = h.Stored
		case "uid":
			err = t.paxNumber(&h.UID, key, value, at)
		case "gid":
			err = t.paxNumber(&h.GID, key, value, at)
		case "mtime":
			secs, ok := paxTime(value)
			if !ok {
				return t.formatError(at, "bad mtime %q", value)
			}
			h.ModTime = secs
		case "hdrcharset":
			if value != "BINARY" && value != "ISO-IR 10646 2000 UTF-8" {
				return t.formatError(at, "unknown hdrcharset %q", value)
			}
		default:
			name, isXattr := strings.CutPrefix(key, "SCHILY.xattr.")
			if !isXattr {
				if !strings.HasPrefix(key, "SCHILY.acl.") {
					continue
				}
				name = key
			}
			if name == "" {
				return t.formatError(at, "extended attribute without a name")
			}
			if xattrs += len(name) + len(value); xattrs > t.lim.Xattrs {
				return t.limitError(at, "more than %d bytes of extended attributes", t.lim.Xattrs)
			}
			h.Xattrs = append(h.Xattrs, Xattr{name, []byte(value)})
		}
		if err != nil {
			return err
		}
	}
	slices.SortFunc(h.Xattrs, func(a, b Xattr) int { return strings.Compare(a.Name, b.Name) })
	if p.sparse() || p.extents != nil {
		return t.paxSparse(h, p, at)
	}
	return nil
}

func (t *Reader) paxNumber(dst *int64, key, value string, at int64) error {
	n, ok := decimal(value)
	if !ok {
		return t.formatError(at, "bad %s %q", key, value)
	}
	*dst = n
	return nil
}

// decimal accepts digits only: no sign, no space, no overflow.
func decimal(s string) (int64, bool) {
	if s == "" || s[0] < '0' || s[0] > '9' {
		return 0, false
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil
}

// paxTime reads a decimal number of seconds with an optional fraction, rounded down.
func paxTime(s string) (int64, bool) {
	whole, frac, hasFrac := strings.Cut(s, ".")
	negative := strings.HasPrefix(whole, "-")
	whole = strings.TrimPrefix(whole, "-")
	if strings.Trim(frac, "0123456789") != "" || hasFrac && whole == "" {
		return 0, false
	}
	n, ok := decimal(whole)
	if !ok {
		if whole == "" || strings.Trim(whole, "0123456789") != "" {
			return 0, false
		}
		n = math.MaxInt64 // beyond every calendar; the caller clamps
	}
	if negative {
		n = -n
		if strings.Trim(frac, "0") != "" && n > math.MinInt64+1 {
			n--
		}
	}
	return n, true
}
