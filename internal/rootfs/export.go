// SPDX-License-Identifier: Apache-2.0

package rootfs

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/event"
	"github.com/mkmachine/mkmachine/internal/fault"
)

// ExportTar writes the tree as a tar archive that depends on nothing but the tree: names
// in walking order below "./", numeric owners without names, whole seconds (rounded down),
// no times of access or change, the later names of a file as hard links, PAX records only
// for what ustar cannot say (xattrs, long names, big numbers). Sockets are left out, each
// as an event of sp, which may be nil.
func (r *Root) ExportTar(ctx context.Context, w io.Writer, sp *event.Span) error {
	nodes, err := r.scan(ctx, "", scanOptions{links: true, xattrs: true})
	if err != nil {
		return err
	}
	var total int64
	for i := range nodes {
		if n := &nodes[i]; n.Type == File && n.First == "" {
			total += n.Size
		}
	}
	sp.Expect(total, "bytes")
	e := &exporter{tw: tar.NewWriter(w), dirs: newDirCache(r, nil), sp: sp, buf: make([]byte, copyBuffer)}
	defer e.dirs.close()
	for i := range nodes {
		if err := e.node(ctx, &nodes[i]); err != nil {
			return cannot("export", nodes[i].Path, err)
		}
	}
	if err := e.tw.Close(); err != nil {
		return fmt.Errorf("cannot export tree: %w", err)
	}
	return nil
}

type exporter struct {
	tw   *tar.Writer
	dirs *dirCache
	sp   *event.Span
	buf  []byte
}

func (e *exporter) node(ctx context.Context, n *Node) error {
	h := &tar.Header{Name: "./" + n.Path, Mode: int64(n.Mode), Uid: n.UID, Gid: n.GID, ModTime: time.Unix(n.ModTime, 0)}
	switch {
	case n.Type == Socket:
		e.sp.Note(fmt.Sprintf("socket left out: /%s", n.Path))
		return nil
	case n.First != "":
		h.Typeflag, h.Linkname = tar.TypeLink, "./"+n.First
		return e.tw.WriteHeader(h)
	case n.Type == File:
		h.Typeflag, h.Size = tar.TypeReg, n.Size
	case n.Type == Dir:
		h.Typeflag = tar.TypeDir
		if n.Path != "" {
			h.Name += "/"
		}
	case n.Type == Symlink:
		h.Typeflag, h.Linkname = tar.TypeSymlink, n.Link
	case n.Type == Char:
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeChar, int64(n.Major), int64(n.Minor)
	case n.Type == Block:
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeBlock, int64(n.Major), int64(n.Minor)
	case n.Type == Fifo:
		h.Typeflag = tar.TypeFifo
	}
	for _, x := range n.Xattrs {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+x.Name] = string(x.Value)
	}
	if err := e.tw.WriteHeader(h); err != nil {
		return err
	}
	if n.Type != File || n.Size == 0 {
		return nil
	}
	return e.content(ctx, n)
}

func (e *exporter) content(ctx context.Context, n *Node) error {
	dir, base := split(n.Path)
	d, err := e.dirs.get(dir, false)
	if err != nil {
		return err
	}
	fd, err := unix.Openat(d.fd, base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Ino != n.Ino || st.Size != n.Size {
		return fault.New(fault.State, "changed while it was exported")
	}
	for left := n.Size; left > 0; {
		if err := ctx.Err(); err != nil {
			return err
		}
		m, err := unix.Read(fd, e.buf[:min(left, copyBuffer)])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if m == 0 {
			return fault.New(fault.State, "became shorter while it was exported")
		}
		if _, err := e.tw.Write(e.buf[:m]); err != nil {
			return err
		}
		left -= int64(m)
		e.sp.Add(int64(m))
	}
	return nil
}
