// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/internal/pattern"
	"github.com/mkmachine/mkmachine/internal/rootfs"
)

// User is an account to make, or to change where the tree has it: then only what is given
// changes, and groups and keys are added.
type User struct {
	Name              Text
	UID               int // -1: the next free one
	Groups            []Text
	Shell             Text
	Home              Text
	PasswordHash      Text // crypt(5); "" locks the password of a new account
	EmptyPassword     bool
	SSHAuthorizedKeys []Text
	Sudo              bool // everything, without a password
	System            bool // a service: id from the system's range, no home unless given
	Pos               fault.Pos
}

func addUsers(ctx context.Context, root *rootfs.Root, users []User, clock time.Time) error {
	if len(users) == 0 {
		return nil
	}
	a, err := openAccounts(root)
	if err != nil {
		return fault.At(err, users[0].Pos)
	}
	if !a.passwd.present || !a.group.present {
		return fault.At(fault.New(fault.State, "cannot add user %q: the tree has no /etc/passwd or /etc/group", users[0].Name.Value), users[0].Pos)
	}
	for i := range users {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := a.apply(ctx, &users[i], clock); err != nil {
			return fault.At(fmt.Errorf("cannot add user %q: %w", users[i].Name.Value, err), users[i].Pos)
		}
	}
	return nil
}

func (a *accounts) apply(ctx context.Context, u *User, clock time.Time) error {
	if err := u.check(); err != nil {
		return err
	}
	made := a.passwd.find(u.Name.Value) == nil
	var err error
	if made {
		err = a.create(u, clock)
	} else {
		err = a.change(u)
	}
	if err == nil {
		err = a.password(u, clock)
	}
	if err != nil {
		return err
	}
	for _, g := range u.Groups {
		if err := a.join(u.Name.Value, g.Value); err != nil {
			if errors.Is(err, errUnknownName) {
				err = fault.Hint(fault.As(fault.Config, err), "groups come with packages: add the one that makes %q", g.Value)
			}
			return fault.At(err, g.Pos)
		}
	}
	if err := a.save(); err != nil {
		return err
	}
	who, err := a.user(u.Name.Value)
	if err != nil {
		return err
	}
	if made && (!u.System || u.Home.Value != "") || len(u.SSHAuthorizedKeys) > 0 {
		if err := a.makeHome(ctx, who); err != nil {
			return err
		}
	}
	if err := a.authorize(who, u.SSHAuthorizedKeys); err != nil {
		return err
	}
	if u.Sudo {
		return a.allowSudo(who)
	}
	return nil
}

// hashRE is crypt(5): a method between dollars, or the traditional thirteen letters.
var hashRE = pattern.New(`^(!?\$[a-z0-9]+\$[!-9;-~]+|[./0-9A-Za-z]{13}|[!*]+)$`)

func (u *User) check() error {
	config := func(t Text, format string, args ...any) error {
		return fault.At(fault.New(fault.Config, format, args...), t.Pos)
	}
	switch {
	case !nameRE.MatchString(u.Name.Value):
		return config(u.Name, "%q is no user name", u.Name.Value)
	case u.UID < -1 || u.UID > maxID:
		return config(u.Name, "id %d, allowed are 0 to %d", u.UID, maxID)
	case u.PasswordHash.Value != "" && (len(u.PasswordHash.Value) > 512 || !hashRE.MatchString(u.PasswordHash.Value)):
		return config(u.PasswordHash, "the password is no hash as crypt(5) describes")
	case u.PasswordHash.Value != "" && u.EmptyPassword:
		return config(u.PasswordHash, "a hash and an empty password exclude each other")
	}
	for _, p := range []Text{u.Shell, u.Home} {
		if p.Value == "" {
			continue
		}
		if _, err := rootfs.Clean(p.Value); err != nil || p.Value[0] != '/' || strings.ContainsFunc(p.Value, unprintable) || strings.Contains(p.Value, ":") {
			return config(p, "%q is no absolute path for an account", p.Value)
		}
	}
	for _, k := range u.SSHAuthorizedKeys {
		if !keyRE.MatchString(k.Value) || strings.ContainsFunc(k.Value, unprintable) {
			return config(k, "%.40q is no public key of OpenSSH", k.Value)
		}
	}
	return nil
}

