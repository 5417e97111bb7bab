// SPDX-License-Identifier: Apache-2.0

package rootfs

import (
	"bytes"
	"context"
	"fmt"
	"hash"
	"io"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// FileRange is a part of an open file on the host: the body of a packed file.
type FileRange struct {
	File   *os.File
	Offset int64 // bytes
	Size   int64
}

// WriteFile writes a regular file whose body is a range of another file: shared by
// FICLONERANGE where both are on one file system that can and the range begins on a block
// border, else copied in the kernel, else read and written. A slower way is an event, once.
// The sum given to Done is nil.
func (u *Unpacker) WriteFile(ctx context.Context, e *Entry, src FileRange) error {
	if e.Type != File || e.Size != src.Size || e.Sparse != nil {
		return cannot("unpack", e.Path, fault.New(fault.Internal, "entry and range do not fit"))
	}
	defer runtime.KeepAlive(src.File)
	from := int(src.File.Fd())
	return cannot("unpack", e.Path, u.put(ctx, e, func(fd int, e *Entry) error {
		return u.writeRange(ctx, fd, from, src)
	}))
}

// Sizes in bytes. A clone costs as much as writing some hundred kilobytes, measured on btrfs.
const (
	cloneBlock = 4096
	cloneFrom  = 128 << 10
	copyBuffer = 256 << 10
)

func (u *Unpacker) writeRange(ctx context.Context, fd, from int, src FileRange) error {
	done := int64(0)
	if src.Size >= cloneFrom && u.canClone() {
		if src.Offset%cloneBlock != 0 {
			u.noClone("a packed file does not begin on a block border")
		} else {
			done = src.Size &^ (cloneBlock - 1)
			err := unix.IoctlFileCloneRange(fd, &unix.FileCloneRange{
				Src_fd: int64(from), Src_offset: uint64(src.Offset), Src_length: uint64(done)})
			if err != nil {
				if err == unix.ENOSPC || err == unix.EDQUOT || err == unix.EIO {
					return err
				}
				done = 0
				u.noClone(fmt.Sprintf("files are copied, not shared: %v", err))
			}
		}
	}
	if u.buf == nil {
		u.buf = make([]byte, copyBuffer)
	}
	for done < src.Size {
		if err := ctx.Err(); err != nil {
			return err
		}
		left := src.Size - done
		var n int
		var err error
		if left > copyBuffer && !u.s.noCopyRange.Load() {
			in := src.Offset + done
			out := done
			n, err = unix.CopyFileRange(from, &in, fd, &out, int(min(left, 1<<30)), 0)
			if err != nil && err != unix.EINTR && err != unix.ENOSPC && err != unix.EDQUOT && err != unix.EIO {
				u.s.noCopyRange.Store(true)
				u.s.fallback(fmt.Sprintf("files are read and written, not copied in the kernel: %v", err))
				continue
			}
		} else {
			n, err = unix.Pread(from, u.buf[:min(left, copyBuffer)], src.Offset+done)
			if err == nil && n > 0 {
				err = pwriteAll(fd, u.buf[:n], done)
			}
		}
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return fault.New(fault.State, "the packed file ends %d bytes early", left)
		}
		done += int64(n)
	}
	return nil
}

func (u *Unpacker) canClone() bool { return !u.s.noCloneRange.Load() }

func (u *Unpacker) noClone(reason string) {
	u.s.noCloneRange.Store(true)
	u.s.fallback(reason)
}

// writeBody writes the pieces that next returns.
func (u *Unpacker) writeBody(ctx context.Context, fd int, e *Entry, next func() ([]byte, error)) error {
	w := fileWriter{fd: fd, holes: u.o.Holes, extents: e.Sparse, sparse: e.Sparse != nil, hash: u.hash}
	want := e.Size
	if w.sparse {
		want = 0
		for _, x := range e.Sparse {
			want += x.Length
		}
	}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		b, err := next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if want -= int64(len(b)); want < 0 {
			return fault.New(fault.Format, "body is longer than its entry says")
		}
		if err := w.write(ctx, b); err != nil {
			return err
		}
	}
	if want != 0 {
		return fault.New(fault.Format, "body is shorter than its entry says")
	}
	if !w.sparse && !w.holes {
		return nil
	}
	if err := w.hashZeros(ctx, e.Size); err != nil {
		return err
	}
	return unix.Ftruncate(fd, e.Size)
}

// fileWriter writes a stream into a new file, leaving holes.
type fileWriter struct {
	fd      int
	off     int64
	holes   bool
	sparse  bool
	extents []Extent
	in      int64 // bytes of extents[0] already written
	hash    hash.Hash
	hashed  int64 // bytes of the file already in hash
}

// holeBlock is the unit in which zeros are looked for.
const holeBlock = 32 << 10

var zeroBlock [holeBlock]byte

func (w *fileWriter) write(ctx context.Context, b []byte) error {
	for len(b) > 0 {
		piece := b
		if w.sparse {
			for len(w.extents) > 0 && w.in == w.extents[0].Length {
				w.extents, w.in = w.extents[1:], 0
			}
			if len(w.extents) == 0 {
				return fault.New(fault.Format, "body is longer than its sparse map")
			}
			x := w.extents[0]
			piece = b[:min(int64(len(b)), x.Length-w.in)]
			w.off = x.Offset + w.in
			w.in += int64(len(piece))
		}
		b = b[len(piece):]
		if err := w.hashZeros(ctx, w.off); err != nil {
			return err
		}
		if w.hash != nil {
			w.hash.Write(piece)
			w.hashed += int64(len(piece))
		}
		if err := w.region(piece); err != nil {
			return err
		}
	}
	return nil
}

// hashZeros hashes the hole before the offset to: readers see it as zeros.
func (w *fileWriter) hashZeros(ctx context.Context, to int64) error {
	for w.hash != nil && w.hashed < to {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(to-w.hashed, holeBlock)
		w.hash.Write(zeroBlock[:n])
		w.hashed += n
	}
	return nil
}

// region writes one run of data at w.off, without its whole blocks of zeros.
func (w *fileWriter) region(b []byte) error {
	if !w.holes {
		err := pwriteAll(w.fd, b, w.off)
		w.off += int64(len(b))
		return err
	}
	start := 0 // of data not yet written
	for i := 0; i < len(b); {
		n := min(holeBlock-int((w.off+int64(i))%holeBlock), len(b)-i)
		if n == holeBlock && bytes.Equal(b[i:i+n], zeroBlock[:]) {
			if err := pwriteAll(w.fd, b[start:i], w.off+int64(start)); err != nil {
				return err
			}
			start = i + n
		}
		i += n
	}
	err := pwriteAll(w.fd, b[start:], w.off+int64(start))
	w.off += int64(len(b))
	return err
}

func pwriteAll(fd int, b []byte, off int64) error {
	for len(b) > 0 {
		n, err := unix.Pwrite(fd, b, off)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		b, off = b[n:], off+int64(n)
	}
	return nil
}
