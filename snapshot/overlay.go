// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Tree is a root tree that can be run: a directory, or the parts of an overlay. Nothing is
// mounted; the runner mounts it inside its own mount namespace, so that a killed process
// leaves no mount on the host.
//
// An overlay is mounted with index=off, metacopy=off and redirect_dir=on (see overlayOptions),
// without userxattr, by the host's root. The layers may be given to it as id-mapped mounts.
type Tree struct {
	// Dir is the tree itself; then all else is empty.
	Dir string
	// Lower lists the read-only layers, the topmost first.
	Lower []string
	// Upper takes the changes and Work is overlayfs's own; both "" means a read-only tree.
	Upper, Work string
	// Volatile: the changes are thrown away afterwards, so no sync needs to reach the disk.
	Volatile bool
}

// overlayOptions are what every overlay of ours is mounted with: file handles of lower files
// are not indexed, because a lower tree may be copied to another disk; no metadata-only
// copies, because a clone must be readable without its mount; directories can be renamed.
func overlayOptions() [][2]string {
	return [][2]string{{"index", "off"}, {"metacopy", "off"}, {"redirect_dir", "on"}}
}

// mount makes the overlay without attaching it anywhere: it exists as long as the returned
// descriptor, and is used through fdPath. For a plain tree it is a descriptor of the directory.
func (t Tree) mount(readOnly bool) (*os.File, error) {
	if t.Dir == "" && t.Upper == "" && len(t.Lower) == 1 {
		t = Tree{Dir: t.Lower[0]} // overlayfs refuses a single layer that nothing is written over
	}
	if t.Dir != "" {
		return os.OpenFile(t.Dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	}
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("cannot use overlayfs: %w", err)
	}
	defer unix.Close(fs)
	if err := t.configure(fs, readOnly); err != nil {
		return nil, err
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("cannot mount the overlay over %s: %w%s", t.Lower[len(t.Lower)-1], err, fsLog(fs))
	}
	attr := unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID
	if readOnly {
		attr |= unix.MOUNT_ATTR_RDONLY
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attr)
	if err != nil {
		return nil, fmt.Errorf("cannot mount the overlay over %s: %w", t.Lower[len(t.Lower)-1], err)
	}
	return os.NewFile(uintptr(fd), "overlay"), nil
}

func (t Tree) configure(fs int, readOnly bool) error {
	set := func(key, value string) error {
		if err := unix.FsconfigSetString(fs, key, value); err != nil {
			return fmt.Errorf("cannot set overlay option %s=%s: %w%s", key, value, err, fsLog(fs))
		}
		return nil
	}
	lower := t.Lower
	writable := t.Upper != "" && !readOnly
	if !writable && t.Upper != "" {
		lower = append([]string{t.Upper}, lower...)
	}
	if err := setLower(fs, lower); err != nil {
		return err
	}
	for _, o := range overlayOptions() {
		if o[0] == "redirect_dir" && !writable {
			o[1] = "follow"
		}
		if err := set(o[0], o[1]); err != nil {
			return err
		}
	}
	if !writable {
		return nil
	}
	return errors.Join(set("upperdir", t.Upper), set("workdir", t.Work))
}

// setLower gives overlayfs its layers one by one, or joined and escaped before Linux 6.5.
func setLower(fs int, lower []string) error {
	var err error
	for i, l := range lower {
		if err = unix.FsconfigSetString(fs, "lowerdir+", l); err != nil {
			if i == 0 && err == unix.EINVAL {
				break
			}
			return fmt.Errorf("cannot set overlay layer %s: %w%s", l, err, fsLog(fs))
		}
	}
	if err == nil {
		return nil
	}
	escaped := make([]string, len(lower))
	for i, l := range lower {
		escaped[i] = strings.NewReplacer(`\`, `\\`, `:`, `\:`).Replace(l)
	}
	if err := unix.FsconfigSetString(fs, "lowerdir", strings.Join(escaped, ":")); err != nil {
		return fmt.Errorf("cannot set overlay layers %s: %w%s", strings.Join(escaped, ":"), err, fsLog(fs))
	}
	return nil
}

// fsLog is what the kernel says about a failed mount, as ": text", or nothing.
func fsLog(fs int) string {
	buf := make([]byte, 4096)
	n, err := unix.Read(fs, buf)
	if err != nil || n < 2 {
		return ""
	}
	return ": " + strings.TrimSpace(string(buf[2:n])) // "e text"
}

// fdPath is a path below an open directory, valid in this process.
func fdPath(dir *os.File, rel string) string {
	return filepath.Join("/proc/self/fd", strconv.Itoa(int(dir.Fd())), rel)
}

// procDir is the path of an open directory that other processes of root can use, too.
func procDir(dir *os.File) string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), dir.Fd())
}
