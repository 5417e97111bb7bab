// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"context"
	"fmt"
	"os"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/internal/rootfs"
	"github.com/mkmachine/mkmachine/sources"
	archive "github.com/mkmachine/mkmachine/sources/deb"
)

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

// read takes over the control archive, after checking it against what the index promised.
func (u *unpacked) read(files map[string]archive.ControlFile) error {
	control, err := archive.ParseControl(files["control"].Data)
	if err != nil {
		return err
	}
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
	conffiles, err := archive.ParseConffiles(files["conffiles"].Data)
	if err != nil {
		return err
	}
	u.conffiles, u.conffile = nil, make(map[string]int, len(conffiles))
	for i, c := range conffiles {
		u.conffiles = append(u.conffiles, conffile{Conffile: c})
		u.conffile[c.Path[1:]] = i
	}
	for _, name := range []string{"Depends", "Pre-Depends", "Provides"} {
		if _, err := archive.ParseRelations(control.Value(name)); err != nil {
			return err
		}
	}
	if u.replaces, err = archive.ParseRelations(control.Value("Replaces")); err != nil {
		return err
	}
	u.interests, u.activations, err = parseTriggers(files["triggers"].Data)
	return err
}

func (u *unpacked) has(member string) bool { _, ok := u.members[member]; return ok }

func (u *unpacked) String() string { return u.Key + " " + u.Package.Version }

// unpacker makes one for a package: conffiles get their temporary name, diverted files
// the path that they were diverted to.
func (s *server) unpacker(session *rootfs.Session, u *unpacked) *rootfs.Unpacker {
	return session.NewUnpacker(&rootfs.UnpackOptions{
		Order: u.Order,
		Rename: func(path string) string {
			_, conffile := u.conffile[path]
			if d, ok := s.diverted[path]; ok && d.Package != u.Package.Name {
				path = d.To[1:]
			}
			if conffile {
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
	u.entries = u.entries[:0]
	return u.src.each(ctx, w, func(e *entry, put func() error) error {
		if err := e.check(); err != nil {
			return err
		}
		if s.claim(u, e) {
			if err := put(); err != nil {
				return err
			}
		}
		u.note(e)
		return nil
	})
}

// note records an entry that was passed through.
func (u *unpacked) note(e *entry) {
	u.entries = append(u.entries, *e)
	if i, ok := u.conffile[e.Path]; ok && e.MD5 != "" {
		u.conffiles[i].MD5 = e.MD5
	}
}

func cannotUnpack(u *unpacked, err error) error {
	return fmt.Errorf("cannot unpack %s %s: %w", u.Package.Name, u.Package.Version, err)
}
