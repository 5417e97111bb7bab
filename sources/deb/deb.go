// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/mkmachine/mkmachine/internal/compress"
	"github.com/mkmachine/mkmachine/internal/fault"
)

// The limits where DebOptions does not say one.
const (
	DefaultMaxControl = 64 << 20
	maxControlFiles   = 4096
	maxBinaryMember   = 1024 // debian-binary, in bytes
)

// DebOptions say how a package file is read; nil means the defaults.
type DebOptions struct {
	// Name is how messages call the file; empty means "package".
	Name string
	// MaxControl is the most bytes that control.tar may be, compressed and unpacked; 0 means
	// DefaultMaxControl.
	MaxControl int64
	// MaxData and MaxDataRatio limit the unpacked data.tar as compress.Options.MaxOutput and
	// MaxRatio do.
	MaxData      int64
	MaxDataRatio int64
	// Pool lends the decoders; nil makes new ones.
	Pool *compress.Pool
}

// ControlFile is a file of control.tar.
type ControlFile struct {
	Mode int64 // permission bits
	Data []byte
}

// Deb is an opened package file, format 2.x of deb(5).
type Deb struct {
	// Control is the stanza of the file "control", with Package, Version and Architecture
	// present and well formed.
	Control *Control
	// Files are all files of control.tar by name ("control", "md5sums", "postinst", …),
	// without directories; names are plain, no slash.
	Files map[string]ControlFile
	// Conffiles is the file "conffiles", read.
	Conffiles []Conffile
	// DataKind is how data.tar is compressed, DataSize its bytes in the file.
	DataKind compress.Kind
	DataSize int64

	r      io.ReaderAt
	dataAt int64
	o      DebOptions
}

// ReadDeb reads the frame of a package file of size bytes and its control part. Only the frame
// is looked at of the data part. The caller has verified the digest of the whole file.
//
// Errors: fault.Format for anything that dpkg-deb would not build, fault.Limit, or those of r.
func ReadDeb(r io.ReaderAt, size int64, o *DebOptions) (*Deb, error) {
	d := &Deb{r: r}
	if o != nil {
		d.o = *o
	}
	if d.o.Name == "" {
		d.o.Name = "package"
	}
	if d.o.MaxControl <= 0 {
		d.o.MaxControl = DefaultMaxControl
	}
	if err := d.read(size); err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", d.o.Name, err)
	}
	return d, nil
}

// Data opens data.tar, uncompressed. The caller closes it. It may be called again, and
// concurrently, for further readers. Emptying it with WriteTo is fastest.
func (d *Deb) Data() (*compress.Reader, error) {
	return d.o.Pool.Open(io.NewSectionReader(d.r, d.dataAt, d.DataSize), &compress.Options{
		Name: d.o.Name + " data.tar", Kind: d.DataKind, MaxOutput: d.o.MaxData, MaxRatio: d.o.MaxDataRatio,
	})
}

func malformed(format string, args ...any) error { return fault.New(fault.Format, format, args...) }

// read walks the members: debian-binary, control.tar, data.tar in this order, with members
// whose names start with "_" anywhere after the first.
func (d *Deb) read(size int64) error {
	a := arReader{r: d.r, size: size}
	if err := a.magic(); err != nil {
		return err
	}
	binary, err := a.next()
	if err != nil {
		return noMember(err, "debian-binary")
	}
	if binary.name != "debian-binary" {
		return malformed("first member is %q, not debian-binary", binary.name)
	}
	if err := d.checkVersion(binary); err != nil {
		return err
	}
	control, err := a.required("control.tar")
	if err != nil {
		return err
	}
	if err := d.readControl(control); err != nil {
		return err
	}
	data, err := a.required("data.tar")
	if err != nil {
		return err
	}
	if d.DataKind, err = memberKind(data, "data.tar"); err != nil {
		return err
	}
	d.dataAt, d.DataSize = data.at, data.size
	for {
		m, err := a.next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if !strings.HasPrefix(m.name, "_") {
			return malformed("member %q after data.tar", m.name)
		}
	}
}

func noMember(err error, name string) error {
	if err == io.EOF {
		return malformed("no member %s", name)
	}
	return err
}

