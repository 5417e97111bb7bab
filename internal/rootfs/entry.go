// SPDX-License-Identifier: Apache-2.0

package rootfs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/internal/rootfs/tar"
)

// Type is what kind of file something is.
type Type byte

// The types. Their byte is the letter that ls prints.
const (
	File     Type = '-'
	Dir      Type = 'd'
	Symlink  Type = 'l'
	Hardlink Type = 'h' // in archives only
	Char     Type = 'c'
	Block    Type = 'b'
	Fifo     Type = 'p'
	Socket   Type = 's' // in trees only
)

// Xattr is one extended attribute.
type Xattr = tar.Xattr

// Extent is a region of a sparse file that has data, in bytes.
type Extent = tar.Extent

// Entry is a member of an archive whose names and numbers were checked.
type Entry struct {
	Path string // clean; "" is the root
	Type Type
	Mode uint32 // permission bits with set-user-id, set-group-id and sticky: 07777
	UID  int
	GID  int
	Size int64 // bytes of a regular file
	// ModTime is in whole seconds since 1970, 0 … 2^33-1.
	ModTime int64
	// Link is the text of a symbolic link, or the clean path of a hard link's target.
	Link         string
	Major, Minor uint32
	Xattrs       []Xattr  // sorted by name, only kinds that are kept
	Sparse       []Extent // where the data is; nil for an ordinary file
	// Dropped counts extended attributes that were left out.
	Dropped int
}

// maxModTime is the latest time that is kept: what an octal tar header can say, the year 2242.
const maxModTime = 1<<33 - 1

// policy turns headers into entries.
type policy struct {
	maxID int
	strip int
	// trustNames leaves the checks of names out, so that a test can see the second wall.
	trustNames bool
}

// entry checks h. A nil entry without an error is one that strip removed.
func (p *policy) entry(h *tar.Header) (*Entry, error) {
	e := &Entry{Mode: uint32(h.Mode & 0o7777), ModTime: min(max(h.ModTime, 0), maxModTime), Sparse: h.Sparse}
	var ok bool
	if e.Type, ok = typeOf(h.Type); !ok {
		return nil, fault.New(fault.Format, "entry %q has unknown type %q", h.Name, h.Type)
	}
	path, err := p.path(h.Name)
	if err != nil {
		return nil, err
	}
	e.Path = path
	if path == "" {
		if strings.Trim(h.Name, "/") == "" {
			return nil, fault.New(fault.Format, "entry name %q", h.Name)
		}
		if e.Type != Dir {
			return nil, fault.New(fault.Path, "entry %q would replace the root itself", h.Name)
		}
	}
	if e.Type != Dir && strings.HasSuffix(h.Name, "/") {
		return nil, fault.New(fault.Format, "entry %q ends in a slash but is no directory", h.Name)
	}
	if p.strip > 0 {
		if path, ok = stripped(e.Path, p.strip); !ok {
			return nil, nil
		}
		e.Path = path
	}
	if e.UID, err = p.id("owner", h.Name, h.UID); err != nil {
		return nil, err
	}
	if e.GID, err = p.id("group", h.Name, h.GID); err != nil {
		return nil, err
	}
	if err := p.byType(e, h); err != nil || e.Path == "" && e.Type != Dir {
		return nil, err
	}
	return e, p.xattrs(e, h)
}

func (p *policy) byType(e *Entry, h *tar.Header) error {
	switch e.Type {
	case File:
		e.Size = h.Size
	case Symlink:
		if h.Link == "" || strings.IndexByte(h.Link, 0) >= 0 {
			return fault.New(fault.Format, "symbolic link %q has no proper target", h.Name)
		}
		if len(h.Link) >= MaxPath {
			return fault.New(fault.Limit, "symbolic link %q has a target of %d bytes", h.Name, len(h.Link))
		}
		e.Link = h.Link
	case Hardlink:
		target, err := p.path(h.Link)
		if err != nil {
			return err
		}
		ok := target != ""
		if ok && p.strip > 0 {
			target, ok = stripped(target, p.strip)
		}
		if !ok {
			return fault.New(fault.Format, "hard link %q has no proper target", h.Name)
		}
		e.Link = target
	case Char, Block:
		if h.Major > 0xfff || h.Minor > 0xfffff {
			return fault.New(fault.Format, "device %q has no proper number", h.Name)
		}
		e.Major, e.Minor = uint32(h.Major), uint32(h.Minor)
	}
	return nil
}

