// SPDX-License-Identifier: Apache-2.0

// Package sources holds the types for what comes from outside: blobs, packages and the
// lock that pins them. The ecosystems (sources/deb, …) resolve and read; sources/fetch
// brings bytes. Nothing below sources ever writes into a root tree, and only
// sources/fetch opens a socket.
package sources

import (
	"context"
	"os"
)

// Blob names bytes that somebody else has. With SHA256 set it is pinned.
type Blob struct {
	// Family is the mirror family ("debian", "debian-security", "ubuntu"); Path is relative
	// to a mirror's root. URL is used instead where Family is empty.
	Family string
	Path   string
	URL    string
	// Size in bytes; -1 where unknown.
	Size int64
	// SHA256 in lower-case hex; empty only for signed files whose signature is the proof.
	SHA256 string
}

// Name is how messages call the blob.
func (b Blob) Name() string {
	if b.Family == "" {
		return b.URL
	}
	return b.Family + ":" + b.Path
}

// Fetcher brings bytes. sources/fetch is the real one, tests use a map.
type Fetcher interface {
	// Fetch returns a pinned blob as an open, read-only, verified file at offset 0;
	// the caller closes it.
	Fetch(ctx context.Context, b Blob) (*os.File, error)
	// FetchSigned returns the newest bytes of a file that carries or has its own
	// signature, at most limit bytes. A missing file is ErrNotFound.
	FetchSigned(ctx context.Context, b Blob, limit int64) ([]byte, error)
}
