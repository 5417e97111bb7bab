// SPDX-License-Identifier: Apache-2.0

package rootfs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// Manifest describes a whole tree: every file with its content's SHA-256, in walking order.
func (r *Root) Manifest(ctx context.Context, except func(path string) bool) ([]Node, error) {
	// Each name of a file is hashed: names of one file are known only at the end, and few.
	pool := sync.Pool{New: func() any { b := make([]byte, 128<<10); return &b }}
	return r.scan(ctx, "", scanOptions{links: true, xattrs: true, except: except, file: func(n *Node, fd int) error {
		buf := pool.Get().(*[]byte)
		defer pool.Put(buf)
		sum, err := hashFile(ctx, fd, n.Size, *buf)
		n.SHA256 = sum
		return err
	}})
}

func hashFile(ctx context.Context, fd int, size int64, buf []byte) (string, error) {
	h := sha256.New()
	var total int64
	for {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		n, err := unix.Read(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return "", err
		}
		h.Write(buf[:max(n, 0)])
		if total += int64(n); n == 0 || total >= size && n < len(buf) {
			break
		}
	}
	if total != size {
		return "", fault.New(fault.State, "changed its size while it was read")
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// Digest is the SHA-256, in lower-case hex, of a manifest in its canonical form (see
// FormatManifest). Two trees with the same digest have the same names, types, modes,
// owners, times, contents, link targets, hard links, device numbers and kept xattrs.
func Digest(nodes []Node) string {
	h := sha256.New()
	FormatManifest(h, nodes) //nolint:errcheck // a hash does not fail
	return hex.EncodeToString(h.Sum(nil))
}

// Digest reads the whole tree and returns its digest.
func (r *Root) Digest(ctx context.Context) (string, error) {
	nodes, err := r.Manifest(ctx, nil)
	if err != nil {
		return "", err
	}
	return Digest(nodes), nil
}

// FormatManifest writes one line per node:
//
//	PATH TYPE MODE UID GID SIZE TIME [sha256=…] [link=…] [rdev=MAJOR:MINOR] [same=PATH] [xattr NAME=HEX]…
//
// Paths and targets are quoted as Go strings. Sizes of directories are left out, they
// depend on the file system; times have nanoseconds only where they are not zero.
func FormatManifest(w io.Writer, nodes []Node) error {
	var b []byte
	for i := range nodes {
		n := &nodes[i]
		b = fmt.Appendf(b[:0], "%q %c %04o %d %d", "/"+n.Path, n.Type, n.Mode, n.UID, n.GID)
		if n.Type == File {
			b = fmt.Appendf(b, " %d", n.Size)
		} else {
			b = append(b, " -"...)
		}
		b = fmt.Appendf(b, " %d", n.ModTime)
		if n.ModNano != 0 {
			b = fmt.Appendf(b, ".%09d", n.ModNano)
		}
		switch n.Type {
		case File:
			if n.SHA256 != "" {
				b = append(append(b, " sha256="...), n.SHA256...)
			}
		case Symlink:
			b = fmt.Appendf(b, " link=%q", n.Link)
		case Char, Block:
			b = fmt.Appendf(b, " rdev=%d:%d", n.Major, n.Minor)
		}
		if n.First != "" {
			b = fmt.Appendf(b, " same=%q", "/"+n.First)
		}
		for _, x := range n.Xattrs {
			b = fmt.Appendf(b, " xattr %q=%x", x.Name, x.Value)
		}
		if _, err := w.Write(append(b, '\n')); err != nil {
			return err
		}
	}
	return nil
}

// Tree is the tree as text for tests and people, one line per file without times:
//
//	/etc/shadow file 0640 0:42 1a2b3c4d
//	/bin symlink usr/bin
func (r *Root) Tree(ctx context.Context) (string, error) {
	nodes, err := r.Manifest(ctx, nil)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for i := range nodes {
		n := &nodes[i]
		owner := fmt.Sprintf("%04o %d:%d", n.Mode, n.UID, n.GID)
		fmt.Fprintf(&b, "/%s ", n.Path)
		switch n.Type {
		case File:
			fmt.Fprintf(&b, "file %s %s", owner, n.SHA256[:8])
		case Dir:
			fmt.Fprintf(&b, "dir %s", owner)
		case Symlink:
			fmt.Fprintf(&b, "symlink %s", n.Link)
		case Fifo:
			fmt.Fprintf(&b, "fifo %s", owner)
		case Socket:
			fmt.Fprintf(&b, "socket %s", owner)
		default:
			fmt.Fprintf(&b, "device %c %d:%d %s", n.Type, n.Major, n.Minor, owner)
		}
		if n.First != "" {
			fmt.Fprintf(&b, " = /%s", n.First)
		}
		for _, x := range n.Xattrs {
			fmt.Fprintf(&b, " %s=%x", x.Name, x.Value)
		}
		b.WriteByte('\n')
	}
	return b.String(), nil
}

// Clamp sets every modification time that is later than secs (since 1970) to it, and drops
// fractions of seconds from all others, so that a tree's times do not tell how fast the
// host was or what its file system can store.
func (r *Root) Clamp(ctx context.Context, secs int64) error {
	_, err := r.scan(ctx, "", scanOptions{each: func(n *Node, dir int, name string) error {
		t := min(n.ModTime, secs)
		if t == n.ModTime && n.ModNano == 0 {
			return nil
		}
		if name == "" {
			return futimes(dir, t)
		}
		return lutimes(dir, name, t)
	}})
	return cannot("clamp times of", "/", err)
}
