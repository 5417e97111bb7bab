// SPDX-License-Identifier: Apache-2.0

package tar

import (
	stdtar "archive/tar"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// write makes an archive with the standard library.
func write(t testing.TB, format stdtar.Format, headers []*stdtar.Header, bodies []string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := stdtar.NewWriter(&b)
	for i, h := range headers {
		h.Format = format
		h.Size = int64(len(bodies[i]))
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, bodies[i])
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestReaderAgreesWithStandardLibrary(t *testing.T) {
	long := strings.Repeat("directory/", 30) + "name"
	for _, format := range []stdtar.Format{stdtar.FormatPAX, stdtar.FormatGNU} {
		headers := []*stdtar.Header{
			{Name: "./", Typeflag: stdtar.TypeDir, Mode: 0o755},
			{Name: "./a", Typeflag: stdtar.TypeReg, Mode: 0o4755, Uid: 1000, Gid: 5, ModTime: time.Unix(1_700_000_000, 0)},
			{Name: long, Typeflag: stdtar.TypeReg, Mode: 0o644, Uid: 1 << 22},
			{Name: "link", Linkname: long, Typeflag: stdtar.TypeSymlink, Mode: 0o777},
			{Name: "hard", Linkname: "a", Typeflag: stdtar.TypeLink},
			{Name: "dev/null", Typeflag: stdtar.TypeChar, Devmajor: 1, Devminor: 3},
			{Name: "pipe", Typeflag: stdtar.TypeFifo},
			{Name: "big", Typeflag: stdtar.TypeReg},
		}
		bodies := []string{"", "hello", strings.Repeat("x", 513), "", "", "", "", strings.Repeat("0123456789abcdef", 1<<16)}
		data := write(t, format, headers, bodies)
		for _, src := range []io.Reader{bytes.NewReader(data), iotest.OneByteReader(bytes.NewReader(data)), iotest.DataErrReader(bytes.NewReader(data))} {
			r := NewReader(src, Limits{})
			for i, want := range headers {
				h, err := r.Next()
				if err != nil {
					t.Fatalf("%v entry %d: %v", format, i, err)
				}
				body, err := io.ReadAll(r)
				if err != nil {
					t.Fatal(err)
				}
				got := fmt.Sprint(h.Name, h.Link, h.Type, h.Mode, h.UID, h.GID, h.Size, h.Major, h.Minor)
				if exp := fmt.Sprint(want.Name, want.Linkname, want.Typeflag, want.Mode, want.Uid, want.Gid, want.Size, want.Devmajor, want.Devminor); got != exp {
					t.Errorf("%v: got %s, want %s", format, got, exp)
				}
				if string(body) != bodies[i] {
					t.Errorf("%v: body of %s differs", format, h.Name)
				}
				if !want.ModTime.IsZero() && h.ModTime != want.ModTime.Unix() {
					t.Errorf("%v: time of %s is %d", format, h.Name, h.ModTime)
				}
			}
			if _, err := r.Next(); err != io.EOF {
				t.Errorf("%v: end: %v", format, err)
			}
			if r.Offset() != int64(len(data)) {
				t.Errorf("%v: consumed %d of %d bytes", format, r.Offset(), len(data))
			}
		}
	}
}

// Cut anywhere, an archive is never taken for a whole one.
func TestReaderTruncated(t *testing.T) {
	data := write(t, stdtar.FormatPAX, []*stdtar.Header{
		{Name: "a", Typeflag: stdtar.TypeReg, PAXRecords: map[string]string{"SCHILY.xattr.user.x": "y"}},
		{Name: "b", Typeflag: stdtar.TypeReg},
	}, []string{"hello", strings.Repeat("x", 600)})
	for n := range data {
		if err := drain(data[:n]); fault.ClassOf(err) != fault.Format {
			t.Fatalf("cut at %d of %d: %v", n, len(data), err)
		}
	}
	if err := drain(data); err != nil {
		t.Fatal(err)
	}
}

func drain(data []byte) error {
	r := NewReader(bytes.NewReader(data), Limits{})
	for {
		if _, err := r.Next(); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// Reading stops for good at the first error, and a source's own error is not hidden.
func TestReaderErrors(t *testing.T) {
	data := write(t, stdtar.FormatUSTAR, []*stdtar.Header{{Name: "a", Typeflag: stdtar.TypeReg}}, []string{"hello"})
	r := NewReader(io.MultiReader(bytes.NewReader(data[:600]), iotest.ErrReader(io.ErrClosedPipe)), Limits{})
	if _, err := r.Next(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := r.Next(); err != io.ErrClosedPipe {
			t.Errorf("got %v", err)
		}
	}
	if Sniff([]byte("\x28\xb5\x2f\xfdxxxx")) != "zstd data" {
		t.Error("zstd is not recognised")
	}
}

func TestParseNumber(t *testing.T) {
	for in, want := range map[string]int64{
		"0000644\x00": 0o644, "   644 \x00": 0o644, "\x00\x00\x00\x00\x00\x00\x00\x00": 0, "00000000": 0,
		"\x80\x00\x00\x00\x00\x00\x01\x00": 256, "\xff\xff\xff\xff\xff\xff\xff\xff": -1, "\xff\xff\xff\xff\xff\xff\xff\x00": -256,
	} {
		if got, err := parseNumber([]byte(in)); err != nil || got != want {
			t.Errorf("%q: %d, %v, want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"0x10\x00\x00\x00\x00", "-5\x00\x00\x00\x00\x00\x00", "9\x00\x00\x00\x00\x00\x00\x00", "\x80\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"} {
		if got, err := parseNumber([]byte(in)); err == nil {
			t.Errorf("%q: %d", in, got)
		}
	}
}

func TestPaxTime(t *testing.T) {
	for in, want := range map[string]int64{"0": 0, "12.9": 12, "-1": -1, "-1.5": -2, "-1.0": -1, "5.": 5} {
		if got, ok := paxTime(in); !ok || got != want {
			t.Errorf("%q: %d %v, want %d", in, got, ok, want)
		}
	}
	for _, in := range []string{"", ".", "NaN", "1e3", "+1", "--1", "1.2.3", " 1", "Inf"} {
		if got, ok := paxTime(in); ok {
			t.Errorf("%q: %d", in, got)
		}
	}
}

// FuzzReader: no panic, no endless work, and what we accept the standard library reads as
// the same names and bytes.
func FuzzReader(f *testing.F) {
	f.Add(write(f, stdtar.FormatPAX, []*stdtar.Header{{Name: strings.Repeat("a/", 99) + "b", Typeflag: stdtar.TypeReg,
		PAXRecords: map[string]string{"SCHILY.xattr.user.x": "y"}}, {Name: "b", Typeflag: stdtar.TypeSymlink, Linkname: "c"}}, []string{"x", ""}))
	f.Add(write(f, stdtar.FormatGNU, []*stdtar.Header{{Name: strings.Repeat("a/", 99) + "b", Typeflag: stdtar.TypeReg, Uid: 1 << 30}}, []string{"x"}))
	f.Add(make([]byte, 1024))
	f.Fuzz(func(t *testing.T, data []byte) {
		data = fixSums(data)
		r := NewReader(bytes.NewReader(data), Limits{Sparse: 1000, File: 1 << 24})
		std := stdtar.NewReader(bytes.NewReader(data))
		var ours []string
		for {
			h, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				return // we are stricter
			}
			body, err := io.ReadAll(r)
			if err != nil {
				return
			}
			if h.Sparse != nil {
				return // the library expands them
			}
			ours = append(ours, fmt.Sprintf("%q %q %x", h.Name, h.Link, body))
		}
		for i := 0; i < len(ours); {
			h, err := std.Next()
			if err != nil {
				// It refuses what it takes for a corner of PAX; so far seen: bad times and numbers.
				return
			}
			if h.Typeflag == stdtar.TypeXGlobalHeader {
				continue
			}
			body, err := io.ReadAll(std)
			if err != nil {
				return
			}
			link := h.Linkname
			if theirs := fmt.Sprintf("%q %q %x", h.Name, link, body); strings.TrimSuffix(theirs, "/") != ours[i] && !knownDifference(h) {
				t.Errorf("entry %d: ours %s, theirs %s", i, ours[i], theirs)
			}
			i++
		}
	})
}

// knownDifference: the library trims names of the seventh edition's directories.
func knownDifference(h *stdtar.Header) bool { return h.Format == stdtar.FormatUnknown }

// fixSums makes the checksums right where a header may be, so that the fuzzer gets behind them.
func fixSums(data []byte) []byte {
	data = bytes.Clone(data)
	for at := 0; at+BlockSize <= len(data); at += BlockSize {
		b := data[at : at+BlockSize]
		if m := string(b[atMagic : atMagic+8]); m != magicPOSIX && m != magicGNU || b[atSum] == 'X' {
			continue
		}
		var sum int64
		for i, c := range b {
			if i >= atSum && i < atSum+8 {
				c = ' '
			}
			sum += int64(c)
		}
		copy(b[atSum:], fmt.Sprintf("%06o\x00 ", sum))
	}
	return data
}

func BenchmarkReader(b *testing.B) {
	var headers []*stdtar.Header
	var bodies []string
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range 7500 {
		headers = append(headers, &stdtar.Header{Name: fmt.Sprintf("./usr/share/doc/package-%d/file", i), Typeflag: stdtar.TypeReg, Mode: 0o644})
		bodies = append(bodies, strings.Repeat("x", rng.IntN(20000)))
	}
	data := write(b, stdtar.FormatGNU, headers, bodies)
	b.Run("own", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			r := NewReader(bytes.NewReader(data), Limits{})
			for {
				if _, err := r.Next(); err == io.EOF {
					break
				} else if err != nil {
					b.Fatal(err)
				}
			}
		}
	})
	b.Run("archive/tar", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		buf := make([]byte, 128<<10)
		for b.Loop() {
			r := stdtar.NewReader(bytes.NewReader(data))
			for {
				if _, err := r.Next(); err == io.EOF {
					break
				} else if err != nil {
					b.Fatal(err)
				}
				io.CopyBuffer(io.Discard, struct{ io.Reader }{r}, buf)
			}
		}
	})
}
