// SPDX-License-Identifier: Apache-2.0

package rootfs

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// cachedDirs is how many directories one unpacker keeps open.
const cachedDirs = 128

// openDir is a directory held open by O_PATH.
type openDir struct {
	path string
	fd   int
	ino  inode
	used uint64
}

// inode names a directory independently of the links that lead to it.
type inode struct{ dev, ino uint64 }

// dirCache keeps directories open by path, so that a file costs no walk from the root.
// It belongs to one goroutine.
type dirCache struct {
	root *Root
	gen  uint64
	m    map[string]*openDir
	last *openDir
	tick uint64
	// made is told of each directory that get created.
	made func(path string, id inode)
}

func newDirCache(r *Root, made func(string, inode)) *dirCache {
	return &dirCache{root: r, gen: r.gen.Load(), m: map[string]*openDir{}, made: made}
}

func (c *dirCache) close() {
	for _, d := range c.m {
		unix.Close(d.fd)
	}
	c.m, c.last = map[string]*openDir{}, nil
}

// get returns the open directory at a clean path. With create set, missing ones are made:
// mode 0755 until the session gives them theirs. The result is valid until the next get.
func (c *dirCache) get(path string, create bool) (*openDir, error) {
	if gen := c.root.gen.Load(); gen != c.gen {
		c.close()
		c.gen = gen
	}
	if c.last != nil && c.last.path == path {
		return c.last, nil
	}
	if d := c.m[path]; d != nil {
		c.touch(d)
		return d, nil
	}
	fd, err := c.root.open(path, unix.O_PATH|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOENT) && create && path != "" {
		return c.create(path)
	}
	if err != nil {
		return nil, err
	}
	return c.add(path, fd)
}

func (c *dirCache) create(path string) (*openDir, error) {
	dir, base := split(path)
	parent, err := c.get(dir, true)
	if err != nil {
		return nil, err
	}
	err = unix.Mkdirat(parent.fd, base, 0o755)
	made := err == nil
	if err != nil && err != unix.EEXIST {
		return nil, err
	}
	// Not from parent: what exists already may be a link, which only the root may resolve.
	fd, err := c.root.open(path, unix.O_PATH|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOENT) {
		return nil, fault.New(fault.Path, "%q is a dangling link: %w", path, err)
	}
	if err != nil {
		return nil, err
	}
	d, err := c.add(path, fd)
	if err == nil && made && c.made != nil {
		c.made(path, d.ino)
	}
	return d, err
}

func (c *dirCache) touch(d *openDir) {
	c.tick++
	d.used = c.tick
	c.last = d
}

func (c *dirCache) add(path string, fd int) (*openDir, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, err
	}
	if len(c.m) >= cachedDirs {
		var oldest *openDir
		for _, d := range c.m {
			if oldest == nil || d.used < oldest.used {
				oldest = d
			}
		}
		unix.Close(oldest.fd)
		delete(c.m, oldest.path)
	}
	d := &openDir{path: path, fd: fd, ino: inode{st.Dev, st.Ino}}
	c.m[path] = d
	c.touch(d)
	return d, nil
}
