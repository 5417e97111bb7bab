// SPDX-License-Identifier: Apache-2.0

package xz

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"
	"testing/iotest"

	ulikunitz "github.com/ulikunitz/xz"
	ulzma "github.com/ulikunitz/xz/lzma"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/internal/kernel/kerneltest"
)

// sample makes n bytes that exercise every kind of symbol: text-like literals, near and far
// matches, repeats with one byte changed (rep matches and matched literals), runs, noise.
func sample(n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 7))
	out := make([]byte, 0, n+600)
	for len(out) < n {
		switch k := r.IntN(10); {
		case k < 3 || len(out) < 64:
			for range 1 + r.IntN(24) {
				out = append(out, "etaoin shrdlu\n/ELF_0"[r.IntN(20)])
			}
		case k < 6:
			from := r.IntN(len(out))
			if k == 5 {
				from = len(out) - 1 - r.IntN(min(len(out), 40))
			}
			for i := range 2 + r.IntN(300)>>r.IntN(8) {
				out = append(out, out[from+i])
			}
		case k < 8:
			from := len(out) - 16*(1+r.IntN(4))
			for i := range 16 {
				out = append(out, out[from+i])
			}
			out[len(out)-1-r.IntN(16)] ^= byte(1 << r.IntN(8))
		case k == 8:
			out = append(out, bytes.Repeat([]byte{byte(r.IntN(3))}, r.IntN(600))...)
		default:
			for range r.IntN(40) {
				out = append(out, byte(r.Uint32()))
			}
		}
	}
	return out[:n]
}

// program runs xz over data; the test is skipped where there is none.
func program(t testing.TB, data []byte, args ...string) []byte {
	t.Helper()
	path := kerneltest.Program(t, "xz")
	cmd := exec.Command(path, append(args, "-c")...)
	cmd.Stdin = bytes.NewReader(data)
	var out, msg bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &msg
	if err := cmd.Run(); err != nil {
		t.Fatalf("xz %v: %v %s", args, err, msg.String())
	}
	return out.Bytes()
}

// encode compresses with the library that is the oracle, so that it works everywhere.
func encode(t testing.TB, data []byte, c ulikunitz.WriterConfig) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := c.NewWriter(&buf)
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

func decode(data []byte, o *Options) ([]byte, error) {
	z, err := NewReader(bytes.NewReader(data), o)
	if err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	_, err = z.WriteTo(&buf)
	return buf.Bytes(), err
}

// decodeEveryWay uses all entrances and demands that they agree.
func decodeEveryWay(t *testing.T, file, want []byte) {
	t.Helper()
	check := func(how string, got []byte, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", how, err)
		} else if !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes differ from the %d expected", how, len(got), len(want))
		}
	}
	got, err := decode(file, nil)
	check("WriteTo", got, err)
	z, err := NewReader(iotest.DataErrReader(iotest.HalfReader(bytes.NewReader(file))), nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err = io.ReadAll(z)
	check("Read", got, err)
	if err := z.Reset(bytes.NewReader(file)); err != nil {
		t.Fatal(err)
	}
	got, err = io.ReadAll(iotest.HalfReader(z))
	check("Read after Reset", got, err)
	got, err = DecodeAll(file, int64(len(want)), nil)
	check("DecodeAll", got, err)
	if _, err := DecodeAll(file, int64(len(want))-1, nil); len(want) > 0 && fault.ClassOf(err) != fault.Limit {
		t.Errorf("DecodeAll over its limit: %v", err)
	}
	for _, workers := range []int{1, 2, 5} {
		var buf bytes.Buffer
		err = DecodeParallel(context.Background(), bytes.NewReader(file), int64(len(file)), &buf, workers, nil)
		check(fmt.Sprintf("DecodeParallel with %d", workers), buf.Bytes(), err)
	}
}

func TestDecodeLibrary(t *testing.T) {
	for _, c := range []ulikunitz.WriterConfig{
		{}, {NoCheckSum: true}, {CheckSum: ulikunitz.CRC32}, {CheckSum: ulikunitz.SHA256},
		{DictCap: 4096}, {DictCap: 1 << 16, BlockSize: 30000},
	} {
		for _, n := range []int{0, 1, 2, 15, 16, 17, 1000, 70000, 300000} {
			data := sample(n, uint64(n))
			t.Run(fmt.Sprintf("%v/%d", c, n), func(t *testing.T) { decodeEveryWay(t, encode(t, data, c), data) })
		}
	}
}

