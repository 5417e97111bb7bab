// SPDX-License-Identifier: Apache-2.0

// Package bootstrap makes a tree of packages into a system: files, users, host name, time
// zone, locale, services, and at the end the removal of everything that belongs to the
// moment and the host it was built on.
//
// It works on the tree natively and never runs a program itself; what only a program of
// the tree can do is returned as a command for the caller's runner. It never opens a
// socket, and it reads nothing of the host: the same tree and the same configuration give
// the same result everywhere. The ecosystems (bootstrap/deb, …) unpack and configure
// packages before it.
package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/internal/rootfs"
)

// Text is a value with the place in the recipe where it was asked for.
type Text struct {
	Value string
	Pos   fault.Pos
}

// Config is what a recipe wants besides packages and scripts.
type Config struct {
	Files  []File
	Users  []User
	System System
	// Clock is the tree's time: the day of passwords, never the host's.
	Clock time.Time
}

// File is put into the tree.
type File struct {
	Path  string // absolute
	Data  []byte
	Mode  uint32 // permission bits, 07777
	Owner string // NAME, NAME:GROUP or numbers; "" is root:root
	Pos   fault.Pos
}

// Customise applies the sections in their order: files, users, system. A file may belong
// to a user that is made here. It returns the commands, in order, that must run inside the
// tree to finish the work; usually there are none. Every error has the position of what
// could not be done.
func Customise(ctx context.Context, root *rootfs.Root, c *Config) (commands [][]string, err error) {
	later, err := putFiles(ctx, root, c.Files)
	if err != nil {
		return nil, err
	}
	if err := addUsers(ctx, root, c.Users, c.Clock); err != nil {
		return nil, err
	}
	if err := chownFiles(root, later); err != nil {
		return nil, err
	}
	return setSystem(root, &c.System)
}

// putFiles writes the files and returns those whose owner the tree does not know yet.
func putFiles(ctx context.Context, root *rootfs.Root, files []File) (later []*File, err error) {
	if len(files) == 0 {
		return nil, nil
	}
	a, err := openAccounts(root)
	if err != nil {
		return nil, fault.At(err, files[0].Pos)
	}
	for i := range files {
		f := &files[i]
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		uid, gid, err := a.owner(f.Owner)
		if errors.Is(err, errUnknownName) {
			later = append(later, f)
			uid, gid, err = 0, 0, nil
		}
		if err == nil {
			err = putFile(root, f, uid, gid)
		}
		if err != nil {
			return nil, fault.At(fmt.Errorf("cannot put file %q: %w", f.Path, err), f.Pos)
		}
	}
	return later, nil
}

func putFile(root *rootfs.Root, f *File, uid, gid int) error {
	clean, err := rootfs.Clean(f.Path)
	if err != nil {
		return err
	}
	if dir := parentOf(clean); dir != "" {
		if err := root.MkdirAll(dir, 0o755, 0, 0); err != nil {
			return err
		}
	}
	if st, err := root.Lstat(clean); err == nil && st.Type == rootfs.Dir {
		return fault.New(fault.Config, "the tree has a directory there")
	}
	return root.Put(clean, f.Mode, uid, gid, f.Data)
}

func chownFiles(root *rootfs.Root, files []*File) error {
	if len(files) == 0 {
		return nil
	}
	a, err := openAccounts(root)
	if err != nil {
		return fault.At(err, files[0].Pos)
	}
	for _, f := range files {
		uid, gid, err := a.owner(f.Owner)
		if err == nil {
			err = root.Chown(f.Path, uid, gid)
		}
		if err == nil {
			err = root.Chmod(f.Path, f.Mode) // chown takes set-user-id bits away
		}
		if err != nil {
			err = fmt.Errorf("cannot set owner of file %q: %w", f.Path, err)
			if errors.Is(err, errUnknownName) {
				err = fault.Hint(fault.As(fault.Config, err), "add the user to [[users]], or the package that makes it, or give the owner as numbers")
			}
			return fault.At(err, f.Pos)
		}
	}
	return nil
}

func parentOf(clean string) string {
	for i := len(clean) - 1; i >= 0; i-- {
		if clean[i] == '/' {
			return clean[:i]
		}
	}
	return ""
}
