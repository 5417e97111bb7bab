// SPDX-License-Identifier: Apache-2.0

package rootfs

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/internal/rootfs/tar"
)

// UnpackOptions are the options of one archive. Zero fields are defaults.
type UnpackOptions struct {
	// Order is the archive's place in the install order, see Session.
	Order      int
	MaxEntries int64 // default 2 000 000
	MaxSize    int64 // bytes of all regular files, holes included; default 16 GiB
	MaxID      int   // highest user and group id; default 65535
	Tar        tar.Limits
	// Strip removes this many leading components of names; entries with fewer are left out.
	Strip int
	// ReplaceDirLinks makes a directory entry replace a symbolic link to a directory.
	// By default the link stays and the entry is about the directory behind it, which is
	// dpkg's rule and what a merged /usr needs.
	ReplaceDirLinks bool
	// Rename, where set, gives a file that is not a directory another clean path
	// (".dpkg-new"); the target of a hard link is asked for too. "" leaves the entry out.
	Rename func(path string) string
	// Done is called after each entry that is in the tree, with the SHA-256 of a regular
	// file where SHA256 is set. The entry must not be kept.
	Done   func(e *Entry, sum []byte)
	SHA256 bool
	// Holes leaves out runs of zeros of at least 32 KiB.
	Holes bool
}

// Stats counts what an Unpacker did.
type Stats struct {
	Entries        int64
	Bytes          int64 // of regular files
	DroppedDevices int64
	DroppedXattrs  int64
	Shadowed       int64 // entries that another archive of the session won
}

// Unpacker writes the entries of one archive. It belongs to one goroutine; several of a
// session work at once.
type Unpacker struct {
	s    *Session
	o    UnpackOptions
	pol  policy
	dirs *dirCache
	st   Stats
	hash hash.Hash
	buf  []byte
	tmp  int
}

// NewUnpacker prepares for one archive; nil options are the defaults.
func (s *Session) NewUnpacker(o *UnpackOptions) *Unpacker {
	u := &Unpacker{s: s, dirs: newDirCache(s.root, s.made)}
	if o != nil {
		u.o = *o
	}
	if u.o.MaxEntries == 0 {
		u.o.MaxEntries = 2_000_000
	}
	if u.o.MaxSize == 0 {
		u.o.MaxSize = 16 << 30
	}
	if u.o.MaxID == 0 {
		u.o.MaxID = 65535
	}
	if u.o.SHA256 {
		u.hash = sha256.New()
	}
	u.pol = policy{maxID: u.o.MaxID, strip: u.o.Strip}
	return u
}

// Stats is what was done so far.
func (u *Unpacker) Stats() Stats { return u.st }

// Close releases the directories that were kept open.
func (u *Unpacker) Close() error {
	u.dirs.close()
	return nil
}

// Tar unpacks a whole archive from src, which must be decompressed.
func (u *Unpacker) Tar(ctx context.Context, src io.Reader) error {
	r := tar.NewReader(src, u.o.Tar)
	for n := 0; ; n++ {
		if n%64 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		h, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("cannot unpack: %w", err)
		}
		e, err := u.pol.entry(h)
		if err != nil {
			return fmt.Errorf("cannot unpack: %w (byte %d of the archive)", err, h.Offset)
		}
		if e == nil {
			continue
		}
		if err := u.add(ctx, e, r.Chunk); err != nil {
			return cannot("unpack", e.Path, err)
		}
	}
}

// Check applies the entry policy to a header: what Tar does before it writes. A nil entry
// without an error is one that Strip removed.
func (u *Unpacker) Check(h *tar.Header) (*Entry, error) { return u.pol.entry(h) }

// Add writes one entry that Check returned. The body of a regular file comes from next, in
// pieces until io.EOF, without the holes of a sparse file; nil means an empty body.
func (u *Unpacker) Add(ctx context.Context, e *Entry, next func() ([]byte, error)) error {
	return cannot("unpack", e.Path, u.add(ctx, e, next))
}

// body writes a file's content to fd.
type body func(fd int, e *Entry) error

func (u *Unpacker) add(ctx context.Context, e *Entry, next func() ([]byte, error)) error {
	return u.put(ctx, e, func(fd int, e *Entry) error {
		if next == nil {
			return nil
		}
		return u.writeBody(ctx, fd, e, next)
	})
}

