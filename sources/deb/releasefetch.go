// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/mkmachine/mkmachine/internal/compress"
	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/sources"
	"github.com/mkmachine/mkmachine/sources/pgp"
)

// SuitePath is the directory of a suite below a mirror's root. A suite that ends in a slash
// is a flat repository's directory.
func SuitePath(suite string) string {
	if flat, ok := strings.CutSuffix(suite, "/"); ok {
		return flat
	}
	return "dists/" + suite
}

// FetchRelease brings and verifies the Release of a suite: InRelease, or where the mirror
// has none, Release with Release.gpg. Bytes of the two ways are never mixed, and a bad
// InRelease is not replaced by the other way. CheckRelease comes next.
func FetchRelease(ctx context.Context, f sources.Fetcher, family, suite string, ring *pgp.Keyring, policy pgp.Policy) (*Release, error) {
	r, err := fetchRelease(ctx, f, family, suite, ring, policy)
	if err != nil {
		return nil, fmt.Errorf("cannot use suite %s of %s: %w", suite, family, err)
	}
	return r, nil
}

func fetchRelease(ctx context.Context, f sources.Fetcher, family, suite string, ring *pgp.Keyring, policy pgp.Policy) (*Release, error) {
	if ring == nil || len(ring.Fingerprints()) == 0 {
		return nil, fault.New(fault.Verify, "there are no keys to verify it with")
	}
	blob := func(name string) sources.Blob {
		return sources.Blob{Family: family, Path: SuitePath(suite) + "/" + name, Size: -1}
	}
	data, err := f.FetchSigned(ctx, blob("InRelease"), maxRelease)
	switch {
	case err == nil:
		text, signers, err := pgp.VerifyClearsigned(data, ring, policy)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", blob("InRelease").Name(), err)
		}
		return provenRelease(text, signers)
	case !errors.Is(err, sources.ErrNotFound):
		return nil, err
	}
	data, err = f.FetchSigned(ctx, blob("Release"), maxRelease)
	if errors.Is(err, sources.ErrNotFound) {
		return nil, fault.Hint(err, "check the name of the suite, and that the mirror has it")
	}
	if err != nil {
		return nil, err
	}
	sig, err := f.FetchSigned(ctx, blob("Release.gpg"), 1<<20)
	if errors.Is(err, sources.ErrNotFound) {
		return nil, fault.New(fault.Verify, "the mirror has a Release without a signature: %w", err)
	}
	if err != nil {
		return nil, err
	}
	if pgp.LooksLikeHTML(data) || pgp.LooksLikeHTML(sig) {
		return nil, notRelease()
	}
	signers, err := pgp.VerifyDetached(data, sig, ring, policy)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", blob("Release").Name(), err)
	}
	return provenRelease(data, signers)
}

func provenRelease(text []byte, signers []pgp.Signer) (*Release, error) {
	r, err := ParseRelease(text)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(text)
	r.Text, r.Signers = hex.EncodeToString(sum[:]), signers
	return r, nil
}

// IndexFile is one form in which an index can be fetched.
type IndexFile struct {
	// Blobs are the places of these bytes, to be tried in order: by digest first, because
	// that name stays right while a mirror is being updated.
	Blobs []sources.Blob
	Kind  compress.Kind
	// Path names the index without compression; Size and SHA256 are those of the plain text.
	Path   string
	Size   int64
	SHA256 string
}

// Rates used to choose between the forms of an index, in bytes a second of plain text
// (measured on a 2024 server core), and the link that is assumed when nothing is known.
const (
	assumedLink = 12_500_000
	xzRate      = 75_000_000
	gzipRate    = 281_000_000
	zstdRate    = 900_000_000
)

// IndexFiles lists the forms of the Packages index of a component and architecture, the one
// that is expected to be read soonest first. link is the speed of the network in bytes a
// second, 0 where unknown. An index that the Release does not list is a fault.Dep error.
func IndexFiles(r *Release, family, suite, component, arch string, link int64) ([]IndexFile, error) {
	path := component + "/binary-" + arch + "/Packages"
	if component == "" {
		path = "Packages"
	}
	plain, ok := r.Files[path]
	if !ok {
		return nil, missingIndex(r, suite, component, arch)
	}
	if link <= 0 {
		link = assumedLink
	}
	type form struct {
		IndexFile
		seconds float64
	}
	var forms []form
	for _, k := range []struct {
		kind   compress.Kind
		suffix string
		rate   float64
	}{{compress.Zstd, ".zst", zstdRate}, {compress.Gzip, ".gz", gzipRate}, {compress.XZ, ".xz", xzRate}, {compress.Plain, "", 0}} {
		file, ok := r.Files[path+k.suffix]
		if !ok {
			continue
		}
		out := form{IndexFile: IndexFile{Kind: k.kind, Path: path, Size: plain.Size, SHA256: plain.SHA256}}
		out.seconds = float64(file.Size) / float64(link)
		if k.rate > 0 {
			out.seconds += float64(plain.Size) / k.rate
		}
		blob := sources.Blob{Family: family, Path: SuitePath(suite) + "/" + path + k.suffix, Size: file.Size, SHA256: file.SHA256}
		if r.AcquireByHash {
			byHash := blob
			byHash.Path = blob.Path[:strings.LastIndexByte(blob.Path, '/')] + "/by-hash/SHA256/" + file.SHA256
			out.Blobs = append(out.Blobs, byHash)
		}
		out.Blobs = append(out.Blobs, blob)
		forms = append(forms, out)
	}
	slices.SortStableFunc(forms, func(a, b form) int {
		// Archives list the plain text always and publish it seldom.
		if plainA, plainB := a.Kind == compress.Plain, b.Kind == compress.Plain; plainA != plainB {
			if plainA {
				return 1
			}
			return -1
		}
		return int((a.seconds - b.seconds) * 1e6)
	})
	files := make([]IndexFile, len(forms))
	for i := range forms {
		files[i] = forms[i].IndexFile
	}
	return files, nil
}

