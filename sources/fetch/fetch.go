// SPDX-License-Identifier: Apache-2.0

// Package fetch brings bytes from mirrors into the cache. It is the only package that opens
// a socket to the outside, and the only importer of net/http.
//
// It owns mirrors, retries, resuming, limits in time and size, and where a request may go.
// It never decides what is trustworthy: a pinned blob is handed out only when its SHA-256
// matched, anything else (FetchSigned) must carry its own signature, which the caller checks.
//
// A blob is tried on every mirror of its family in turn, in rounds with growing pauses. A
// mirror that says "not found", or sends other bytes than promised, is not asked for that
// blob again; one that fails to answer goes to the end of the line for the rest of the run.
package fetch

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/mkmachine/mkmachine/internal/cas"
	"github.com/mkmachine/mkmachine/internal/event"
	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/sources"
)

// Mirror is a place that holds a mirror family.
type Mirror struct {
	// URL is the root: http, https, or file for a directory of this machine.
	URL string
	// Restricted marks a mirror that a recipe names rather than the operator: only http and
	// https, and only public addresses.
	Restricted bool
}

// Mirrors turns plain URLs into unrestricted mirrors.
func Mirrors(urls ...string) []Mirror {
	out := make([]Mirror, len(urls))
	for i, u := range urls {
		out[i] = Mirror{URL: u}
	}
	return out
}

// Timeouts bound a request. Zero fields get the default in parentheses.
type Timeouts struct {
	Dial   time.Duration // to connect, also for the TLS handshake (10 s)
	Header time.Duration // from the request to the answer's header (30 s)
	Idle   time.Duration // between two reads of the body (30 s)
	// A body slower than MinRate bytes a second (256) over RateWindow (30 s) is given up.
	MinRate    int64
	RateWindow time.Duration
	// Backoff is the pause after the first round, doubled for each further one (500 ms).
	Backoff time.Duration
	// RetryAfter is the longest pause that a server can ask for (60 s).
	RetryAfter time.Duration
}

// Options configures a Fetcher. Cache is required.
type Options struct {
	Cache   *cas.Cache
	Mirrors map[string][]Mirror // by family, in the order of preference
	Sink    event.Sink
	// Offline takes everything from the cache and opens no connection.
	Offline bool
	// Parallel bounds requests at one time; 0 means 8.
	Parallel int
	// Rounds is how often the list of mirrors is gone through; 0 means 3.
	Rounds int
	// MaxSize bounds a blob whose size is not known, in bytes; 0 means 16 GiB.
	MaxSize int64
	// AllowPrivate lets recipe-given URLs and restricted mirrors reach private addresses.
	AllowPrivate bool
	// Proxy chooses a proxy; nil means none. The caller reads the environment.
	Proxy     func(*url.URL) (*url.URL, error)
	RootCAs   *x509.CertPool // nil means the system's
	UserAgent string         // "" means "mkmachine"
	Timeouts  Timeouts
}

// Fetcher is the sources.Fetcher of the real world. It is safe for concurrent use.
type Fetcher struct {
	opt     Options
	slots   chan struct{}
	open    *http.Client // to any address
	public  *http.Client // refuses private addresses when it dials
	mirrors map[string][]*mirror
}

var _ sources.Fetcher = (*Fetcher)(nil)

type mirror struct {
	root       *url.URL
	restricted bool
	failures   atomic.Int32 // how often it did not answer
}

// New checks the options and makes a Fetcher; Close frees its connections.
func New(opt Options) (*Fetcher, error) {
	if opt.Cache == nil {
		return nil, fault.New(fault.Internal, "internal error: fetcher without a cache")
	}
	setDefaults(&opt)
	f := &Fetcher{
		opt:     opt,
		slots:   make(chan struct{}, opt.Parallel),
		mirrors: map[string][]*mirror{},
	}
	f.open = newClient(opt, false)
	f.public = newClient(opt, !opt.AllowPrivate)
	for family, list := range opt.Mirrors {
		for _, m := range list {
			u, err := parseMirror(m)
			if err != nil {
				return nil, fault.New(fault.Config, "cannot use mirror %s for %s: %w", Redact(m.URL), family, err)
			}
			f.mirrors[family] = append(f.mirrors[family], &mirror{root: u, restricted: m.Restricted})
		}
	}
	return f, nil
}