// put is the way of every entry into the tree.
func (u *Unpacker) put(ctx context.Context, e *Entry, write body) error {
	if err := u.count(e); err != nil {
		return err
	}
	var sum []byte
	var err error
	switch e.Type {
	case Dir:
		err = u.dir(e)
	case Char, Block:
		return u.device(e)
	default:
		if u.o.Rename != nil {
			if e.Path = u.o.Rename(e.Path); e.Path == "" {
				return nil
			}
			if e.Type == Hardlink {
				if e.Link = u.o.Rename(e.Link); e.Link == "" {
					return fault.New(fault.Format, "hard link to an entry that is left out")
				}
			}
		}
		var won bool
		if won, sum, err = u.file(e, write); err == nil && !won {
			u.st.Shadowed++
			return nil
		}
	}
	if err == nil && u.o.Done != nil {
		u.o.Done(e, sum)
	}
	return err
}

func (u *Unpacker) count(e *Entry) error {
	u.st.Entries++
	u.st.DroppedXattrs += int64(e.Dropped)
	if u.st.Entries > u.o.MaxEntries {
		return fault.New(fault.Limit, "more than %d entries", u.o.MaxEntries)
	}
	if e.Size > u.o.MaxSize-u.st.Bytes {
		return fault.New(fault.Limit, "more than %d bytes of files", u.o.MaxSize)
	}
	u.st.Bytes += e.Size
	return nil
}

// device drops device nodes where every runner makes its own, and refuses others.
func (u *Unpacker) device(e *Entry) error {
	if dir, _ := split(e.Path); dir != "dev" && !hasPrefixDir(e.Path, "dev") {
		return fault.New(fault.Policy, "device node outside of dev/")
	}
	u.st.DroppedDevices++
	return nil
}

func hasPrefixDir(path, dir string) bool {
	return len(path) > len(dir) && path[:len(dir)] == dir && path[len(dir)] == '/'
}

func (u *Unpacker) dir(e *Entry) error {
	if e.Path == "" {
		d, err := u.dirs.get("", false)
		if err == nil {
			u.s.shipped(e, d.ino, u.o.Order)
		}
		return err
	}
	dir, base := split(e.Path)
	if u.o.ReplaceDirLinks {
		parent, err := u.dirs.get(dir, true)
		if err != nil {
			return err
		}
		if st, err := lstatat(parent.fd, base); err == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK {
			if err := u.clear(parent, base, e.Path); err != nil {
				return err
			}
		}
	}
	d, err := u.dirs.get(e.Path, true)
	if err != nil && (errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP)) {
		// A file, or a link to nowhere: the directory takes its place if it may.
		parent, perr := u.dirs.get(dir, true)
		if perr != nil {
			return perr
		}
		st, serr := lstatat(parent.fd, base)
		if serr != nil || st.Mode&unix.S_IFMT == unix.S_IFDIR {
			return err
		}
		unlock := u.s.lock(parent.ino, base)
		if !u.s.claim(parent.ino, base, e.Path, u.o.Order) {
			err = fault.New(fault.Path, "another archive has a file there")
		} else {
			err = u.clear(parent, base, e.Path)
		}
		unlock()
		if err != nil {
			return err
		}
		d, err = u.dirs.get(e.Path, true)
	}
	if err != nil {
		return err
	}
	u.s.shipped(e, d.ino, u.o.Order)
	return nil
}

// clear removes what has the name: a file, a link, or an empty directory.
func (u *Unpacker) clear(d *openDir, base, path string) error {
	st, err := lstatat(d.fd, base)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return err
	}
	flags := 0
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		flags = unix.AT_REMOVEDIR
		u.s.root.gen.Add(1)
	case unix.S_IFLNK:
		u.s.root.gen.Add(1)
	}
	err = unix.Unlinkat(d.fd, base, flags)
	switch err {
	case unix.ENOENT:
		return nil
	case unix.ENOTEMPTY, unix.EEXIST:
		return fault.New(fault.Path, "a directory that is not empty is in the way: %w", err)
	}
	return err
}

