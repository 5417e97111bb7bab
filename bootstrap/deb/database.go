// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"archive/tar"
	"bytes"
	"errors"
	"io/fs"
	"slices"
	"strings"

	"github.com/mkmachine/mkmachine/internal/fault"
)

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
	if err := s.finishDirectories(); err != nil {
		return err
	}
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
		}
	}
	if err := s.writeInterests(list); err != nil {
		return err
	}
	return s.writeStatus(list)
}

// configured: there is nothing left to do for dpkg --configure but to say so.
func (u *unpacked) configured() bool {
	if u.has("preinst") || u.has("postinst") || u.has("config") {
		return false
	}
	for _, c := range u.Conffiles {
		if c.MD5 == "" {
			return false
		}
	}
	return true
}

func (s *server) placeConffiles(u *unpacked) error {
	for _, c := range u.Conffiles {
		p := s.canonical(c.Path)
		if _, err := s.root.lstat(p); err == nil {
			return fault.New(fault.State, "cannot put conffile %q of %s in place: the path exists", c.Path, u.Key)
		}
		if err := s.root.rename(p+".dpkg-new", p); err != nil {
			return fault.New(fault.Failed, "cannot put conffile %q of %s in place: %w", c.Path, u.Key, err)
		}
	}
	return nil
}

// writeInfo writes /var/lib/dpkg/info/KEY.*.
func (s *server) writeInfo(u *unpacked) error {
	base := admin + "/info/" + u.Key + "."
	for _, m := range u.Members {
		if m.Name == "control" {
			continue
		}
		a := attributes{Mode: m.Mode & 0o777, MTime: m.MTime}
		if err := s.putAs(base+m.Name, a, m.Data); err != nil {
			return err
		}
	}
	var list, sums bytes.Buffer
	for _, e := range u.Entries {
		if e.Dropped {
			continue
		}
		list.WriteString(e.Path)
		list.WriteByte('\n')
		if e.MD5 != "" {
			sums.WriteString(e.MD5 + "  " + e.Path[1:] + "\n")
		}
	}
	if !u.has("md5sums") {
		if err := s.put(base+"md5sums", 0o644, sums.Bytes()); err != nil {
			return err
		}
	}
	return s.put(base+"list", 0o644, list.Bytes())
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
		for _, e := range u.Entries {
			for p := e.Path; p != "" && p != "/"; p = p[:strings.LastIndexByte(p, '/')] {
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

// writeStatus merges the stanzas of packages into status, sorted by name and architecture.
func (s *server) writeStatus(list []*unpacked) error {
	old, err := s.readOptional(admin + "/status")
	if err != nil {
		return err
	}
	type block struct{ key, text string }
	var blocks []block
	for text := range strings.SplitSeq(string(old), "\n\n") {
		if text = strings.Trim(text, "\n"); text != "" {
			blocks = append(blocks, block{stanzaKey(text), text + "\n\n"})
		}
	}
	for _, u := range list {
		var b bytes.Buffer
		state := "unpacked"
		if u.configured() {
			state = "installed"
		}
		formatStatus(&b, u.Control, state, u.Conffiles)
		blocks = append(blocks, block{u.Package.Name + " " + u.Package.Arch, b.String()})
	}
	slices.SortStableFunc(blocks, func(a, b block) int { return strings.Compare(a.key, b.key) })
	var b bytes.Buffer
	for _, x := range blocks {
		b.WriteString(x.text)
	}
	if err := s.put(admin+"/status", 0o644, b.Bytes()); err != nil {
		return err
	}
	if len(old) > 0 {
		return nil
	}
	return s.firstFiles()
}

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

// finishDirectories gives the directories that packages brought their mode, owner and time.
func (s *server) finishDirectories() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var paths []string
	for p, c := range s.claims {
		if c.dir && !c.done && !c.contested && !s.merged[p] {
			paths = append(paths, p)
			c.done = true
		}
	}
	slices.Sort(paths)
	for _, p := range slices.Backward(paths) {
		if err := s.root.directory(p, s.claims[p].attr); err != nil {
			return err
		}
	}
	return nil
}

func (s *server) readOptional(p string) ([]byte, error) {
	data, err := s.root.read(p)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fault.New(fault.Failed, "cannot read %q: %w", p, err)
	}
	return data, nil
}

func (s *server) put(p string, mode uint32, data []byte) error {
	return s.putAs(p, attributes{Mode: mode, MTime: s.begin.Date * 1e9}, data)
}

func (s *server) putAs(p string, a attributes, data []byte) error {
	buf := s.bufs.Get().(*[]byte)
	defer s.bufs.Put(buf)
	return s.root.file(p, a, bytes.NewReader(data), *buf)
}

var _ = tar.TypeReg
