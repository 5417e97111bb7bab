// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mkmachine/mkmachine/internal/cas"
	"github.com/mkmachine/mkmachine/internal/compress"
	"github.com/mkmachine/mkmachine/internal/event"
	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/recipes"
	"github.com/mkmachine/mkmachine/sources"
	"github.com/mkmachine/mkmachine/sources/deb"
	"github.com/mkmachine/mkmachine/sources/pgp"
)

// debFamily is the family of distributions that use dpkg.
type debFamily struct{}

func (debFamily) compareVersions(a, b string) int { return deb.CompareVersions(a, b) }

// arch is dpkg's name of a Go architecture.
func (debFamily) arch(goarch string) string {
	switch goarch {
	case "386":
		return "i386"
	case "arm":
		return "armhf"
	case "ppc64le":
		return "ppc64el"
	case "mips64le":
		return "mips64el"
	case "loong64":
		return "loong64"
	}
	return goarch
}

// debRepository is a signed suite that a recipe takes packages from.
type debRepository struct {
	id         string
	family     string // mirror family
	suite      string // directory below dists/
	codename   string // required of the Release, "" where anything goes
	components []string
	keyring    []byte
	keys       []string
	// extra is set for a [[repository]] of the recipe.
	extra *recipes.Repository
	pos   recipes.String
}

// RecipeFamily names the mirror family of a [[repository]]; its only mirror is its url.
func RecipeFamily(r *recipes.Repository) string { return "recipe-" + r.Name.Value }

// debRepositories lists the pockets of the source and the extra repositories, in apt's order.
func debRepositories(r *recipes.Recipe, arch string) []debRepository {
	src := &r.Source
	codename := src.Suite.Value
	if d, ok := recipes.DistributionOf(src.Distribution.Value); ok {
		if s, ok := d.Suite(codename); ok {
			codename = s.Codename
		}
	}
	var out []debRepository
	for _, p := range src.Pockets {
		repo := debRepository{family: debMirrorFamily(src.Distribution.Value, p.Value, arch), pos: p}
		// Updates of a suite named by its role are named so as well: stable-updates.
		switch name := src.Suite.Value; {
		case p.Value == "release":
			repo.suite = name
		case p.Value == "proposed" && src.Distribution.Value == "debian":
			repo.suite = name + "-proposed-updates"
		default:
			repo.suite = name + "-" + p.Value
		}
		repo.codename = strings.Replace(repo.suite, src.Suite.Value, codename, 1)
		if src.Distribution.Value == "ubuntu" {
			repo.codename = codename // Ubuntu's pockets carry the codename of the release
		}
		repo.id = repo.family + " " + repo.suite
		repo.components = texts(src.Components)
		repo.keyring, repo.keys = src.Signers(p.Value)
		out = append(out, repo)
	}
	for i := range r.Repositories {
		x := &r.Repositories[i]
		out = append(out, debRepository{
			id: x.Name.Value, family: RecipeFamily(x), suite: x.Suite.Value, components: texts(x.Components),
			keyring: x.KeyData, keys: texts(x.Keys), extra: x, pos: x.Name,
		})
	}
	return out
}

// debMirrorFamily says where a pocket lives: Debian's security updates and Ubuntu's lesser
// architectures have archives of their own.
func debMirrorFamily(distribution, pocket, arch string) string {
	switch {
	case distribution == "debian" && pocket == "security":
		return "debian-security"
	case distribution == "ubuntu" && arch != "amd64" && arch != "i386":
		return "ubuntu-ports"
	}
	return distribution
}

func texts(list []recipes.String) []string {
	var out []string
	for _, s := range list {
		out = append(out, s.Value)
	}
	return out
}

// debIndexes is what one repository brought.
type debIndexes struct {
	lock    sources.Repository
	keys    []sources.Key
	indexes []*deb.Index
}

