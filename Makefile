# SPDX-License-Identifier: Apache-2.0
SHELL := /bin/bash
GO ?= $(shell command -v go || echo /usr/local/go/bin/go)
PREFIX ?= /usr/local
export CGO_ENABLED := 0

.PHONY: build quickstart test check bench fuzz install peers clean
build: bin/mkmachine

bin/mkmachine: $(shell find . -name '*.go' -o -path './recipes/library/*' -type f) go.mod go.sum
	$(GO) build -trimpath -ldflags '-s -w' -o $@ ./cmd/mkmachine

# The main job: a verified Debian template from the archive, and a throw-away machine made from it.
quickstart:
	@.ci/need go
	@time $(MAKE) -s --no-print-directory build
	@echo; echo '$$ mkmachine build debian-stable'; time bin/mkmachine build debian-stable
	@echo; echo '$$ mkmachine run -x debian-stable -- cat /etc/os-release'; time bin/mkmachine run -x debian-stable -- cat /etc/os-release

# All tests that this machine can do; the ones it cannot do are listed with their reason.
test:
	@.ci/need go test
	@.ci/test $(GO)

# What needs no root, no network and no peer.
check:
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo 'gofmt would change:'; gofmt -l $$(git ls-files '*.go'); exit 1; }
	$(GO) vet ./...
	$(GO) test -short ./...

# Side by side with the tools people use now; prints the table of docs/speed.md.
bench: build
	@.ci/need go bench
	@.ci/bench

# A minute for each native fuzz target; FUZZTIME changes that.
FUZZTIME ?= 60s
fuzz:
	@.ci/fuzz $(GO) $(FUZZTIME)

install: build
	install -Dm755 bin/mkmachine $(DESTDIR)$(PREFIX)/bin/mkmachine

clean:
	rm -rf bin
