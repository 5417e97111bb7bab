// SPDX-License-Identifier: Apache-2.0

package fetch_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"

	"github.com/mkmachine/mkmachine/internal/cas"
	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/sources"
	"github.com/mkmachine/mkmachine/sources/fetch"
)

// FuzzServer plays a server that answers each request as the next bytes of the input say:
// the state machine of ranges, redirects, statuses and short bodies. Whatever it does, the
// only accepted outcome is the promised bytes; and nothing stays in the cache otherwise.
func FuzzServer(f *testing.F) {
	body := bytes.Repeat([]byte("abcdefgh"), 64)
	blob := sources.Blob{Family: "debian", Path: "blob", Size: int64(len(body)), SHA256: sum(body)}
	f.Add([]byte{0})
	f.Add([]byte{3, 2, 0})    // cut off, then continue
	f.Add([]byte{3, 4, 0})    // cut off, then 416
	f.Add([]byte{3, 5, 0, 0}) // cut off, wrong range
	f.Add([]byte{1, 1, 1, 1, 1, 1, 1})
	f.Add([]byte{6, 7, 8, 9, 10, 11, 12, 13})
	f.Fuzz(func(t *testing.T, script []byte) {
		if len(script) > 32 {
			return
		}
		step := 0
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			action := byte(0)
			if step < len(script) {
				action = script[step]
			}
			step++
			act(w, req, action, body)
		}))
		defer srv.Close()
		cache, err := cas.Open(filepath.Join(t.TempDir(), "c"))
		if err != nil {
			t.Fatal(err)
		}
		times := quick()
		times.Idle, times.RetryAfter = 50*time.Millisecond, 2*time.Millisecond
		fetcher, err := fetch.New(fetch.Options{Cache: cache, Mirrors: map[string][]fetch.Mirror{"debian": fetch.Mirrors(srv.URL)}, Timeouts: times})
		if err != nil {
			t.Fatal(err)
		}
		defer fetcher.Close()
		file, err := fetcher.Fetch(t.Context(), blob)
		if err != nil {
			switch c := fault.ClassOf(err); c {
			case fault.Net, fault.Verify, fault.Policy:
			default:
				t.Fatalf("class %s: %v", c, err)
			}
			if cache.Has(blob.SHA256) {
				t.Fatal("stored after an error")
			}
			return
		}
		defer file.Close()
		if got, _ := io.ReadAll(file); !bytes.Equal(got, body) {
			t.Fatalf("accepted %q", got)
		}
	})
}

// act answers one request in one of sixteen ways.
func act(w http.ResponseWriter, req *http.Request, action byte, body []byte) {
	etag := func() { w.Header().Set("ETag", fmt.Sprintf(`"v%d"`, action>>6)) }
	length := func(n int) { w.Header().Set("Content-Length", fmt.Sprint(n)) }
	at := int(action>>4) * len(body) / 16
	switch action & 15 {
	case 1:
		http.Redirect(w, req, fmt.Sprintf("/r%d", action), http.StatusFound)
	case 2:
		etag()
		http.ServeContent(w, req, "blob", time.Time{}, bytes.NewReader(body))
	case 3:
		etag()
		length(len(body))
		w.Write(body[:at])
		panic(http.ErrAbortHandler)
	case 4:
		w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
	case 5:
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", at, len(body)-1, len(body)))
		w.WriteHeader(http.StatusPartialContent)
		w.Write(body[at:])
	case 6:
		w.Header().Set("Content-Range", "bytes */*")
		w.WriteHeader(http.StatusPartialContent)
	case 7:
		w.Header().Set("Retry-After", []string{"999999", "-1", "Thu, 01 Jan 1970 00:00:00 GMT", "x"}[action>>6])
		w.WriteHeader([]int{500, 502, 503, 429}[action>>4&3])
	case 8:
		w.Write(append(bytes.Clone(body), body...))
	case 9:
		w.Write(body[:at])
	case 10:
		bad := bytes.Clone(body)
		bad[at] ^= 1
		etag()
		length(len(body))
		w.Write(bad)
	case 11:
		w.Header().Set("Content-Encoding", "gzip")
		w.Write(body)
	case 12:
		w.Header().Set("Location", []string{"", "ftp://x/", "http://[::1", "//"}[action>>6])
		w.WriteHeader(http.StatusMovedPermanently)
	case 13:
		bad := bytes.Clone(body)
		bad[0] ^= 1
		etag()
		length(len(body))
		w.Write(bad[:at])
		panic(http.ErrAbortHandler)
	case 14:
		w.WriteHeader([]int{204, 304, 404, 403}[action>>6])
	case 15:
		fmt.Fprint(w, "<html>log in</html>")
	default:
		w.Write(body)
	}
}