func (p *policy) path(name string) (string, error) {
	if p.trustNames {
		return strings.Trim(strings.TrimPrefix(name, "./"), "/"), nil
	}
	return Clean(name)
}

func (p *policy) id(what, name string, id int64) (int, error) {
	if id < 0 || id > int64(p.maxID) {
		return 0, fault.New(fault.Policy, "entry %q has %s %d, allowed are 0 to %d", name, what, id, p.maxID)
	}
	return int(id), nil
}

// stripped removes n leading components of a clean path.
func stripped(path string, n int) (string, bool) {
	for range n {
		_, rest, more := strings.Cut(path, "/")
		if !more {
			return "", false
		}
		path = rest
	}
	return path, true
}

func typeOf(c byte) (Type, bool) {
	switch c {
	case tar.TypeFile:
		return File, true
	case tar.TypeDir:
		return Dir, true
	case tar.TypeSymlink:
		return Symlink, true
	case tar.TypeHardlink:
		return Hardlink, true
	case tar.TypeChar:
		return Char, true
	case tar.TypeBlock:
		return Block, true
	case tar.TypeFifo:
		return Fifo, true
	}
	return 0, false
}

// Names of the extended attributes with a meaning of their own.
const (
	xattrCapability = "security.capability"
	xattrACL        = "system.posix_acl_access"
	xattrDefaultACL = "system.posix_acl_default"
)

// xattrs keeps file capabilities, POSIX ACLs and user.*; everything else belongs to the
// host that made the archive and is dropped.
func (p *policy) xattrs(e *Entry, h *tar.Header) error {
	for _, x := range h.Xattrs {
		var err error
		switch {
		case e.Type != File && e.Type != Dir:
			e.Dropped++
			continue
		case x.Name == xattrCapability:
			if e.Type != File {
				return fault.New(fault.Format, "entry %q has capabilities but is no file", h.Name)
			}
			x.Value, err = checkCapability(x.Value)
		case x.Name == xattrACL, x.Name == xattrDefaultACL:
			err = p.checkACL(x.Value)
		case x.Name == "SCHILY.acl.access", x.Name == "SCHILY.acl.default":
			x.Name = "system.posix_acl_" + strings.TrimPrefix(x.Name, "SCHILY.acl.")
			x.Value, err = p.parseACL(string(x.Value))
		case strings.HasPrefix(x.Name, "user."):
			if len(x.Name) > 255 {
				err = fault.New(fault.Limit, "attribute name of %d bytes", len(x.Name))
			}
		default:
			e.Dropped++
			continue
		}
		if err != nil {
			return fmt.Errorf("entry %q: %w", h.Name, err)
		}
		// GNU tar writes an ACL as text and as attribute; they must say the same.
		i := slices.IndexFunc(e.Xattrs, func(have Xattr) bool { return have.Name == x.Name })
		switch {
		case i < 0:
			e.Xattrs = append(e.Xattrs, x)
		case !bytes.Equal(e.Xattrs[i].Value, x.Value):
			return fault.New(fault.Format, "entry %q has two different %q", h.Name, x.Name)
		}
	}
	return nil
}

// checkCapability accepts revision 2, and revision 3 whose root is id 0, which means the
// same and is stored as revision 2 (linux/capability.h, struct vfs_cap_data).
func checkCapability(v []byte) ([]byte, error) {
	if len(v) < 4 {
		return nil, fault.New(fault.Format, "capabilities of %d bytes", len(v))
	}
	magic := binary.LittleEndian.Uint32(v)
	switch revision := magic >> 24; {
	case revision == 2 && len(v) == 20:
		return v, nil
	case revision == 3 && len(v) == 24:
		if root := binary.LittleEndian.Uint32(v[20:]); root != 0 {
			return nil, fault.New(fault.Policy, "capabilities for the user namespace of id %d", root)
		}
		out := append([]byte(nil), v[:20]...)
		out[3] = 2
		return out, nil
	}
	return nil, fault.New(fault.Format, "capabilities of unknown revision, %d bytes", len(v))
}

