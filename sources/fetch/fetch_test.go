// SPDX-License-Identifier: Apache-2.0

package fetch_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mkmachine/mkmachine/internal/cas"
	"github.com/mkmachine/mkmachine/internal/event"
	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/sources"
	"github.com/mkmachine/mkmachine/sources/fetch"
	"github.com/mkmachine/mkmachine/sources/sourcetest"
)

func quick() fetch.Timeouts {
	return fetch.Timeouts{
		Dial: time.Second, Header: time.Second, Idle: 150 * time.Millisecond,
		MinRate: 1 << 10, RateWindow: 200 * time.Millisecond,
		Backoff: time.Millisecond, RetryAfter: 20 * time.Millisecond,
	}
}

func newFetcher(t *testing.T, edit func(*fetch.Options), mirrors ...string) (*fetch.Fetcher, *cas.Cache) {
	t.Helper()
	cache, err := cas.Open(filepath.Join(t.TempDir(), "cache"))
	if err != nil {
		t.Fatal(err)
	}
	opt := fetch.Options{Cache: cache, Mirrors: map[string][]fetch.Mirror{"debian": fetch.Mirrors(mirrors...)}, Timeouts: quick()}
	if edit != nil {
		edit(&opt)
	}
	f, err := fetch.New(opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	return f, cache
}

func testRepo(t *testing.T) (*sourcetest.Repo, string) {
	r := sourcetest.NewRepo(t, sourcetest.Spec{Packages: []sourcetest.Package{{
		Name: "hello", Compression: "none",
		Files: []sourcetest.File{{Path: "/usr/share/hello", Body: strings.Repeat("hello world, hello mirrors\n", 4000)}},
	}}})
	return r, r.Deb("hello", "1.0", "amd64")
}

func readAll(t *testing.T, f *os.File) []byte {
	t.Helper()
	defer f.Close()
	data, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestFaultyMirror(t *testing.T) {
	for _, c := range []struct {
		name  string
		fault sourcetest.Fault
		times int
		class fault.Class // "" means that it succeeds
		text  string
	}{
		{"good", "", 0, "", ""},
		{"flipped bit", sourcetest.FlipBit, 0, fault.Verify, "SHA-256 is"},
		{"truncated", sourcetest.Truncate, 0, fault.Verify, "were promised"},
		{"NET-01 cut off always", sourcetest.CutOff, 0, fault.Net, "connection closed"},
		{"NET-01 cut off once", sourcetest.CutOff, 1, "", ""},
		{"NET-02 too long", sourcetest.Append, 0, fault.Verify, "promised"},
		{"NET-03 endless", sourcetest.Endless, 0, fault.Verify, "more than"},
		{"NET-04 trickle", sourcetest.Trickle, 0, fault.Net, "slower than"},
		{"NET-05 stall", sourcetest.Stall, 0, fault.Net, "stalled"},
		{"NET-05 stall once", sourcetest.Stall, 1, "", ""},
		{"NET-06 busy once", sourcetest.Broken, 2, "", ""},
		{"NET-06 busy always", sourcetest.Broken, 0, fault.Net, "503"},
		{"NET-08 loop", sourcetest.Loop, 0, fault.Net, "redirects"},
		{"missing", sourcetest.Missing, 0, fault.Net, "not found"},
		{"NET-23 portal", sourcetest.HTML, 0, fault.Verify, "web page"},
		{"bad range unasked", sourcetest.BadRange, 0, fault.Net, "206"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r, path := testRepo(t)
			f, cache := newFetcher(t, nil, r.URL)
			if c.fault != "" {
				r.Fail("*.deb", c.fault, c.times)
			}
			blob := r.Blob(path)
			file, err := f.Fetch(t.Context(), blob)
			if c.class == "" {
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(readAll(t, file), r.File(path)) {
					t.Fatal("other bytes than the repository has")
				}
				return
			}
			if err == nil {
				t.Fatal("accepted")
			}
			if fault.ClassOf(err) != c.class || !strings.Contains(err.Error(), c.text) || !strings.Contains(err.Error(), r.URL) {
				t.Fatalf("class %s: %v", fault.ClassOf(err), err)
			}
			if got := errors.Is(err, sources.ErrNotFound); got != (c.fault == sourcetest.Missing) {
				t.Fatalf("ErrNotFound is %v: %v", got, err)
			}
			if c.fault == sourcetest.HTML && len(fault.Hints(err)) == 0 {
				t.Fatal("no hint")
			}
			if cache.Has(blob.SHA256) {
				t.Fatal("stored under the digest")
			}
			r.Heal()
			file, err = f.Fetch(t.Context(), blob)
			if err != nil {
				t.Fatalf("good mirror afterwards: %v", err)
			}
			if !bytes.Equal(readAll(t, file), r.File(path)) {
				t.Fatal("other bytes than the repository has")
			}
		})
	}
}

func TestNextMirror(t *testing.T) {
	for _, bad := range []sourcetest.Fault{sourcetest.FlipBit, sourcetest.Missing, sourcetest.HTML, sourcetest.CutOff, sourcetest.Stall, sourcetest.Loop, sourcetest.Broken} {
		t.Run(string(bad), func(t *testing.T) {
			t.Parallel()
			r, path := testRepo(t)
			good, _ := testRepo(t)
			r.Fail("*", bad, 0)
			f, _ := newFetcher(t, nil, r.URL, good.URL)
			file, err := f.Fetch(t.Context(), good.Blob(path))
			if err != nil {
				t.Fatal(err)
			}
			file.Close()
			data, err := f.FetchSigned(t.Context(), sources.Blob{Family: "debian", Path: "dists/stable/InRelease", Size: -1}, 1<<20)
			if err != nil && bad != sourcetest.FlipBit {
				t.Fatal(err)
			}
			if bad != sourcetest.FlipBit && !bytes.Equal(data, good.File("dists/stable/InRelease")) {
				t.Fatal("other bytes than the good mirror has")
			}
		})
	}
}

func TestFetchSigned(t *testing.T) {
	r, _ := testRepo(t)
	f, _ := newFetcher(t, nil, r.URL)
	blob := sources.Blob{Family: "debian", Path: "dists/stable/InRelease", Size: -1}
	if _, err := f.FetchSigned(t.Context(), blob, 100); fault.ClassOf(err) != fault.Limit {
		t.Fatalf("above the limit: %v", err)
	}
	r.Fail("InRelease", sourcetest.Endless, 0)
	if _, err := f.FetchSigned(t.Context(), blob, 1<<20); fault.ClassOf(err) != fault.Limit {
		t.Fatalf("endless: %v", err)
	}
	r.Heal()
	blob.Path = "dists/none/InRelease"
	if _, err := f.FetchSigned(t.Context(), blob, 1<<20); !errors.Is(err, sources.ErrNotFound) {
		t.Fatalf("missing: %v", err)
	}
}

func TestResume(t *testing.T) {
	body := bytes.Repeat([]byte("0123456789abcdef"), 1<<17) // 2 MiB
	blob := sources.Blob{Family: "debian", Path: "big", Size: int64(len(body)), SHA256: sum(body)}
	const half = 1 << 20
	for _, c := range []struct {
		name     string
		tamper   func(path string)
		answer   func(w http.ResponseWriter, req *http.Request)
		requests int
		ok       bool
	}{
		{"continues", nil, nil, 1, true},
		{"NET-15 tampered partial", func(p string) { flip(p, 100) }, nil, 2, true},
		{"tampered at the end", func(p string) { flip(p, half-1) }, nil, 2, true},
		{"NET-14 no validator kept", func(p string) { os.Remove(p + ".from") }, nil, 1, true},
		{"NET-14 object changed", nil, func(w http.ResponseWriter, req *http.Request) {
			w.Header().Set("ETag", `"new"`)
			http.ServeContent(w, req, "big", time.Time{}, bytes.NewReader(body))
		}, 1, true},
		{"NET-11 wrong start", nil, func(w http.ResponseWriter, req *http.Request) {
			if req.Header.Get("Range") != "" {
				w.Header().Set("Content-Range", fmt.Sprintf("bytes 7-%d/%d", len(body)-1, len(body)))
				w.WriteHeader(http.StatusPartialContent)
				w.Write(body[7:])
				return
			}
			w.Write(body)
		}, 2, true},
		{"NET-11 wrong total", nil, func(w http.ResponseWriter, req *http.Request) {
			if req.Header.Get("Range") != "" {
				w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", half, len(body), len(body)+1))
				w.WriteHeader(http.StatusPartialContent)
				return
			}
			w.Write(body)
		}, 2, true},
		{"NET-13 416", nil, func(w http.ResponseWriter, req *http.Request) {
			if req.Header.Get("Range") != "" {
				w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
				return
			}
			w.Write(body)
		}, 2, true},
		{"range ignored", nil, func(w http.ResponseWriter, req *http.Request) { w.Write(body) }, 1, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			var mu sync.Mutex
			requests := 0
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				mu.Lock()
				requests++
				mu.Unlock()
				if c.answer != nil {
					c.answer(w, req)
					return
				}
				w.Header().Set("ETag", `"v1"`)
				http.ServeContent(w, req, "big", time.Time{}, bytes.NewReader(body))
			}))
			defer srv.Close()
			f, cache := newFetcher(t, nil, srv.URL)
			w, err := cache.Create(t.Context(), blob.SHA256, blob.Size)
			if err != nil {
				t.Fatal(err)
			}
			w.SetValidator(`"v1"`)
			w.Write(body[:half])
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			if c.tamper != nil {
				c.tamper(filepath.Join(cache.Dir(), "partial", blob.SHA256))
			}
			file, err := f.Fetch(t.Context(), blob)
			if (err == nil) != c.ok {
				t.Fatal(err)
			}
			if err == nil && !bytes.Equal(readAll(t, file), body) {
				t.Fatal("wrong bytes")
			}
			if requests != c.requests {
				t.Fatalf("%d requests, want %d", requests, c.requests)
			}
			left, _ := os.ReadDir(filepath.Join(cache.Dir(), "partial"))
			if len(left) != 0 {
				t.Fatalf("left in partial: %v", left)
			}
		})
	}
}