func (f debFamily) resolve(ctx context.Context, e *Engine, r *recipes.Recipe, arch string, span *event.Span) (*sources.Lock, error) {
	repos := debRepositories(r, arch)
	foreign := foreignArchs(r, arch)
	seen, err := e.Cache.LoadSeen()
	if err != nil {
		return nil, err
	}
	clock := deb.Clock{Now: e.Now()}
	if r.Source.Snapshot.Value != "" {
		if clock.Snapshot, err = time.Parse(time.RFC3339, r.Source.Snapshot.Value); err != nil {
			return nil, fault.At(fault.New(fault.Config, "cannot read snapshot: %w", err), r.Source.Snapshot.Pos)
		}
	}
	got := make([]*debIndexes, len(repos))
	pool := &compress.Pool{}
	group, gctx := errgroup.WithContext(event.With(ctx, span))
	for i := range repos {
		group.Go(func() (err error) {
			got[i], err = fetchRepository(gctx, e, &repos[i], append([]string{arch}, foreign...), clock, seen, pool)
			return fault.At(err, repos[i].pos.Pos)
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	lock := &sources.Lock{}
	var all []*deb.Index
	for _, g := range got {
		lock.Repositories = append(lock.Repositories, g.lock)
		if g.lock.Date.After(lock.Date) {
			lock.Date = g.lock.Date
		}
		for _, k := range g.keys {
			if !slices.Contains(lock.Keys, k) {
				lock.Keys = append(lock.Keys, k)
			}
		}
		all = append(all, g.indexes...)
	}
	slices.SortFunc(lock.Keys, func(a, b sources.Key) int { return strings.Compare(a.Fingerprint, b.Fingerprint) })
	req, err := debRequest(r, arch, foreign, repos[0].codename)
	if err != nil {
		return nil, err
	}
	sp := span.Start("choose", "packages")
	lock.Packages, err = deb.Resolve(ctx, deb.NewUniverse(all...), req)
	sp.End(err)
	if err != nil {
		return nil, fault.At(err, debCulprit(r, err))
	}
	// Only now is the archive's state accepted, and may no longer go back.
	if clock.Snapshot.IsZero() {
		add := cas.Seen{}
		for i := range repos {
			add.Note(repos[i].family, repos[i].suite, lock.Repositories[i].SignedBy, lock.Repositories[i].Date)
		}
		if err := e.Cache.UpdateSeen(add); err != nil {
			return nil, err
		}
	}
	return lock, nil
}

// fetchRepository brings the verified indexes of one suite.
func fetchRepository(ctx context.Context, e *Engine, repo *debRepository, archs []string, clock deb.Clock, seen cas.Seen, pool *compress.Pool) (*debIndexes, error) {
	ring, err := pgp.LoadKeyring(repo.keyring)
	if err != nil {
		return nil, err
	}
	if ring, err = ring.Restrict(repo.keys); err != nil {
		return nil, err
	}
	rel, err := deb.FetchRelease(ctx, e.Fetch, repo.family, repo.suite, ring, pgp.Policy{Now: clock.Now, KeysAt: clock.Snapshot})
	if err != nil {
		return nil, err
	}
	clock.Seen = seen.Newest(repo.family, repo.suite, ring.Fingerprints())
	if err := deb.CheckRelease(rel, deb.ReleaseWant{Suite: repo.suite, Codename: repo.codename}, clock); err != nil {
		return nil, err
	}
	out := &debIndexes{lock: sources.Repository{
		ID: repo.id, Family: repo.family, Suite: repo.suite, Codename: rel.Codename, Components: repo.components,
		Date: rel.Date, Release: rel.Text, SignedBy: pgp.Fingerprints(rel.Signers),
	}}
	for _, s := range rel.Signers {
		out.keys = append(out.keys, sources.Key{Fingerprint: s.Fingerprint, UserID: s.UserID})
	}
	type want struct{ component, arch string }
	var wants []want
	for _, c := range repo.components {
		for _, a := range archs {
			wants = append(wants, want{c, a})
		}
		if !rel.NoAllPackages && slices.Contains(rel.Architectures, "all") {
			wants = append(wants, want{c, "all"})
		}
	}
	files := make([]sources.RepositoryFile, len(wants))
	out.indexes = make([]*deb.Index, len(wants))
	group, ctx := errgroup.WithContext(ctx)
	for i, w := range wants {
		group.Go(func() error {
			fetched, err := deb.FetchIndex(ctx, e.Fetch, rel, repo.family, repo.suite, w.component, w.arch, pool)
			if err != nil {
				return err
			}
			files[i] = fetched.File
			out.indexes[i], err = deb.ParseIndex(deb.IndexSource{
				Repository: repo.id, Name: repo.suite + " " + w.component + "/binary-" + w.arch + "/Packages",
				NotAutomatic: rel.NotAutomatic, ButAutomaticUpgrades: rel.ButAutomaticUpgrades,
			}, fetched.Text)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	out.lock.Indexes = files
	return out, nil
}

// debRequest turns the recipe's words into the resolver's.
func debRequest(r *recipes.Recipe, arch string, foreign []string, codename string) (deb.Request, error) {
	req := deb.Request{
		Arch: arch, ForeignArchs: foreign, Distribution: r.Source.Distribution.Value, Suite: codename,
		Variant: deb.Variant(r.Source.Variant.Value), Recommends: r.Packages.Recommends,
	}
	for _, p := range r.Packages.Add {
		req.Add = append(req.Add, debWant(p.Value))
	}
	return req, nil
}

// debWant parses NAME[:ARCH][=VERSION], which the recipe's checks have found valid.
func debWant(text string) deb.Want {
	var w deb.Want
	w.Name, w.Version, _ = strings.Cut(text, "=")
	w.Name, w.Arch, _ = strings.Cut(w.Name, ":")
	return w
}

// foreignArchs are the architectures that packages.add names besides the tree's own.
func foreignArchs(r *recipes.Recipe, arch string) []string {
	var out []string
	for _, p := range r.Packages.Add {
		if a := debWant(p.Value).Arch; a != "" && a != arch && a != "any" && a != "all" && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	slices.Sort(out)
	return out
}
