// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/mkmachine/mkmachine/internal/cas"
	"github.com/mkmachine/mkmachine/internal/event"
	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/sources"
)

// download is one blob on its way, over as many attempts as it takes.
type download struct {
	f     *Fetcher
	blob  sources.Blob
	w     *cas.Writer // nil for FetchSigned
	limit int64       // of FetchSigned
	buf   []byte      // result of FetchSigned
	span  *event.Span
	shown int64 // bytes the span was told
	file  *os.File
	wait  time.Duration // what the last server asked for
}

func (d *download) run(ctx context.Context, targets []*target) (_ *os.File, err error) {
	d.span = d.f.start(ctx, "download", name(d.blob))
	d.span.Expect(max(d.blob.Size, 0), "bytes")
	defer func() { d.span.End(err) }()
	for round := range d.f.opt.Rounds {
		if !slices.ContainsFunc(targets, func(t *target) bool { return !t.dropped }) {
			break // nobody is left to ask: waiting would change nothing
		}
		if round > 0 {
			if err := d.f.pause(ctx, round-1, d.wait); err != nil {
				return nil, err
			}
		}
		d.wait = 0
		for _, t := range targets {
			if t.dropped {
				continue
			}
			if t.outcome = d.attempt(ctx, t); t.outcome == nil {
				return d.file, nil
			}
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			if fatal(t.outcome) {
				return nil, fmt.Errorf("cannot fetch %s: %w", name(d.blob), t.outcome)
			}
			t.dropped = !worthRetry(t.outcome)
			d.span.Debug(fmt.Sprintf("%s: %v", redact(t.url), t.outcome))
		}
	}
	return nil, d.failed(targets)
}

// fatal says that another mirror cannot help: the trouble is on this side.
func fatal(err error) bool {
	c := fault.ClassOf(err)
	return c == fault.Host || c == fault.Internal
}

// worthRetry says that the same mirror may do better later.
func worthRetry(err error) bool {
	c := fault.ClassOf(err)
	return c != fault.Verify && c != fault.Policy && c != fault.Limit && !errors.Is(err, sources.ErrNotFound) && !errors.Is(err, errFinal)
}

// errFinal marks an answer that will not change by asking again.
var errFinal = errors.New("")

// failed puts the outcomes of all mirrors in one error. Wrong bytes weigh more than no bytes.
func (d *download) failed(targets []*target) error {
	class, missing := fault.Net, true
	var text []string
	var hints []string
	for _, t := range targets {
		text = append(text, fmt.Sprintf("%s: %v", redact(t.url), t.outcome))
		for _, h := range fault.Hints(t.outcome) {
			if !contains(hints, h) {
				hints = append(hints, h)
			}
		}
		missing = missing && errors.Is(t.outcome, sources.ErrNotFound)
		switch c := fault.ClassOf(t.outcome); c {
		case fault.Verify:
			class = c
		case fault.Policy, fault.Limit:
			if class != fault.Verify {
				class = c
			}
		}
	}
	var err error
	if missing {
		err = fault.New(class, "cannot fetch %s: %w (%s)", name(d.blob), sources.ErrNotFound, strings.Join(text, "; "))
	} else {
		err = fault.New(class, "cannot fetch %s: %s", name(d.blob), strings.Join(text, "; "))
	}
	for _, h := range hints {
		err = fault.Hint(err, "%s", h)
	}
	return err
}

func contains(list []string, s string) bool {
	for _, have := range list {
		if have == s {
			return true
		}
	}
	return false
}

