// SPDX-License-Identifier: Apache-2.0

package compress

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz/lzma"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/internal/kernel/kerneltest"
)

var text = bytes.Repeat([]byte("the quick brown fox jumps over the lazy dog, 0123456789 times\n"), 3000)

// bzip2Hello is "hello\n", compressed; the standard library cannot write bzip2.
const bzip2Hello = "QlpoOTFBWSZTWcHAgOIAAAFBAAAQAkSgADDNAMNGKZcXckU4UJDBwIDi"

func pack(t testing.TB, k Kind, data []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	var w io.WriteCloser
	var err error
	if k == LZMA {
		w, err = lzma.NewWriter(&buf)
	} else {
		w, err = NewWriter(&buf, k)
	}
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

func unpack(data []byte, o *Options) ([]byte, error) {
	z, err := Open(bytes.NewReader(data), o)
	if err != nil {
		return nil, err
	}
	defer z.Close()
	var buf bytes.Buffer
	_, err = z.WriteTo(&buf)
	return buf.Bytes(), err
}

func TestRoundTrip(t *testing.T) {
	pool := &Pool{}
	for round := range 2 { // the second one with used decoders
		for _, k := range []Kind{Plain, XZ, LZMA, Zstd, Gzip} {
			data := pack(t, k, text)
			for _, declared := range []Kind{Auto, k} {
				t.Run(fmt.Sprintf("%s/%s/%d", k, declared, round), func(t *testing.T) {
					for how, read := range map[string]func(*Reader) ([]byte, error){
						"Read":    func(z *Reader) ([]byte, error) { return io.ReadAll(iotest.HalfReader(z)) },
						"WriteTo": func(z *Reader) ([]byte, error) { var b bytes.Buffer; _, err := z.WriteTo(&b); return b.Bytes(), err },
						"both": func(z *Reader) ([]byte, error) {
							head := make([]byte, 1000)
							if _, err := io.ReadFull(z, head); err != nil {
								return nil, err
							}
							b := bytes.NewBuffer(head)
							_, err := z.WriteTo(b)
							return b.Bytes(), err
						},
					} {
						z, err := pool.Open(iotest.DataErrReader(bytes.NewReader(data)), &Options{Kind: declared})
						if err != nil {
							t.Fatal(err)
						}
						got, err := read(z)
						if err != nil || !bytes.Equal(got, text) || z.Kind() != k {
							t.Errorf("%s: %d bytes, kind %s, %v", how, len(got), z.Kind(), err)
						}
						if _, err := z.Read(make([]byte, 1)); err != io.EOF {
							t.Errorf("%s: after the end: %v", how, err)
						}
						z.Close()
						if _, err := z.Read(make([]byte, 1)); err == nil || err == io.EOF {
							t.Errorf("%s: after Close: %v", how, err)
						}
						z.Close()
					}
				})
			}
		}
	}
}

func TestBzip2(t *testing.T) {
	data, err := base64.StdEncoding.DecodeString(bzip2Hello)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := unpack(data, nil); err != nil || string(got) != "hello\n" {
		t.Errorf("%q, %v", got, err)
	}
	for n := range data {
		if _, err := unpack(data[:n], &Options{Kind: Bzip2}); fault.ClassOf(err) != fault.Format {
			t.Errorf("cut at %d: %v", n, err)
		}
	}
}

func TestOpenRejects(t *testing.T) {
	gz, zs, x := pack(t, Gzip, text), pack(t, Zstd, text), pack(t, XZ, text)
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	zeros := make([]byte, 1000)
	for _, tt := range []struct {
		name string
		data []byte
		o    Options
		want fault.Class // empty: accepted
		text string
	}{
		{"TAR-37 zip as xz", []byte("PK\x03\x04xxxxxxxxxxxx"), Options{Kind: XZ}, fault.Format, "declared as xz, but it is a zip archive"},
		{"TAR-37 ELF as zstd", []byte("\x7fELF\x02\x01\x01"), Options{Kind: Zstd}, fault.Format, "an ELF program"},
		{"TAR-37 page as gzip", []byte("\n <!DOCTYPE HTML>\n"), Options{Kind: Gzip}, fault.Format, "an HTML page"},
		{"gzip as xz", gz, Options{Kind: XZ}, fault.Format, "it is gzip"},
		{"xz as plain", x, Options{Kind: Plain}, fault.Format, "it is xz"},
		{"nothing as bzip2", nil, Options{Kind: Bzip2}, fault.Format, "an empty file"},
		{"text as lzma", []byte("hello"), Options{Kind: LZMA}, fault.Format, "lzma"},
		{"unknown kind", gz, Options{Kind: "rot13"}, fault.Format, "rot13"},
		{"TAR-34 gzip, zeros", join(gz, zeros), Options{}, "", ""},
		{"gzip, gzip, zeros", join(gz, gz, zeros), Options{}, "", ""},
		{"TAR-34 gzip, junk", join(gz, []byte("junk")), Options{}, fault.Format, "junk"},
		{"gzip, zeros, junk", join(gz, zeros, []byte("j")), Options{}, fault.Format, "junk"},
		{"gzip, half gzip", join(gz, gz[:20]), Options{}, fault.Format, "truncated"},
		{"gzip, two bytes of gzip", join(gz, gz[:2]), Options{}, fault.Format, ""},
		{"gzip cut in its file name", []byte("\x1f\x8b\x08\x08\x00\x00\x00\x00\x00\x03name"), Options{}, fault.Format, "truncated"},
		{"gzip cut", gz[:len(gz)-1], Options{}, fault.Format, "truncated"},
		{"zstd cut", zs[:len(zs)-1], Options{}, fault.Format, "truncated"},
		{"zstd, junk", join(zs, []byte("junkjunk")), Options{}, fault.Format, "damaged zstd"},
		{"zstd, zstd", join(zs, zs), Options{}, "", ""},
		{"xz cut", x[:len(x)-1], Options{}, fault.Format, "truncated"},
		{"xz, junk", join(x, []byte("junk")), Options{}, fault.Format, ""},
		{"output at the limit", gz, Options{MaxOutput: int64(len(text))}, "", ""},
		{"output over the limit", gz, Options{MaxOutput: int64(len(text)) - 1}, fault.Limit, "more than"},
		{"plain over the limit", text, Options{MaxOutput: 10}, fault.Limit, "more than"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.o.Name = "the file"
			for how, read := range map[string]func(z *Reader) error{
				"Read":    func(z *Reader) error { _, err := io.ReadAll(iotest.OneByteReader(z)); return err },
				"WriteTo": func(z *Reader) error { _, err := z.WriteTo(io.Discard); return err },
			} {
				z, err := Open(bytes.NewReader(tt.data), &tt.o)
				if err == nil {
					err = read(z)
					z.Close()
				}
				switch {
				case tt.want == "" && err != nil:
					t.Errorf("%s: rejected: %v", how, err)
				case tt.want != "" && (err == nil || fault.ClassOf(err) != tt.want || !strings.Contains(err.Error(), tt.text) || !strings.Contains(err.Error(), "the file")):
					t.Errorf("%s: %s %v; want %s with %q", how, fault.ClassOf(err), err, tt.want, tt.text)
				}
			}
		})
	}
}

