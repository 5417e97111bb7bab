// SPDX-License-Identifier: Apache-2.0

package rootfs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// Manifest describes a whole tree.
type Manifest struct {
	Nodes []Node // every file, regular ones with their content's SHA-256, in walking order
}

// Manifest reads the whole tree.
func (r *Root) Manifest(ctx context.Context) (*Manifest, error) {
	// Each name of a file is hashed: names of one file are known only at the end, and few.
	pool := sync.Pool{New: func() any { b := make([]byte, 128<<10); return &b }}
	nodes, err := r.scan(ctx, "", scanOptions{links: true, xattrs: true, file: func(n *Node, fd int) error {
		buf := pool.Get().(*[]byte)
		defer pool.Put(buf)
		sum, err := hashFile(ctx, fd, n.Size, *buf)
		n.SHA256 = sum
		return err
	}})
	if err != nil {
		return nil, err
	}
	return &Manifest{nodes}, nil
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

// Digest is the SHA-256, in lower-case hex, of the manifest's canonical form (see Format).
// Two trees with the same digest have the same names, types, modes, owners, times,
// contents, link targets, hard links, device numbers and kept xattrs.
func (m *Manifest) Digest() string {
	h := sha256.New()
	m.Format(h) //nolint:errcheck // a hash does not fail
	return hex.EncodeToString(h.Sum(nil))
}

// Digest reads the whole tree and returns the digest of its manifest.
func (r *Root) Digest(ctx context.Context) (string, error) {
	m, err := r.Manifest(ctx)
	if err != nil {
		return "", err
	}
	return m.Digest(), nil
}

// Format writes one line per node:
//
//	PATH TYPE MODE UID GID SIZE TIME [sha256=…] [link=…] [rdev=MAJOR:MINOR] [same=PATH] [xattr NAME=HEX]…
//
// Paths and targets are quoted as Go strings. Sizes of directories are left out, they
// depend on the file system; times have nanoseconds only where they are not zero.
func (m *Manifest) Format(w io.Writer) error {
	var b []byte
	for i := range m.Nodes {
		n := &m.Nodes[i]
		b = append(n.appendAttributes(strconv.AppendQuote(b[:0], "/"+n.Path)), '\n')
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
	return nil
}

// appendAttributes appends everything but the path, each with a space before it.
func (n *Node) appendAttributes(b []byte) []byte {
	b = fmt.Appendf(b, " %c %04o %d %d", n.Type, n.Mode, n.UID, n.GID)
	if n.Type == File {
		b = strconv.AppendInt(append(b, ' '), n.Size, 10)
	} else {
		b = append(b, " -"...)
	}
	b = strconv.AppendInt(append(b, ' '), n.ModTime, 10)
	if n.ModNano != 0 {
		b = fmt.Appendf(b, ".%09d", n.ModNano)
	}
	switch n.Type {
	case File:
		if n.SHA256 != "" {
			b = append(append(b, " sha256="...), n.SHA256...)
		}
	case Symlink:
		b = strconv.AppendQuote(append(b, " link="...), n.Link)
	case Char, Block:
		b = fmt.Appendf(b, " rdev=%d:%d", n.Major, n.Minor)
	}
	if n.First != "" {
		b = strconv.AppendQuote(append(b, " same="...), "/"+n.First)
	}
	for _, x := range n.Xattrs {
		b = fmt.Appendf(b, " xattr %q=%x", x.Name, x.Value)
	}
	return b
}

// DiffManifests lists the differences of two trees as text, at most limit of them, one per
// line without a newline behind the last: "- PATH …" only in a, "+ PATH …" only in b, and
// both lines for a file that differs. It is "" where there is no difference.
func DiffManifests(a, b *Manifest, limit int) string {
	var lines []string
	count := 0
	add := func(ls ...string) {
		if count++; count <= limit {
			lines = append(lines, ls...)
		}
	}
	text := func(sign string, n *Node) string {
		return sign + string(n.appendAttributes(strconv.AppendQuote(nil, "/"+n.Path)))
	}
	for i, j := 0, 0; i < len(a.Nodes) || j < len(b.Nodes); {
		order := 0
		switch {
		case i == len(a.Nodes):
			order = 1
		case j == len(b.Nodes):
			order = -1
		default:
			order = comparePaths(a.Nodes[i].Path, b.Nodes[j].Path)
		}
		switch {
		case order < 0:
			add(text("- ", &a.Nodes[i]))
			i++
		case order > 0:
			add(text("+ ", &b.Nodes[j]))
			j++
		default:
			if was, is := text("- ", &a.Nodes[i]), text("+ ", &b.Nodes[j]); was[1:] != is[1:] {
				add(was, is)
			}
			i, j = i+1, j+1
		}
	}
	if count > limit {
		lines = append(lines, fmt.Sprintf("and %d more", count-limit))
	}
	return strings.Join(lines, "\n")
}

// Tree is the tree as text for tests and people, one line per file without times:
//
//	/etc/shadow file 0640 0:42 1a2b3c4d
//	/bin symlink usr/bin
func (r *Root) Tree(ctx context.Context) (string, error) {
	m, err := r.Manifest(ctx)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for i := range m.Nodes {
		n := &m.Nodes[i]
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