// attempt asks one target once; a partial that cannot be continued is restarted once.
func (d *download) attempt(ctx context.Context, t *target) error {
	if t.url.Scheme == "file" {
		return d.local(t)
	}
	if d.w != nil && d.blob.Size >= 0 && d.w.Offset() == d.blob.Size && d.blob.Size > 0 {
		// An earlier attempt got all bytes but not to the end. The digest decides; when it
		// does not match, the writer is empty again.
		if d.commit() == nil {
			return nil
		}
	}
	err := d.request(ctx, t)
	if errors.Is(err, errRestart) {
		if err := d.restart(); err != nil {
			return err
		}
		if err = d.request(ctx, t); errors.Is(err, errRestart) {
			err = fault.New(fault.Net, "server does not send the part that was asked for%w", errFinal)
		}
	}
	if err != nil && t.mirror != nil && fault.ClassOf(err) == fault.Net && !errors.Is(err, sources.ErrNotFound) {
		t.mirror.failures.Add(1)
	}
	return err
}

// errRestart says that the partial bytes are of no use.
var errRestart = errors.New("partial download cannot be continued")

// restart makes the writer empty.
func (d *download) restart() error {
	d.span.Add(-d.shown)
	d.shown = 0
	if d.w == nil {
		return nil
	}
	return d.w.Restart()
}

// commit publishes the blob. A mismatch leaves the writer empty.
func (d *download) commit() error {
	file, err := d.w.Commit()
	if err == nil {
		d.file = file
		return nil
	}
	d.span.Add(-d.shown)
	d.shown = 0
	return err
}

func (d *download) request(ctx context.Context, t *target) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, t.url.String(), nil)
	if err != nil {
		return fault.As(fault.Format, err)
	}
	req.Header.Set("User-Agent", d.f.opt.UserAgent)
	req.Header.Set("Accept-Encoding", "identity")
	offset := int64(0)
	if d.w != nil && d.w.Offset() > 0 && d.w.Validator() != "" {
		offset = d.w.Offset()
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
		req.Header.Set("If-Range", d.w.Validator())
	}
	client := d.f.open
	if t.restricted {
		client = d.f.public
		if err := d.f.checkHost(t.url); err != nil {
			return err
		}
	}
	resp, err := client.Do(req)
	if err != nil {
		return transportError(err)
	}
	defer resp.Body.Close()
	if err := d.status(resp, offset); err != nil {
		return err
	}
	body := &watched{r: resp.Body, cancel: cancel, t: d.f.opt.Timeouts}
	defer body.stop()
	if err := d.receive(resp, body); err != nil {
		if cause := context.Cause(ctx); cause != nil && errors.Is(err, context.Canceled) {
			return fault.As(fault.Net, cause)
		}
		return err
	}
	return nil
}

// status looks at the answer's header: nil means that the body continues at offset or,
// after restarting the writer, begins at zero.
func (d *download) status(resp *http.Response, offset int64) error {
	switch code := resp.StatusCode; {
	case code == http.StatusOK:
		if d.w != nil && d.w.Offset() > 0 {
			return d.restart()
		}
		return nil
	case code == http.StatusPartialContent && offset > 0:
		if !continues(resp.Header.Get("Content-Range"), offset, d.blob.Size) {
			return errRestart
		}
		if d.shown == 0 {
			d.shown = offset
			d.span.Add(offset)
		}
		return nil
	case code == http.StatusRequestedRangeNotSatisfiable && offset > 0:
		return errRestart
	case code == http.StatusNotFound || code == http.StatusGone:
		return fault.As(fault.Net, sources.ErrNotFound)
	case code == http.StatusUnauthorized || code == http.StatusForbidden || code == http.StatusProxyAuthRequired:
		return fault.New(fault.Net, "server answers %d %s%w", code, http.StatusText(code), errFinal)
	default:
		d.wait = max(d.wait, retryAfter(resp.Header.Get("Retry-After")))
		return fault.New(fault.Net, "server answers %d %s", code, http.StatusText(code))
	}
}

