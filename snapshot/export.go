// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"errors"
	"io"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/internal/rootfs"
)

// VerifyReport is the result of Verify.
type VerifyReport struct {
	Name string `json:"name"`
	Want string `json:"want"` // digest when it was published
	Have string `json:"have"` // digest now
	OK   bool   `json:"ok"`
}

// Verify reads the whole tree of a template and compares it with the digest that was
// recorded when it was published. A difference is fault.Verify, beside the report. An image
// without a recorded digest, like every machine, is fault.State.
func (s *Store) Verify(ctx context.Context, name string) (_ VerifyReport, err error) {
	r := VerifyReport{Name: name}
	img, err := s.Image(name)
	if err != nil {
		return r, err
	}
	if img.Meta == nil || img.Meta.Manifest == "" {
		return r, fault.Hint(fault.New(fault.State, "cannot verify %q: no digest was recorded for it", name),
			"only templates that mkmachine built can be verified")
	}
	r.Want = img.Meta.Manifest
	sp := s.sink.Start("verify", name)
	defer func() { sp.End(err) }()
	dir, release, err := s.look(ctx, img)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, release()) }()
	root, err := rootfs.Open(dir)
	if err != nil {
		return r, err
	}
	defer root.Close()
	m, err := root.Manifest(ctx)
	if err != nil {
		return r, err
	}
	r.Have = m.Digest()
	if r.OK = r.Have == r.Want; !r.OK {
		return r, fault.Hint(fault.New(fault.Verify, "cannot verify %q: the tree has digest %s, %s was published", name, r.Have, r.Want),
			"build it again: mkmachine build %s", img.Meta.Recipe)
	}
	return r, nil
}

// look makes a tree readable: without locks where this process may only look.
func (s *Store) look(ctx context.Context, img *Image) (dir string, release func() error, err error) {
	if !s.readOnly {
		return s.Mount(ctx, img.Name)
	}
	if img.Kind != Directory && img.Kind != Subvolume {
		return "", nil, s.writable("mount " + img.Name)
	}
	return img.Path, func() error { return nil }, nil
}

// Export writes the tree of an image to w as a tar archive that depends on nothing but the
// tree: names in order, numeric owners, no times but those of modification. A machine must
// not run meanwhile, except on btrfs, where a snapshot of it is written.
func (s *Store) Export(ctx context.Context, name string, w io.Writer, format string) (err error) {
	if format != "tar" {
		return fault.New(fault.Config, "cannot export %q as %q: the format is tar", name, format)
	}
	img, err := s.Image(name)
	if err != nil {
		return err
	}
	if img.Kind == Raw {
		return fault.New(fault.Host, "cannot export %q: it is a disk image", name)
	}
	sp := s.sink.Start("export", name)
	defer func() { sp.End(err) }()
	dir, release, err := s.still(ctx, img)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	root, err := rootfs.Open(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return root.ExportTar(ctx, w, sp)
}

// still makes a tree readable that does not change while it is read.
func (s *Store) still(ctx context.Context, img *Image) (dir string, release func() error, err error) {
	if s.readOnly || img.ReadOnly || !s.snapshots(img) {
		return s.look(ctx, img)
	}
	l, err := s.Ephemeral(ctx, img.Name, &EphemeralOptions{KeepIdentity: true})
	if err != nil {
		return "", nil, err
	}
	return l.Tree.Dir, func() error { return l.Close(context.WithoutCancel(ctx)) }, nil
}