func unprintable(c rune) bool { return c < 0x20 || c == 0x7f }

// keyRE finds the type and the blob of a key, behind optional options.
var keyRE = pattern.New(`(^|[ \t])(sk-)?(ssh|ecdsa)-[a-z0-9@.-]+ [A-Za-z0-9+/]{16,}={0,2}([ \t]|$)`)

func (a *accounts) create(u *User, clock time.Time) error {
	name, uid := u.Name.Value, u.UID
	used := ids(a.passwd)
	if uid < 0 {
		low, high := a.idRange("UID", u.System)
		var err error
		if uid, err = freeID(used, low, high, u.System); err != nil {
			return err
		}
	} else if used[uid] {
		return fault.New(fault.Config, "id %d is another user's already", uid)
	}
	gid, err := a.groupID(name)
	if errors.Is(err, errUnknownName) {
		gid, err = a.addGroup(name, uid, u.System)
	}
	if err != nil {
		return err
	}
	home, shell := u.Home.Value, u.Shell.Value
	if home == "" {
		home = "/home/" + name
		if u.System {
			home = "/nonexistent"
		}
	}
	if shell == "" {
		shell = a.defaultShell(u.System)
	} else if err := a.shellExists(shell); err != nil {
		return fault.At(err, u.Shell.Pos)
	}
	if err := a.passwd.set(name, "x", strconv.Itoa(uid), strconv.Itoa(gid), "", home, shell); err != nil {
		return err
	}
	if u.System {
		return nil
	}
	if err := a.addSubordinate(a.subuid, "UID", name); err != nil {
		return err
	}
	return a.addSubordinate(a.subgid, "GID", name)
}

func (a *accounts) change(u *User) error {
	f := slices.Clone(a.passwd.find(u.Name.Value))
	if u.UID >= 0 && f[2] != strconv.Itoa(u.UID) {
		return fault.New(fault.Config, "the tree has this user with the id %s", f[2])
	}
	if u.Shell.Value != "" {
		if err := a.shellExists(u.Shell.Value); err != nil {
			return fault.At(err, u.Shell.Pos)
		}
		f[6] = u.Shell.Value
	}
	if u.Home.Value != "" {
		f[5] = u.Home.Value
	}
	return a.passwd.set(f...)
}

func (a *accounts) defaultShell(system bool) string {
	candidates := []string{"/bin/bash"}
	if system {
		candidates = []string{"/usr/sbin/nologin", "/sbin/nologin", "/bin/false"}
	}
	for _, s := range candidates {
		if a.shellExists(s) == nil {
			return s
		}
	}
	return "/bin/sh"
}

func (a *accounts) shellExists(path string) error {
	st, err := a.root.Stat(path)
	if err != nil || st.Type != rootfs.File || st.Mode&0o111 == 0 {
		return fault.Hint(fault.New(fault.Config, "the tree has no shell %q", path), "add the package that has it")
	}
	return nil
}

// password writes the shadow entry. Days are counted from 1970 by the tree's clock.
func (a *accounts) password(u *User, clock time.Time) error {
	name := u.Name.Value
	f := slices.Clone(a.shadow.find(name))
	if f == nil {
		day := strconv.FormatInt(clock.Unix()/86400, 10)
		f = []string{name, "!", day, strconv.Itoa(a.def("PASS_MIN_DAYS", 0)), strconv.Itoa(a.def("PASS_MAX_DAYS", 99999)),
			strconv.Itoa(a.def("PASS_WARN_AGE", 7)), "", "", ""}
		if u.System {
			f[3], f[4], f[5] = "", "", ""
		}
	} else if u.PasswordHash.Value == "" && !u.EmptyPassword {
		return nil
	}
	switch {
	case u.EmptyPassword:
		f[1] = ""
	case u.PasswordHash.Value != "":
		f[1] = u.PasswordHash.Value
	}
	if p := slices.Clone(a.passwd.find(name)); p[1] != "x" {
		p[1] = "x" // the password is in shadow now
		if err := a.passwd.set(p...); err != nil {
			return err
		}
	}
	return a.shadow.set(f...)
}

