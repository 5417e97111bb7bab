// SPDX-License-Identifier: Apache-2.0

package build

import (
	"cmp"
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/mkmachine/mkmachine/bootstrap/deb"
	"github.com/mkmachine/mkmachine/internal/cas"
	"github.com/mkmachine/mkmachine/internal/event"
	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/recipes"
	"github.com/mkmachine/mkmachine/runner"
	"github.com/mkmachine/mkmachine/snapshot"
	"github.com/mkmachine/mkmachine/sources"
)

func (debFamily) describe(r *recipes.Recipe, lock *sources.Lock) string {
	return r.Source.Suite.Value + " " + r.Source.Variant.Value
}

// inputs of a bootstrapped tree: the packages in their order, the clock, and what is
// written about where further packages come from.
func (debFamily) inputs(r *recipes.Recipe, lock *sources.Lock) []input {
	return []input{
		{"packages", lock.Packages},
		{"clock", lock.Date.Unix()},
		{"arch", lock.Arch},
		{"apt", aptConfig(r, lock)},
		{"layout", debMerged(r, lock)},
	}
}

// debMerged are the top directories that are links into /usr.
func debMerged(r *recipes.Recipe, lock *sources.Lock) []string {
	return deb.MergedUsr(debReleaseCodename(r), r.Source.Variant.Value, lock.Arch)
}

// bootstrap fetches, unpacks and configures the packages of the lock.
func (f debFamily) bootstrap(ctx context.Context, e *Engine, job *Job, lock *sources.Lock, stage *snapshot.Stage, span *event.Span) (err error) {
	if err := canRun(lock.Arch); err != nil {
		return err
	}
	var apt []deb.File
	for _, list := range aptConfig(job.Recipe, lock) {
		files, err := deb.AptSources(list.Name, list.Sources)
		if err != nil {
			return err
		}
		apt = append(apt, files...)
	}
	machine := e.buildMachine(job.Name, stage.Dir(), false, span)
	defer machine.close(&err)
	in, err := deb.Start(ctx, spawnIn(stage.Dir()), deb.Options{
		Arch:    lock.Arch,
		Foreign: foreignArchs(job.Recipe, lock.Arch),
		Merged:  debMerged(job.Recipe, lock),
		Date:    lock.Date.Unix(),
		Script:  machine.script,
		Span:    span,
		Packs:   e.packs(),
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	if err := e.unpackAll(ctx, in, lock, span); err != nil {
		return err
	}
	if debMerged(job.Recipe, lock) == nil && debReleaseCodename(job.Recipe) == "bookworm" {
		// The last suite with trees whose /usr is split, for building packages. The preinst of
		// usr-is-merged lets them be when it finds this file with these words in it.
		const words = "this system will not be supported in the future\n"
		flag := deb.File{Path: "/etc/unsupported-skip-usrmerge-conversion", Mode: 0o644, Data: []byte(words)}
		if err := in.WriteFiles(ctx, []deb.File{flag}); err != nil {
			return err
		}
	}
	configure := span.Start("configure", "")
	err = in.Configure(ctx)
	configure.End(err)
	if err != nil {
		return err
	}
	return in.WriteFiles(ctx, apt)
}

// unpackAll has every package fetched and unpacked; as many at a time as help, the first
// error stops all.
func (e *Engine) unpackAll(ctx context.Context, in *deb.Installer, lock *sources.Lock, span *event.Span) (err error) {
	sp := span.Start("unpack", "packages")
	defer func() { sp.End(err) }()
	var total int64
	for i := range lock.Packages {
		total += lock.Packages[i].Size
	}
	sp.Expect(total, "bytes")
	// Large packages first: the last one to be unpacked should not be the largest.
	order := make([]int, len(lock.Packages))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(lock.Packages[b].Size, lock.Packages[a].Size) })
	group, gctx := errgroup.WithContext(event.With(ctx, sp))
	group.SetLimit(unpackParallel)
	for _, i := range order {
		group.Go(func() error {
			p := &lock.Packages[i]
			err := in.Unpack(gctx, deb.Item{Package: *p, Order: i, Open: func(ctx context.Context) (*os.File, error) {
				return e.Fetch.Fetch(ctx, lock.Blob(p))
			}})
			sp.Add(p.Size)
			return err
		})
	}
	return group.Wait()
}