// checkVersion accepts "2.N\n" and whatever lines a later minor version adds.
func (d *Deb) checkVersion(m arMember) error {
	if m.size > maxBinaryMember {
		return malformed("debian-binary is %d bytes long", m.size)
	}
	text := make([]byte, m.size)
	if err := readAt(d.r, text, m.at); err != nil {
		return err
	}
	line, _, ok := bytes.Cut(text, []byte("\n"))
	minor, is2 := bytes.CutPrefix(line, []byte("2."))
	if !ok || !is2 || !digits(string(minor)) {
		return malformed("debian-binary is not a format 2.x line")
	}
	return nil
}

// memberKind reads the compression from the suffix of a member's name.
func memberKind(m arMember, base string) (compress.Kind, error) {
	if m.size == 0 {
		return "", malformed("member %s is empty", m.name)
	}
	switch strings.TrimPrefix(m.name, base) {
	case "":
		return compress.Plain, nil
	case ".gz":
		return compress.Gzip, nil
	case ".xz":
		return compress.XZ, nil
	case ".zst":
		return compress.Zstd, nil
	case ".bz2":
		if base == "data.tar" {
			return compress.Bzip2, nil
		}
	}
	return "", malformed("member %q: unsupported compression", m.name)
}

func (d *Deb) readControl(m arMember) error {
	kind, err := memberKind(m, "control.tar")
	if err != nil {
		return err
	}
	if m.size > d.o.MaxControl {
		return fault.New(fault.Limit, "%s is %d bytes, the limit is %d", m.name, m.size, d.o.MaxControl)
	}
	z, err := d.o.Pool.Open(io.NewSectionReader(d.r, m.at, m.size),
		&compress.Options{Name: m.name, Kind: kind, MaxOutput: d.o.MaxControl, MaxRatio: -1})
	if err != nil {
		return err
	}
	defer z.Close()
	var buf bytes.Buffer
	if _, err := z.WriteTo(&buf); err != nil {
		return err
	}
	if d.Files, err = readControlTar(buf.Bytes(), d.o.MaxControl); err != nil {
		return fmt.Errorf("%s: %w", m.name, err)
	}
	control, ok := d.Files["control"]
	if !ok {
		return malformed("%s has no file control", m.name)
	}
	if d.Control, err = ParseControl(control.Data); err != nil {
		return err
	}
	if err := d.Control.checkIdentity(); err != nil {
		return err
	}
	if f, ok := d.Files["conffiles"]; ok {
		d.Conffiles, err = ParseConffiles(f.Data)
	}
	return err
}

// readControlTar takes the regular files out of an uncompressed control.tar. Nothing but
// regular files and the directory "./" may be in it.
func readControlTar(data []byte, most int64) (map[string]ControlFile, error) {
	files := map[string]ControlFile{}
	src := bytes.NewReader(data)
	t := tar.NewReader(src)
	var total int64
	for {
		h, err := t.Next()
		if err == io.EOF {
			break
		}
		if errors.Is(err, tar.ErrFieldTooLong) {
			return nil, fault.New(fault.Limit, "entry header is too long")
		}
		if err != nil {
			return nil, malformed("damaged tar at byte %d: %w", src.Size()-int64(src.Len()), err)
		}
		if h.Typeflag == tar.TypeDir && strings.Trim(h.Name, "./") == "" && h.Size == 0 {
			continue
		}
		name := strings.TrimPrefix(h.Name, "./")
		switch {
		case h.Typeflag != tar.TypeReg:
			return nil, malformed("entry %q is not a regular file", h.Name)
		case !controlFileName(name):
			return nil, malformed("entry %q is not a name of a control file", h.Name)
		}
		if total += h.Size; total > most || len(files) == maxControlFiles {
			return nil, fault.New(fault.Limit, "entry %q: more than %d bytes or %d files", h.Name, most, maxControlFiles)
		}
		if _, twice := files[name]; twice {
			return nil, malformed("entry %q twice", h.Name)
		}
		body := make([]byte, min(h.Size, int64(src.Len())))
		if int64(len(body)) < h.Size {
			return nil, malformed("entry %q is cut short", h.Name)
		}
		if _, err := io.ReadFull(t, body); err != nil {
			return nil, malformed("entry %q: %w", h.Name, err)
		}
		files[name] = ControlFile{Mode: h.Mode & 0o7777, Data: body}
	}
	// The tar reader takes a missing end for an end; the format wants two zero blocks.
	end := len(data) - src.Len()
	if end < 1024 || !zero(data[end-1024:]) {
		return nil, malformed("tar has no end blocks, or something behind them")
	}
	return files, nil
}