// continues checks "bytes FIRST-LAST/TOTAL" against what was asked for.
func continues(contentRange string, offset, size int64) bool {
	rest, ok := strings.CutPrefix(contentRange, "bytes ")
	if !ok {
		return false
	}
	span, total, ok := strings.Cut(rest, "/")
	first, last, ok2 := strings.Cut(span, "-")
	if !ok || !ok2 {
		return false
	}
	a, err1 := strconv.ParseUint(first, 10, 62)
	z, err2 := strconv.ParseUint(last, 10, 62)
	if err1 != nil || err2 != nil || int64(a) != offset || z < a {
		return false
	}
	if total == "*" {
		return true
	}
	n, err := strconv.ParseUint(total, 10, 62)
	return err == nil && z == n-1 && (size < 0 || int64(n) == size)
}

// retryAfter reads the header; dates in the past and nonsense are zero.
func retryAfter(v string) time.Duration {
	if s, err := strconv.ParseUint(v, 10, 31); err == nil {
		return time.Duration(s) * time.Second
	}
	if t, err := http.ParseTime(v); err == nil {
		return max(0, time.Until(t))
	}
	return 0
}

// receive moves the body to where it belongs.
func (d *download) receive(resp *http.Response, body io.Reader) error {
	head := make([]byte, 512)
	n, err := io.ReadFull(body, head)
	head = head[:n]
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return transportError(err)
	}
	if err == io.ErrUnexpectedEOF && n < 512 && resp.ContentLength > int64(n) {
		return fault.New(fault.Net, "connection closed after %d of %d bytes", n, resp.ContentLength)
	}
	if resp.StatusCode == http.StatusOK && webPage(head) && !strings.HasSuffix(d.blob.Path+d.blob.URL, ".html") {
		return fault.Hint(fault.New(fault.Verify, "server sent a web page instead of the file"),
			"a captive portal or proxy may be answering instead of the mirror; open a web page to log in, or try another mirror with --mirror")
	}
	whole := io.MultiReader(strings.NewReader(string(head)), body)
	if d.w == nil {
		return d.receiveSigned(resp, whole)
	}
	return d.receivePinned(resp, whole)
}

func (d *download) receiveSigned(resp *http.Response, body io.Reader) error {
	if resp.ContentLength > d.limit {
		return fault.New(fault.Limit, "file is larger than %d bytes", d.limit)
	}
	data, err := readLimited(body, d.limit)
	if err != nil {
		return transportError(err)
	}
	d.span.Add(int64(len(data)))
	d.buf = data
	return nil
}

func (d *download) receivePinned(resp *http.Response, body io.Reader) error {
	resumed := d.w.Offset()
	if resp.ContentLength >= 0 && d.blob.Size >= 0 && resp.ContentLength+resumed != d.blob.Size {
		return fault.New(fault.Verify, "server has %d bytes, %d were promised", resp.ContentLength+resumed, d.blob.Size)
	}
	if resumed == 0 {
		if err := d.w.SetValidator(validator(resp.Header)); err != nil {
			return err
		}
	}
	limit := d.f.opt.MaxSize
	if d.blob.Size >= 0 {
		limit = d.blob.Size
	}
	buf := make([]byte, bufferSize(d.blob.Size-resumed))
	for {
		n, err := body.Read(buf)
		if d.w.Offset()+int64(n) > limit {
			if err := d.restart(); err != nil {
				return err
			}
			if d.blob.Size >= 0 {
				return fault.New(fault.Verify, "server sends more than the %d bytes promised", d.blob.Size)
			}
			return fault.New(fault.Limit, "file is larger than %d bytes", limit)
		}
		if _, werr := d.w.Write(buf[:n]); werr != nil {
			return werr
		}
		d.shown += int64(n)
		d.span.Add(int64(n))
		if err == io.EOF {
			break
		}
		if err != nil {
			return transportError(err)
		}
	}
	if d.blob.Size >= 0 && d.w.Offset() < d.blob.Size {
		return fault.New(fault.Net, "connection closed after %d of %d bytes", d.w.Offset(), d.blob.Size)
	}
	if err := d.commit(); err != nil {
		if resumed > 0 && fault.ClassOf(err) == fault.Verify {
			return errRestart // the part from the earlier attempt may be the wrong one
		}
		return err
	}
	return nil
}

