// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/recipes"
)

func (a *app) checkCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check RECIPE...",
		Short: "Check recipes without building them",
		Long: `Check reads each recipe and all that it extends, and reports every problem with its place.
It needs no root and no network. Exit code 2 when a recipe is not valid.`,
		Example: `  mkmachine check web.toml
  mkmachine check debian-stable ubuntu-lts`,
		Args:              args(1, -1, "one or more recipes"),
		ValidArgsFunction: a.completeRecipes,
		RunE: func(_ *cobra.Command, names []string) error {
			type checked struct {
				Recipe string `json:"recipe"`
				Name   string `json:"name"`
				OK     bool   `json:"ok"`
			}
			var out []checked
			var all error
			for _, n := range names {
				r, err := recipes.Load(a.Dir, n)
				c := checked{Recipe: n, OK: err == nil}
				if err == nil {
					c.Name = r.Name
				}
				all = errors.Join(all, err)
				out = append(out, c)
			}
			if len(names) > 1 && all != nil {
				all = fault.As(fault.Config, all)
			}
			return errors.Join(a.result(out, func(t *table) {
				for _, c := range out {
					if c.OK {
						t.row(c.Recipe, "ok")
					} else {
						t.row(c.Recipe, "not valid")
					}
				}
			}), all)
		},
	}
}

func (a *app) recipesCommand() *cobra.Command {
	list := func(*cobra.Command, []string) error {
		all, err := recipes.List()
		if err != nil {
			return err
		}
		return a.result(all, func(t *table) {
			t.head("NAME", "DISTRIBUTION", "SUITE", "VERIFIED", "DESCRIPTION")
			for _, r := range all {
				t.row(r.Name, r.Distribution, r.Suite, string(r.Grade), r.Description)
			}
		})
	}
	root := &cobra.Command{
		Use:   "recipes",
		Short: "List, show or start recipes",
		Example: `  mkmachine recipes
  mkmachine recipes show debian-stable
  mkmachine recipes init web`,
		Args: args(0, 0, "list, show or init"),
		RunE: list,
	}
	root.AddCommand(&cobra.Command{
		Use: "list", Short: "List the recipes of the library, with how each is verified",
		Example: "  mkmachine recipes list\n  mkmachine recipes list --json",
		Args:    args(0, 0, "no arguments"), RunE: list,
	}, &cobra.Command{
		Use: "show NAME", Short: "Print a recipe of the library",
		Example:           "  mkmachine recipes show debian-stable\n  mkmachine recipes show ubuntu-lts > mine.toml",
		Args:              args(1, 1, "the name of a recipe"),
		ValidArgsFunction: a.completeRecipes,
		RunE: func(_ *cobra.Command, names []string) error {
			text, err := recipes.LibrarySource(names[0])
			if err != nil {
				return err
			}
			if a.json {
				return a.result(map[string]string{"name": names[0], "text": string(text)}, nil)
			}
			_, err = a.Stdout.Write(text)
			return err
		},
	}, &cobra.Command{
		Use: "init NAME", Short: "Write a commented recipe to start from, NAME.toml",
		Example: "  mkmachine recipes init web\n  mkmachine recipes init builder && mkmachine check builder.toml",
		Args:    args(1, 1, "a name for the recipe"),
		RunE: func(_ *cobra.Command, names []string) error {
			text, err := recipes.Init(names[0])
			if err != nil {
				return err
			}
			path := filepath.Join(a.Dir, names[0]+".toml")
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
			if errors.Is(err, fs.ErrExist) {
				return fault.New(fault.State, "cannot write %s: it exists already", path)
			}
			if err != nil {
				return err
			}
			if _, err := f.Write(text); err != nil {
				return errors.Join(err, f.Close())
			}
			if err := f.Close(); err != nil {
				return err
			}
			return a.result(map[string]string{"file": path}, func(t *table) {
				t.row("wrote " + names[0] + ".toml")
			})
		},
	})
	return root
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: args(0, 0, "no arguments"),
		Example: "  mkmachine version\n  mkmachine version --json",
		RunE: func(*cobra.Command, []string) error {
			return a.result(map[string]string{"version": version()}, func(t *table) { t.row("mkmachine " + version()) })
		},
	}
}

// completeRecipes completes names of library recipes; files are left to the shell.
func (a *app) completeRecipes(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	all, err := recipes.List()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var out []string
	for _, r := range all {
		out = append(out, fmt.Sprintf("%s\t%s", r.Name, r.Description))
	}
	return out, cobra.ShellCompDirectiveDefault
}
