// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"crypto/tls"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"syscall"
	"time"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// maxRedirects is how many redirects are followed for one request.
const maxRedirects = 5

// newClient makes a client with kept connections. publicOnly refuses addresses that are not
// reachable by everybody, when the connection is made and for each one, so that neither a
// redirect nor a name that changes its address gets around it.
func newClient(opt Options, publicOnly bool) *http.Client {
	dialer := &net.Dialer{Timeout: opt.Timeouts.Dial, KeepAlive: 30 * time.Second}
	if publicOnly && opt.Proxy == nil {
		dialer.Control = refusePrivate
	}
	tr := &http.Transport{
		DialContext:           dialer.DialContext,
		TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: opt.RootCAs},
		TLSHandshakeTimeout:   opt.Timeouts.Dial,
		ResponseHeaderTimeout: opt.Timeouts.Header,
		MaxIdleConnsPerHost:   opt.Parallel,
		IdleConnTimeout:       30 * time.Second,
		// Bytes are hashed as they are stored on the mirror, never decoded on the way.
		DisableCompression:     true,
		MaxResponseHeaderBytes: 64 << 10,
		ReadBufferSize:         64 << 10,
	}
	if opt.Proxy != nil {
		tr.Proxy = func(r *http.Request) (*url.URL, error) { return opt.Proxy(r.URL) }
	}
	return &http.Client{Transport: tr, CheckRedirect: checkRedirect}
}

// checkRedirect is asked before each redirect is followed.
func checkRedirect(next *http.Request, via []*http.Request) error {
	last := via[len(via)-1]
	if len(via) > maxRedirects {
		return fault.New(fault.Net, "more than %d redirects%w", maxRedirects, errFinal)
	}
	if next.URL.Scheme != "http" && next.URL.Scheme != "https" {
		return fault.New(fault.Policy, "redirect to %s refused", redact(next.URL))
	}
	if last.URL.Scheme == "https" && next.URL.Scheme == "http" {
		return fault.New(fault.Policy, "redirect from https to %s refused", redact(next.URL))
	}
	// The library adds the address that sent us; nobody needs it.
	next.Header.Del("Referer")
	// Credentials belong to the host that the operator gave them for.
	first := via[0].URL
	next.URL.User = nil
	if next.URL.Host == first.Host && next.URL.Scheme == first.Scheme {
		next.URL.User = first.User
	} else {
		next.Header.Del("Authorization")
	}
	return nil
}

// refusePrivate is a Dialer.Control: address is what the name was resolved to.
func refusePrivate(_, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil || !publicAddress(ap.Addr()) {
		return fault.Hint(fault.New(fault.Policy, "connection to %s refused: it is not a public address", address),
			"a recipe may only name public servers; for a mirror of your own use --mirror FAMILY=URL")
	}
	return nil
}

// checkHost refuses literal private addresses when a proxy makes the connection: then the
// dialer sees the proxy's address, and resolving the name is the proxy's business.
func (f *Fetcher) checkHost(u *url.URL) error {
	if f.opt.Proxy == nil || f.opt.AllowPrivate {
		return nil
	}
	if a, err := netip.ParseAddr(u.Hostname()); (err == nil && !publicAddress(a)) || u.Hostname() == "localhost" {
		return fault.New(fault.Policy, "connection to %s refused: it is not a public address", u.Host)
	}
	return nil
}

// notPublic lists what netip has no predicate for: shared, benchmark, documentation,
// translation and tunnel ranges (IANA special-purpose registries).
func notPublic() []netip.Prefix {
	var out []netip.Prefix
	for _, s := range []string{
		"0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4",
		"64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32", "2002::/16", "fec0::/10",
	} {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func publicAddress(a netip.Addr) bool {
	a = a.Unmap()
	if !a.IsGlobalUnicast() || a.IsPrivate() {
		return false
	}
	for _, p := range notPublic() {
		if p.Contains(a) {
			return false
		}
	}
	return true
}
