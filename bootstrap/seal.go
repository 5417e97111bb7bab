// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"path"
	"strings"
	"time"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/internal/rootfs"
)

// residue is what a build leaves behind or what makes two machines look alike: patterns
// of path.Match in a directory; links on the way are followed inside the tree.
var residue = []struct{ dir, pattern string }{
	// Identity.
	{"var/lib/dbus", "machine-id"},
	{"etc/ssh", "ssh_host_*_key"},
	{"etc/ssh", "ssh_host_*_key.pub"},
	{"var/lib/systemd", "random-seed"},
	{"var/lib/systemd", "credential.secret"},
	{"var/lib/urandom", "random-seed"},
	{"etc/ssl/private", "ssl-cert-snakeoil.key"},
	{"etc/ssl/certs", "ssl-cert-snakeoil.pem"},
	{"var/lib/NetworkManager", "secret_key"},
	// Leases and what was logged.
	{"var/lib/dhcp", "*.leases"},
	{"var/lib/dhcpcd", "*.lease*"},
	{"var/lib/dhclient", "*.leases"},
	{"var/lib/NetworkManager", "*.lease"},
	{"var/log/journal", "*"},
	{"var/log", "dpkg.log"},
	{"var/log", "alternatives.log"},
	{"var/log", "bootstrap.log"},
	{"var/log", "fontconfig.log"},
	{"var/log", "pacman.log"},
	{"var/log/apt", "*"},
	// Caches whose content depends on inode numbers or on the moment.
	{"var/cache/ldconfig", "aux-cache"},
	{"var/cache/apt", "*.bin"},
	{"var/cache/debconf", "*-old"},
	{"var/lib/dpkg", "*-old"},
	{"etc", "passwd-"}, {"etc", "group-"}, {"etc", "shadow-"}, {"etc", "gshadow-"}, {"etc", "subuid-"}, {"etc", "subgid-"},
	{"root", ".bash_history"},
}

// Seal removes from the tree what belongs to the moment it was built in, so that two
// builds are the same and two clones are not: identity, leases, logs, package lists and
// archives, backups of account files, everything in /run, /tmp, /var/tmp and /dev. Then it
// sets every time stamp later than the clock to it. It does not touch what packages ship.
func Seal(ctx context.Context, root *rootfs.Root, clock time.Time) error {
	for _, r := range residue {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := removeMatching(root, r.dir, r.pattern); err != nil {
			return err
		}
	}
	for _, f := range []func(*rootfs.Root) error{emptyMachineID, resetInitiator, emptyLoginRecords, removeSnakeoilLinks, emptyAPT, emptyVolatile} {
		if err := f(root); err != nil {
			return err
		}
	}
	return root.Clamp(ctx, clock.Unix())
}

func removeMatching(root *rootfs.Root, dir, pattern string) error {
	if !strings.ContainsAny(pattern, "*?[") {
		return root.RemoveAll(dir + "/" + pattern)
	}
	names, err := root.Readdir(dir)
	if rootfs.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, name := range names {
		if ok, _ := path.Match(pattern, name); !ok {
			continue
		}
		if err := root.RemoveAll(dir + "/" + name); err != nil {
			return err
		}
	}
	return nil
}

// truncate empties a regular file and keeps its mode and owner. A link is left alone.
func truncate(root *rootfs.Root, file string) error {
	st, err := root.Lstat(file)
	if rootfs.IsNotExist(err) || err == nil && (st.Type != rootfs.File || st.Size == 0) {
		return nil
	}
	if err != nil {
		return err
	}
	return root.Put(file, st.Mode, st.UID, st.GID, nil)
}

// emptyMachineID keeps the file: systemd fills an empty one in, also on a read-only root.
func emptyMachineID(root *rootfs.Root) error { return truncate(root, "etc/machine-id") }

// resetInitiator makes open-iscsi choose a name at its first start, as it is shipped.
func resetInitiator(root *rootfs.Root) error {
	const file = "etc/iscsi/initiatorname.iscsi"
	st, err := root.Lstat(file)
	if err != nil || st.Type != rootfs.File {
		return nil
	}
	return root.Put(file, st.Mode, st.UID, st.GID, []byte("GenerateName=yes\n"))
}

func emptyLoginRecords(root *rootfs.Root) error {
	for _, f := range []string{"wtmp", "btmp", "lastlog", "faillog", "tallylog"} {
		if err := truncate(root, "var/log/"+f); err != nil {
			return err
		}
	}
	return nil
}

// removeSnakeoilLinks removes the hash links to the certificate that was removed.
func removeSnakeoilLinks(root *rootfs.Root) error {
	const dir = "etc/ssl/certs"
	names, err := root.Readdir(dir)
	if rootfs.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, name := range names {
		if ok, _ := path.Match("[0-9a-f]*.[0-9]", name); !ok {
			continue
		}
		if target, err := root.Readlink(dir + "/" + name); err == nil && path.Base(target) == "ssl-cert-snakeoil.pem" {
			if err := root.Remove(dir + "/" + name); err != nil {
				return err
			}
		}
	}
	return nil
}

// emptyAPT removes lists and archives, but not the directories "partial", which packages ship.
func emptyAPT(root *rootfs.Root) error {
	for _, dir := range []string{"var/lib/apt/lists", "var/cache/apt/archives"} {
		names, err := root.Readdir(dir)
		if rootfs.IsNotExist(err) {
			continue
		}
		if err != nil {
			return err
		}
		for _, name := range names {
			if name == "partial" {
				err = root.RemoveContents(dir + "/" + name)
			} else {
				err = root.RemoveAll(dir + "/" + name)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// emptyVolatile empties what a machine starts with empty. /run/lock stays: packages ship it.
func emptyVolatile(root *rootfs.Root) error {
	for _, dir := range []string{"run", "tmp", "var/tmp", "dev"} {
		st, err := root.Lstat(dir)
		if rootfs.IsNotExist(err) || err == nil && st.Type != rootfs.Dir {
			continue
		}
		if err != nil {
			return err
		}
		names, err := root.Readdir(dir)
		if err != nil {
			return err
		}
		for _, name := range names {
			full := dir + "/" + name
			if lock, err := root.Lstat(full); full == "run/lock" && err == nil && lock.Type == rootfs.Dir {
				if err := root.RemoveContents(full); err != nil {
					return err
				}
				continue
			}
			if err := root.RemoveAll(full); err != nil {
				return fault.Hint(err, "something is still mounted below /%s of the tree", dir)
			}
		}
	}
	return nil
}
