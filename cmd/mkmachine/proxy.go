// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/url"

	"golang.org/x/net/http/httpproxy"
)

// proxyFrom reads the usual variables: http_proxy, https_proxy, no_proxy, in either case.
func proxyFrom(getenv func(string) string) func(*url.URL) (*url.URL, error) {
	first := func(names ...string) string {
		for _, n := range names {
			if v := getenv(n); v != "" {
				return v
			}
		}
		return ""
	}
	config := httpproxy.Config{
		HTTPProxy:  first("http_proxy", "HTTP_PROXY"),
		HTTPSProxy: first("https_proxy", "HTTPS_PROXY"),
		NoProxy:    first("no_proxy", "NO_PROXY"),
	}
	return config.ProxyFunc()
}
