// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// prepareDir checks that nobody else can reach into the machines directory, and creates it.
// Templates hold set-uid programs that must not be run from outside (CVE-2021-41091).
func prepareDir(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return fault.New(fault.Host, "cannot create %s: %w", dir, err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fault.New(fault.Host, "cannot create %s: %w", dir, err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return fault.New(fault.Host, "cannot open %s: %w", dir, err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
	case unix.S_IFLNK:
		target, err := filepath.EvalSymlinks(dir)
		if err != nil {
			target = "DIR"
		}
		return fault.Hint(fault.New(fault.Policy, "cannot use %s as machines directory: it is a symbolic link", dir), "--machines %s", target)
	default:
		return fault.New(fault.Config, "cannot use %s as machines directory: not a directory", dir)
	}
	if st.Uid != 0 {
		return fault.Hint(fault.New(fault.Policy, "cannot use %s as machines directory: user %d owns it", dir, st.Uid), "chown root: %s", dir)
	}
	if err := checkParents(dir); err != nil {
		return err
	}
	if err := checkFileSystem(dir); err != nil {
		return err
	}
	return closeDir(dir, st.Mode)
}

// closeDir keeps others out of the directory. An empty one is simply closed; one with content
// may be open on purpose, so the administrator decides.
func closeDir(dir string, mode uint32) error {
	if mode&0o077 == 0 {
		return nil
	}
	f, err := openDir(dir)
	if err != nil {
		return fault.New(fault.Host, "cannot open %s: %w", dir, err)
	}
	defer f.Close()
	if names, _ := f.Readdirnames(1); len(names) > 0 {
		return fault.Hint(fault.New(fault.Policy, "cannot use %s as machines directory: mode %04o lets other users reach set-uid programs in it", dir, mode&0o7777),
			"chmod 0700 %s", dir)
	}
	if err := f.Chmod(0o700); err != nil {
		return fault.New(fault.Host, "cannot close %s to others: %w", dir, err)
	}
	return nil
}

// checkParents refuses a directory that somebody else could replace.
func checkParents(dir string) error {
	real, err := filepath.EvalSymlinks(filepath.Dir(dir))
	if err != nil {
		return fault.New(fault.Host, "cannot open %s: %w", dir, err)
	}
	for p := real; ; p = filepath.Dir(p) {
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return fault.New(fault.Host, "cannot check %s: %w", p, err)
		}
		shared := st.Mode&0o002 != 0 || st.Mode&0o020 != 0 && st.Gid != 0
		// A sticky directory further up (/tmp) protects what root made in it; one that holds
		// the machines directory itself invites others to be there first.
		if st.Uid != 0 || shared && (p == real || st.Mode&unix.S_ISVTX == 0) {
			return fault.Hint(fault.New(fault.Policy, "cannot use %s as machines directory: others can write to %s", dir, p),
				"chown root: %s && chmod go-w %s", p, p)
		}
		if p == "/" {
			return nil
		}
	}
}

// magics names file systems by statfs(2) type.
func fileSystem(path string) string {
	var fs unix.Statfs_t
	if unix.Statfs(path, &fs) != nil {
		return "an unknown file system"
	}
	switch fs.Type {
	case unix.BTRFS_SUPER_MAGIC:
		return "btrfs"
	case unix.EXT4_SUPER_MAGIC:
		return "ext4"
	case unix.XFS_SUPER_MAGIC:
		return "xfs"
	case unix.TMPFS_MAGIC:
		return "tmpfs"
	case unix.OVERLAYFS_SUPER_MAGIC:
		return "overlay"
	case unix.NFS_SUPER_MAGIC:
		return "nfs"
	case unix.SMB2_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC:
		return "cifs"
	case unix.V9FS_MAGIC:
		return "9p"
	case unix.FUSE_SUPER_MAGIC:
		return "fuse"
	case unix.F2FS_SUPER_MAGIC:
		return "f2fs"
	case unix.MSDOS_SUPER_MAGIC:
		return "vfat"
	}
	return fmt.Sprintf("file system %#x", fs.Type)
}

// checkFileSystem refuses what cannot hold the trees of a distribution.
func checkFileSystem(dir string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return fault.New(fault.Host, "cannot check %s: %w", dir, err)
	}
	if fs.Flags&unix.ST_RDONLY != 0 {
		return fault.New(fault.Host, "cannot use %s as machines directory: its file system is read-only", dir)
	}
	switch name := fileSystem(dir); name {
	case "nfs", "cifs", "9p", "vfat":
		return fault.Hint(fault.New(fault.Host, "cannot use %s as machines directory: %s keeps no owners, links and attributes that root trees need", dir, name),
			"--machines DIR on a local disk, or mkmachine pool create")
	}
	return nil
}

