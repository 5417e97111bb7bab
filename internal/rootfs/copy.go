// SPDX-License-Identifier: Apache-2.0

package rootfs

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/event"
	"github.com/mkmachine/mkmachine/internal/fault"
)

// CopyOptions are the options of Copy.
type CopyOptions struct {
	Span *event.Span // gets bytes done and fallbacks; may be nil
	// Reflink makes it an error (E_HOST) when a file cannot share its blocks.
	Reflink bool
}

// Copy makes dst, an empty directory, the same tree as src: contents, shared by reflink
// where the file system can, holes, hard links, owners, modes, all xattrs that the file
// system takes, exact times, device nodes. Sockets are left out, as an event. Neither tree
// may change meanwhile; mounts inside of src are E_STATE.
func Copy(ctx context.Context, dst, src *Root, o *CopyOptions) error {
	if o == nil {
		o = &CopyOptions{}
	}
	nodes, err := src.scan(ctx, "", scanOptions{links: true, xattrs: true, keep: func(string) bool { return true }})
	if err != nil {
		return err
	}
	c := &copier{dst: dst, src: src, o: o, nodes: nodes}
	c.noClone.Store(dst.dev != src.dev && !sameFileSystem(dst.fd, src.fd))
	if c.noClone.Load() && o.Reflink {
		return fault.New(fault.Host, "cannot copy tree: source and target are on different file systems")
	}
	if err := c.dirs(); err != nil {
		return err
	}
	if err := c.files(ctx); err != nil {
		return err
	}
	return c.finish()
}

// sameFileSystem is true for two subvolumes of one btrfs, whose device numbers differ.
func sameFileSystem(a, b int) bool {
	var x, y unix.Statfs_t
	if unix.Fstatfs(a, &x) != nil || unix.Fstatfs(b, &y) != nil {
		return false
	}
	// The identifier of a btrfs mixes in the subvolume; the kernel has the last word anyway.
	return x.Type == y.Type && (x.Fsid == y.Fsid || x.Type == unix.BTRFS_SUPER_MAGIC)
}

type copier struct {
	dst, src *Root
	o        *CopyOptions
	nodes    []Node
	next     atomic.Int64
	noClone  atomic.Bool
	once     sync.Once
}

// dirs makes all directories, open to us until they are full.
func (c *copier) dirs() error {
	cache := newDirCache(c.dst, nil)
	defer cache.close()
	for i := range c.nodes {
		n := &c.nodes[i]
		if n.Type != Dir || n.Path == "" {
			continue
		}
		dir, base := split(n.Path)
		d, err := cache.get(dir, false)
		if err == nil {
			err = unix.Mkdirat(d.fd, base, 0o700)
		}
		if err != nil {
			return cannot("copy", n.Path, err)
		}
	}
	return nil
}

// chunk is how many nodes a worker takes at once; neighbours share a directory.
const chunk = 64