// unpackParallel packages are on their way at one time: enough that the network, the
// decoders and the disk all have work; the helper itself decodes one per processor.
const unpackParallel = 12

// packKind is the kind of the unpacked packages in their cache.
const packKind = "deb-pack"

// packStore keeps unpacked packages in a cache on the file system of the machines, so
// that their blocks can be shared with the trees.
type packStore struct{ cache *cas.Cache }

// packs is nil where there is no cache for them.
func (e *Engine) packs() deb.Packs {
	if e.Packs == nil {
		return nil
	}
	return packStore{e.Packs}
}

func (p packStore) Open(key string) (*os.File, error) { return p.cache.GetNamed(packKind, key) }

func (p packStore) Create(ctx context.Context, key string) (deb.PackFile, error) {
	w, err := p.cache.CreateNamed(ctx, packKind, key)
	if err != nil {
		return nil, err
	}
	return w, nil
}

func (p packStore) Remove(key string) error { return p.cache.RemoveNamed(packKind, key) }

// spawnIn starts the confined unpacker with dir as its root.
func spawnIn(dir string) deb.Spawn {
	return func(ctx context.Context) (*net.UnixConn, func() error, error) {
		c, err := runner.Confine(ctx, UnpackEntry, dir, nil)
		if err != nil {
			return nil, nil, err
		}
		return c.Conn, func() error {
			err := c.Wait()
			if cerr := c.Close(); err == nil {
				err = cerr
			}
			return err
		}, nil
	}
}

// debCulprit finds the packages.add entry that a resolver's error speaks of.
func debCulprit(r *recipes.Recipe, err error) fault.Pos {
	text := err.Error()
	for _, p := range r.Packages.Add {
		name := debWant(p.Value).Name
		for _, form := range []string{`"` + p.Value + `"`, " " + p.Value + ":", " " + name + " ", " " + name + ":"} {
			if strings.Contains(text, form) {
				return p.Pos
			}
		}
	}
	return r.Packages.Pos
}

// aptList is a file of sources for the tree's own apt.
type aptList struct {
	Name    string
	Sources []deb.AptSource
}

// aptConfig is what the tree's own apt is told: every repository of the lock by its
// official place, never by the mirror that this host happens to use. A tree without apt
// is told nothing.
func aptConfig(r *recipes.Recipe, lock *sources.Lock) []aptList {
	if !slices.ContainsFunc(lock.Packages, func(p sources.Package) bool { return p.Name == "apt" }) {
		return nil
	}
	official := sources.Mirrors()
	distribution := r.Source.Distribution.Value
	own := aptList{Name: distribution}
	var extra []aptList
	for _, repo := range debRepositories(r, lock.Arch) {
		if x := repo.extra; x != nil {
			extra = append(extra, aptList{repo.extra.Name.Value, []deb.AptSource{{
				URIs: []string{x.URL.Value}, Suites: []string{x.Suite.Value}, Components: repo.components, Keyring: x.KeyData,
			}}})
			continue
		}
		uri := ""
		if list := official[repo.family]; len(list) > 0 {
			uri = list[0]
		}
		if m := r.Source.Mirror.Value; m != "" && repo.family == distribution {
			uri = m
		}
		// The codename, so that the next release is not taken by an upgrade inside.
		suite := strings.Replace(repo.suite, r.Source.Suite.Value, debReleaseCodename(r), 1)
		if n := len(own.Sources); n > 0 && own.Sources[n-1].URIs[0] == uri {
			own.Sources[n-1].Suites = append(own.Sources[n-1].Suites, suite)
			continue
		}
		own.Sources = append(own.Sources, deb.AptSource{
			URIs: []string{uri}, Suites: []string{suite}, Components: repo.components,
			SignedBy: "/usr/share/keyrings/" + distribution + "-archive-keyring.gpg",
		})
	}
	if r.Source.KeyFile.Value != "" {
		for i := range own.Sources {
			own.Sources[i].SignedBy, own.Sources[i].Keyring = "", r.Source.KeyData
		}
	}
	return append([]aptList{own}, extra...)
}

func debReleaseCodename(r *recipes.Recipe) string {
	if d, ok := recipes.DistributionOf(r.Source.Distribution.Value); ok {
		if s, ok := d.Suite(r.Source.Suite.Value); ok {
			return s.Codename
		}
	}
	return r.Source.Suite.Value
}