func TestCompletePartialNeedsNoRequest(t *testing.T) {
	r, path := testRepo(t)
	blob := r.Blob(path)
	f, cache := newFetcher(t, nil, r.URL)
	w, _ := cache.Create(t.Context(), blob.SHA256, blob.Size)
	w.SetValidator(`"x"`)
	w.Write(r.File(path))
	w.Close()
	file, err := f.Fetch(t.Context(), blob)
	if err != nil {
		t.Fatal(err)
	}
	file.Close()
	if r.Hits(path) != 0 {
		t.Fatal("asked the server")
	}
}

func TestRedirects(t *testing.T) {
	r, path := testRepo(t)
	secure := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		http.Redirect(w, req, r.URL+req.URL.Path, http.StatusFound)
	}))
	defer secure.Close()
	pool := secure.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	t.Run("NET-09 https to http", func(t *testing.T) {
		f, _ := newFetcher(t, func(o *fetch.Options) { o.RootCAs = pool }, secure.URL)
		_, err := f.Fetch(t.Context(), r.Blob(path))
		if fault.ClassOf(err) != fault.Policy || !strings.Contains(err.Error(), "refused") {
			t.Fatal(err)
		}
	})
	t.Run("NET-19 unknown authority", func(t *testing.T) {
		f, _ := newFetcher(t, nil, secure.URL)
		_, err := f.Fetch(t.Context(), r.Blob(path))
		if fault.ClassOf(err) != fault.Net || !strings.Contains(err.Error(), "certificate") {
			t.Fatal(err)
		}
	})
	t.Run("http to http", func(t *testing.T) {
		plain := httptest.NewServer(http.RedirectHandler(r.URL+"/"+path, http.StatusFound))
		defer plain.Close()
		f, _ := newFetcher(t, nil, plain.URL)
		file, err := f.Fetch(t.Context(), r.Blob(path))
		if err != nil {
			t.Fatal(err)
		}
		file.Close()
	})
	t.Run("credentials stay", func(t *testing.T) {
		var leaked string
		other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			leaked = req.Header.Get("Authorization") + req.Header.Get("Referer")
			w.Write(r.File(path))
		}))
		defer other.Close()
		var given string
		first := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			given = req.Header.Get("Authorization")
			http.Redirect(w, req, other.URL+req.URL.Path, http.StatusFound)
		}))
		defer first.Close()
		f, _ := newFetcher(t, nil, strings.Replace(first.URL, "http://", "http://user:secret@", 1))
		file, err := f.Fetch(t.Context(), r.Blob(path))
		if err != nil {
			t.Fatal(err)
		}
		file.Close()
		if given == "" || leaked != "" {
			t.Fatalf("given %q, leaked %q", given, leaked)
		}
	})
	t.Run("scheme", func(t *testing.T) {
		odd := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			w.Header().Set("Location", "file:///etc/passwd")
			w.WriteHeader(http.StatusFound)
		}))
		defer odd.Close()
		f, _ := newFetcher(t, nil, odd.URL)
		if _, err := f.Fetch(t.Context(), r.Blob(path)); fault.ClassOf(err) != fault.Policy {
			t.Fatal(err)
		}
	})
}