func (c *copier) files(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), 8) {
		wg.Go(func() {
			w := copyWorker{c: c, from: newDirCache(c.src, nil), to: newDirCache(c.dst, nil), buf: make([]byte, copyBuffer)}
			defer w.from.close()
			defer w.to.close()
			for ctx.Err() == nil {
				end := int(c.next.Add(chunk))
				if end-chunk >= len(c.nodes) {
					return
				}
				for i := end - chunk; i < min(end, len(c.nodes)); i++ {
					n := &c.nodes[i]
					if n.Type == Dir || n.First != "" {
						continue
					}
					if err := w.copy(ctx, n); err != nil {
						cancel(cannot("copy", n.Path, err))
						return
					}
				}
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// finish makes the further names of files, then gives directories their metadata.
func (c *copier) finish() error {
	for i := range c.nodes {
		n := &c.nodes[i]
		if n.First == "" || n.Type == Socket {
			continue
		}
		if err := c.link(n); err != nil {
			return cannot("copy", n.Path, err)
		}
	}
	for i := len(c.nodes) - 1; i >= 0; i-- {
		n := &c.nodes[i]
		if n.Type != Dir {
			continue
		}
		fd, err := c.dst.open(n.Path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
		if err == nil {
			err = copyMeta(fd, n)
			unix.Close(fd)
		}
		if err != nil {
			return cannot("copy", n.Path, err)
		}
	}
	return nil
}

func (c *copier) link(n *Node) error {
	from, name, err := c.dst.parent(n.First)
	if err != nil {
		return err
	}
	defer unix.Close(from)
	to, base, err := c.dst.parent(n.Path)
	if err != nil {
		return err
	}
	defer unix.Close(to)
	return unix.Linkat(from, name, to, base, 0)
}

type copyWorker struct {
	c        *copier
	from, to *dirCache
	buf      []byte
}

func (w *copyWorker) copy(ctx context.Context, n *Node) error {
	dir, base := split(n.Path)
	to, err := w.to.get(dir, false)
	if err != nil {
		return err
	}
	switch n.Type {
	case File:
		from, err := w.from.get(dir, false)
		if err != nil {
			return err
		}
		return w.regular(ctx, n, from.fd, to.fd, base)
	case Symlink:
		err = unix.Symlinkat(n.Link, to.fd, base)
	case Fifo:
		err = unix.Mknodat(to.fd, base, unix.S_IFIFO|0o600, 0)
	case Char:
		err = unix.Mknodat(to.fd, base, unix.S_IFCHR|0o600, int(unix.Mkdev(n.Major, n.Minor)))
	case Block:
		err = unix.Mknodat(to.fd, base, unix.S_IFBLK|0o600, int(unix.Mkdev(n.Major, n.Minor)))
	default:
		w.c.o.Span.Note(fmt.Sprintf("socket left out: /%s", n.Path))
		return nil
	}
	if err != nil {
		return err
	}
	if err := unix.Fchownat(to.fd, base, n.UID, n.GID, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if n.Type != Symlink {
		// The name is ours since a moment ago in a tree that nobody else changes.
		if err := unix.Fchmodat(to.fd, base, n.Mode, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
	}
	t := unix.Timespec{Sec: n.ModTime, Nsec: n.ModNano}
	return unix.UtimesNanoAt(to.fd, base, []unix.Timespec{t, t}, unix.AT_SYMLINK_NOFOLLOW)
}

func (w *copyWorker) regular(ctx context.Context, n *Node, from, to int, base string) (err error) {
	in, err := unix.Openat(from, base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(in)
	out, err := unix.Openat(to, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := unix.Close(out); err == nil && cerr != unix.EINTR {
			err = cerr
		}
	}()
	var st unix.Stat_t
	if err := unix.Fstat(in, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Ino != n.Ino {
		return fault.New(fault.State, "changed while it was copied")
	}
	if n.Size > 0 {
		if err := w.content(ctx, in, out, &st); err != nil {
			return err
		}
		w.c.o.Span.Add(n.Size)
	}
	return copyMeta(out, n)
}

func (w *copyWorker) content(ctx context.Context, in, out int, st *unix.Stat_t) error {
	if !w.c.noClone.Load() {
		err := unix.IoctlFileClone(out, in)
		if err == nil || err == unix.ENOSPC || err == unix.EDQUOT || err == unix.EIO {
			return err
		}
		if w.c.o.Reflink {
			return fault.New(fault.Host, "blocks cannot be shared: %w", err)
		}
		w.c.noClone.Store(true)
		w.c.once.Do(func() { w.c.o.Span.Fallback(fmt.Sprintf("files are copied, not shared: %v", err)) })
	}
	if st.Blocks*512 >= st.Size {
		return w.bytes(ctx, in, out, 0, st.Size)
	}
	if err := unix.Ftruncate(out, st.Size); err != nil {
		return err
	}
	for off := int64(0); off < st.Size; {
		start, err := unix.Seek(in, off, unix.SEEK_DATA)
		if err == unix.ENXIO {
			return nil // a hole to the end
		}
		if err != nil {
			return err
		}
		end, err := unix.Seek(in, start, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if err := w.bytes(ctx, in, out, start, end); err != nil {
			return err
		}
		off = end
	}
	return nil
}

// bytes copies the range [off, end) to the same place. Small files go through the buffer:
// copy_file_range costs more than two calls.
func (w *copyWorker) bytes(ctx context.Context, in, out int, off, end int64) error {
	kernel := end-off > copyBuffer
	for off < end {
		if err := ctx.Err(); err != nil {
			return err
		}
		var n int
		var err error
		if kernel {
			from, to := off, off
			n, err = unix.CopyFileRange(in, &from, out, &to, int(min(end-off, 1<<30)), 0)
			if err == unix.EXDEV || err == unix.EOPNOTSUPP || err == unix.ENOSYS || err == unix.EINVAL {
				kernel = false
				continue
			}
		} else {
			n, err = unix.Pread(in, w.buf[:min(end-off, copyBuffer)], off)
			if err == nil && n > 0 {
				err = pwriteAll(out, w.buf[:n], off)
			}
		}
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return fault.New(fault.State, "became shorter while it was copied")
		}
		off += int64(n)
	}
	return nil
}

// copyMeta is setMeta with the times and attributes of another tree on this host.
func copyMeta(fd int, n *Node) error {
	if err := unix.Fchown(fd, n.UID, n.GID); err != nil {
		return fmt.Errorf("owner %d:%d: %w", n.UID, n.GID, err)
	}
	if err := unix.Fchmod(fd, n.Mode); err != nil {
		return err
	}
	for _, x := range n.Xattrs {
		err := unix.Fsetxattr(fd, x.Name, x.Value, 0)
		if err != nil && keptXattr(x.Name) {
			return fmt.Errorf("attribute %q: %w", x.Name, err)
		}
	}
	return futimesNano(fd, n.ModTime, n.ModNano)
}