// file makes everything that is not a directory. It reports whether the entry is in the
// tree now, which it is not when another archive of the session has the name. From the
// claim until the name is made nobody else of the session works on it.
func (u *Unpacker) file(e *Entry, write body) (won bool, sum []byte, err error) {
	dir, base := split(e.Path)
	d, err := u.dirs.get(dir, true)
	if err != nil {
		return false, nil, err
	}
	unlock := u.s.lock(d.ino, base)
	fd := -1
	won = u.s.claim(d.ino, base, e.Path, u.o.Order)
	if won {
		fd, err = u.make(d, base, e)
		if err == unix.EEXIST {
			if err = u.clear(d, base, e.Path); err == nil {
				fd, err = u.make(d, base, e)
			}
		}
	}
	unlock()
	if err != nil || !won {
		return false, nil, err
	}
	if fd >= 0 {
		sum, err = u.fill(fd, e, write)
	}
	return err == nil, sum, err
}

// make makes the name; a regular file comes back open and empty.
func (u *Unpacker) make(d *openDir, base string, e *Entry) (fd int, err error) {
	switch e.Type {
	case File:
		return retry(func() (int, error) {
			return unix.Openat(d.fd, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		})
	case Symlink:
		return -1, u.symlink(d, base, e)
	case Hardlink:
		return -1, u.hardlink(d, base, e)
	case Fifo:
		return -1, u.fifo(d, base, e)
	}
	return -1, fault.New(fault.Format, "entry of type %q", e.Type)
}

// fill writes a new regular file and closes it.
func (u *Unpacker) fill(fd int, e *Entry, write body) (sum []byte, err error) {
	defer func() {
		if cerr := unix.Close(fd); err == nil && cerr != nil && cerr != unix.EINTR {
			err = cerr
		}
	}()
	if u.hash != nil {
		u.hash.Reset()
	}
	if err := write(fd, e); err != nil {
		return nil, err
	}
	if err := setMeta(fd, e); err != nil {
		return nil, err
	}
	if u.hash != nil {
		sum = u.hash.Sum(nil)
	}
	return sum, nil
}

func (u *Unpacker) symlink(d *openDir, base string, e *Entry) error {
	err := unix.Symlinkat(e.Link, d.fd, base)
	if err == unix.EEXIST {
		// Others may be going through this very link: never let it be missing.
		st, serr := lstatat(d.fd, base)
		if serr != nil || st.Mode&unix.S_IFMT != unix.S_IFLNK {
			return err
		}
		if have, rerr := readlinkat(d.fd, base); rerr != nil || have != e.Link {
			if err := u.swapLink(d, base, e.Link); err != nil {
				return err
			}
			u.s.root.gen.Add(1)
		}
	} else if err != nil {
		return err
	}
	return lsetMeta(d.fd, base, e)
}

func (u *Unpacker) swapLink(d *openDir, base, target string) error {
	for {
		u.tmp++
		tmp := fmt.Sprintf(".mkmachine-link-%d-%d", u.o.Order, u.tmp)
		err := unix.Symlinkat(target, d.fd, tmp)
		if err == unix.EEXIST {
			continue
		}
		if err == nil {
			if err = unix.Renameat2(d.fd, tmp, d.fd, base, 0); err != nil {
				err = errors.Join(err, unix.Unlinkat(d.fd, tmp, 0))
			}
		}
		return err
	}
}

func (u *Unpacker) hardlink(d *openDir, base string, e *Entry) error {
	dir, name := split(e.Link)
	fd, err := u.s.root.open(dir, unix.O_PATH|unix.O_DIRECTORY)
	if err == nil {
		defer unix.Close(fd)
		var st unix.Stat_t
		if st, err = lstatat(fd, name); err == nil {
			if st.Mode&unix.S_IFMT == unix.S_IFDIR {
				return fault.New(fault.Format, "hard link to the directory %q", e.Link)
			}
			if have, serr := lstatat(d.fd, base); serr == nil && have.Dev == st.Dev && have.Ino == st.Ino {
				return nil
			}
			err = unix.Linkat(fd, name, d.fd, base, 0)
		}
	}
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return fault.New(fault.Format, "hard link to %q, which is not there", e.Link)
	}
	return err
}

func (u *Unpacker) fifo(d *openDir, base string, e *Entry) error {
	if err := unix.Mknodat(d.fd, base, unix.S_IFIFO|0o600, 0); err != nil {
		return err
	}
	fd, err := unix.Openat(d.fd, base, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFIFO {
		return fault.New(fault.State, "changed while it was made")
	}
	return setMeta(fd, e)
}
