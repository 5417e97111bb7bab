// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/internal/pattern"
	"github.com/mkmachine/mkmachine/internal/rootfs"
)

// maxID is the highest user and group id a tree may use: what a machine's map has room for.
const maxID = 65535

// errUnknownName marks a user or group that the tree's files do not have.
var errUnknownName = errors.New("no such user or group")

// accounts are the users and groups of a tree, read from its files and nothing else.
type accounts struct {
	root                           *rootfs.Root
	passwd, group, shadow, gshadow *table
	subuid, subgid                 *table
	defs                           map[string]string // login.defs
}

func openAccounts(root *rootfs.Root) (*accounts, error) {
	a := &accounts{root: root, defs: map[string]string{}}
	var err error
	load := func(dst **table, path string, fields int, mode uint32, gid int) {
		if err == nil {
			*dst, err = loadTable(root, path, fields, mode, gid)
		}
	}
	load(&a.passwd, "etc/passwd", 7, 0o644, 0)
	load(&a.group, "etc/group", 4, 0o644, 0)
	if err != nil {
		return nil, err
	}
	shadowGID := 0
	if g := a.group.find("shadow"); g != nil {
		if id, ok := rootfs.ParseID(g[2], maxID); ok {
			shadowGID = id
		}
	}
	load(&a.shadow, "etc/shadow", 9, 0o640, shadowGID)
	load(&a.gshadow, "etc/gshadow", 4, 0o640, shadowGID)
	load(&a.subuid, "etc/subuid", 3, 0o644, 0)
	load(&a.subgid, "etc/subgid", 3, 0o644, 0)
	if err != nil {
		return nil, err
	}
	return a, a.loadDefs()
}

// loadDefs reads login.defs(5).
func (a *accounts) loadDefs() error {
	data, err := a.root.ReadFile("etc/login.defs", 1<<20)
	if rootfs.IsNotExist(err) {
		// Where /etc is empty by design, the vendor's file stands.
		data, err = a.root.ReadFile("usr/etc/login.defs", 1<<20)
	}
	if rootfs.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) >= 2 && !strings.HasPrefix(f[0], "#") {
			a.defs[f[0]] = f[1]
		}
	}
	return nil
}

// def is a number of login.defs in the base that its notation says, or the default.
func (a *accounts) def(key string, standard int) int {
	n, err := strconv.ParseInt(a.defs[key], 0, 32)
	if err != nil || n < 0 {
		return standard
	}
	return int(n)
}

func (a *accounts) save() error {
	for _, t := range []*table{a.passwd, a.shadow, a.group, a.gshadow, a.subuid, a.subgid} {
		if err := t.save(a.root); err != nil {
			return err
		}
	}
	return nil
}

// user is a row of passwd with its numbers checked.
type user struct {
	name        string
	uid, gid    int
	home, shell string
}

func (a *accounts) user(name string) (*user, error) {
	f := a.passwd.find(name)
	if f == nil {
		return nil, fmt.Errorf("user %q: %w", name, errUnknownName)
	}
	u := &user{name: name, home: f[5], shell: f[6]}
	var ok1, ok2 bool
	u.uid, ok1 = rootfs.ParseID(f[2], maxID)
	u.gid, ok2 = rootfs.ParseID(f[3], maxID)
	if !ok1 || !ok2 {
		return nil, fault.New(fault.State, "user %q has the ids %q and %q, allowed are 0 to %d", name, f[2], f[3], maxID)
	}
	return u, nil
}

func (a *accounts) groupID(name string) (int, error) {
	f := a.group.find(name)
	if f == nil {
		return 0, fmt.Errorf("group %q: %w", name, errUnknownName)
	}
	id, ok := rootfs.ParseID(f[2], maxID)
	if !ok {
		return 0, fault.New(fault.State, "group %q has the id %q, allowed are 0 to %d", name, f[2], maxID)
	}
	return id, nil
}

