// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mkmachine/mkmachine/internal/compress"
	"github.com/mkmachine/mkmachine/internal/fault"
)

const testControl = "Package: tiny\nVersion: 1.0-1\nArchitecture: all\nDescription: a tiny package\n with a longer text\n .\n in two parts\n"

// member makes one ar member, padded.
func member(name string, body []byte) []byte { return memberSize(name, fmt.Sprint(len(body)), body) }

func memberSize(name, size string, body []byte) []byte {
	out := fmt.Appendf(nil, "%-16s%-12s%-6s%-6s%-8s%-10s`\n", name, "0", "0", "0", "100644", size)
	out = append(out, body...)
	if len(body)%2 == 1 {
		out = append(out, '\n')
	}
	return out
}

func archive(members ...[]byte) []byte {
	return append([]byte("!<arch>\n"), bytes.Join(members, nil)...)
}

type tarEntry struct {
	name string
	kind byte
	mode int64
	body string
}

// tarball makes a tar; a directory "./" comes first.
func tarball(t testing.TB, entries ...tarEntry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range append([]tarEntry{{"./", tar.TypeDir, 0o755, ""}}, entries...) {
		h := &tar.Header{Name: e.name, Typeflag: e.kind, Mode: e.mode, Size: int64(len(e.body)), Format: tar.FormatGNU}
		if e.kind == 0 {
			h.Typeflag = tar.TypeReg
		}
		if e.kind == tar.TypeSymlink {
			h.Linkname = "target"
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func pack(t testing.TB, k compress.Kind, data []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := compress.NewWriter(&buf, k)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func open(data []byte) (*Deb, error) {
	return ReadDeb(bytes.NewReader(data), int64(len(data)), &DebOptions{Name: "tiny.deb"})
}

var version2 = member("debian-binary", []byte("2.0\n"))

func TestReadDeb(t *testing.T) {
	control := tarball(t,
		tarEntry{"./control", 0, 0o644, testControl},
		tarEntry{"./postinst", 0, 0o755, "#!/bin/sh\n"},
		tarEntry{"conffiles", 0, 0o644, "/etc/tiny.conf\nremove-on-upgrade /etc/old.conf\n"})
	payload := tarball(t, tarEntry{"./usr/bin/tiny", 0, 0o755, "hello"})
	for _, k := range []struct {
		kind   compress.Kind
		suffix string
	}{{compress.Plain, ""}, {compress.Gzip, ".gz"}, {compress.XZ, ".xz"}, {compress.Zstd, ".zst"}} {
		t.Run(string(k.kind), func(t *testing.T) {
			d, err := open(archive(version2, member("control.tar"+k.suffix, pack(t, k.kind, control)),
				member("data.tar"+k.suffix, pack(t, k.kind, payload))))
			if err != nil {
				t.Fatal(err)
			}
			if got := d.Control.Value("package"); got != "tiny" {
				t.Errorf("package %q", got)
			}
			if got := d.Control.Value("Description"); got != "a tiny package\n with a longer text\n .\n in two parts" {
				t.Errorf("description %q", got)
			}
			if string(d.Control.Text) != testControl {
				t.Errorf("text %q", d.Control.Text)
			}
			if f := d.Files["postinst"]; f.Mode != 0o755 || string(f.Data) != "#!/bin/sh\n" {
				t.Errorf("postinst %+v", f)
			}
			if want := []Conffile{{"/etc/tiny.conf", false}, {"/etc/old.conf", true}}; !slices.Equal(d.Conffiles, want) {
				t.Errorf("conffiles %v", d.Conffiles)
			}
			if d.DataKind != k.kind {
				t.Errorf("data kind %q", d.DataKind)
			}
			for range 2 { // may be opened again
				z, err := d.Data()
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(z)
				if err != nil || !bytes.Equal(got, payload) {
					t.Errorf("data: %d bytes, %v", len(got), err)
				}
				if err := z.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// TestHostileFrames are the DEB items of the catalogue of bad inputs that concern the frame.
func TestHostileFrames(t *testing.T) {
	ctar := tarball(t, tarEntry{"./control", 0, 0o644, testControl})
	c := member("control.tar", ctar)
	dtar := tarball(t)
	d := member("data.tar", dtar)
	good := archive(version2, c, d)
	odd := archive(version2, c, member("data.tar.gz", append(pack(t, compress.Gzip, dtar), make([]byte, 1-len(pack(t, compress.Gzip, dtar))%2)...)))
	if len(odd)%2 != 0 {
		t.Fatal("the archive should have been padded")
	}
	bigControl := tarball(t, tarEntry{"./control", 0, 0o644, testControl})
	huge := bytes.Clone(bigControl)
	setTarSize(huge[512:1024], 128<<30+1)
	longLink := bytes.Clone(bigControl)
	longLink[512+156] = 'L'
	setTarSize(longLink[512:1024], 64<<20)
	longLink = append(longLink[:1024], make([]byte, 2<<20)...)
	noEnd := ctar[:len(ctar)-1024]

	for _, tt := range []struct {
		name string
		data []byte
		want fault.Class // empty: accepted
		text string
	}{
		{"good", good, "", ""},
		{"DEB-01 no magic", []byte("!<arch>"), fault.Format, "not a Debian package"},
		{"DEB-01 thin", append([]byte("!<thin>\n"), good[8:]...), fault.Format, "thin"},
		{"DEB-01 zip", []byte("PK\x03\x04 and more"), fault.Format, "a zip archive"},
		{"DEB-01 html", []byte("<!DOCTYPE html><html>"), fault.Format, "an HTML page"},
		{"DEB-01 empty", nil, fault.Format, "an empty file"},
		{"DEB-02 pad byte missing", odd[:len(odd)-1], fault.Format, "longer than the file"},
		{"DEB-02 wrong pad byte", append(bytes.Clone(odd[:len(odd)-1]), 'x'), fault.Format, "padding"},
		{"DEB-02 one byte too many", append(bytes.Clone(good), '\n'), fault.Format, "cut short"},
		{"DEB-03 negative", archive(version2, memberSize("control.tar", "-5", ctar), d), fault.Format, "size"},
		{"DEB-03 blank inside", archive(version2, memberSize("control.tar", " 12 3", ctar), d), fault.Format, "size"},
		{"DEB-03 hex", archive(version2, memberSize("control.tar", "0x10", ctar), d), fault.Format, "size"},
		{"DEB-03 plus", archive(version2, memberSize("control.tar", "+7", ctar), d), fault.Format, "size"},
		{"DEB-03 empty", archive(version2, memberSize("control.tar", "", ctar), d), fault.Format, "size"},
		{"DEB-04 huge", archive(version2, memberSize("control.tar", "9999999999", ctar[:512])), fault.Format, "longer than the file"},
		{"DEB-05 GNU table", archive(version2, member("//", []byte("long-name/\n")), c, d), fault.Format, "not plain"},
		{"DEB-05 GNU long name", archive(version2, member("/0", ctar), d), fault.Format, "not plain"},
		{"DEB-05 BSD name", archive(version2, member("#1/20", append(make([]byte, 20), ctar...)), d), fault.Format, "not plain"},
		{"DEB-06 data first", archive(version2, d, c), fault.Format, "where control.tar should be"},
		{"no data", archive(version2, c), fault.Format, "no member data.tar"},
		{"no control", archive(version2), fault.Format, "no member control.tar"},
		{"control twice", archive(version2, c, c, d), fault.Format, "where data.tar should be"},
		{"data twice", archive(version2, c, d, d), fault.Format, "after data.tar"},
		{"DEB-08 _foo", archive(version2, member("_foo", []byte("x")), c, member("_bar", nil), d, member("_gpgorigin", []byte("y"))), "", ""},
		{"DEB-08 foo", archive(version2, member("foo", []byte("x")), c, d), fault.Format, "foo"},
		{"DEB-08 control.tarx", archive(version2, member("control.tarx", ctar), d), fault.Format, "control.tarx"},
		{"DEB-09 3.0", archive(member("debian-binary", []byte("3.0\n")), c, d), fault.Format, "2.x"},
		{"DEB-09 no newline", archive(member("debian-binary", []byte("2.0")), c, d), fault.Format, "2.x"},
		{"DEB-09 no minor", archive(member("debian-binary", []byte("2.\n")), c, d), fault.Format, "2.x"},
		{"DEB-09 long", archive(member("debian-binary", append([]byte("2.0\n"), make([]byte, 1<<20)...)), c, d), fault.Format, "bytes long"},
		{"DEB-09 later minor", archive(member("debian-binary", []byte("2.1\nextra\n")), c, d), "", ""},
		{"debian-binary not first", archive(c, version2, d), fault.Format, "not debian-binary"},
		{"DEB-10 lzma", archive(version2, c, member("data.tar.lzma", dtar)), fault.Format, "unsupported"},
		{"DEB-10 br", archive(version2, c, member("data.tar.br", dtar)), fault.Format, "unsupported"},
		{"DEB-10 lz4", archive(version2, c, member("data.tar.lz4", dtar)), fault.Format, "unsupported"},
		{"DEB-10 bzip2 control", archive(version2, member("control.tar.bz2", ctar), d), fault.Format, "unsupported"},
		{"DEB-11 header claims 128 GiB", archive(version2, member("control.tar", huge), d), fault.Limit, "control"},
		{"DEB-11 long link of 64 MiB", archive(version2, member("control.tar", longLink), d), fault.Limit, "too long"},
		{"DEB-11 bomb", archive(version2, member("control.tar.zst", pack(t, compress.Zstd, make([]byte, 64<<20+1))), d), fault.Limit, "more than"},
		{"DEB-13 empty control", archive(version2, member("control.tar", nil), d), fault.Format, "empty"},
		{"DEB-13 empty data", archive(version2, c, member("data.tar.xz", nil)), fault.Format, "empty"},
		{"control is not xz", archive(version2, member("control.tar.xz", []byte("PK\x03\x04zzzz")), d), fault.Format, "a zip archive"},
		{"tar without end", archive(version2, member("control.tar", noEnd), d), fault.Format, "end blocks"},
		{"tar cut in a block", archive(version2, member("control.tar", ctar[:700]), d), fault.Format, "damaged"},
		{"tar with a tail", archive(version2, member("control.tar", append(bytes.Clone(ctar), ctar...)), d), fault.Format, "end blocks"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := open(tt.data)
			checkFault(t, err, tt.want, tt.text)
		})
	}
}

func checkFault(t *testing.T, err error, want fault.Class, text string) {
	t.Helper()
	if want == "" {
		if err != nil {
			t.Errorf("rejected: %v", err)
		}
		return
	}
	if err == nil {
		t.Fatal("accepted")
	}
	if got := fault.ClassOf(err); got != want || !strings.Contains(err.Error(), text) {
		t.Errorf("%s %v; want %s with %q", got, err, want, text)
	}
}

// setTarSize writes the size of a tar header and its checksum anew, in base 256.
func setTarSize(h []byte, size int64) {
	f := h[124:136]
	for i := 11; i > 0; i-- {
		f[i] = byte(size)
		size >>= 8
	}
	f[0] = 0x80
	copy(h[148:156], "        ")
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:156], fmt.Sprintf("%06o\x00 ", sum))
}

func TestControlTarEntries(t *testing.T) {
	control := tarEntry{"./control", 0, 0o644, testControl}
	for _, tt := range []struct {
		name    string
		entries []tarEntry
		text    string
	}{
		{"symlink", []tarEntry{control, {"./postinst", tar.TypeSymlink, 0o777, ""}}, "not a regular file"},
		{"hard link", []tarEntry{control, {"./postinst", tar.TypeLink, 0o777, ""}}, "not a regular file"},
		{"fifo", []tarEntry{control, {"./postinst", tar.TypeFifo, 0o777, ""}}, "not a regular file"},
		{"directory", []tarEntry{control, {"./d/", tar.TypeDir, 0o755, ""}}, "not a regular file"},
		{"nested", []tarEntry{control, {"./d/postinst", 0, 0o755, ""}}, "not a name"},
		{"parent", []tarEntry{control, {"../postinst", 0, 0o755, ""}}, "not a name"},
		{"absolute", []tarEntry{control, {"/postinst", 0, 0o755, ""}}, "not a name"},
		{"dpkg's own list", []tarEntry{control, {"./list", 0, 0o644, ""}}, "not a name"},
		{"escape", []tarEntry{control, {"./a\x1b[2J", 0, 0o644, ""}}, "not a name"},
		{"twice", []tarEntry{control, control}, "twice"},
		{"twice by spelling", []tarEntry{control, {"control", 0, 0o644, testControl}}, "twice"},
		{"none", nil, "no file control"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := open(archive(version2, member("control.tar", tarball(t, tt.entries...)), member("data.tar", tarball(t))))
			checkFault(t, err, fault.Format, tt.text)
		})
	}
}

func TestParseControl(t *testing.T) {
	for _, tt := range []struct{ name, in, text string }{
		{"good", testControl, ""},
		{"blank lines at the end", testControl + "\n\n", ""},
		{"tab continuation", "Package: x\nDescription: a\n\tb\n", ""},
		{"empty value", "Package: x\nEmpty:\n", ""},
		{"utf-8", "Package: x\nMaintainer: Zoë\n", ""},
		{"DEB-14 duplicate", "Package: x\nPackage: y\n", "line 2: field Package twice"},
		{"DEB-14 duplicate in other case", "Package: x\npackage: y\n", "twice"},
		{"DEB-14 dash", "Package: x\n-Field: y\n", "line 2: not a field"},
		{"DEB-14 no final newline", "Package: x", "no newline"},
		{"DEB-14 Ctrl-Z", "Package: x\n\x1a\n", "control character"},
		{"DEB-14 CRLF", "Package: x\r\n", "control character"},
		{"comment", "# no\nPackage: x\n", "not a field"},
		{"two stanzas", "Package: x\n\nPackage: y\n", "blank line"},
		{"leading blank line", "\nPackage: y\n", "blank line"},
		{"blank continuation", "Package: x\n \n", "blank line"},
		{"orphan continuation", " x\n", "without a field"},
		{"no colon", "Package\n", "not a field"},
		{"blank in name", "Pack age: x\n", "not a field"},
		{"NUL", "Package: x\x00\n", "control character"},
		{"empty", "", "no newline"},
		{"only newlines", "\n\n", "empty"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ParseControl([]byte(tt.in))
			want := fault.Format
			if tt.text == "" {
				want = ""
			}
			checkFault(t, err, want, tt.text)
		})
	}
}

func TestControlIdentity(t *testing.T) {
	for _, tt := range []struct {
		pkg, version, arch string
		ok                 bool
	}{
		{"libc6", "2.41-12+deb13u1", "amd64", true},
		{"g++", "4:14.2.0-1", "kfreebsd-amd64", true},
		{"x", "1", "all", false},
		{"../x", "1", "all", false},
		{"-oDir", "1", "all", false},
		{"Libc6", "1", "all", false},
		{"libc6", "", "all", false},
		{"libc6", "1 0", "all", false},
		{"libc6", "../1", "all", false},
		{"libc6", "1", "a/b", false},
		{"libc6", "1", "-x", false},
		{"libc6", "1", "", false},
		{strings.Repeat("a", 256), "1", "all", false},
	} {
		c, err := ParseControl(fmt.Appendf(nil, "Package: %s\nVersion: %s\nArchitecture: %s\n", tt.pkg, tt.version, tt.arch))
		if err != nil {
			t.Fatal(err)
		}
		if err := c.checkIdentity(); (err == nil) != tt.ok {
			t.Errorf("%s %s %s: %v", tt.pkg, tt.version, tt.arch, err)
		}
	}
}

func TestParseConffiles(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want []Conffile
		text string
	}{
		{"", nil, ""},
		{"/etc/a\n/etc/b c\n", []Conffile{{"/etc/a", false}, {"/etc/b c", false}}, ""},
		{"/etc/a  \n", []Conffile{{"/etc/a", false}}, ""},
		{"remove-on-upgrade /etc/sysctl.conf\n", []Conffile{{"/etc/sysctl.conf", true}}, ""},
		{"/etc/a", nil, "no newline"},
		{"\n", nil, "neither"},
		{"etc/a\n", nil, "neither"},
		{"keep /etc/a\n", nil, "neither"},
		{"/etc/../x\n", nil, "plain absolute"},
		{"/etc//x\n", nil, "plain absolute"},
		{"/etc/x/\n", nil, "plain absolute"},
		{"/etc/\x01\n", nil, "plain absolute"},
		{"remove-on-upgrade\n", nil, "plain absolute"},
		{"/etc/a\n/etc/a\n", nil, "twice"},
	} {
		got, err := ParseConffiles([]byte(tt.in))
		want := fault.Format
		if tt.text == "" {
			want = ""
		}
		checkFault(t, err, want, tt.text)
		if !slices.Equal(got, tt.want) {
			t.Errorf("%q: %v", tt.in, got)
		}
	}
}

// TestReadDebSourceError: an error of the medium is not damage of the package.
func TestReadDebSourceError(t *testing.T) {
	data := archive(version2, member("control.tar", tarball(t, tarEntry{"./control", 0, 0o644, testControl})), member("data.tar", tarball(t)))
	for fail := int64(0); fail < int64(len(data)); fail += 97 {
		d, err := ReadDeb(failingAt{bytes.NewReader(data), fail}, int64(len(data)), nil)
		if err == nil {
			var z *compress.Reader
			if z, err = d.Data(); err == nil {
				_, err = io.Copy(io.Discard, z)
			}
		}
		if err != nil && (!errors.Is(err, errMedium) || fault.ClassOf(err) != fault.Failed) {
			t.Errorf("byte %d: %s %v", fail, fault.ClassOf(err), err)
		}
	}
}

var errMedium = errors.New("input/output error")

type failingAt struct {
	r    io.ReaderAt
	fail int64
}

func (f failingAt) ReadAt(p []byte, at int64) (int, error) {
	if at <= f.fail && f.fail < at+int64(len(p)) {
		n, _ := f.r.ReadAt(p[:f.fail-at], at)
		return n, errMedium
	}
	return f.r.ReadAt(p, at)
}

func FuzzReadDeb(f *testing.F) {
	control := tarball(f, tarEntry{"./control", 0, 0o644, testControl}, tarEntry{"./conffiles", 0, 0o644, "/etc/a\n"})
	data := tarball(f, tarEntry{"./a", 0, 0o644, "x"})
	for _, k := range []compress.Kind{compress.Plain, compress.Gzip, compress.Zstd} {
		suffix := map[compress.Kind]string{compress.Gzip: ".gz", compress.Zstd: ".zst"}[k]
		f.Add(archive(version2, member("control.tar"+suffix, pack(f, k, control)), member("data.tar"+suffix, pack(f, k, data))))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		d, err := ReadDeb(bytes.NewReader(in), int64(len(in)), &DebOptions{MaxControl: 1 << 20, MaxData: 1 << 20})
		if err != nil {
			return
		}
		if d.Control.Value("Package") == "" || d.dataAt+d.DataSize > int64(len(in)) {
			t.Fatal("accepted without a name or with data outside the file")
		}
		z, err := d.Data()
		if err != nil {
			return
		}
		defer z.Close()
		if n, err := io.Copy(io.Discard, z); err == nil && n > 1<<20 {
			t.Fatalf("%d bytes", n)
		}
	})
}

func FuzzParseControl(f *testing.F) {
	f.Add([]byte(testControl))
	f.Add([]byte("A:b\n c\n\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		c, err := ParseControl(in)
		if err != nil {
			return
		}
		var again []byte
		for _, field := range c.Fields {
			again = fmt.Appendf(again, "%s: %s\n", field.Name, field.Value)
		}
		d, err := ParseControl(again)
		if err != nil || !slices.Equal(c.Fields, d.Fields) {
			t.Fatalf("%q became %q: %v", in, again, err)
		}
	})
}

// TestPool reads every package of a directory tree, when one is named.
func TestPool(t *testing.T) {
	dir := os.Getenv("MKMACHINE_BENCH_POOL")
	if dir == "" {
		t.Skip("needs MKMACHINE_BENCH_POOL, a directory of .deb files")
	}
	pool := &compress.Pool{}
	count := 0
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".deb" {
			return err
		}
		count++
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		d, err := ReadDeb(f, info.Size(), &DebOptions{Name: e.Name(), Pool: pool})
		if err != nil {
			t.Error(err)
			return nil
		}
		if got := strings.SplitN(e.Name(), "_", 2)[0]; got != d.Control.Value("Package") {
			t.Errorf("%s holds %s", path, d.Control.Value("Package"))
		}
		return nil
	})
	if err != nil || count == 0 {
		t.Errorf("%d packages, %v", count, err)
	}
}