func TestPrivateTargets(t *testing.T) {
	r, path := testRepo(t)
	blob := r.Blob(path)
	blob.Family = ""
	f, _ := newFetcher(t, nil)
	for _, url := range []string{
		r.URL + "/" + path, "http://169.254.169.254/x", "http://[::ffff:169.254.169.254]/", "http://localhost:6379/", "http://[::1]/", "http://10.0.0.1/",
		"http://[fd00:ec2::254]/", "http://0.0.0.0/", "http://100.64.0.1/", "http://[64:ff9b::a9fe:a9fe]/",
	} {
		blob.URL = url
		if _, err := f.Fetch(t.Context(), blob); fault.ClassOf(err) != fault.Policy {
			t.Errorf("%s: %v", url, err)
		}
	}
	for _, url := range []string{"file:///etc/shadow", "ftp://example.org/x", "data:text/plain,x", "unix:/run/x", "http:///x", ""} {
		blob.URL = url
		if _, err := f.Fetch(t.Context(), blob); fault.ClassOf(err) != fault.Policy {
			t.Errorf("%s: %v", url, err)
		}
	}
	blob.URL = r.URL + "/" + path
	allowed, _ := newFetcher(t, func(o *fetch.Options) { o.AllowPrivate = true })
	file, err := allowed.Fetch(t.Context(), blob)
	if err != nil {
		t.Fatal(err)
	}
	file.Close()
	restricted, _ := newFetcher(t, func(o *fetch.Options) {
		o.Mirrors = map[string][]fetch.Mirror{"debian": {{URL: r.URL, Restricted: true}}}
	})
	if _, err := restricted.Fetch(t.Context(), r.Blob(path)); fault.ClassOf(err) != fault.Policy {
		t.Fatal(err)
	}
}