func missingIndex(r *Release, suite, component, arch string) error {
	switch {
	case len(r.Architectures) > 0 && !slices.Contains(r.Architectures, arch):
		return fault.Hint(fault.New(fault.Dep, "suite %s has no architecture %s", suite, arch), "it has %s", strings.Join(r.Architectures, ", "))
	case len(r.Components) > 0 && !slices.Contains(r.Components, component):
		return fault.Hint(fault.New(fault.Dep, "suite %s has no component %s", suite, component), "it has %s", strings.Join(r.Components, ", "))
	}
	return fault.New(fault.Dep, "suite %s lists no packages for component %s, architecture %s", suite, component, arch)
}

// PackagesText is a Packages text that was proved by a Release, and the file it came from.
type PackagesText struct {
	Text []byte
	File sources.RepositoryFile // as fetched; Path is below the suite's directory
}

// indexRounds is how often an index is asked for while the mirror's files do not belong to
// its Release, which is what a mirror looks like that is being updated; indexPause is the
// first pause, doubled for the next.
const (
	indexRounds = 3
	indexPause  = 300 * time.Millisecond
)

// FetchIndex brings the Packages index of a component and architecture: the quickest form
// that the mirror has, checked compressed and again after decoding. pool may be nil.
//
// An index that the Release lists and the mirror has not, or not with these bytes, is asked
// for again a few times. Then a missing one is fault.Net, wrong bytes are fault.Verify.
func FetchIndex(ctx context.Context, f sources.Fetcher, r *Release, family, suite, component, arch string, pool *compress.Pool) (*PackagesText, error) {
	files, err := IndexFiles(r, family, suite, component, arch, 0)
	if err != nil {
		return nil, err
	}
	for round := range indexRounds {
		if round > 0 {
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-time.After(indexPause << (round - 1)):
			}
		}
		var text *PackagesText
		if text, err = fetchIndex(ctx, f, files, suite, pool); err == nil {
			return text, nil
		}
		if !errors.Is(err, sources.ErrNotFound) && fault.ClassOf(err) != fault.Verify {
			return nil, err
		}
	}
	return nil, fault.Hint(err, "the mirror may be in the middle of an update; try again in some minutes or name another one with --mirror")
}

// fetchIndex asks once for each form of an index until one is there.
func fetchIndex(ctx context.Context, f sources.Fetcher, files []IndexFile, suite string, pool *compress.Pool) (*PackagesText, error) {
	var missing error
	for _, file := range files {
		for _, blob := range file.Blobs {
			in, err := f.Fetch(ctx, blob)
			if errors.Is(err, sources.ErrNotFound) || (offlineMiss(err) && len(files) > 1) {
				missing = err
				continue
			}
			if err != nil {
				return nil, err
			}
			text, err := DecodeIndex(in, file, pool)
			in.Close()
			if err != nil {
				return nil, err
			}
			path := strings.TrimPrefix(file.Blobs[len(file.Blobs)-1].Path, SuitePath(suite)+"/")
			return &PackagesText{Text: text, File: sources.RepositoryFile{Path: path, Size: blob.Size, SHA256: blob.SHA256}}, nil
		}
	}
	if offlineMiss(missing) {
		return nil, missing
	}
	return nil, fmt.Errorf("no form of the index %s can be had, the mirror is out of sync with its Release: %w", files[0].Path, missing)
}

// offlineMiss: with --offline another form of the index may be in the cache.
func offlineMiss(err error) bool {
	return errors.Is(err, sources.ErrOffline)
}

// DecodeIndex reads a fetched index and checks the plain text against the Release too.
func DecodeIndex(in *os.File, file IndexFile, pool *compress.Pool) ([]byte, error) {
	if file.Size > maxIndex {
		return nil, fault.New(fault.Limit, "cannot read %s: %d bytes are more than an index may have", file.Path, file.Size)
	}
	rd, err := pool.Open(in, &compress.Options{Name: file.Path, Kind: file.Kind, MaxOutput: file.Size + 1})
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", file.Path, err)
	}
	defer rd.Close()
	var text bytes.Buffer
	// The size is only promised by the Release; do not trust it with more than a start.
	text.Grow(int(min(file.Size+bytes.MinRead, 128<<20)))
	h := sha256.New()
	if _, err := io.Copy(io.MultiWriter(&text, h), rd); err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", file.Path, err)
	}
	if int64(text.Len()) != file.Size || hex.EncodeToString(h.Sum(nil)) != file.SHA256 {
		return nil, fault.New(fault.Verify, "cannot use %s: decoded, it is not the text that Release lists", file.Path)
	}
	return text.Bytes(), nil
}