// controlFileName tells whether dpkg could install a control file of this name; "list" is
// dpkg's own file.
func controlFileName(s string) bool {
	if s == "" || len(s) > 100 || s == "list" {
		return false
	}
	for i := range len(s) {
		c := s[i]
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !letter && (i == 0 || !strings.ContainsRune("-+._", rune(c))) {
			return false
		}
	}
	return true
}

func zero(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

func digits(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

func readAt(r io.ReaderAt, p []byte, at int64) error {
	n, err := r.ReadAt(p, at)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		return malformed("file is cut short: %w", io.ErrUnexpectedEOF)
	}
	return err
}

// arMember is a member of an ar archive: size bytes at offset at.
type arMember struct {
	name     string
	at, size int64
}

// arReader walks a "common format" ar archive; the long-name extensions of GNU and BSD are
// not part of a package file.
type arReader struct {
	r    io.ReaderAt
	size int64
	at   int64
}

const (
	arMagic      = "!<arch>\n"
	arHeaderSize = 60
)

func (a *arReader) magic() error {
	head := make([]byte, min(a.size, 265))
	if err := readAt(a.r, head, 0); err != nil {
		return err
	}
	if !bytes.HasPrefix(head, []byte(arMagic)) {
		_, what := compress.Detect(head)
		return malformed("not a Debian package but %s", what)
	}
	a.at = int64(len(arMagic))
	return nil
}

// next returns the next member; io.EOF is the regular end.
func (a *arReader) next() (arMember, error) {
	if a.at == a.size {
		return arMember{}, io.EOF
	}
	if a.size-a.at < arHeaderSize {
		return arMember{}, malformed("ar header at byte %d is cut short", a.at)
	}
	var h [arHeaderSize]byte
	if err := readAt(a.r, h[:], a.at); err != nil {
		return arMember{}, err
	}
	bad := func(what string) (arMember, error) {
		return arMember{}, malformed("ar header at byte %d: %s", a.at, what)
	}
	if string(h[58:]) != "`\n" {
		return bad("wrong magic")
	}
	for _, f := range [][]byte{h[16:28], h[28:34], h[34:40], h[40:48]} {
		if s := strings.TrimRight(string(f), " "); s != "" && !digits(s) {
			return bad("malformed number")
		}
	}
	name := strings.TrimRight(string(h[:16]), " ")
	name = strings.TrimSuffix(name, "/")
	if name == "" || strings.ContainsAny(name, "/#") || !printable(name) {
		return bad("member name is not plain")
	}
	sizeText := strings.TrimRight(string(h[48:58]), " ")
	if !digits(sizeText) {
		return bad("malformed size")
	}
	size, err := strconv.ParseInt(sizeText, 10, 64)
	if err != nil {
		return bad("malformed size")
	}
	m := arMember{name, a.at + arHeaderSize, size}
	if size+size&1 > a.size-m.at {
		return bad(fmt.Sprintf("member %s of %d bytes is longer than the file", name, size))
	}
	a.at = m.at + size
	if size&1 == 1 {
		var pad [1]byte
		if err := readAt(a.r, pad[:], a.at); err != nil {
			return arMember{}, err
		}
		if pad[0] != '\n' {
			return bad("padding is not a newline")
		}
		a.at++
	}
	return m, nil
}

// required returns the next member that is not optional, which must be called base with or
// without a suffix.
func (a *arReader) required(base string) (arMember, error) {
	for {
		m, err := a.next()
		if err != nil {
			return m, noMember(err, base)
		}
		if strings.HasPrefix(m.name, "_") {
			continue
		}
		if m.name != base && !strings.HasPrefix(m.name, base+".") {
			return m, malformed("member %q where %s should be", m.name, base)
		}
		return m, nil
	}
}

func printable(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return true
}