func TestSecretsStayHidden(t *testing.T) {
	r, path := testRepo(t)
	r.Fail("*", sourcetest.Missing, 0)
	var mu sync.Mutex
	var all strings.Builder
	sink := event.Sink(func(e event.Event) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(&all, "%+v\n", e)
	})
	f, _ := newFetcher(t, func(o *fetch.Options) { o.Sink = sink }, strings.Replace(r.URL, "http://", "http://user:hunter2@", 1))
	_, err := f.Fetch(t.Context(), r.Blob(path))
	blob := r.Blob(path)
	blob.Family, blob.URL = "", "https://user:hunter2@127.0.0.1:1/x"
	_, err2 := f.Fetch(t.Context(), blob)
	_, err3 := fetch.New(fetch.Options{Cache: cacheOf(t), Mirrors: map[string][]fetch.Mirror{"x": fetch.Mirrors("ftp://user:hunter2@host/")}})
	_, err4 := fetch.New(fetch.Options{Cache: cacheOf(t), Mirrors: map[string][]fetch.Mirror{"x": fetch.Mirrors("http://user:hunter2@ho st:%zz/")}})
	for _, e := range []error{err, err2, err3, err4} {
		if e == nil {
			t.Fatal("accepted")
		}
		all.WriteString(e.Error() + strings.Join(fault.Hints(e), " "))
	}
	if strings.Contains(all.String(), "hunter2") {
		t.Fatal(all.String())
	}
}