// choose finds the best backend that works here, or checks the one that is wanted.
func (s *Store) choose(want string) error {
	onBtrfs := onBtrfs(s.dir)
	if onBtrfs && (want == "" || want == Btrfs) {
		s.backend, s.reason = Btrfs, s.dir+" is on btrfs"
		return nil
	}
	e, err := s.begin(opProbe, "")
	if err != nil {
		return err
	}
	defer e.end()
	name, err := e.intend()
	if err != nil {
		return err
	}
	scratch := s.path(name)
	if err := os.Mkdir(scratch, 0o700); err != nil {
		return s.full(fmt.Errorf("cannot probe %s: %w", s.dir, err))
	}
	defer os.RemoveAll(scratch)
	overlay, reflink := probeOverlay(scratch), probeReflink(scratch)
	fs := fileSystem(s.dir)
	switch {
	case want == Btrfs:
		return fault.Hint(fault.New(fault.Host, "cannot use the btrfs backend: %s is on %s", s.dir, fs), "mkmachine pool create")
	case want == Overlay && overlay != nil:
		return fault.New(fault.Host, "cannot use the overlay backend in %s: %w", s.dir, overlay)
	case want == Reflink && reflink != nil:
		return fault.New(fault.Host, "cannot use the reflink backend in %s: %w", s.dir, reflink)
	case want == Overlay || want == Reflink || want == Copy:
		s.backend, s.reason = want, "asked for"
	case want != "":
		return fault.New(fault.Config, "cannot use backend %q: there are btrfs, overlay, reflink and copy", want)
	case overlay == nil:
		s.backend, s.reason = Overlay, fmt.Sprintf("%s is on %s, which has no snapshots", s.dir, fs)
	case reflink == nil:
		s.backend, s.reason = Reflink, fmt.Sprintf("%s is on %s without overlays: %v", s.dir, fs, overlay)
	default:
		s.backend, s.reason = Copy, fmt.Sprintf("%s is on %s, which can do no better (overlay: %v; reflink: %v)", s.dir, fs, overlay, reflink)
	}
	return nil
}

// probeOverlay mounts a small overlay, unattached, and does in it what a machine would.
func probeOverlay(scratch string) error {
	t := Tree{Lower: []string{filepath.Join(scratch, "lower")}, Upper: filepath.Join(scratch, "data"), Work: filepath.Join(scratch, "work")}
	for _, d := range []string{t.Lower[0], t.Upper, t.Work} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(t.Lower[0], "file"), []byte("old"), 0o600); err != nil {
		return err
	}
	m, err := t.mount(false)
	if err != nil {
		return err
	}
	defer m.Close()
	inside := fdPath(m, "file")
	if err := os.WriteFile(inside, []byte("new"), 0o600); err != nil {
		return err
	}
	return os.Remove(inside) // leaves a whiteout
}

func probeReflink(scratch string) error {
	src, err := os.Create(filepath.Join(scratch, "source"))
	if err != nil {
		return err
	}
	defer src.Close()
	if _, err := src.Write(make([]byte, 1<<16)); err != nil {
		return err
	}
	dst, err := os.Create(filepath.Join(scratch, "clone"))
	if err != nil {
		return err
	}
	defer dst.Close()
	if err := unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())); err != nil {
		return fmt.Errorf("ioctl FICLONE: %w", err)
	}
	return nil
}
