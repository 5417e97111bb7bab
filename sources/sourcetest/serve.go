// SPDX-License-Identifier: Apache-2.0

package sourcetest

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crypto/sha256"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/sources"
)

// Fault is a way of a mirror to misbehave.
type Fault string

// The faults. The bytes in the repository stay as they are.
const (
	FlipBit   Fault = "flip a bit"    // in the middle of the file
	Truncate  Fault = "truncate"      // half the file, with the length of half
	CutOff    Fault = "cut off"       // half the file, then the connection closes
	Stall     Fault = "stall"         // header and half the file, then nothing
	Trickle   Fault = "trickle"       // a byte now and then
	Append    Fault = "append"        // junk after the file
	Endless   Fault = "endless"       // no length and no end
	Missing   Fault = "missing"       // 404
	Broken    Fault = "server error"  // 503
	HTML      Fault = "web page"      // 200 and a log-in page
	PlainHTTP Fault = "plain http"    // redirect to http://…
	Loop      Fault = "redirect loop" // redirect to itself
	BadRange  Fault = "bad range"     // 206 with another Content-Range than asked for
)

type activeFault struct {
	pattern string
	fault   Fault
	times   int
}

// Fail lets requests for paths that match the pattern (path.Match on the whole path, or
// on its last component where the pattern has no slash) misbehave: the next times
// requests, or all where times is 0.
func (r *Repo) Fail(pattern string, f Fault, times int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if times == 0 {
		times = -1
	}
	r.faults = append(r.faults, activeFault{pattern, f, times})
}

// Heal ends all faults.
func (r *Repo) Heal() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = nil
}

// File is a file's bytes by its path below the root; nil where it does not exist.
func (r *Repo) File(path string) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.files[path]
}

// SetFile replaces a file; nil removes it.
func (r *Repo) SetFile(path string, data []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if data == nil {
		delete(r.files, path)
		return
	}
	r.files[path] = data
}

// Deb is the pool path of a package.
func (r *Repo) Deb(name, version, arch string) string { return r.debs[name+" "+version+" "+arch] }

// Hits is how often a path was asked for.
func (r *Repo) Hits(path string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.hits[path]
}

// Blob names a file of the repository, pinned by its present bytes.
func (r *Repo) Blob(path string) sources.Blob {
	data := r.File(path)
	return sources.Blob{Family: r.Spec.Family, Path: path, Size: int64(len(data)), SHA256: digest(data)}
}