func setDefaults(opt *Options) {
	orDefault(&opt.Parallel, 8)
	orDefault(&opt.Rounds, 3)
	orDefault(&opt.MaxSize, 16<<30)
	if opt.UserAgent == "" {
		opt.UserAgent = "mkmachine"
	}
	t := &opt.Timeouts
	orDefault(&t.Dial, 10*time.Second)
	orDefault(&t.Header, 30*time.Second)
	orDefault(&t.Idle, 30*time.Second)
	orDefault(&t.MinRate, 256)
	orDefault(&t.RateWindow, 30*time.Second)
	orDefault(&t.Backoff, 500*time.Millisecond)
	orDefault(&t.RetryAfter, 60*time.Second)
}

func orDefault[T int | int64 | time.Duration](p *T, v T) {
	if *p == 0 {
		*p = v
	}
}

func parseMirror(m Mirror) (*url.URL, error) {
	u, err := url.Parse(strings.TrimRight(m.URL, "/"))
	if err != nil {
		return nil, errors.New("not a URL")
	}
	switch {
	case u.RawQuery != "" || u.Fragment != "":
		return nil, errors.New("a mirror has no query or fragment")
	case u.Scheme == "file" && !m.Restricted && u.Host == "" && strings.HasPrefix(u.Path, "/"):
		return u, nil
	case u.Scheme == "file" && m.Restricted:
		return nil, errors.New("a recipe cannot name a directory of this machine; use --mirror")
	case (u.Scheme == "http" || u.Scheme == "https") && u.Host != "":
		return u, nil
	}
	return nil, errors.New("want http://, https:// or file:///")
}

// Close drops idle connections.
func (f *Fetcher) Close() {
	f.open.CloseIdleConnections()
	f.public.CloseIdleConnections()
}

// Fetch implements sources.Fetcher. The blob must have a SHA256. The class of a failure is
// fault.Net when no mirror delivered, fault.Verify when bytes came that were not the ones
// promised, fault.Policy when the URL may not be used; errors.Is(err, sources.ErrNotFound)
// when every mirror said so.
func (f *Fetcher) Fetch(ctx context.Context, b sources.Blob) (*os.File, error) {
	if !cas.ValidDigest(b.SHA256) {
		return nil, fault.New(fault.Format, "cannot fetch %s: %q is no SHA-256", name(b), b.SHA256)
	}
	for {
		file, err := f.opt.Cache.Verified(b.SHA256, b.Size)
		switch {
		case err == nil:
			return file, nil
		case errors.Is(err, cas.ErrCorrupt):
			f.note(ctx, b, "cached copy did not match its digest, fetching it again")
		case !errors.Is(err, cas.ErrMiss):
			return nil, fmt.Errorf("cannot fetch %s: %w", name(b), err)
		}
		if f.opt.Offline {
			return nil, offline(b)
		}
		targets, err := f.targets(b)
		if err != nil {
			return nil, err
		}
		file, err = f.pinned(ctx, b, targets)
		if !errors.Is(err, cas.ErrExists) {
			return file, err
		}
	}
}

