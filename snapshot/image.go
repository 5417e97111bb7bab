// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// Kind is what an image is on disk.
type Kind string

// The kinds of image.
const (
	Directory Kind = "directory" // a directory, or a link to one
	Subvolume Kind = "subvolume" // a btrfs subvolume
	Stack     Kind = "mstack"    // NAME.mstack/: layers and changes, an overlay
	Raw       Kind = "raw"       // NAME.raw: a disk image
)

// Role is what an image is for.
type Role string

// The roles.
const (
	Template Role = "template" // complete, read-only, to be copied
	Machine  Role = "machine"  // writable, with an identity of its own
)

const (
	stackSuffix = ".mstack"
	rawSuffix   = ".raw"
)

// Meta is what is recorded with an image. It is kept outside the tree, under the identity of
// what has the name, so that it follows an image that other tools rename.
type Meta struct {
	Schema  int       `json:"schema"`
	ID      string    `json:"id"`   // a UUID, of this image
	Name    string    `json:"name"` // when it was made
	Role    Role      `json:"role"`
	Created time.Time `json:"created"`
	Engine  string    `json:"engine,omitempty"` // version of the program that made it

	Recipe   string   `json:"recipe,omitempty"`   // name of the recipe
	Lock     string   `json:"lock,omitempty"`     // SHA-256 of the lock, hexadecimal
	Layers   []string `json:"layers,omitempty"`   // keys, the base first
	Manifest string   `json:"manifest,omitempty"` // digest of the tree, as Verify computes it
	Size     int64    `json:"size,omitempty"`     // bytes of all regular files; 0 unknown
	Arch     string   `json:"arch,omitempty"`     // the distribution's own name
	Packages int      `json:"packages,omitempty"` // how many
	// Date is that of the archive the tree was made from.
	Date     time.Time `json:"date,omitzero"`
	SignedBy []string  `json:"signed_by,omitempty"` // fingerprints of keys
	Verified string    `json:"verified,omitempty"`  // how the contents were verified: "signed", …
	Taints   []string  `json:"taints,omitempty"`    // reasons not to trust it

	Source   string `json:"source,omitempty"`    // the image it was cloned from, by name then
	SourceID string `json:"source_id,omitempty"` // and by ID
	ReadOnly bool   `json:"read_only,omitempty"` // where the file system has no mark for it
}

const metaSchema = 1

// Image is a template or a machine in the machines directory.
type Image struct {
	Name     string    `json:"name"`
	Path     string    `json:"path"`
	Kind     Kind      `json:"kind"`
	Role     Role      `json:"role"`
	ReadOnly bool      `json:"read_only"`
	Created  time.Time `json:"created,omitzero"`
	Size     int64     `json:"size"`           // bytes; -1 where finding out takes long
	Meta     *Meta     `json:"meta,omitempty"` // nil: made by another tool
	Note     string    `json:"note,omitempty"` // something that could not be found out, and why

	// tree is the id in trees/ that a template of this program is a link to, or "".
	tree string
	// identity is the key of Meta.
	identity string
}

