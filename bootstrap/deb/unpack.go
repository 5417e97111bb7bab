// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"os"
	"slices"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/internal/rootfs"
	"github.com/mkmachine/mkmachine/internal/rootfs/tar"
	"github.com/mkmachine/mkmachine/sources"
	archive "github.com/mkmachine/mkmachine/sources/deb"
)

// entry is one member of a package's data archive.
type entry struct {
	rootfs.Entry
	// MD5 of a regular file, in hex, where somebody needs it.
	MD5 string
	// Dropped: another package owns the path now, dpkg takes it off this one's list.
	Dropped bool
}

// listed is the path as dpkg's list files and databases have it: "/usr/bin/x", the top "/.".
func (e *entry) listed() string {
	if e.Path == "" {
		return "/."
	}
	return "/" + e.Path
}

// unpacked is what the helper keeps about a package.
type unpacked struct {
	Package sources.Package
	Order   int
	Key     string // name, or name:arch where Multi-Arch is "same"

	control   *archive.Control
	members   map[string]archive.ControlFile
	entries   []entry
	conffiles []conffile

	interests, activations []trigger
	replaces               []archive.Alternative
	conffile               map[string]int // path without the leading slash to index in conffiles
	held                   bool           // the data waits for release
	blob                   *os.File       // its .deb or pack
	src                    source
}

// source gives the data of a package, any number of times: its .deb or its pack.
type source interface {
	// each calls visit for every entry in order. put writes the entry to the tree.
	each(ctx context.Context, u *rootfs.Unpacker, visit func(e *rootfs.Entry, put putFunc) error) error
}

// putFunc writes the entry of a visit. When sum is set it is fed the bytes of the file.
type putFunc func(sum hash.Hash) error

// read takes over the control archive, after checking it against what the index promised.
func (u *unpacked) read(control *archive.Control, files map[string]archive.ControlFile, conffiles []archive.Conffile) error {
	for _, want := range [][2]string{
		{"Package", u.Package.Name}, {"Version", u.Package.Version}, {"Architecture", u.Package.Arch},
	} {
		if got := control.Value(want[0]); got != want[1] {
			return fault.New(fault.Verify, "%s is %q, the index says %q", want[0], got, want[1])
		}
	}
	u.control, u.members = control, files
	u.Key = u.Package.Name
	if control.Value("Multi-Arch") == "same" {
		u.Key += ":" + u.Package.Arch
	}
	u.conffile = make(map[string]int, len(conffiles))
	for i, c := range conffiles {
		u.conffiles = append(u.conffiles, conffile{Conffile: c})
		u.conffile[c.Path[1:]] = i
	}
	var err error
	if u.replaces, err = archive.ParseRelations(control.Value("Replaces")); err != nil {
		return err
	}
	u.interests, u.activations, err = parseTriggers(files["triggers"].Data)
	return err
}

func (u *unpacked) has(member string) bool { _, ok := u.members[member]; return ok }

// debSource reads a .deb.
type debSource struct{ deb *archive.Deb }

func (d debSource) each(ctx context.Context, u *rootfs.Unpacker, visit func(*rootfs.Entry, putFunc) error) (err error) {
	data, err := d.deb.Data()
	if err != nil {
		return err
	}
	defer func() {
		if cerr := data.Close(); err == nil {
			err = cerr
		}
	}()
	r := tar.NewReader(data, tar.Limits{})
	for n := 0; ; n++ {
		if n%64 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		h, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		e, err := u.Check(h)
		if err != nil {
			return err
		}
		put := func(sum hash.Hash) error {
			next := r.Chunk
			if sum != nil {
				next = func() ([]byte, error) {
					b, err := r.Chunk()
					sum.Write(b)
					return b, err
				}
			}
			e := *e
			return u.Add(ctx, &e, next)
		}
		if err := visit(e, put); err != nil {
			return err
		}
	}
}

// unpacker makes one for a package: conffiles get their temporary name, diverted files
// the path that they were diverted to.
func (s *server) unpacker(session *rootfs.Session, u *unpacked) *rootfs.Unpacker {
	return session.NewUnpacker(&rootfs.UnpackOptions{
		Order: u.Order,
		Rename: func(path string) string {
			if d, ok := s.diverted[path]; ok && d.Package != u.Package.Name {
				path = d.To[1:]
			}
			if _, ok := u.conffile[path]; ok {
				path += ".dpkg-new"
			}
			return path
		},
	})
}

// unpack writes a package into the tree. What another package has claimed is left for settle.
func (s *server) unpack(ctx context.Context, u *unpacked) error {
	w := s.unpacker(s.session, u)
	defer w.Close()
	return u.src.each(ctx, w, func(e *rootfs.Entry, put putFunc) error {
		if err := checkEntry(e); err != nil {
			return err
		}
		u.entries = append(u.entries, entry{Entry: *e})
		at := &u.entries[len(u.entries)-1]
		if !s.claim(u, at) {
			return nil
		}
		return u.write(at, put)
	})
}

// write puts an entry into the tree and takes its digest where dpkg would record one.
func (u *unpacked) write(e *entry, put putFunc) error {
	if e.Type != rootfs.File {
		return put(nil)
	}
	i, isConffile := u.conffile[e.Path]
	if !isConffile && u.has("md5sums") {
		return put(nil)
	}
	sum := md5.New()
	if err := put(sum); err != nil {
		return err
	}
	digest := hex.EncodeToString(sum.Sum(nil))
	if isConffile {
		u.conffiles[i].MD5 = digest
	} else {
		e.MD5 = digest
	}
	return nil
}

// checkEntry refuses what a package must not have beyond the rules of rootfs.
func checkEntry(e *rootfs.Entry) error {
	switch e.Type {
	case rootfs.File, rootfs.Dir, rootfs.Symlink, rootfs.Hardlink:
	default:
		return fault.New(fault.Policy, "entry %q is a device or a FIFO", e.Path)
	}
	if slices.Contains([]byte(e.Path), '\n') {
		return fault.New(fault.Format, "entry %q has a newline in its name", e.Path)
	}
	return nil
}

func (u *unpacked) String() string { return fmt.Sprintf("%s %s", u.Key, u.Package.Version) }
