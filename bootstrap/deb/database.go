// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"bytes"
	"maps"
	"slices"
	"strings"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/internal/rootfs"
	"github.com/mkmachine/mkmachine/sources"
)

// admin is dpkg's directory in the tree.
const admin = "/var/lib/dpkg"

// commit writes the database entries of packages as dpkg leaves them after --unpack:
// info files, trigger interests, and the stanza in status.
//
// A package that has no script to run for its configuration is written as installed
// straight away, its conffiles put in place: that is all that dpkg --configure would do.
func (s *server) commit(r *commitRequest) error {
	var list []*unpacked
	for _, order := range r.Packages {
		u := s.pkgs[order]
		if u == nil {
			return fault.New(fault.Internal, "cannot commit package %d: it was not unpacked", order)
		}
		list = append(list, u)
	}
	slices.SortFunc(list, func(a, b *unpacked) int { return a.Order - b.Order })
	if r.Triggers {
		if err := s.activate(list); err != nil {
			return err
		}
	}
	for _, u := range list {
		if err := s.writeInfo(u); err != nil {
			return err
		}
		if u.configured() {
			if err := s.placeConffiles(u); err != nil {
				return err
			}
		} else if u.Package.Phase == sources.PhaseRequired {
			if err := s.showConffiles(u); err != nil {
				return err
			}
		}
	}
	if err := s.writeInterests(list); err != nil {
		return err
	}
	return s.writeStatus(list)
}

// configured: there is nothing left to do for dpkg --configure but to say so.
func (u *unpacked) configured() bool {
	if u.runs("preinst") || u.runs("postinst") || u.has("config") {
		return false
	}
	return !slices.ContainsFunc(u.conffiles, func(c conffile) bool { return c.MD5 == "" && !c.RemoveOnUpgrade })
}

func (s *server) placeConffiles(u *unpacked) error {
	for _, c := range u.conffiles {
		if c.RemoveOnUpgrade {
			continue
		}
		if err := s.root.Rename(c.Path+".dpkg-new", c.Path); err != nil {
			return fault.New(fault.Failed, "cannot put conffile of %s in place: %w", u, err)
		}
	}
	return nil
}

// showConffiles gives the conffiles of a package their own name besides the temporary one,
// which dpkg takes for an unchanged file. Scripts of the first set see each other's
// configuration: a bootstrap has that whole set in place before it runs any (passwd of
// bookworm reads login.defs of login, on which it does not depend).
func (s *server) showConffiles(u *unpacked) error {
	for _, c := range u.conffiles {
		if c.MD5 == "" {
			continue
		}
		if _, err := s.root.Lstat(c.Path); err == nil {
			continue
		}
		if err := s.root.Link(c.Path+".dpkg-new", c.Path); err != nil {
			return fault.New(fault.Failed, "cannot put conffile of %s in place: %w", u, err)
		}
	}
	return nil
}

// writeInfo writes /var/lib/dpkg/info/KEY.*.
func (s *server) writeInfo(u *unpacked) error {
	base := admin + "/info/" + u.Key + "."
	for _, name := range slices.Sorted(maps.Keys(u.members)) {
		if name == "control" {
			continue
		}
		if err := s.put(base+name, uint32(u.members[name].Mode&0o777), u.members[name].Data); err != nil {
			return err
		}
	}
	var list, links, sums bytes.Buffer
	for i := range u.entries {
		e := &u.entries[i]
		if e.Dropped {
			continue
		}
		to := &list
		if e.Type == rootfs.Symlink {
			to = &links // dpkg makes them when all else is there
		}
		to.WriteString(e.listed() + "\n")
		if e.MD5 != "" {
			sums.WriteString(e.MD5 + "  " + e.Path + "\n")
		}
	}
	if !u.has("md5sums") {
		if err := s.put(base+"md5sums", 0o644, sums.Bytes()); err != nil {
			return err
		}
	}
	return s.put(base+"list", 0o644, append(list.Bytes(), links.Bytes()...))
}