func TestDecodeProgram(t *testing.T) {
	small, large := sample(200_000, 1), sample(3_000_000, 2)
	noise := make([]byte, 150_000)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	for _, tt := range []struct {
		name string
		data []byte
		args []string
	}{
		{"fastest", small, []string{"-0"}},
		{"extreme", small, []string{"-9e"}},
		{"check none", small, []string{"--check=none"}},
		{"check crc32", small, []string{"--check=crc32"}},
		{"check sha256", small, []string{"--check=sha256"}},
		{"stored chunks", noise, nil},
		{"stored and packed", append(append([]byte(nil), noise...), small...), nil},
		{"zeros", make([]byte, 5_000_000), nil},
		{"empty", nil, nil},
		{"blocks", small, []string{"--block-size=50000"}},
		{"blocks with sizes in their headers", large, []string{"-T2", "--block-size=400000"}},
		{"window that slides", large, []string{"--lzma2=preset=1,dict=64KiB"}},
		{"smallest dictionary", small, []string{"--lzma2=preset=6,dict=4KiB"}},
		{"lc0 lp4 pb4", small, []string{"--lzma2=preset=6,lc=0,lp=4,pb=4"}},
		{"lc4 lp0 pb0", small, []string{"--lzma2=preset=6,lc=4,lp=0,pb=0"}},
		{"lc1 lp2 pb1", small, []string{"--lzma2=preset=6,lc=1,lp=2,pb=1"}},
		{"longest matches", small, []string{"--lzma2=preset=6,nice=273"}},
		{"delta", small, []string{"--delta=dist=4", "--lzma2=preset=1"}},
		{"delta 256", small, []string{"--delta=dist=256", "--lzma2=preset=1"}},
		{"x86", callCode(400_000), []string{"--x86", "--lzma2=preset=1"}},
		{"x86 with a start", callCode(400_000), []string{"--x86=start=4096", "--lzma2=preset=1"}},
		{"x86 in blocks", callCode(400_000), []string{"--block-size=70001", "--x86", "--lzma2=preset=1"}},
		{"x86 of three bytes", []byte{0xe8, 0, 0}, []string{"--x86", "--lzma2=preset=1"}},
		{"delta and x86", callCode(400_000), []string{"--x86", "--delta=dist=2", "--lzma2=preset=1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			decodeEveryWay(t, program(t, tt.data, append([]string{"--format=xz"}, tt.args...)...), tt.data)
		})
	}
}

// callCode is bytes dense with CALL and JMP, overlapping ones among them.
func callCode(n int) []byte {
	r := rand.New(rand.NewPCG(3, 4))
	out := sample(n, 5)
	for i := range out {
		switch r.IntN(6) {
		case 0:
			out[i] = 0xe8 + byte(r.IntN(2))
		case 1:
			out[i] = -byte(r.IntN(2))
		}
	}
	return out
}

func TestConcatenationAndPadding(t *testing.T) {
	one, two := sample(5000, 1), sample(70000, 2)
	a, b := encode(t, one, ulikunitz.WriterConfig{}), encode(t, two, ulikunitz.WriterConfig{CheckSum: ulikunitz.CRC32, BlockSize: 20000})
	both := append(append([]byte(nil), one...), two...)
	pad := func(n int) []byte { return make([]byte, n) }
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for _, tt := range []struct {
		name string
		file []byte
		want []byte // nil: an error
	}{
		{"two streams", join(a, b), both},
		{"padding between", join(a, pad(4), b), both},
		{"padding behind", join(a, b, pad(8)), both},
		{"much padding", join(a, pad(10000), b, pad(4096)), both},
		{"an empty stream between", join(a, encode(t, nil, ulikunitz.WriterConfig{}), b), both},
		{"padding before", join(pad(4), a), nil},
		{"padding of two bytes", join(a, pad(2)), nil},
		{"padding of five bytes between", join(a, pad(5), b), nil},
		{"junk behind", join(a, []byte("junkjunkjunk")), nil},
		{"short junk behind", join(a, []byte("j")), nil},
		{"half a stream behind", join(a, b[:len(b)/2]), nil},
		{"nothing", nil, nil},
		{"only padding", pad(12), nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.want != nil {
				decodeEveryWay(t, tt.file, tt.want)
				return
			}
			mustFail(t, tt.file)
		})
	}
}