// makeHome makes the home directory with the files of /etc/skel, unless there is one.
func (a *accounts) makeHome(ctx context.Context, u *user) error {
	clean, err := rootfs.Clean(u.home)
	if err != nil || clean == "" || u.home[0] != '/' {
		return fault.New(fault.Config, "%q is no home directory", u.home)
	}
	if _, err := a.root.Stat(clean); err == nil {
		return nil
	}
	if dir := parentOf(clean); dir != "" {
		if err := a.root.MkdirAll(dir, 0o755, 0, 0); err != nil {
			return err
		}
	}
	mode := a.def("HOME_MODE", -1)
	if mode < 0 {
		mode = 0o777 &^ a.def("UMASK", 0o22)
	}
	if _, err := a.root.Mkdir(clean, uint32(mode), u.uid, u.gid); err != nil {
		return err
	}
	return a.copySkeleton(ctx, clean, u)
}

// Limits of /etc/skel.
const (
	maxSkeletonFile  = 16 << 20
	maxSkeletonFiles = 10_000
)

func (a *accounts) copySkeleton(ctx context.Context, home string, u *user) error {
	st, err := a.root.Lstat("etc/skel")
	if rootfs.IsNotExist(err) || err == nil && st.Type != rootfs.Dir {
		return nil
	}
	if err != nil {
		return err
	}
	count := 0
	return a.root.Walk(ctx, "etc/skel", nil, func(n *rootfs.Node) error {
		if n.Path == "" {
			return nil
		}
		if count++; count > maxSkeletonFiles {
			return fault.New(fault.Limit, "/etc/skel has more than %d files", maxSkeletonFiles)
		}
		to := home + "/" + n.Path
		switch n.Type {
		case rootfs.Dir:
			_, err := a.root.Mkdir(to, n.Mode, u.uid, u.gid)
			return err
		case rootfs.Symlink:
			return a.root.Symlink(n.Link, to, u.uid, u.gid)
		case rootfs.File:
			data, err := a.root.ReadFile("etc/skel/"+n.Path, maxSkeletonFile)
			if err != nil {
				return err
			}
			return a.root.Put(to, n.Mode, u.uid, u.gid, data)
		}
		return nil
	})
}

// authorize adds keys to ~/.ssh/authorized_keys, with the modes that sshd insists on.
func (a *accounts) authorize(u *user, keys []Text) error {
	if len(keys) == 0 {
		return nil
	}
	dir := strings.TrimPrefix(u.home, "/") + "/.ssh"
	if _, err := a.root.Mkdir(dir, 0o700, u.uid, u.gid); err != nil {
		return err
	}
	path := dir + "/authorized_keys"
	old, err := a.root.ReadFile(path, maxTable)
	if err != nil && !rootfs.IsNotExist(err) {
		return err
	}
	text := string(old)
	if text != "" && !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	for _, k := range keys {
		if !slices.Contains(strings.Split(text, "\n"), k.Value) {
			text += k.Value + "\n"
		}
	}
	return a.root.Put(path, 0o600, u.uid, u.gid, []byte(text))
}

// allowSudo writes a drop-in of sudoers(5). Names of drop-ins with a dot are not read, and
// the user's name is of letters that need no quoting there.
func (a *accounts) allowSudo(u *user) error {
	st, err := a.root.Stat("usr/bin/sudo")
	if err != nil || st.Type != rootfs.File {
		return fault.Hint(fault.New(fault.Config, "the tree has no sudo"), "add the package \"sudo\"")
	}
	const dir = "etc/sudoers.d"
	if _, err := a.root.Mkdir(dir, 0o750, 0, 0); err != nil {
		return err
	}
	path := dir + "/90-" + strings.ReplaceAll(u.name, ".", "_")
	return a.root.Put(path, 0o440, 0, 0, []byte(u.name+" ALL=(ALL:ALL) NOPASSWD: ALL\n"))
}
