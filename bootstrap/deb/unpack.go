// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"archive/tar"
	"crypto/md5"
	"encoding/hex"
	"io"
	"os"
	"strings"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/sources"
)

// entry is one member of a package's data archive.
type entry struct {
	Path string // as dpkg lists it: "/usr/bin/x", the top is "/."
	Link string
	Type byte // a type flag of tar
	attributes
	Size int64
	MD5  string
	// Dropped: another package owns the path now, dpkg takes it off this one's list.
	Dropped bool
}

// unpacked is what the helper keeps about a package.
type unpacked struct {
	Package   sources.Package
	Order     int
	Key       string // name, or name:arch where Multi-Arch is "same"
	Control   stanza
	Members   []member // of the control archive, in its order
	Entries   []entry
	Conffiles []conffile

	interests, activations []trigger
	conffile               map[string]int // path to index in Conffiles
	deb                    *os.File
	skipped                bool // entries were left to settle
}

// member finds a file of the control archive.
func (u *unpacked) member(name string) *member {
	for i := range u.Members {
		if u.Members[i].Name == name {
			return &u.Members[i]
		}
	}
	return nil
}

func (u *unpacked) has(name string) bool { return u.member(name) != nil }

// readControl checks the control archive against what the index promised.
func (u *unpacked) readControl(members []member) error {
	u.Members = members
	seen := map[string]bool{}
	for _, m := range members {
		if !validMember(m.Name) || seen[m.Name] {
			return fault.New(fault.Format, "bad or repeated control member %q", m.Name)
		}
		seen[m.Name] = true
	}
	control := u.member("control")
	if control == nil {
		return fault.New(fault.Format, "no control file")
	}
	var err error
	if u.Control, err = parseControl(control.Data); err != nil {
		return err
	}
	for _, want := range [][2]string{
		{"Package", u.Package.Name}, {"Version", u.Package.Version}, {"Architecture", u.Package.Arch},
	} {
		if got := u.Control.Get(want[0]); got != want[1] {
			return fault.New(fault.Verify, "%s is %q, the index says %q", want[0], got, want[1])
		}
	}
	u.Key = u.Package.Name
	if u.Control.Get("Multi-Arch") == "same" {
		u.Key += ":" + u.Package.Arch
	}
	if m := u.member("conffiles"); m != nil {
		if u.Conffiles, err = parseConffiles(m.Data); err != nil {
			return err
		}
	}
	u.conffile = make(map[string]int, len(u.Conffiles))
	for i, c := range u.Conffiles {
		u.conffile[c.Path] = i
	}
	if m := u.member("triggers"); m != nil {
		u.interests, u.activations, err = parseTriggers(m.Data)
	}
	return err
}

// validMember: safe as the last part of a file name in dpkg's info directory.
func validMember(name string) bool {
	if name == "" || len(name) > 64 || name == "list" {
		return false
	}
	for i := range len(name) {
		c := name[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
			return false
		}
	}
	return true
}

// parseEntry turns a tar header into an entry, or says why a package must not have it.
func parseEntry(h *tar.Header) (entry, error) {
	name := strings.TrimSuffix(strings.TrimPrefix(h.Name, "./"), "/")
	e := entry{Path: "/" + name, Type: h.Typeflag, Size: h.Size, attributes: attributes{
		Mode: uint32(h.Mode) & 0o7777, UID: h.Uid, GID: h.Gid, MTime: h.ModTime.UnixNano(),
	}}
	switch {
	case name == "" || name == ".":
		e.Path = "/."
	case !cleanPath(e.Path):
		return e, fault.New(fault.Path, "entry %q is not a clean path below the root", h.Name)
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeDir:
	case tar.TypeSymlink:
		e.Link = h.Linkname
		if e.Link == "" || strings.ContainsAny(e.Link, "\x00\n") {
			return e, fault.New(fault.Path, "entry %q links to %q", h.Name, h.Linkname)
		}
	case tar.TypeLink:
		e.Link = "/" + strings.TrimPrefix(strings.TrimPrefix(h.Linkname, "./"), "/")
		if !cleanPath(e.Link) {
			return e, fault.New(fault.Path, "entry %q is a hard link to %q", h.Name, h.Linkname)
		}
	default:
		return e, fault.New(fault.Policy, "entry %q has type %q, which packages must not have", h.Name, h.Typeflag)
	}
	if e.Path == "/." && e.Type != tar.TypeDir {
		return e, fault.New(fault.Path, "the root is not a directory in the archive")
	}
	return e, nil
}

// unpack writes a package into the tree. What another package has claimed is left for settle.
func (s *server) unpack(u *unpacked, t *tree, data io.Reader, buf []byte) error {
	tr := tar.NewReader(data)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fault.As(fault.Format, err)
		}
		e, err := parseEntry(h)
		if err != nil {
			return err
		}
		if len(u.Entries) >= entryLimit {
			return fault.New(fault.Limit, "more than %d entries", entryLimit)
		}
		u.Entries = append(u.Entries, e)
		at := &u.Entries[len(u.Entries)-1]
		if !s.claim(u, at) {
			u.skipped = true
			continue
		}
		if err := s.write(u, t, at, tr, buf); err != nil {
			return err
		}
	}
	// The archive's padding belongs to the compressed stream, whose checksum is behind it.
	_, err := io.Copy(io.Discard, data)
	return err
}

// entryLimit bounds the members of one package.
const entryLimit = 2 << 20

// write makes one entry in the tree.
func (s *server) write(u *unpacked, t *tree, e *entry, body io.Reader, buf []byte) error {
	p := s.canonical(e.Path)
	switch e.Type {
	case tar.TypeDir:
		if e.Path == "/." || s.merged[p] {
			return nil
		}
		_, err := t.dir(p)
		return err
	case tar.TypeSymlink:
		return t.symlink(p, e.Link, e.attributes)
	case tar.TypeLink:
		return t.link(p, s.canonical(e.Link))
	}
	if i, ok := u.conffile[e.Path]; ok {
		sum := md5.New()
		err := t.file(p+".dpkg-new", e.attributes, io.TeeReader(body, sum), buf)
		u.Conffiles[i].MD5 = hex.EncodeToString(sum.Sum(nil))
		return err
	}
	if !u.has("md5sums") {
		sum := md5.New()
		err := t.file(p, e.attributes, io.TeeReader(body, sum), buf)
		e.MD5 = hex.EncodeToString(sum.Sum(nil))
		return err
	}
	return t.file(p, e.attributes, body, buf)
}