// pinned downloads a blob; cas.ErrExists says that somebody else did meanwhile.
func (f *Fetcher) pinned(ctx context.Context, b sources.Blob, targets []*target) (_ *os.File, err error) {
	if err := f.acquire(ctx); err != nil {
		return nil, err
	}
	defer f.release()
	w, err := f.opt.Cache.Create(ctx, b.SHA256, b.Size)
	if errors.Is(err, cas.ErrExists) || errors.Is(err, context.Canceled) {
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("cannot fetch %s: %w", name(b), err)
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	d := &download{f: f, blob: b, w: w}
	return d.run(ctx, targets)
}

// acquire waits for one of the parallel requests to be free.
func (f *Fetcher) acquire(ctx context.Context) error {
	select {
	case f.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (f *Fetcher) release() { <-f.slots }

// FetchSigned implements sources.Fetcher. Nothing is cached: freshness is what is asked for.
func (f *Fetcher) FetchSigned(ctx context.Context, b sources.Blob, limit int64) ([]byte, error) {
	if f.opt.Offline {
		return nil, offline(b)
	}
	targets, err := f.targets(b)
	if err != nil {
		return nil, err
	}
	if err := f.acquire(ctx); err != nil {
		return nil, err
	}
	defer f.release()
	d := &download{f: f, blob: b, limit: limit}
	if _, err := d.run(ctx, targets); err != nil {
		return nil, err
	}
	return d.buf, nil
}

func offline(b sources.Blob) error {
	return fault.Hint(fault.New(fault.Net, "cannot fetch %s: %w", name(b), sources.ErrOffline),
		"run the same command once without --offline")
}

func (f *Fetcher) note(ctx context.Context, b sources.Blob, text string) {
	sp := f.start(ctx, "cache", name(b))
	sp.Warn(text)
	sp.End(nil)
}

// start opens a span inside the one that asked for the file, see event.With.
func (f *Fetcher) start(ctx context.Context, what, subject string) *event.Span {
	if parent := event.From(ctx); parent != nil {
		return parent.Start(what, subject)
	}
	return f.opt.Sink.Start(what, subject)
}

// target is one address to ask for a blob.
type target struct {
	url        *url.URL
	restricted bool
	mirror     *mirror // nil for a blob with its own URL
	dropped    bool    // not to be asked again
	outcome    error   // the last failure
}

// targets lists where to ask, mirrors that failed to answer before last.
func (f *Fetcher) targets(b sources.Blob) ([]*target, error) {
	if b.Family == "" {
		u, err := url.Parse(b.URL)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
			return nil, fault.New(fault.Policy, "cannot fetch %s: want an http:// or https:// address", name(b))
		}
		return []*target{{url: u, restricted: true}}, nil
	}
	if err := checkPath(b.Path); err != nil {
		return nil, fault.New(fault.Path, "cannot fetch %q from %s: %w", b.Path, b.Family, err)
	}
	var good, failing []*target
	for _, m := range f.mirrors[b.Family] {
		u := *m.root
		u.Path = strings.TrimRight(u.Path, "/") + "/" + b.Path
		u.RawPath = ""
		t := &target{url: &u, restricted: m.restricted, mirror: m}
		if m.failures.Load() > 0 {
			failing = append(failing, t)
		} else {
			good = append(good, t)
		}
	}
	if len(good)+len(failing) == 0 {
		return nil, fault.Hint(fault.New(fault.Config, "cannot fetch %s: no mirror is known for %q", name(b), b.Family),
			"name one with --mirror %s=URL", b.Family)
	}
	return append(good, failing...), nil
}

// checkPath keeps a path from an index from becoming another address.
func checkPath(path string) error {
	if path == "" || len(path) > 4096 {
		return errors.New("empty or too long path")
	}
	for part := range strings.SplitSeq(path, "/") {
		if part == "" || part == "." || part == ".." {
			return errors.New("path is not plain")
		}
	}
	for _, c := range []byte(path) {
		if c <= 0x20 || c >= 0x7f || c == '\\' || c == '?' || c == '#' {
			return errors.New("path has a character that paths of mirrors do not have")
		}
	}
	return nil
}

// name is how messages call a blob, without credentials.
func name(b sources.Blob) string {
	if b.Family == "" {
		return Redact(b.URL)
	}
	return b.Name()
}

// Redact takes user name and password out of a URL, also of one that does not parse.
func Redact(raw string) string {
	if u, err := url.Parse(raw); err == nil {
		return redact(u)
	}
	if i := strings.LastIndexByte(raw, '@'); i >= 0 {
		return "…" + raw[i:]
	}
	return fmt.Sprintf("%q", raw)
}

func redact(u *url.URL) string {
	if u.User == nil {
		return u.String()
	}
	clean := *u
	clean.User = url.User("…")
	return strings.Replace(clean.String(), "%E2%80%A6@", "…@", 1)
}

// pause sleeps between rounds: what a server asked for within bounds, else growing with jitter.
func (f *Fetcher) pause(ctx context.Context, round int, asked time.Duration) error {
	d := f.opt.Timeouts.Backoff << round
	d += rand.N(d/2 + 1)
	d = min(max(d, asked), f.opt.Timeouts.RetryAfter)
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// readLimited reads all of r, at most limit bytes.
func readLimited(r io.Reader, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fault.New(fault.Limit, "file is larger than %d bytes", limit)
	}
	return data, err
}