// writeInterests adds the trigger interests of packages to triggers/.
func (s *server) writeInterests(list []*unpacked) error {
	add := map[string]*bytes.Buffer{}
	var names []string
	for _, u := range list {
		for _, t := range u.interests {
			name, line := t.Name, u.Key
			if strings.HasPrefix(t.Name, "/") {
				name, line = "File", t.Name+" "+u.Key
			}
			if t.NoAwait {
				line += "/noawait"
			}
			if add[name] == nil {
				add[name] = &bytes.Buffer{}
				names = append(names, name)
			}
			add[name].WriteString(line + "\n")
		}
	}
	if !slices.Contains(names, "File") {
		names, add["File"] = append(names, "File"), &bytes.Buffer{}
	}
	for _, name := range names {
		old, err := s.readOptional(admin + "/triggers/" + name)
		if err == nil {
			err = s.put(admin+"/triggers/"+name, 0o644, append(old, add[name].Bytes()...))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// activate notes the triggers that unpacking these packages fires in packages that are
// configured already; dpkg takes them in when it starts.
func (s *server) activate(list []*unpacked) error {
	fired := map[string][]string{}
	var order []string
	fire := func(name, awaiter string) {
		if _, ok := fired[name]; !ok {
			order = append(order, name)
		}
		if !slices.Contains(fired[name], awaiter) {
			fired[name] = append(fired[name], awaiter)
		}
	}
	file, err := s.readOptional(admin + "/triggers/File")
	if err != nil {
		return err
	}
	watched := map[string]bool{} // path: every interest is noawait
	for line := range strings.SplitSeq(string(file), "\n") {
		if path, who, ok := strings.Cut(line, " "); ok {
			quiet, seen := watched[path]
			watched[path] = strings.HasSuffix(who, "/noawait") && (quiet || !seen)
		}
	}
	for _, u := range list {
		for _, t := range u.activations {
			awaiter := u.Package.Name
			if t.NoAwait {
				awaiter = "-"
			}
			fire(t.Name, awaiter)
		}
		for _, e := range u.entries {
			for p := "/" + e.Path; p != "" && p != "/"; p = p[:strings.LastIndexByte(p, '/')] {
				if quiet, ok := watched[p]; ok {
					awaiter := u.Package.Name
					if quiet {
						awaiter = "-"
					}
					fire(p, awaiter)
				}
			}
		}
	}
	var b bytes.Buffer
	for _, name := range order {
		b.WriteString(name + " " + strings.Join(fired[name], " ") + "\n")
	}
	return s.put(admin+"/triggers/Unincorp", 0o644, b.Bytes())
}

// block is a stanza of status as text, with what it sorts by.
type block struct{ key, text string }

// readStatus splits status into its stanzas.
func (s *server) readStatus() ([]block, error) {
	old, err := s.readOptional(admin + "/status")
	if err != nil {
		return nil, err
	}
	var blocks []block
	for text := range strings.SplitSeq(string(old), "\n\n") {
		if text = strings.Trim(text, "\n"); text != "" {
			blocks = append(blocks, block{stanzaKey(text), text + "\n\n"})
		}
	}
	return blocks, nil
}

// putStatus writes status, sorted by name and architecture as dpkg does.
func (s *server) putStatus(blocks []block) error {
	slices.SortStableFunc(blocks, func(a, b block) int { return strings.Compare(a.key, b.key) })
	var b bytes.Buffer
	for _, x := range blocks {
		b.WriteString(x.text)
	}
	return s.put(admin+"/status", 0o644, b.Bytes())
}

// writeStatus merges the stanzas of packages into status.
func (s *server) writeStatus(list []*unpacked) error {
	blocks, err := s.readStatus()
	if err != nil {
		return err
	}
	first := len(blocks) == 0
	for _, u := range list {
		var b bytes.Buffer
		state := "unpacked"
		if u.configured() {
			state = "installed"
		}
		formatStatus(&b, u.control, state, u.conffiles)
		blocks = append(blocks, block{u.statusKey(), b.String()})
	}
	if err := s.putStatus(blocks); err != nil || !first {
		return err
	}
	return s.firstFiles()
}

// withdraw takes packages out of the database again; their files stay.
func (s *server) withdraw(orders []int) error {
	gone := map[string]bool{}
	for _, order := range orders {
		u := s.pkgs[order]
		if u == nil {
			return fault.New(fault.Internal, "cannot withdraw package %d: it was not unpacked", order)
		}
		gone[u.statusKey()] = true
		for _, t := range u.interests {
			if err := s.dropInterest(u, t); err != nil {
				return err
			}
		}
		for _, name := range append(slices.Sorted(maps.Keys(u.members)), "list", "md5sums") {
			if err := s.root.Remove(admin + "/info/" + u.Key + "." + name); err != nil {
				return err
			}
		}
	}
	blocks, err := s.readStatus()
	if err != nil {
		return err
	}
	return s.putStatus(slices.DeleteFunc(blocks, func(b block) bool { return gone[b.key] }))
}

func (s *server) dropInterest(u *unpacked, t trigger) error {
	p, prefix := admin+"/triggers/"+t.Name, ""
	if strings.HasPrefix(t.Name, "/") {
		p, prefix = admin+"/triggers/File", t.Name+" "
	}
	data, err := s.readOptional(p)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	for line := range strings.Lines(string(data)) {
		who, _, _ := strings.Cut(strings.TrimSpace(line[min(len(prefix), len(line)):]), "/")
		if !strings.HasPrefix(line, prefix) || who != u.Key {
			b.WriteString(line)
		}
	}
	if b.Len() == 0 && prefix == "" {
		return s.root.Remove(p)
	}
	return s.put(p, 0o644, b.Bytes())
}

// statusKey sorts like dpkg: by name, then architecture.
func (u *unpacked) statusKey() string { return u.Package.Name + " " + u.Package.Arch }

// firstFiles are the rest of a database that no package ships.
func (s *server) firstFiles() error {
	files := []treeFile{
		{Path: admin + "/available", Mode: 0o644},
		{Path: admin + "/info/format", Mode: 0o644, Data: []byte("1\n")},
		{Path: admin + "/triggers/Unincorp", Mode: 0o644},
	}
	if len(s.begin.Foreign) > 0 {
		arch := strings.Join(append([]string{s.begin.Arch}, s.begin.Foreign...), "\n") + "\n"
		files = append(files, treeFile{Path: admin + "/arch", Mode: 0o644, Data: []byte(arch)})
	}
	return s.files(files)
}

func stanzaKey(text string) string {
	var name, arch string
	for line := range strings.SplitSeq(text, "\n") {
		if v, ok := strings.CutPrefix(line, "Package: "); ok {
			name = v
		} else if v, ok := strings.CutPrefix(line, "Architecture: "); ok {
			arch = v
		}
	}
	return name + " " + arch
}

func (s *server) readOptional(p string) ([]byte, error) {
	data, err := s.root.ReadFile(p, databaseLimit)
	if rootfs.IsNotExist(err) {
		return nil, nil
	}
	return data, err
}

// databaseLimit bounds the files of dpkg's database that are read back, in bytes.
const databaseLimit = 256 << 20

func (s *server) put(p string, mode uint32, data []byte) error {
	return s.root.Put(p, mode, 0, 0, data)
}
