// SPDX-License-Identifier: Apache-2.0

package sourcetest

import (
	"archive/tar"
	"bytes"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/mkmachine/mkmachine/internal/compress"
)

// Package is one binary package. Zero fields get the default in parentheses.
type Package struct {
	Name      string
	Version   string // ("1.0")
	Arch      string // (the repository's)
	Component string // (the repository's first)
	Section   string // ("misc")
	Priority  string // ("optional")
	Essential bool
	MultiArch string

	PreDepends, Depends, Recommends, Suggests string
	Conflicts, Breaks, Replaces, Provides     string

	// Fields adds control fields, in alphabetical order.
	Fields    map[string]string
	Files     []File
	Conffiles []string          // absolute paths
	Scripts   map[string]string // preinst, postinst, prerm, postrm, config, triggers, …: whole text
	// Compression of the members: "xz", "zst", "gz", or "none" ("xz").
	Compression string
}

// File is one entry of a package's tree. Parent directories are made as needed.
type File struct {
	Path string // absolute
	// Mode with the permission bits; 0 means 0644, for directories 0755.
	Mode int64
	UID  int
	GID  int
	Body string
	// Link makes a symbolic link, Hard a hard link to an earlier path, Dir a directory.
	Link string
	Hard string
	Dir  bool
}

// packageTime is the modification time of everything in the packages.
func packageTime() time.Time { return time.Date(2025, 8, 9, 0, 0, 0, 0, time.UTC) }

func (p *Package) setDefaults(s *Spec) {
	for q, v := range map[*string]string{
		&p.Version: "1.0", &p.Arch: s.Arch, &p.Component: s.Components[0],
		&p.Section: "misc", &p.Priority: "optional", &p.Compression: "xz",
	} {
		if *q == "" {
			*q = v
		}
	}
}

// Control is the control stanza, without what the index adds.
func (p *Package) Control() string {
	var out strings.Builder
	field := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&out, "%s: %s\n", name, value)
		}
	}
	field("Package", p.Name)
	field("Version", p.Version)
	field("Architecture", p.Arch)
	field("Maintainer", "Test Archive <archive@example.org>")
	if p.Essential {
		field("Essential", "yes")
	}
	size := int64(1)
	for _, f := range p.Files {
		size += int64(len(f.Body)+1023) / 1024
	}
	field("Installed-Size", fmt.Sprint(size))
	field("Pre-Depends", p.PreDepends)
	field("Depends", p.Depends)
	field("Recommends", p.Recommends)
	field("Suggests", p.Suggests)
	field("Conflicts", p.Conflicts)
	field("Breaks", p.Breaks)
	field("Replaces", p.Replaces)
	field("Provides", p.Provides)
	field("Section", p.Section)
	field("Priority", p.Priority)
	field("Multi-Arch", p.MultiArch)
	for _, name := range slices.Sorted(maps.Keys(p.Fields)) {
		field(name, p.Fields[name])
	}
	field("Description", "test package "+p.Name)
	return out.String()
}

func (p *Package) stanza(path string, deb []byte) string {
	sum := md5.Sum(deb)
	return fmt.Sprintf("%sFilename: %s\nSize: %d\nMD5sum: %s\nSHA256: %s\n\n", p.Control(), path, len(deb), hex.EncodeToString(sum[:]), digest(deb))
}

// Build makes the .deb file. Name, Version and Arch must be set.
func (p *Package) Build() ([]byte, error) {
	suffix, kind := "", compress.Plain
	if p.Compression != "none" && p.Compression != "" {
		suffix = "." + p.Compression
		kind = compress.KindByName("x" + suffix)
	}
	data, sums, err := p.dataTar()
	if err != nil {
		return nil, err
	}
	control, err := p.controlTar(sums)
	if err != nil {
		return nil, err
	}
	if data, err = compressBytes(data, kind); err != nil {
		return nil, err
	}
	if control, err = compressBytes(control, kind); err != nil {
		return nil, err
	}
	return Ar(
		ArMember{"debian-binary", []byte("2.0\n")},
		ArMember{"control.tar" + suffix, control},
		ArMember{"data.tar" + suffix, data},
	), nil
}

