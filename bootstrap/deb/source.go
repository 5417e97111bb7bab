// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"hash"
	"io"
	"path"
	"strings"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/internal/rootfs"
	"github.com/mkmachine/mkmachine/internal/rootfs/tar"
	archive "github.com/mkmachine/mkmachine/sources/deb"
)

// source gives the data of a package, any number of times: its .deb or its pack.
type source interface {
	// each calls visit for every entry in order. put writes the entry to the tree through w
	// and sets its MD5 where dpkg records one; an entry that is not put is passed over.
	each(ctx context.Context, w *rootfs.Unpacker, visit func(e *entry, put func() error) error) error
}

// entry is one member of a package's data archive.
type entry struct {
	rootfs.Entry
	// MD5 of a conffile, or of any file of a package without md5sums, in hex.
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

// check refuses what a package must not have, beyond the rules of rootfs.
func (e *entry) check() error {
	switch e.Type {
	case rootfs.File, rootfs.Dir, rootfs.Symlink, rootfs.Hardlink:
	default:
		return fault.New(fault.Policy, "entry %q is a device or a FIFO", e.Path)
	}
	if e.Sparse != nil {
		return fault.New(fault.Format, "entry %q is a sparse file, which packages cannot have", e.Path)
	}
	if strings.IndexByte(e.Path, '\n') >= 0 {
		return fault.New(fault.Format, "entry %q has a newline in its name", e.Path)
	}
	return nil
}

// debSource reads a .deb, and keeps what it reads in a pack when there is one to fill.
type debSource struct {
	deb  *archive.Deb
	u    *unpacked
	pack *packWriter
}

// openDeb reads the control archive of u's .deb.
func (s *server) openDeb(u *unpacked) error {
	st, err := u.blob.Stat()
	if err != nil {
		return err
	}
	d, err := archive.ReadDeb(u.blob, st.Size(), &archive.DebOptions{Name: path.Base(u.Package.Path), Pool: &s.pool})
	if err != nil {
		return err
	}
	u.src = &debSource{deb: d, u: u}
	return u.read(d.Files)
}

func (d *debSource) each(ctx context.Context, w *rootfs.Unpacker, visit func(*entry, func() error) error) (err error) {
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
		checked, err := w.Check(h)
		if err != nil {
			return err
		}
		e := &entry{Entry: *checked}
		body := d.body(e, r)
		err = visit(e, func() error {
			moving := e.Entry // Add changes the path
			err := w.Add(ctx, &moving, body.next)
			e.MD5 = body.digest()
			return err
		})
		if err == nil && d.pack != nil {
			err = body.drain()
			e.MD5 = body.digest()
			d.pack.add(e)
		}
		if err != nil {
			return err
		}
	}
}

// body is the content of one entry on its way to the tree, the pack and a digest.
type body struct {
	chunk func() ([]byte, error)
	sum   hash.Hash
	pack  *packWriter
}

func (d *debSource) body(e *entry, r *tar.Reader) *body {
	b := &body{chunk: r.Chunk}
	if e.Type != rootfs.File {
		return b
	}
	if d.pack != nil {
		b.pack = d.pack
		d.pack.begin(e)
	}
	if _, conffile := d.u.conffile[e.Path]; conffile || !d.u.has("md5sums") {
		b.sum = md5.New()
	}
	return b
}

func (b *body) next() ([]byte, error) {
	data, err := b.chunk()
	if err != nil {
		return data, err
	}
	if b.sum != nil {
		b.sum.Write(data)
	}
	if b.pack != nil {
		b.pack.write(data)
	}
	return data, nil
}

func (b *body) drain() error {
	for {
		if _, err := b.next(); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}

func (b *body) digest() string {
	if b.sum == nil {
		return ""
	}
	return hex.EncodeToString(b.sum.Sum(nil))
}
