// SPDX-License-Identifier: Apache-2.0

package fetch_test

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/mkmachine/mkmachine/internal/cas"
	"github.com/mkmachine/mkmachine/sources"
	"github.com/mkmachine/mkmachine/sources/fetch"
)

// BenchmarkManySmall fetches 80 files of 500 kB (a minbase set) from the loopback interface
// into an empty cache; warm takes them from the cache again. 0.3 s for cold is the budget.
func BenchmarkManySmall(b *testing.B) {
	const files, size = 80, 500 << 10
	bodies := make([][]byte, files)
	blobs := make([]sources.Blob, files)
	for i := range files {
		bodies[i] = bytes.Repeat([]byte(fmt.Sprintf("%08d", i)), size/8)
		blobs[i] = sources.Blob{Family: "debian", Path: fmt.Sprint(i), Size: size, SHA256: sum(bodies[i])}
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		var i int
		fmt.Sscanf(req.URL.Path, "/%d", &i)
		http.ServeContent(w, req, "f.bin", time.Time{}, bytes.NewReader(bodies[i]))
	}))
	defer srv.Close()
	all := func(b *testing.B, cache *cas.Cache) {
		f, err := fetch.New(fetch.Options{Cache: cache, Mirrors: map[string][]fetch.Mirror{"debian": fetch.Mirrors(srv.URL)}})
		if err != nil {
			b.Fatal(err)
		}
		defer f.Close()
		var wg sync.WaitGroup
		for _, blob := range blobs {
			wg.Go(func() {
				file, err := f.Fetch(b.Context(), blob)
				if err != nil {
					b.Error(err)
					return
				}
				file.Close()
			})
		}
		wg.Wait()
	}
	dir := b.TempDir()
	n := 0
	b.Run("cold", func(b *testing.B) {
		b.SetBytes(files * size)
		for b.Loop() {
			n++
			cache, err := cas.Open(filepath.Join(dir, fmt.Sprint(n)))
			if err != nil {
				b.Fatal(err)
			}
			all(b, cache)
		}
	})
	b.Run("warm", func(b *testing.B) {
		b.SetBytes(files * size)
		cache, err := cas.Open(filepath.Join(dir, "1"))
		if err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			all(b, cache)
		}
	})
}
