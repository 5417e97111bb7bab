// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/mkmachine/mkmachine/internal/build"
	"github.com/mkmachine/mkmachine/internal/cas"
	"github.com/mkmachine/mkmachine/recipes"
	"github.com/mkmachine/mkmachine/runner"
	"github.com/mkmachine/mkmachine/snapshot"
	"github.com/mkmachine/mkmachine/sources"
	"github.com/mkmachine/mkmachine/sources/deb"
	"github.com/mkmachine/mkmachine/sources/fetch"
)

// resolver is an engine that can make locks: no store, no root needed.
func (a *app) resolver() (*build.Engine, func(), error) {
	cache, err := cas.Open(a.cache)
	if err != nil {
		return nil, nil, err
	}
	e := &build.Engine{Cache: cache, Sink: a.sink(), Now: a.Now, Runtime: a.runtime}
	return e, func() { a.closeFetcher() }, nil
}

// engine is an engine that can build.
func (a *app) engine(ctx context.Context) (*build.Engine, func(), error) {
	e, closeResolver, err := a.resolver()
	if err != nil {
		return nil, nil, err
	}
	if _, err := a.collect(ctx); err != nil {
		closeResolver()
		return nil, nil, err
	}
	if e.Store, err = a.store(ctx, false); err != nil {
		closeResolver()
		return nil, nil, err
	}
	closeAll := func() { closeResolver(); e.Store.Close() }
	if e.Packs, err = cas.Open(a.packsDir()); err != nil {
		closeAll()
		return nil, nil, err
	}
	return e, closeAll, nil
}

// collect ends and removes what killed commands left outside of the store, and names the
// machines; the store collects its own when it is opened.
func (a *app) collect(ctx context.Context) ([]string, error) {
	runs, err := runner.Clean(ctx, a.runtime)
	return runs, errors.Join(err, build.CleanScripts(a.runtime))
}

// store opens the machines directory.
func (a *app) store(ctx context.Context, readOnly bool) (*snapshot.Store, error) {
	return snapshot.Open(ctx, a.machines, &snapshot.Options{
		Sink: a.sink(), ReadOnly: readOnly, Backend: a.backend, Engine: version(),
	})
}

// packsDir is where unpacked packages are kept: beside the trees, to share blocks with them.
func (a *app) packsDir() string { return filepath.Join(a.machines, ".mkmachine", "packs") }

// lockDir is where the locks of library recipes are kept.
func (a *app) lockDir() string {
	if a.UID == 0 {
		return filepath.Join(a.machines, ".mkmachine", "locks")
	}
	state := a.Getenv("XDG_STATE_HOME")
	if state == "" {
		state = filepath.Join(a.Getenv("HOME"), ".local", "state")
	}
	return filepath.Join(state, "mkmachine", "locks")
}

// useRecipe gives the engine a fetcher with the mirrors that hold for a recipe: --mirror,
// else the recipe's, else those of this host's own package manager, then the built-in ones.
func (a *app) useRecipe(e *build.Engine, r *recipes.Recipe) error {
	asked, err := a.mirrorOptions()
	if err != nil {
		return err
	}
	mirrors := map[string][]fetch.Mirror{}
	host := deb.HostMirrors(os.DirFS("/"))
	for family, builtin := range sources.Mirrors() {
		switch own := r.Source.Mirror.Value; {
		case len(asked[family]) > 0:
			mirrors[family] = fetch.Mirrors(asked[family]...)
		case own != "" && family == r.Source.Distribution.Value:
			mirrors[family] = []fetch.Mirror{{URL: own, Restricted: true}}
		default:
			mirrors[family] = fetch.Mirrors(append(host[family], builtin...)...)
		}
	}
	for i := range r.Repositories {
		x := &r.Repositories[i]
		mirrors[build.RecipeFamily(x)] = []fetch.Mirror{{URL: x.URL.Value, Restricted: true}}
	}
	a.closeFetcher()
	a.fetcher, err = fetch.New(fetch.Options{
		Cache: e.Cache, Mirrors: mirrors, Sink: a.sink(), Offline: a.offline, Parallel: 12,
		Proxy: proxyFrom(a.Getenv), UserAgent: "mkmachine/" + version(), Timeouts: a.Timeouts, RootCAs: a.RootCAs,
	})
	if err != nil {
		return err
	}
	e.Fetch = a.fetcher
	return nil
}

func (a *app) closeFetcher() {
	if a.fetcher != nil {
		a.fetcher.Close()
		a.fetcher = nil
	}
}