func cacheOf(t *testing.T) *cas.Cache {
	c, err := cas.Open(filepath.Join(t.TempDir(), "c"))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestPaths(t *testing.T) {
	r, _ := testRepo(t)
	f, _ := newFetcher(t, nil, r.URL)
	for _, path := range []string{"../x", "/abs", "a//b", ".", "a/../b", "a\nb", "a?b", "", "a b", "x#y", "a\\b"} {
		blob := sources.Blob{Family: "debian", Path: path, Size: 1, SHA256: sum(nil)}
		if _, err := f.Fetch(t.Context(), blob); fault.ClassOf(err) != fault.Path {
			t.Errorf("%q: %v", path, err)
		}
	}
	if _, err := f.Fetch(t.Context(), sources.Blob{Family: "nope", Path: "x", SHA256: sum(nil)}); fault.ClassOf(err) != fault.Config || len(fault.Hints(err)) == 0 {
		t.Error(err)
	}
	if _, err := f.Fetch(t.Context(), sources.Blob{Family: "debian", Path: "x", SHA256: "../../x"}); fault.ClassOf(err) != fault.Format {
		t.Error(err)
	}
}

func TestOfflineAndCache(t *testing.T) {
	r, path := testRepo(t)
	blob := r.Blob(path)
	f, cache := newFetcher(t, nil, r.URL)
	off, err := fetch.New(fetch.Options{Cache: cache, Offline: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := off.Fetch(t.Context(), blob); fault.ClassOf(err) != fault.Net || !errors.Is(err, sources.ErrOffline) || len(fault.Hints(err)) == 0 {
		t.Fatal(err)
	}
	if _, err := off.FetchSigned(t.Context(), blob, 10); !errors.Is(err, sources.ErrOffline) {
		t.Fatal(err)
	}
	file, err := f.Fetch(t.Context(), blob)
	if err != nil {
		t.Fatal(err)
	}
	file.Close()
	file, err = off.Fetch(t.Context(), blob)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.Write([]byte("x")); err == nil {
		t.Fatal("the file can be written to")
	}
	file.Close()
	// A damaged cache entry is noticed, thrown away and fetched again.
	flip(filepath.Join(cache.Dir(), "blobs", blob.SHA256[:2], blob.SHA256), 5)
	if _, err := off.Fetch(t.Context(), blob); !errors.Is(err, sources.ErrOffline) {
		t.Fatalf("damaged entry, offline: %v", err)
	}
	file, err = f.Fetch(t.Context(), blob)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(readAll(t, file), r.File(path)) {
		t.Fatal("wrong bytes")
	}
}

func TestFileMirror(t *testing.T) {
	r, path := testRepo(t)
	dir := t.TempDir()
	if err := r.WriteTo(dir); err != nil {
		t.Fatal(err)
	}
	f, _ := newFetcher(t, nil, "file://"+dir)
	file, err := f.Fetch(t.Context(), r.Blob(path))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(readAll(t, file), r.File(path)) {
		t.Fatal("wrong bytes")
	}
	if _, err := f.FetchSigned(t.Context(), sources.Blob{Family: "debian", Path: "dists/stable/InRelease"}, 1<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := f.FetchSigned(t.Context(), sources.Blob{Family: "debian", Path: "dists/none/InRelease"}, 1<<20); !errors.Is(err, sources.ErrNotFound) {
		t.Fatal(err)
	}
	if _, err := f.FetchSigned(t.Context(), sources.Blob{Family: "debian", Path: "dists"}, 1<<20); fault.ClassOf(err) != fault.Net {
		t.Fatal(err)
	}
	_, err = fetch.New(fetch.Options{Cache: cacheOf(t), Mirrors: map[string][]fetch.Mirror{"debian": {{URL: "file://" + dir, Restricted: true}}}})
	if fault.ClassOf(err) != fault.Config {
		t.Fatal(err)
	}
}

func TestOneDownloadForMany(t *testing.T) {
	r, path := testRepo(t)
	_, cache := newFetcher(t, nil, r.URL)
	var wg sync.WaitGroup
	for range 12 {
		f, err := fetch.New(fetch.Options{Cache: cache, Mirrors: map[string][]fetch.Mirror{"debian": fetch.Mirrors(r.URL)}})
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		wg.Go(func() {
			file, err := f.Fetch(t.Context(), r.Blob(path))
			if err != nil {
				t.Error(err)
				return
			}
			file.Close()
		})
	}
	wg.Wait()
	if n := r.Hits(path); n != 1 {
		t.Fatalf("%d downloads", n)
	}
}

func TestCancel(t *testing.T) {
	r, path := testRepo(t)
	r.Fail("*", sourcetest.Stall, 0)
	f, _ := newFetcher(t, func(o *fetch.Options) { o.Timeouts.Idle = time.Minute }, r.URL)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	began := time.Now()
	_, err := f.Fetch(ctx, r.Blob(path))
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > 5*time.Second {
		t.Fatal(err, time.Since(began))
	}
}

func TestSpans(t *testing.T) {
	r, path := testRepo(t)
	var mu sync.Mutex
	var end event.Event
	f, _ := newFetcher(t, func(o *fetch.Options) {
		o.Sink = func(e event.Event) {
			mu.Lock()
			defer mu.Unlock()
			if e.Kind == event.End {
				end = e
			}
		}
	}, r.URL)
	r.Fail("*.deb", sourcetest.CutOff, 1)
	file, err := f.Fetch(t.Context(), r.Blob(path))
	if err != nil {
		t.Fatal(err)
	}
	file.Close()
	size := int64(len(r.File(path)))
	if end.Name != "download" || end.Subject != "debian:"+path || end.Done != size || end.Total != size || end.Unit != "bytes" {
		t.Fatalf("%+v", end)
	}
}
