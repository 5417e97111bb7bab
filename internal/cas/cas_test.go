// SPDX-License-Identifier: Apache-2.0

package cas

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/mkmachine/mkmachine/internal/fault"
)

func open(t *testing.T) *Cache {
	t.Helper()
	c, err := Open(filepath.Join(t.TempDir(), "cache"))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func sum(data []byte) string {
	s := sha256.Sum256(data)
	return hex.EncodeToString(s[:])
}

func put(t *testing.T, c *Cache, data []byte) string {
	t.Helper()
	w, err := c.Create(t.Context(), sum(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	f, err := w.Commit()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got, _ := io.ReadAll(f); !bytes.Equal(got, data) {
		t.Fatal("Commit returned other bytes")
	}
	return sum(data)
}

// entries lists every file below a directory of the cache.
func entries(t *testing.T, c *Cache, sub string) []string {
	t.Helper()
	var out []string
	filepath.WalkDir(filepath.Join(c.dir, sub), func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			out = append(out, path)
		}
		return nil
	})
	return out
}

func TestBlobs(t *testing.T) {
	c := open(t)
	digest := put(t, c, []byte("hello"))
	if _, err := c.Create(t.Context(), digest, 5); !errors.Is(err, ErrExists) {
		t.Fatal(err)
	}
	f, err := c.Verified(digest, 5)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("x")); err == nil {
		t.Fatal("file is writable")
	}
	f.Close()
	if _, err := c.Verified(digest, 6); fault.ClassOf(err) != fault.Verify {
		t.Fatal(err)
	}
	if _, err := c.Get(sum([]byte("other"))); !errors.Is(err, ErrMiss) {
		t.Fatal(err)
	}
	for _, bad := range []string{"", "../../etc/passwd", strings.Repeat("A", 64), strings.Repeat("g", 64), digest[:63], digest + "0"} {
		if _, err := c.Get(bad); fault.ClassOf(err) != fault.Format {
			t.Errorf("%q: %v", bad, err)
		}
		if _, err := c.Create(t.Context(), bad, 1); fault.ClassOf(err) != fault.Format {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if err := c.Remove(digest); err != nil {
		t.Fatal(err)
	}
	if c.Has(digest) {
		t.Fatal("still there")
	}
}

func TestWrongBytesNeverVisible(t *testing.T) {
	c := open(t)
	want := []byte("the promised bytes")
	w, err := c.Create(t.Context(), sum(want), int64(len(want)))
	if err != nil {
		t.Fatal(err)
	}
	w.Write([]byte("THE promised bytes"))
	if _, err := w.Commit(); fault.ClassOf(err) != fault.Verify {
		t.Fatal(err)
	}
	if c.Has(sum(want)) || w.Offset() != 0 {
		t.Fatal("visible or not started over")
	}
	w.Write(want[:4])
	if _, err := w.Commit(); fault.ClassOf(err) != fault.Verify || !strings.Contains(err.Error(), "size is 4, want 18") {
		t.Fatal(err)
	}
	if _, err := w.Write(bytes.Repeat(want, 2)); fault.ClassOf(err) != fault.Verify {
		t.Fatal(err)
	}
	w.Write(want)
	f, err := w.Commit()
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	w.Close()
	if left := entries(t, c, "partial"); len(left) > 0 {
		t.Fatal(left)
	}
}

func TestCorruptIsDiscarded(t *testing.T) {
	c := open(t)
	digest := put(t, c, []byte("hello"))
	if err := os.WriteFile(c.blobPath(digest), []byte("hellp"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := c.Verified(digest, 5)
	if !errors.Is(err, ErrCorrupt) || !errors.Is(err, ErrMiss) {
		t.Fatal(err)
	}
	if c.Has(digest) {
		t.Fatal("still there")
	}
}

func TestResume(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789"), 200_000)
	for _, c := range []struct {
		name, validator string
		offset          int64
	}{{"with validator", `"v"`, 1_000_000}, {"without", "", 0}, {"multi-line", "a\nb", 0}} {
		t.Run(c.name, func(t *testing.T) {
			cache := open(t)
			w, err := cache.Create(t.Context(), sum(data), int64(len(data)))
			if err != nil {
				t.Fatal(err)
			}
			w.SetValidator(c.validator)
			w.Write(data[:1_000_000])
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			w, err = cache.Create(t.Context(), sum(data), int64(len(data)))
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			if w.Offset() != c.offset || (c.offset > 0 && w.Validator() != c.validator) {
				t.Fatalf("offset %d, validator %q", w.Offset(), w.Validator())
			}
			w.Write(data[c.offset:])
			f, err := w.Commit()
			if err != nil {
				t.Fatal(err)
			}
			f.Close()
		})
	}
}

func TestOneWriterAtATime(t *testing.T) {
	c := open(t)
	data := []byte("made once")
	var made, existed atomic.Int32
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			// Another Cache on the same directory stands for another process.
			other, err := Open(c.dir)
			if err != nil {
				t.Error(err)
				return
			}
			w, err := other.Create(t.Context(), sum(data), -1)
			if errors.Is(err, ErrExists) {
				existed.Add(1)
				return
			}
			if err != nil {
				t.Error(err)
				return
			}
			made.Add(1)
			time.Sleep(5 * time.Millisecond)
			w.Write(data)
			f, err := w.Commit()
			if err != nil {
				t.Error(err)
				return
			}
			f.Close()
		})
	}
	wg.Wait()
	if made.Load() != 1 || existed.Load() != 15 {
		t.Fatalf("made %d, existed %d", made.Load(), existed.Load())
	}
	if left := entries(t, c, "partial"); len(left) > 0 {
		t.Fatal(left)
	}
}

func TestWaitEndsWithContext(t *testing.T) {
	c := open(t)
	w, err := c.Create(t.Context(), sum(nil), -1)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := c.Create(ctx, sum(nil), -1); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
}

func TestNamed(t *testing.T) {
	c := open(t)
	w, err := c.CreateNamed(t.Context(), "pack", "ab-1.0+b1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.GetNamed("pack", "ab-1.0+b1"); !errors.Is(err, ErrMiss) {
		t.Fatal(err)
	}
	fmt.Fprint(w, "body")
	f, err := w.Commit()
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	w.Close()
	if _, err := c.CreateNamed(t.Context(), "pack", "ab-1.0+b1"); !errors.Is(err, ErrExists) {
		t.Fatal(err)
	}
	w, err = c.CreateNamed(t.Context(), "pack", "given-up")
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(w, "half")
	w.Close()
	if left := entries(t, c, "tmp"); len(left) > 0 {
		t.Fatal(left)
	}
	for _, bad := range [][2]string{{"..", "x"}, {"pack", "../x"}, {"pack", ""}, {"pack", ".x"}, {"pack", "a/b"}, {"pack", "a,b"}, {"pack", "-x"}} {
		if _, err := c.CreateNamed(t.Context(), bad[0], bad[1]); fault.ClassOf(err) != fault.Internal {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if err := c.RemoveNamed("pack", "ab-1.0+b1"); err != nil {
		t.Fatal(err)
	}
}

func TestSweepTakesOnlyTheDead(t *testing.T) {
	c := open(t)
	living, err := c.CreateNamed(t.Context(), "pack", "living")
	if err != nil {
		t.Fatal(err)
	}
	defer living.Close()
	for _, stale := range []string{"tmp/pack,dead", "partial/" + sum([]byte("empty"))} {
		if err := os.WriteFile(filepath.Join(c.dir, stale), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	old := filepath.Join(c.dir, "partial", sum([]byte("old")))
	os.WriteFile(old, []byte("x"), 0o600)
	os.WriteFile(old+".from", []byte("v"), 0o600)
	past := time.Now().Add(-2 * partialAge)
	os.Chtimes(old, past, past)
	if _, err := Open(c.dir); err != nil {
		t.Fatal(err)
	}
	if left := append(entries(t, c, "tmp"), entries(t, c, "partial")...); len(left) != 1 || !strings.HasSuffix(left[0], "pack,living") {
		t.Fatal(left)
	}
}

func TestClean(t *testing.T) {
	c := open(t)
	used, unused := put(t, c, []byte("used")), put(t, c, []byte("unused"))
	past := time.Now().Add(-48 * time.Hour)
	for _, d := range []string{used, unused} {
		os.Chtimes(c.blobPath(d), past, past)
	}
	f, err := c.Get(used) // renews the time stamp
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	done, err := c.Clean(t.Context(), 24*time.Hour)
	if err != nil || done.Files != 1 || done.Bytes != 6 || c.Has(unused) || !c.Has(used) {
		t.Fatal(done, err)
	}
	w, _ := c.Create(t.Context(), sum([]byte("being written")), -1)
	defer w.Close()
	w.Write([]byte("being"))
	if done, err = c.Clean(t.Context(), 0); err != nil || done.Files != 1 || c.Has(used) {
		t.Fatal(done, err)
	}
	w.Write([]byte(" written"))
	if f, err = w.Commit(); err != nil {
		t.Fatal(err)
	}
	f.Close()
}

func TestUnusable(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	os.WriteFile(file, nil, 0o600)
	shared := filepath.Join(dir, "shared")
	os.Mkdir(shared, 0o700)
	os.Chmod(shared, 0o777)
	for _, c := range []struct {
		name, dir string
		class     fault.Class
	}{{"a file", file, fault.Host}, {"below a file", file + "/x", fault.Host}, {"writable by others", shared, fault.Policy}} {
		_, err := Open(c.dir)
		if fault.ClassOf(err) != c.class || len(fault.Hints(err)) == 0 || !strings.Contains(err.Error(), "cannot open the cache "+c.dir) {
			t.Errorf("%s: %v %v", c.name, err, fault.Hints(err))
		}
	}
	c := open(t)
	for _, e := range []error{syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS, syscall.EACCES} {
		err := c.fail("write to", &os.PathError{Op: "write", Path: "x", Err: e})
		want := fault.Host
		if e == syscall.ENOSPC || e == syscall.EDQUOT {
			want = fault.Failed
		}
		if fault.ClassOf(err) != want || len(fault.Hints(err)) != 1 || !errors.Is(err, e) {
			t.Errorf("%v: %v", e, err)
		}
	}
}

func TestNoSpace(t *testing.T) {
	c := open(t)
	data := make([]byte, 5000)
	w, err := c.Create(t.Context(), sum(data), 5000)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	full, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	if err != nil {
		t.Skip("needs /dev/full:", err)
	}
	w.f.Close()
	w.f = full
	if _, err := w.Write(data); fault.ClassOf(err) != fault.Failed || !errors.Is(err, syscall.ENOSPC) || len(fault.Hints(err)) == 0 {
		t.Fatal(err)
	}
	if _, err := w.Commit(); err == nil || c.Has(sum(data)) {
		t.Fatal("published a short file")
	}
}

func TestSeen(t *testing.T) {
	c := open(t)
	day := time.Date(2026, 9, 1, 0, 0, 0, 0, time.UTC)
	add := Seen{}
	add.Note("debian", "stable", []string{"AA", "BB"}, day)
	if err := c.UpdateSeen(add); err != nil {
		t.Fatal(err)
	}
	older := Seen{}
	older.Note("debian", "stable", []string{"AA"}, day.Add(-time.Hour))
	older.Note("debian", "testing", []string{"AA"}, day.Add(time.Hour))
	if err := c.UpdateSeen(older); err != nil {
		t.Fatal(err)
	}
	got, err := c.LoadSeen()
	if err != nil {
		t.Fatal(err)
	}
	if !got.Newest("debian", "stable", []string{"AA", "CC"}).Equal(day) || !got.Newest("debian", "testing", []string{"AA"}).Equal(day.Add(time.Hour)) {
		t.Fatal(got)
	}
	if !got.Newest("debian", "stable", []string{"CC"}).IsZero() {
		t.Fatal("date for an unknown key")
	}
	os.WriteFile(filepath.Join(c.dir, "seen.json"), []byte("{"), 0o600)
	if _, err := c.LoadSeen(); fault.ClassOf(err) != fault.State || len(fault.Hints(err)) == 0 {
		t.Fatal(err)
	}
	if err := c.UpdateSeen(add); fault.ClassOf(err) != fault.State {
		t.Fatal("damaged file overwritten:", err)
	}
}

// TestTamperedPartial flips each of a few bytes of a partial blob: the digest must notice.
func TestTamperedPartial(t *testing.T) {
	data := bytes.Repeat([]byte("x1"), 1<<19+50)
	for _, at := range []int{0, 1 << 18, 1<<19 - 1} {
		c := open(t)
		w, _ := c.Create(t.Context(), sum(data), int64(len(data)))
		w.SetValidator("v")
		w.Write(data[:1<<19])
		w.Close()
		path := filepath.Join(c.dir, "partial", sum(data))
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		f.WriteAt([]byte{'?'}, int64(at))
		f.Close()
		w, _ = c.Create(t.Context(), sum(data), int64(len(data)))
		if w.Offset() != 1<<19 {
			t.Fatal("did not resume")
		}
		w.Write(data[1<<19:])
		if _, err := w.Commit(); fault.ClassOf(err) != fault.Verify || c.Has(sum(data)) {
			t.Fatal(err)
		}
		w.Close()
		if left := entries(t, c, "partial"); len(left) > 0 {
			t.Fatal(left)
		}
	}
}