// owner resolves NAME, NAME:GROUP, :GROUP or numbers. A name alone means the user and
// root's group, or for numbers the same number; "" is root.
func (a *accounts) owner(s string) (uid, gid int, err error) {
	name, group, hasGroup := strings.Cut(s, ":")
	if name != "" {
		if n, ok := rootfs.ParseID(name, maxID); ok {
			uid = n
		} else if !nameRE.MatchString(name) {
			return 0, 0, fault.New(fault.Config, "owner %q is neither a name nor an id from 0 to %d", s, maxID)
		} else {
			u, err := a.user(name)
			if err != nil {
				return 0, 0, err
			}
			uid, gid = u.uid, u.gid
		}
	}
	if !hasGroup {
		return uid, gid, nil
	}
	if n, ok := rootfs.ParseID(group, maxID); ok {
		return uid, n, nil
	}
	if !nameRE.MatchString(group) {
		return 0, 0, fault.New(fault.Config, "group of %q is neither a name nor an id from 0 to %d", s, maxID)
	}
	gid, err = a.groupID(group)
	return uid, gid, err
}

// nameRE is what a user or group may be called: what useradd takes, and never a number.
var nameRE = pattern.New(`^[a-z_][a-z0-9_.-]{0,31}$`)

// ids lists the third field of a table.
func ids(t *table) map[int]bool {
	used := map[int]bool{}
	for _, r := range t.rows {
		if r.f == nil {
			continue
		}
		if id, ok := rootfs.ParseID(r.f[2], 1<<31-1); ok {
			used[id] = true
		}
	}
	return used
}

// freeID chooses as useradd does: for people one above the highest used in the range, for
// the system the highest free one.
func freeID(used map[int]bool, low, high int, system bool) (int, error) {
	if system {
		for id := high; id >= low; id-- {
			if !used[id] {
				return id, nil
			}
		}
	} else {
		next := low
		for id := range used {
			if id >= next && id <= high {
				next = id + 1
			}
		}
		if next <= high {
			return next, nil
		}
		for id := low; id <= high; id++ {
			if !used[id] {
				return id, nil
			}
		}
	}
	return 0, fault.New(fault.State, "no free id between %d and %d", low, high)
}

// idRange is the range of login.defs for people or the system, inside of what is allowed.
func (a *accounts) idRange(kind string, system bool) (low, high int) {
	low, high = a.def(kind+"_MIN", 1000), a.def(kind+"_MAX", 60000)
	if system {
		high = a.def("SYS_"+kind+"_MAX", low-1)
		low = a.def("SYS_"+kind+"_MIN", 101)
	}
	return max(low, 1), min(high, maxID-2) // 65534 is nobody
}

// addGroup makes a group with the wanted id where that is free.
func (a *accounts) addGroup(name string, want int, system bool) (int, error) {
	used := ids(a.group)
	gid := want
	if used[gid] {
		low, high := a.idRange("GID", system)
		var err error
		if gid, err = freeID(used, low, high, system); err != nil {
			return 0, err
		}
	}
	if err := a.group.set(name, "x", strconv.Itoa(gid), ""); err != nil {
		return 0, err
	}
	if !a.gshadow.present {
		return gid, nil
	}
	return gid, a.gshadow.set(name, "!", "", "")
}

// join adds a user to a group's members.
func (a *accounts) join(name, group string) error {
	add := func(t *table, f []string) error {
		members := f[3]
		if slices.Contains(strings.Split(members, ","), name) {
			return nil
		}
		if members != "" {
			members += ","
		}
		return t.set(f[0], f[1], f[2], members+name)
	}
	f := a.group.find(group)
	if f == nil {
		return fmt.Errorf("group %q: %w", group, errUnknownName)
	}
	if err := add(a.group, f); err != nil {
		return err
	}
	if f := a.gshadow.find(group); f != nil {
		return add(a.gshadow, f)
	}
	return nil
}

// addSubordinate gives a user the next 65 536 subordinate ids, where the tree keeps them.
func (a *accounts) addSubordinate(t *table, kind, name string) error {
	if !t.present || t.find(name) != nil {
		return nil
	}
	start, count := a.def("SUB_"+kind+"_MIN", 100000), a.def("SUB_"+kind+"_COUNT", 65536)
	for _, r := range t.rows {
		if r.f == nil {
			continue
		}
		first, err1 := strconv.ParseUint(r.f[1], 10, 32)
		n, err2 := strconv.ParseUint(r.f[2], 10, 32)
		if err1 == nil && err2 == nil {
			start = max(start, int(first+n))
		}
	}
	if start+count > a.def("SUB_"+kind+"_MAX", 600100000)+1 {
		return fault.New(fault.State, "no free subordinate ids in /%s", t.path)
	}
	return t.set(name, strconv.Itoa(start), strconv.Itoa(count))
}