// WriteTo writes the repository below a directory, for file:// mirrors and other tools.
func (r *Repo) WriteTo(dir string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, data := range r.files {
		full := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(full, data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (r *Repo) serve(t testing.TB) {
	srv := httptest.NewServer(r)
	r.URL = srv.URL
	t.Cleanup(func() {
		srv.CloseClientConnections()
		srv.Close()
	})
}

// ServeHTTP serves the repository, with its faults.
func (r *Repo) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	name := strings.TrimPrefix(req.URL.Path, "/")
	r.mu.Lock()
	data, ok := r.files[name]
	r.hits[name]++
	f := r.pick(name)
	r.mu.Unlock()
	if f == Missing || (!ok && f != HTML) {
		http.NotFound(w, req)
		return
	}
	if f != "" {
		misbehave(w, req, data, f)
		return
	}
	w.Header().Set("ETag", `"`+digest(data)[:16]+`"`)
	http.ServeContent(w, req, path.Base(name)+".bin", time.Time{}, bytes.NewReader(data))
}

// pick takes the first fault that matches and counts it.
func (r *Repo) pick(name string) Fault {
	for i := range r.faults {
		a := &r.faults[i]
		subject := name
		if !strings.Contains(a.pattern, "/") {
			subject = path.Base(name)
		}
		if ok, _ := path.Match(a.pattern, subject); !ok || a.times == 0 {
			continue
		}
		if a.times > 0 {
			a.times--
		}
		return a.fault
	}
	return ""
}

func misbehave(w http.ResponseWriter, req *http.Request, data []byte, f Fault) {
	length := func(n int) { w.Header().Set("Content-Length", fmt.Sprint(n)) }
	half := data[:len(data)/2]
	flush := func() { _ = http.NewResponseController(w).Flush() }
	switch f {
	case FlipBit:
		bad := bytes.Clone(data)
		bad[len(bad)/2] ^= 1
		w.Write(bad)
	case Truncate:
		length(len(half))
		w.Write(half)
	case CutOff:
		w.Header().Set("ETag", `"`+digest(data)[:16]+`"`)
		length(len(data))
		w.Write(half)
		flush()
		panic(http.ErrAbortHandler)
	case Stall:
		length(len(data))
		w.Write(half)
		flush()
		<-req.Context().Done()
	case Trickle:
		length(len(data))
		for _, b := range data {
			if _, err := w.Write([]byte{b}); err != nil {
				return
			}
			flush()
			select {
			case <-req.Context().Done():
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	case Append:
		w.Write(append(bytes.Clone(data), "junk"...))
	case Endless:
		for req.Context().Err() == nil {
			if _, err := w.Write(make([]byte, 64<<10)); err != nil {
				return
			}
		}
	case Broken:
		w.Header().Set("Retry-After", "0")
		http.Error(w, "busy", http.StatusServiceUnavailable)
	case HTML:
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprint(w, "<!DOCTYPE html>\n<html><head><title>Log in</title></head><body>Welcome to the network</body></html>\n")
	case PlainHTTP:
		http.Redirect(w, req, "http://"+req.Host+req.URL.Path, http.StatusFound)
	case Loop:
		http.Redirect(w, req, req.URL.Path+"?again="+fmt.Sprint(len(req.URL.RawQuery)), http.StatusFound)
	case BadRange:
		w.Header().Set("Content-Range", fmt.Sprintf("bytes 1-%d/%d", len(data)-1, len(data)))
		length(len(data) - 1)
		w.WriteHeader(http.StatusPartialContent)
		w.Write(data[1:])
	}
}

// MapFetcher is a sources.Fetcher over bytes in memory, by sources.Blob.Name.
type MapFetcher map[string][]byte

// MapFetcher is the repository as it is now, without a server.
func (r *Repo) MapFetcher() MapFetcher {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := MapFetcher{}
	for path, data := range r.files {
		m[r.Spec.Family+":"+path] = data
	}
	return m
}

// Fetch implements sources.Fetcher; digests and sizes are checked.
func (m MapFetcher) Fetch(_ context.Context, b sources.Blob) (*os.File, error) {
	data, ok := m[b.Name()]
	if !ok {
		return nil, fault.New(fault.Net, "cannot fetch %s: %w", b.Name(), sources.ErrNotFound)
	}
	sum := sha256.Sum256(data)
	if hex.EncodeToString(sum[:]) != b.SHA256 || (b.Size >= 0 && b.Size != int64(len(data))) {
		return nil, fault.New(fault.Verify, "cannot fetch %s: not the bytes promised", b.Name())
	}
	f, err := os.CreateTemp("", "mapfetcher-*")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	defer os.Remove(f.Name())
	if _, err := f.Write(data); err != nil {
		return nil, err
	}
	return os.Open(f.Name())
}

// FetchSigned implements sources.Fetcher.
func (m MapFetcher) FetchSigned(_ context.Context, b sources.Blob, limit int64) ([]byte, error) {
	data, ok := m[b.Name()]
	switch {
	case !ok:
		return nil, fault.New(fault.Net, "cannot fetch %s: %w", b.Name(), sources.ErrNotFound)
	case int64(len(data)) > limit:
		return nil, fault.New(fault.Limit, "cannot fetch %s: larger than %d bytes", b.Name(), limit)
	}
	return bytes.Clone(data), nil
}