// TestBombs: a short stream of zeros that goes on and on.
func TestBombs(t *testing.T) {
	var gz, zs bytes.Buffer
	g, err := NewWriter(&gz, Gzip)
	if err != nil {
		t.Fatal(err)
	}
	z, err := NewWriter(&zs, Zstd)
	if err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 1<<20)
	for range 80 {
		g.Write(block)
		z.Write(block)
	}
	g.Close()
	z.Close()
	for name, data := range map[string][]byte{"gzip": gz.Bytes(), "zstd": zs.Bytes()} {
		if _, err := unpack(data, nil); fault.ClassOf(err) != fault.Limit || !strings.Contains(err.Error(), "for each byte") {
			t.Errorf("%s: %v", name, err)
		}
		if got, err := unpack(data, &Options{MaxRatio: -1}); err != nil || len(got) != 80<<20 {
			t.Errorf("%s without a limit on the ratio: %d bytes, %v", name, len(got), err)
		}
	}
}

// TestMemoryLimits is TAR-35: a window that nobody should have to provide.
func TestMemoryLimits(t *testing.T) {
	window := append([]byte("\x28\xb5\x2f\xfd\x00\xa8"), 1, 0, 0) // exponent 21: 2 GiB, one empty raw block
	if _, err := unpack(window, nil); fault.ClassOf(err) != fault.Limit {
		t.Errorf("zstd window of 2 GiB: %v", err)
	}
	var zs bytes.Buffer
	w, err := zstd.NewWriter(&zs, zstd.WithWindowSize(8<<20))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(w, io.LimitReader(zeroReader{}, 20<<20)); err != nil {
		t.Fatal(err)
	}
	w.Close()
	lz := pack(t, LZMA, text)
	copy(lz[1:5], "\x00\x00\x00\x40") // 1 GiB
	for name, data := range map[string][]byte{"zstd": zs.Bytes(), "lzma": lz, "xz": pack(t, XZ, text)} {
		pool := &Pool{MaxMemory: 1 << 20}
		z, err := pool.Open(bytes.NewReader(data), nil)
		if err == nil {
			_, err = z.WriteTo(io.Discard)
		}
		if fault.ClassOf(err) != fault.Limit {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := unpack(lz, nil); fault.ClassOf(err) != fault.Limit {
		t.Errorf("lzma dictionary of 1 GiB: %v", err)
	}
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestSourceErrors: an error of the source keeps its identity and is no damage.
func TestSourceErrors(t *testing.T) {
	broken := errors.New("input/output error")
	for _, k := range []Kind{Plain, XZ, LZMA, Zstd, Gzip} {
		data := pack(t, k, text)
		for _, n := range []int{0, 1, 20, len(data) / 2, len(data) - 1} {
			z, err := Open(io.MultiReader(bytes.NewReader(data[:n]), iotest.ErrReader(broken)), &Options{Kind: k})
			if err == nil {
				_, err = z.WriteTo(io.Discard)
				z.Close()
			}
			if !errors.Is(err, broken) || fault.ClassOf(err) != fault.Failed {
				t.Errorf("%s after %d of %d: %s %v", k, n, len(data), fault.ClassOf(err), err)
			}
		}
	}
}

func TestSinkError(t *testing.T) {
	full := errors.New("no space left")
	for _, k := range []Kind{Plain, XZ, LZMA, Zstd, Gzip} {
		z, err := Open(bytes.NewReader(pack(t, k, text)), nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := z.WriteTo(failing{full}); err != full {
			t.Errorf("%s: %v", k, err)
		}
		z.Close()
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

func TestPoolConcurrent(t *testing.T) {
	pool := &Pool{}
	var wg sync.WaitGroup
	for _, k := range []Kind{XZ, Zstd, Gzip, XZ, Zstd, Gzip} {
		data := pack(t, k, text)
		wg.Go(func() {
			for i := range 20 {
				in := data
				if i%3 == 0 {
					in = data[:len(data)-1-i] // a failed decoder goes back into the pool as well
				}
				z, err := pool.Open(bytes.NewReader(in), nil)
				if err != nil {
					t.Error(err)
					return
				}
				got, err := io.ReadAll(z)
				if (err == nil) != (i%3 != 0) || err == nil && !bytes.Equal(got, text) {
					t.Errorf("%s: %d bytes, %v", k, len(got), err)
				}
				z.Close()
			}
		})
	}
	wg.Wait()
}

func TestKindByName(t *testing.T) {
	for name, want := range map[string]Kind{
		"a.tar.xz": XZ, "a.TXZ": XZ, "a.tar.zst": Zstd, "a.tgz": Gzip, "Packages.gz": Gzip, "a.tbz2": Bzip2,
		"a.lzma": LZMA, "a.tar": Plain, "xz": Plain, "": Plain, "a.xz.sig": Plain,
	} {
		if got := KindByName(name); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

func TestDetect(t *testing.T) {
	tar := make([]byte, 512)
	copy(tar[257:], "ustar")
	for _, tt := range []struct {
		head string
		kind Kind
		what string
	}{
		{"!<arch>\ndebian", Plain, "an ar archive"},
		{string(tar), Plain, "a tar archive"},
		{"", Plain, "an empty file"},
		{"hello\n", Plain, "a text"},
		{"\x00\x01", Plain, "data"},
		{"{\"a\":1}", Plain, "a JSON text"},
		{"\x50\x2a\x4d\x18", Zstd, "zstd"},
		{"BZh9 is no bzip2", Plain, "a text"},
		{"\x5d\x00\x00\x80\x00\xff\xff\xff\xff\xff\xff\xff\xff\x00", LZMA, "lzma"},
		{"\x5d\x00\x00\x81\x01\xff\xff\xff\xff\xff\xff\xff\xff\x00", Plain, "data"},
	} {
		if kind, what := Detect([]byte(tt.head)); kind != tt.kind || what != tt.what {
			t.Errorf("%q: %s %q, want %s %q", tt.head, kind, what, tt.kind, tt.what)
		}
	}
}

// TestWritersWithPrograms: what we write, the standard programs read.
func TestWritersWithPrograms(t *testing.T) {
	for k, program := range map[Kind]string{XZ: "xz", Zstd: "zstd", Gzip: "gzip"} {
		t.Run(string(k), func(t *testing.T) {
			path := kerneltest.Program(t, program)
			cmd := exec.Command(path, "-dc")
			cmd.Stdin = bytes.NewReader(pack(t, k, text))
			got, err := cmd.Output()
			if err != nil || !bytes.Equal(got, text) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
	if _, err := NewWriter(io.Discard, Bzip2); fault.ClassOf(err) != fault.Config {
		t.Errorf("bzip2: %v", err)
	}
}

func FuzzOpen(f *testing.F) {
	for _, k := range []Kind{Plain, XZ, LZMA, Zstd, Gzip} {
		f.Add(pack(f, k, text[:300]))
	}
	pool := &Pool{MaxMemory: 1 << 20}
	f.Fuzz(func(t *testing.T, data []byte) {
		z, err := pool.Open(bytes.NewReader(data), &Options{MaxOutput: 1 << 20})
		if err == nil {
			var n int64
			n, err = z.WriteTo(io.Discard)
			if n > 1<<20 {
				t.Fatalf("%d bytes", n)
			}
			z.Close()
		}
		if c := fault.ClassOf(err); err != nil && c != fault.Format && c != fault.Limit {
			t.Fatalf("%s %v", c, err)
		}
	})
}