// Images lists the images, sorted by name: ours and those of machinectl or debootstrap.
// Hidden ones are left out.
func (s *Store) Images() ([]Image, error) {
	if s.root == nil {
		return nil, nil
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fault.New(fault.Host, "cannot list images: %w", err)
	}
	var out []Image
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		img, err := s.read(e.Name())
		if errors.Is(err, os.ErrNotExist) {
			continue // gone, or not an image
		}
		if err != nil {
			return nil, err
		}
		out = append(out, *img)
	}
	slices.SortFunc(out, func(a, b Image) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// Image finds an image by name. The error is fault.State where there is none.
func (s *Store) Image(name string) (*Image, error) {
	if err := checkOldName(name); err != nil {
		return nil, err
	}
	for _, suffix := range []string{"", stackSuffix, rawSuffix} {
		if s.root == nil {
			break
		}
		img, err := s.read(name + suffix)
		if errors.Is(err, os.ErrNotExist) || err == nil && img.Name != name {
			continue
		}
		return img, err
	}
	return nil, fault.Hint(fault.New(fault.State, "cannot find image %q in %s", name, s.dir), "mkmachine list")
}

// read looks at an entry of the machines directory; os.ErrNotExist when it is no image.
func (s *Store) read(file string) (*Image, error) {
	path := s.path(file)
	img := &Image{Name: file, Path: path, Kind: Directory, Size: -1}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil, fmt.Errorf("cannot read image %s: %w", path, err)
	}
	real := path
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFREG && strings.HasSuffix(file, rawSuffix):
		img.Kind, img.Name = Raw, strings.TrimSuffix(file, rawSuffix)
		img.Size = st.Blocks * 512
		img.ReadOnly = st.Mode&0o222 == 0
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return nil, fmt.Errorf("cannot read image %s: %w", path, os.ErrNotExist)
	case strings.HasSuffix(file, stackSuffix):
		img.Kind, img.Name = Stack, strings.TrimSuffix(file, stackSuffix)
		_, err := os.Lstat(filepath.Join(path, stackUpper))
		img.ReadOnly = err != nil
	default:
		if fi, err := os.Lstat(path); err == nil && fi.Mode().Type() == os.ModeSymlink {
			img.tree = treeOf(path)
			if real, err = filepath.EvalSymlinks(path); err != nil {
				return nil, fmt.Errorf("cannot read image %s: %w", path, err)
			}
		}
		if isSubvolume(real) {
			img.Kind = Subvolume
		}
		img.ReadOnly = treeReadOnly(real)
	}
	if img.Name == "" {
		return nil, fmt.Errorf("cannot read image %s: %w", path, os.ErrNotExist)
	}
	return img, s.describe(img, real)
}

// treeOf is the id of the tree that the link at path leads to, or "".
func treeOf(path string) string {
	target, err := os.Readlink(path)
	if err != nil {
		return ""
	}
	id, ok := strings.CutPrefix(target, treesDir+"/")
	if !ok || !treeID(id) {
		return ""
	}
	return id
}

// describe adds what the record says, or what can be guessed without one.
func (s *Store) describe(img *Image, real string) error {
	var err error
	if img.identity, err = identify(img.Path); err != nil {
		return err
	}
	img.Meta, err = s.readMeta(img.identity)
	switch {
	case err == nil:
		m := img.Meta
		img.Role, img.Created = m.Role, m.Created
		img.ReadOnly = img.ReadOnly || m.ReadOnly
		if m.Size > 0 && img.Size < 0 {
			img.Size = m.Size
		}
		return nil
	case errors.Is(err, os.ErrPermission):
		img.Note = "its record is readable by root only"
	case !errors.Is(err, os.ErrNotExist):
		img.Note = err.Error()
	}
	img.Role = Machine
	if img.ReadOnly {
		img.Role = Template
	}
	var st unix.Statx_t
	if unix.Statx(unix.AT_FDCWD, real, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BTIME, &st) == nil && st.Mask&unix.STATX_BTIME != 0 {
		img.Created = time.Unix(st.Btime.Sec, int64(st.Btime.Nsec)).UTC()
	}
	return nil
}

func metaFile(identity string) string { return filepath.Join("meta", identity+".json") }

func (s *Store) readMeta(identity string) (*Meta, error) {
	data, err := os.ReadFile(s.state(metaFile(identity)))
	if err != nil {
		return nil, fmt.Errorf("cannot read record: %w", err)
	}
	var m Meta
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("cannot read record %s: %w", metaFile(identity), err)
	}
	if m.Schema != metaSchema {
		return nil, fmt.Errorf("cannot read record %s: schema %d is unknown", metaFile(identity), m.Schema)
	}
	return &m, nil
}

func (s *Store) writeMeta(identity string, m *Meta) error {
	m.Schema = metaSchema
	return s.writeState(metaFile(identity), m)
}

// forms are the entries of the machines directory that an image of this name could be.
func forms(name string) []string { return []string{name, name + stackSuffix, name + rawSuffix} }

// free makes sure that no image has this name.
func (s *Store) free(name string) error {
	for _, f := range forms(name) {
		_, err := os.Lstat(s.path(f))
		if err == nil {
			return fault.Hint(fault.New(fault.State, "cannot make %q: %s exists already", name, s.path(f)),
				"use another name, or: mkmachine remove %s", name)
		}
		if !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("cannot make %q: %w", name, err)
		}
	}
	return nil
}