// Tags of POSIX ACL entries (linux/posix_acl.h).
const (
	aclUserObj, aclUser, aclGroupObj    = 0x01, 0x02, 0x04
	aclGroup, aclMask, aclOther, aclNoI = 0x08, 0x10, 0x20, 0xffffffff
)

// checkACL checks the binary form: version 2, then tag, permissions and id per entry.
func (p *policy) checkACL(v []byte) error {
	if len(v) < 4 || (len(v)-4)%8 != 0 || binary.LittleEndian.Uint32(v) != 2 {
		return fault.New(fault.Format, "malformed ACL")
	}
	for v = v[4:]; len(v) > 0; v = v[8:] {
		tag, id := binary.LittleEndian.Uint16(v), binary.LittleEndian.Uint32(v[4:])
		if (tag == aclUser || tag == aclGroup) && int64(id) > int64(p.maxID) {
			return fault.New(fault.Policy, "ACL names id %d, allowed are 0 to %d", id, p.maxID)
		}
	}
	return nil
}

// parseACL turns the text form (acl(5), with numbers, or star's fourth field with the
// number) into the binary one.
func (p *policy) parseACL(text string) ([]byte, error) {
	out := binary.LittleEndian.AppendUint32(nil, 2)
	var entries [][]byte
	for line := range strings.FieldsFuncSeq(text, func(c rune) bool { return c == ',' || c == '\n' }) {
		line, _, _ = strings.Cut(line, "#")
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) == 1 && f[0] == "" {
			continue
		}
		e, err := p.aclEntry(f)
		if err != nil {
			return nil, fmt.Errorf("ACL entry %q: %w", line, err)
		}
		entries = append(entries, e)
	}
	// The kernel wants user, named users, group, named groups, mask, other.
	for _, tag := range []uint16{aclUserObj, aclUser, aclGroupObj, aclGroup, aclMask, aclOther} {
		for _, e := range entries {
			if binary.LittleEndian.Uint16(e) == tag {
				out = append(out, e...)
			}
		}
	}
	return out, nil
}

func (p *policy) aclEntry(f []string) ([]byte, error) {
	if len(f) < 3 || len(f) > 4 || len(f[2]) != 3 {
		return nil, fault.New(fault.Format, "malformed")
	}
	var tag uint16
	switch kind, named := f[0], f[1] != ""; {
	case kind == "user" && !named:
		tag = aclUserObj
	case kind == "user":
		tag = aclUser
	case kind == "group" && !named:
		tag = aclGroupObj
	case kind == "group":
		tag = aclGroup
	case kind == "mask" && !named:
		tag = aclMask
	case kind == "other" && !named:
		tag = aclOther
	default:
		return nil, fault.New(fault.Format, "malformed")
	}
	id := uint32(aclNoI)
	if tag == aclUser || tag == aclGroup {
		number := f[len(f)-1]
		if len(f) == 3 {
			number = f[1]
		}
		n, ok := ParseID(number, p.maxID)
		if !ok {
			return nil, fault.New(fault.Policy, "needs a number from 0 to %d", p.maxID)
		}
		id = uint32(n)
	}
	var perm uint16
	for i, c := range []byte(f[2]) {
		if c == "rwx"[i] {
			perm |= 4 >> i
		} else if c != '-' {
			return nil, fault.New(fault.Format, "malformed")
		}
	}
	e := binary.LittleEndian.AppendUint16(nil, tag)
	e = binary.LittleEndian.AppendUint16(e, perm)
	return binary.LittleEndian.AppendUint32(e, id), nil
}

// ParseID reads a user or group id: decimal digits only, 0 … limit.
func ParseID(s string, limit int) (int, bool) {
	if s == "" || len(s) > 10 {
		return 0, false
	}
	n := 0
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	return n, n <= limit
}