// mustFail demands a fault.Format from every entrance.
func mustFail(t *testing.T, file []byte) {
	t.Helper()
	check := func(how string, got []byte, err error) {
		t.Helper()
		if c := fault.ClassOf(err); err == nil || c != fault.Format && c != fault.Limit {
			t.Errorf("%s: accepted, or the wrong class: %d bytes, %v", how, len(got), err)
		}
	}
	got, err := decode(file, nil)
	check("WriteTo", got, err)
	got, err = DecodeAll(file, 1<<30, nil)
	check("DecodeAll", got, err)
	var buf bytes.Buffer
	err = DecodeParallel(context.Background(), bytes.NewReader(file), int64(len(file)), &buf, 2, nil)
	check("DecodeParallel", buf.Bytes(), err)
}

// TestDamage cuts a small file at every byte and flips every bit of it.
func TestDamage(t *testing.T) {
	data := sample(700, 3)
	z, err := NewReader(nil, &Options{MaxDict: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []ulikunitz.WriterConfig{{}, {CheckSum: ulikunitz.CRC32, BlockSize: 300}} {
		c.DictCap = 1 << 16
		file := encode(t, data, c)
		for i := range file {
			mustFail(t, file[:i])
			for bit := range 8 {
				bad := bytes.Clone(file)
				bad[i] ^= 1 << bit
				if bit == i%8 {
					mustFail(t, bad)
				}
				if err := z.Reset(bytes.NewReader(bad)); err != nil {
					t.Fatal(err)
				}
				_, err := io.Copy(io.Discard, z)
				if c := fault.ClassOf(err); err == nil || c != fault.Format && c != fault.Limit {
					t.Errorf("accepted, or the wrong class: %v", err)
				}
				if t.Failed() {
					t.Fatalf("byte %d of %d, bit %d", i, len(file), bit)
				}
			}
		}
	}
}

func TestMemoryLimit(t *testing.T) {
	file := encode(t, sample(1000, 1), ulikunitz.WriterConfig{DictCap: 8 << 20})
	_, err := decode(file, &Options{MaxDict: 8<<20 - 1})
	if fault.ClassOf(err) != fault.Limit || len(fault.Hints(err)) == 0 {
		t.Errorf("%v, hints %q", err, fault.Hints(err))
	}
	if _, err := decode(file, &Options{MaxDict: 8 << 20}); err != nil {
		t.Error(err)
	}
	huge := program(t, []byte("x"), "--format=xz", "--lzma2=preset=0,dict=1536MiB")
	if _, err := decode(huge, nil); fault.ClassOf(err) != fault.Limit {
		t.Errorf("dictionary of 1.5 GiB: %v", err)
	}
}

func TestUnsupported(t *testing.T) {
	file := program(t, sample(1000, 1), "--format=xz", "--arm", "--lzma2=preset=0")
	_, err := decode(file, nil)
	if fault.ClassOf(err) != fault.Format || !strings.Contains(err.Error(), "unsupported filter 0x7") {
		t.Error(err)
	}
}

func TestSourceError(t *testing.T) {
	file := encode(t, sample(20000, 1), ulikunitz.WriterConfig{})
	broken := errors.New("input/output error")
	for n := 0; n < len(file); n += 37 {
		z, err := NewReader(io.MultiReader(bytes.NewReader(file[:n]), iotest.ErrReader(broken)), nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := z.WriteTo(io.Discard); !errors.Is(err, broken) || fault.ClassOf(err) != fault.Failed {
			t.Errorf("after %d bytes: %v", n, err)
		}
		if _, again := z.Read(make([]byte, 1)); !errors.Is(again, broken) {
			t.Errorf("after %d bytes the error went away: %v", n, again)
		}
	}
}

func TestNoSource(t *testing.T) {
	z, err := NewReader(bytes.NewReader(encode(t, []byte("x"), ulikunitz.WriterConfig{})), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := z.Reset(nil); err != nil {
		t.Fatal(err)
	}
	if _, err := z.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("read without a source: %v", err)
	}
}

type stopper struct {
	after  int
	cancel func()
}

var errFull = errors.New("no space left")

func (s *stopper) Write(p []byte) (int, error) {
	if s.after--; s.after < 0 {
		if s.cancel == nil {
			return 0, errFull
		}
		s.cancel()
	}
	return len(p), nil
}

func TestParallelStops(t *testing.T) {
	file := encode(t, sample(200000, 1), ulikunitz.WriterConfig{BlockSize: 10000})
	for _, workers := range []int{1, 3} {
		err := DecodeParallel(context.Background(), bytes.NewReader(file), int64(len(file)), &stopper{after: 2}, workers, nil)
		if !errors.Is(err, errFull) {
			t.Errorf("%d workers: %v", workers, err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		err = DecodeParallel(ctx, bytes.NewReader(file), int64(len(file)), &stopper{2, cancel}, workers, nil)
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%d workers: %v", workers, err)
		}
	}
}

func TestCopyMatch(t *testing.T) {
	for dist := 1; dist < 40; dist++ {
		for n := 1; n < 300; n++ {
			win := sample(400+copySlack, uint64(dist))
			want := bytes.Clone(win[:60+n])
			for i := range n {
				want[60+i] = want[60+i-dist]
			}
			guard := bytes.Clone(win[60+n+copySlack:])
			copyMatch(win, 60, dist, n)
			if !bytes.Equal(win[:60+n], want) || !bytes.Equal(win[60+n+copySlack:], guard) {
				t.Fatalf("distance %d, length %d", dist, n)
			}
		}
	}
}

// FuzzDecode compares with ulikunitz/xz: whatever we accept, it accepts with the same bytes.
func FuzzDecode(f *testing.F) {
	for _, n := range []int{0, 1, 100, 3000} {
		f.Add(encode(f, sample(n, 1), ulikunitz.WriterConfig{}))
		f.Add(encode(f, sample(n, 2), ulikunitz.WriterConfig{NoCheckSum: true, DictCap: 4096, BlockSize: 1000}))
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		o := &Options{MaxDict: 1 << 20}
		var got bytes.Buffer
		z, err := NewReader(bytes.NewReader(file), o)
		if err != nil {
			t.Fatal(err)
		}
		if _, err = io.Copy(&got, io.LimitReader(z, 1<<22)); err != nil || got.Len() == 1<<22 {
			return
		}
		parallel := &bytes.Buffer{}
		if err := DecodeParallel(t.Context(), bytes.NewReader(file), int64(len(file)), parallel, 2, o); err != nil || !bytes.Equal(parallel.Bytes(), got.Bytes()) {
			t.Fatalf("in parallel: %d bytes instead of %d, %v", parallel.Len(), got.Len(), err)
		}
		oracle, err := ulikunitz.NewReader(bytes.NewReader(file))
		var want []byte
		if err == nil {
			want, err = io.ReadAll(oracle)
		}
		if err != nil {
			if strings.Contains(err.Error(), "filter") {
				return // it knows no delta and no x86
			}
			t.Fatalf("accepted what the oracle refuses: %v", err)
		}
		if !bytes.Equal(got.Bytes(), want) {
			t.Fatalf("%d bytes differ from the oracle's %d", got.Len(), len(want))
		}
	})
}

// FuzzSymbols gives both decoders raw LZMA2 chunks, past the checksums of the container.
// What we accept the oracle must accept with the same bytes.
func FuzzSymbols(f *testing.F) {
	for _, n := range []int{50, 3000, 70000} {
		file := encode(f, sample(n, 1), ulikunitz.WriterConfig{DictCap: 4096})
		f.Add(file[24:len(file)-40], true)
	}
	z, err := NewReader(nil, nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, chunks []byte, sized bool) {
		if err := z.Reset(bytes.NewReader(chunks)); err != nil {
			t.Fatal(err)
		}
		size := int64(-1)
		if sized {
			size = 1000
		}
		z.lz.open(4096, size)
		var got []byte
		for len(got) < 1<<23 {
			out, err := z.lz.chunk(z)
			if err == io.EOF {
				break
			}
			if err != nil {
				return
			}
			got = append(got, out...)
		}
		oracle, err := ulzma.Reader2Config{DictCap: 4096}.NewReader2(bytes.NewReader(chunks))
		if err != nil {
			t.Fatal(err)
		}
		want, err := io.ReadAll(io.LimitReader(oracle, int64(len(got))+1))
		if err != nil && len(got) < 1<<23 {
			t.Fatalf("accepted what the oracle refuses: %v", err)
		}
		if len(got) < 1<<23 && !bytes.Equal(got, want) {
			t.Fatalf("%d bytes differ from the oracle's %d", len(got), len(want))
		}
	})
}