func bufferSize(left int64) int64 {
	if left < 0 {
		return 256 << 10
	}
	return min(max(left+1, 4<<10), 256<<10)
}

// validator is the strongest name that the server gives the version it sends; weak ETags
// do not promise equal bytes.
func validator(h http.Header) string {
	if etag := h.Get("ETag"); strings.HasPrefix(etag, `"`) {
		return etag
	}
	return h.Get("Last-Modified")
}

// webPage recognises HTML, which portals send for every address.
func webPage(head []byte) bool {
	text := strings.ToLower(strings.TrimLeft(string(head), " \t\r\n\ufeff"))
	for _, prefix := range []string{"<!doctype html", "<html", "<head", "<body", "<script", "<meta"} {
		if strings.HasPrefix(text, prefix) {
			return true
		}
	}
	return false
}

// local takes the blob from a directory of this machine.
func (d *download) local(t *target) error {
	src, err := os.OpenFile(t.url.Path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, os.ErrNotExist) {
		return fault.As(fault.Net, sources.ErrNotFound)
	}
	if err != nil {
		return fault.New(fault.Net, "%w%w", err, errFinal)
	}
	defer src.Close()
	info, err := src.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return fault.New(fault.Net, "not a regular file%w", errFinal)
	}
	resp := &http.Response{StatusCode: http.StatusOK, ContentLength: info.Size(), Header: http.Header{}}
	if d.w != nil && d.w.Offset() > 0 {
		if err := d.restart(); err != nil {
			return err
		}
	}
	return d.receive(resp, struct{ io.Reader }{src})
}

// watched gives up on a body that stalls or trickles.
type watched struct {
	r      io.Reader
	cancel context.CancelCauseFunc
	t      Timeouts
	timer  *time.Timer
	since  time.Time
	bytes  int64
}

func (w *watched) Read(p []byte) (int, error) {
	if w.timer == nil {
		w.since = time.Now()
		w.timer = time.AfterFunc(w.t.Idle, func() {
			w.cancel(fmt.Errorf("server stalled for %v", w.t.Idle))
		})
	} else {
		w.timer.Reset(w.t.Idle)
	}
	n, err := w.r.Read(p)
	w.bytes += int64(n)
	if spent := time.Since(w.since); spent >= w.t.RateWindow {
		if float64(w.bytes) < float64(w.t.MinRate)*spent.Seconds() {
			return n, fault.New(fault.Net, "server is slower than %d bytes a second", w.t.MinRate)
		}
		w.since, w.bytes = time.Now(), 0
	}
	return n, err
}

func (w *watched) stop() {
	if w.timer != nil {
		w.timer.Stop()
	}
}

// transportError gives a network failure its class and says what the user can do about it.
func transportError(err error) error {
	if c := fault.ClassOf(err); c != fault.Failed {
		return unwrapURL(err)
	}
	err = unwrapURL(err)
	var dns *net.DNSError
	var cert *tls.CertificateVerificationError
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.As(err, &dns):
		wrapped := fault.New(fault.Net, "cannot resolve %s: %s", dns.Name, dns.Err)
		if dns.IsNotFound {
			wrapped = fault.New(fault.Net, "%w%w", wrapped, errFinal)
		}
		return fault.Hint(wrapped, "check the DNS configuration of this machine")
	case errors.As(err, &unknown), errors.As(err, &cert):
		return fault.Hint(fault.New(fault.Net, "TLS certificate not accepted: %w%w", err, errFinal), "check this machine's clock and its CA certificates")
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return fault.New(fault.Net, "timed out: %w", err)
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return fault.New(fault.Net, "connection closed too early")
	}
	return fault.As(fault.Net, err)
}

// unwrapURL drops the library's "Get URL:", which repeats the address with its credentials.
func unwrapURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}