// ArMember is a file in an ar archive.
type ArMember struct {
	Name string
	Body []byte
}

// Ar writes a common ar archive as dpkg-deb does.
func Ar(members ...ArMember) []byte {
	out := bytes.NewBufferString("!<arch>\n")
	for _, m := range members {
		fmt.Fprintf(out, "%-16s%-12d%-6d%-6d%-8s%-10d`\n", m.Name, packageTime().Unix(), 0, 0, "100644", len(m.Body))
		out.Write(m.Body)
		if len(m.Body)%2 == 1 {
			out.WriteByte('\n')
		}
	}
	return out.Bytes()
}

func (p *Package) controlTar(sums string) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	put := func(name string, mode int64, body string) error {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: "./" + name, Mode: mode, Size: int64(len(body)), ModTime: packageTime(), Format: tar.FormatGNU}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		_, err := w.Write([]byte(body))
		return err
	}
	err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755, ModTime: packageTime(), Format: tar.FormatGNU})
	if err == nil && len(p.Conffiles) > 0 {
		err = put("conffiles", 0o644, strings.Join(p.Conffiles, "\n")+"\n")
	}
	if err == nil {
		err = put("control", 0o644, p.Control())
	}
	if err == nil && sums != "" {
		err = put("md5sums", 0o644, sums)
	}
	for _, name := range slices.Sorted(maps.Keys(p.Scripts)) {
		mode := int64(0o755)
		if !slices.Contains([]string{"preinst", "postinst", "prerm", "postrm", "config"}, name) {
			mode = 0o644
		}
		if err == nil {
			err = put(name, mode, p.Scripts[name])
		}
	}
	if err == nil {
		err = w.Close()
	}
	return out.Bytes(), err
}

// dataTar writes the tree and the md5sums text of its regular files.
func (p *Package) dataTar() (data []byte, sums string, err error) {
	var out bytes.Buffer
	var md5sums strings.Builder
	w := tar.NewWriter(&out)
	made := map[string]bool{}
	header := func(h tar.Header, body string) error {
		h.ModTime, h.Format, h.Size = packageTime(), tar.FormatGNU, int64(len(body))
		if err := w.WriteHeader(&h); err != nil {
			return err
		}
		_, err := w.Write([]byte(body))
		return err
	}
	var dir func(name string, f File) error
	dir = func(name string, f File) error {
		if made[name] {
			return nil
		}
		made[name] = true
		if name != "." {
			if err := dir(path.Dir(name), File{}); err != nil {
				return err
			}
		}
		if f.Mode == 0 {
			f.Mode = 0o755
		}
		full := "./" + name + "/"
		if name == "." {
			full = "./"
		}
		return header(tar.Header{Typeflag: tar.TypeDir, Name: full, Mode: f.Mode, Uid: f.UID, Gid: f.GID}, "")
	}
	if err := dir(".", File{}); err != nil {
		return nil, "", err
	}
	for _, f := range p.Files {
		name := strings.TrimPrefix(path.Clean("/"+f.Path), "/")
		if f.Dir {
			if err := dir(name, f); err != nil {
				return nil, "", err
			}
			continue
		}
		if err := dir(path.Dir(name), File{}); err != nil {
			return nil, "", err
		}
		h := tar.Header{Typeflag: tar.TypeReg, Name: "./" + name, Mode: f.Mode, Uid: f.UID, Gid: f.GID}
		body := f.Body
		switch {
		case f.Link != "":
			h.Typeflag, h.Linkname, h.Mode, body = tar.TypeSymlink, f.Link, 0o777, ""
		case f.Hard != "":
			h.Typeflag, h.Linkname, body = tar.TypeLink, "./"+strings.TrimPrefix(f.Hard, "/"), ""
		default:
			sum := md5.Sum([]byte(body))
			fmt.Fprintf(&md5sums, "%s  %s\n", hex.EncodeToString(sum[:]), name)
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if err := header(h, body); err != nil {
			return nil, "", err
		}
	}
	err = w.Close()
	return out.Bytes(), md5sums.String(), err
}
