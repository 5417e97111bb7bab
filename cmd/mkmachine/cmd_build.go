// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mkmachine/mkmachine/internal/build"
	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/recipes"
)

func (a *app) buildCommand() *cobra.Command {
	var job build.Job
	var explain bool
	c := &cobra.Command{
		Use:   "build RECIPE...",
		Short: "Build templates from recipes",
		Long: `Build fetches, verifies and installs what a recipe asks for, and publishes the tree as a
template. The first build writes a lock; later ones use it, so that they give the same tree.
What was built before from the same inputs is not built again.

Exit codes: 0 built or up to date, 2 recipe not valid, 3 verification failed, 4 lock missing
or stale, 5 the host cannot do it, 6 busy.`,
		Example: `  sudo mkmachine build debian-stable
  sudo mkmachine build --name web-next web.toml`,
		Args:              args(1, -1, "one or more recipes"),
		ValidArgsFunction: a.completeRecipes,
		RunE: func(c *cobra.Command, names []string) error {
			if err := a.needRoot("build"); err != nil {
				return err
			}
			if job.Name != "" && len(names) > 1 || job.LockFile != "" && len(names) > 1 {
				return fault.New(fault.Config, "--name and --lock go with one recipe")
			}
			e, closeEngine, err := a.engine(c.Context())
			if err != nil {
				return err
			}
			defer closeEngine()
			var built []*build.Result
			for _, n := range names {
				j := job
				if err := a.load(&j, n); err != nil {
					return err
				}
				if err := a.useRecipe(e, j.Recipe); err != nil {
					return err
				}
				if explain {
					plan, err := e.Explain(c.Context(), &j)
					if err != nil {
						return err
					}
					if err := a.result(plan, func(t *table) { explainTable(t, plan) }); err != nil {
						return err
					}
					continue
				}
				r, err := e.Build(c.Context(), &j)
				if err != nil {
					return err
				}
				built = append(built, r)
			}
			if explain {
				return nil
			}
			return a.result(built, func(t *table) { buildTable(t, built) })
		},
	}
	f := c.Flags()
	f.StringVar(&job.Name, "name", "", "`NAME` of the template; the recipe's by default")
	f.StringVar(&job.Arch, "arch", "", "`ARCH`itecture in the distribution's words; the host's by default")
	f.StringVar(&job.LockFile, "lock", "", "`FILE` of the lock; beside the recipe by default")
	f.BoolVar(&job.Locked, "locked", false, "fail when there is no lock or it does not fit")
	f.BoolVar(&job.Update, "update", false, "resolve anew and rewrite the lock first")
	f.BoolVar(&job.Check, "check", false, "build twice from nothing and compare the trees")
	f.BoolVar(&job.Rebuild, "rebuild", false, "use no layer and no published template")
	f.BoolVar(&explain, "explain", false, "print the steps, their keys and which are there already; build nothing")
	return c
}

func explainTable(t *table, plan []build.StepPlan) {
	t.head("STEP", "OF", "KEY", "LAYER", "INPUTS")
	for _, s := range plan {
		hit := "missing"
		if s.Hit {
			hit = "there"
		}
		t.row(s.Name, s.Subject, s.Key[:12], hit, s.InputSummary())
	}
}

func buildTable(t *table, built []*build.Result) {
	for _, r := range built {
		what := fmt.Sprintf("built from %d packages in %.1f s", r.Packages, r.Seconds)
		if r.UpToDate {
			what = fmt.Sprintf("up to date (%.0f ms)", r.Seconds*1000)
		}
		t.row(r.Name, what, "sha256:"+r.Digest[:12])
	}
}

func (a *app) lockCommand() *cobra.Command {
	var job build.Job
	c := &cobra.Command{
		Use:   "lock RECIPE...",
		Short: "Resolve recipes and write or update their locks",
		Long: `Lock pins every package that a recipe takes, by digest, without building anything. With
--update it resolves anew and prints what changes. It needs no root.`,
		Example: `  mkmachine lock web.toml
  mkmachine lock --update debian-stable`,
		Args:              args(1, -1, "one or more recipes"),
		ValidArgsFunction: a.completeRecipes,
		RunE: func(c *cobra.Command, names []string) error {
			if job.LockFile != "" && len(names) > 1 {
				return fault.New(fault.Config, "--lock goes with one recipe")
			}
			e, closeEngine, err := a.resolver()
			if err != nil {
				return err
			}
			defer closeEngine()
			var locked []*build.LockResult
			for _, n := range names {
				j := job
				if err := a.load(&j, n); err != nil {
					return err
				}
				if err := a.useRecipe(e, j.Recipe); err != nil {
					return err
				}
				r, err := e.Lock(c.Context(), &j)
				if err != nil {
					return err
				}
				locked = append(locked, r)
			}
			return a.result(locked, func(t *table) { lockTable(t, locked) })
		},
	}
	f := c.Flags()
	f.StringVar(&job.Arch, "arch", "", "`ARCH`itecture in the distribution's words; the host's by default")
	f.StringVar(&job.LockFile, "lock", "", "`FILE` of the lock; beside the recipe by default")
	f.BoolVar(&job.Update, "update", false, "resolve anew and rewrite the lock")
	f.BoolVar(&job.Locked, "locked", false, "fail when there is no lock or it does not fit")
	return c
}

func lockTable(t *table, locked []*build.LockResult) {
	for _, r := range locked {
		for _, c := range r.Changes {
			t.row(c.Kind, c.Name, strings.TrimSpace(c.Old+" → "+c.New))
		}
		switch {
		case !r.Written:
			t.row("fits", r.File, fmt.Sprintf("%d packages", len(r.Lock.Packages)))
		case len(r.Changes) == 0:
			t.row("unchanged", r.File, fmt.Sprintf("%d packages", len(r.Lock.Packages)))
		default:
			t.row("wrote", r.File, fmt.Sprintf("%d packages", len(r.Lock.Packages)))
		}
	}
}

// load reads the recipe of a job and says where its lock is kept.
func (a *app) load(job *build.Job, name string) error {
	r, err := recipes.Load(a.Dir, name)
	if err != nil {
		return err
	}
	job.Recipe = r
	if job.LockFile != "" {
		if !filepath.IsAbs(job.LockFile) {
			job.LockFile = filepath.Join(a.Dir, job.LockFile)
		}
		return nil
	}
	suffix := ".lock.json"
	if job.Arch != "" {
		suffix = "." + job.Arch + suffix
	}
	if origin, ok := strings.CutPrefix(r.Origin, "library:"); ok {
		job.LockFile = filepath.Join(a.lockDir(), origin+suffix)
		return nil
	}
	path := r.Origin
	if !filepath.IsAbs(path) {
		path = filepath.Join(a.Dir, path)
	}
	job.LockFile = strings.TrimSuffix(path, ".toml") + suffix
	return nil
}
