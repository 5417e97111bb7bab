// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/mkmachine/mkmachine/internal/cas"
	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/snapshot"
)

func (a *app) verifyCommand() *cobra.Command {
	return &cobra.Command{
		Use: "verify TEMPLATE...", Short: "Compare templates with what was published",
		Long: `Verify reads every file of a template and compares the tree with the digest that was recorded
when it was published. Exit code 3 when something differs.`,
		Example: "  sudo mkmachine verify debian-stable\n  sudo mkmachine verify --json debian-stable ubuntu-lts",
		Args:    args(1, -1, "one or more templates"), ValidArgsFunction: a.completeImages,
		RunE: func(c *cobra.Command, names []string) error {
			return a.withStore(c, "verify", func(s *snapshot.Store) error {
				var reports []snapshot.VerifyReport
				var all error
				for _, n := range names {
					r, err := s.Verify(c.Context(), n)
					reports = append(reports, r)
					all = errors.Join(all, err)
				}
				return errors.Join(all, a.result(reports, func(t *table) {
					for _, r := range reports {
						if r.OK {
							t.row(r.Name, "ok", sha(r.Have))
						}
					}
				}))
			})
		},
	}
}

func (a *app) exportCommand() *cobra.Command {
	var format string
	c := &cobra.Command{
		Use: "export NAME FILE|-", Aliases: []string{"export-tar"},
		Short: "Write an image as an archive",
		Long: `Export writes the tree as a tar archive that depends on nothing but the tree: the same template
gives the same bytes on every host. The format follows from the name of the file.`,
		Example: "  sudo mkmachine export debian-stable debian.tar\n  sudo mkmachine export web1 - | ssh host 'cat > web1.tar'",
		Args:    args(2, 2, "an image and a file, or - for standard output"), ValidArgsFunction: a.completeImages,
		RunE: func(c *cobra.Command, names []string) error {
			if format == "" {
				format = "tar"
				if names[1] != "-" {
					_, format, _ = strings.Cut(filepath.Base(names[1]), ".")
				}
				if format != "tar" {
					return fault.Hint(fault.New(fault.Config, "cannot tell the format of %q from its name", names[1]), "name it .tar, or give --format tar")
				}
			}
			return a.withStore(c, "export", func(s *snapshot.Store) error {
				if names[1] == "-" {
					if f, ok := a.Stdout.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
						return fault.New(fault.Config, "cannot write an archive to a terminal")
					}
					return s.Export(c.Context(), names[0], a.Stdout, format)
				}
				path := names[1]
				if !filepath.IsAbs(path) {
					path = filepath.Join(a.Dir, path)
				}
				err := writeWhole(path, func(w io.Writer) error { return s.Export(c.Context(), names[0], w, format) })
				if err != nil {
					return err
				}
				return a.result(map[string]string{"file": path, "format": format}, func(t *table) { t.row("wrote", path) })
			})
		},
	}
	c.Flags().StringVar(&format, "format", "", "`FORMAT` of the archive: tar")
	return c
}

// writeWhole makes a file that is there complete or not at all.
func writeWhole(path string, write func(io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return fault.As(fault.State, fmt.Errorf("cannot write %s: %w", path, err))
	}
	err = write(f)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

func (a *app) cleanCommand() *cobra.Command {
	var unused string
	var layers, downloads bool
	c := &cobra.Command{
		Use: "clean", Short: "Remove what is no longer needed",
		Long: `Clean removes what killed commands left behind. With --layers it also removes the layers that
builds start from, with --downloads downloads and unpacked packages; each only when it was not used
for the time of --unused. Templates and machines are never touched.`,
		Example: "  sudo mkmachine clean\n  sudo mkmachine clean --layers --downloads --unused 30d",
		Args:    args(0, 0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			age, err := parseAge(unused)
			if err != nil {
				return err
			}
			return a.withStore(c, "clean", func(s *snapshot.Store) error {
				var report struct {
					Runs  []string             `json:"runs"`
					Store snapshot.CleanReport `json:"store"`
					Cache *cas.Cleaned         `json:"cache,omitempty"`
				}
				if report.Runs, err = a.collect(c.Context()); err != nil {
					return err
				}
				report.Store, err = s.Clean(c.Context(), &snapshot.CleanOptions{Layers: layers, LayersUnused: age})
				if err != nil {
					return err
				}
				if report.Cache, err = a.cleanCaches(c.Context(), downloads, age); err != nil {
					return err
				}
				return a.result(report, func(t *table) {
					t.row("runs", fmt.Sprint(len(report.Runs)))
					t.row("leftovers", fmt.Sprint(report.Store.Leftovers))
					t.row("layers", fmt.Sprint(len(report.Store.Layers)))
					t.row("trees", fmt.Sprint(report.Store.Trees))
					if report.Cache != nil {
						t.row("cache", fmt.Sprintf("%d files, %s", report.Cache.Files, formatBytes(report.Cache.Bytes)))
					}
				})
			})
		},
	}
	c.Flags().BoolVar(&layers, "layers", false, "also remove layers")
	c.Flags().BoolVar(&downloads, "downloads", false, "also remove downloads and unpacked packages")
	c.Flags().StringVar(&unused, "unused", (30 * 24 * time.Hour).String(), "only what was not used for this `TIME`")
	return c
}

// cleanCaches removes what is half-written in the caches and, with all, what was not used for
// some time; it is then that it says how much that was.
func (a *app) cleanCaches(ctx context.Context, all bool, unused time.Duration) (*cas.Cleaned, error) {
	var total cas.Cleaned
	for _, dir := range []string{a.cache, a.packsDir()} {
		if _, err := os.Stat(dir); err != nil {
			continue // nothing was ever kept there
		}
		objects, err := cas.Open(dir) // removes what is half-written
		if err != nil {
			return nil, err
		}
		if !all {
			continue
		}
		cleaned, err := objects.Clean(ctx, unused)
		total.Files += cleaned.Files
		total.Bytes += cleaned.Bytes
		if err != nil {
			return nil, err
		}
	}
	if !all {
		return nil, nil
	}
	return &total, nil
}

func (a *app) poolCommand() *cobra.Command {
	show := func(p snapshot.Pool) error {
		return a.result(p, func(t *table) {
			t.row("machines:", p.Dir)
			t.row("file:", p.File)
			switch {
			case !p.Exists:
				t.row("state:", "there is no pool")
			case !p.Mounted:
				t.row("state:", "not mounted")
			default:
				t.row("state:", "mounted from "+p.Device)
				t.row("free:", formatBytes(p.Free)+" of "+formatBytes(p.Size))
			}
		})
	}
	pool := &cobra.Command{
		Use: "pool", Short: "Keep machines in a btrfs file system of their own",
		Long: `A pool is a btrfs file system in a file, mounted on the machines directory. It gives hosts whose
disk is not btrfs snapshots and read-only templates. Overlays do without it.`,
		Example: "  sudo mkmachine pool create --size 20G\n  mkmachine pool status",
		Args:    args(0, 0, "create or status"),
		RunE:    func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	size := int64(10 << 30)
	create := &cobra.Command{
		Use: "create", Short: "Make and mount a pool",
		Example: "  sudo mkmachine pool create\n  sudo mkmachine pool create --size 40G",
		Args:    args(0, 0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := a.needRoot("pool create"); err != nil {
				return err
			}
			p, err := snapshot.CreatePool(c.Context(), a.machines, size)
			if err != nil {
				return err
			}
			return show(p)
		},
	}
	create.Flags().Var(&sizeValue{&size}, "size", "size of the pool: `BYTES`, or with M, G, T")
	pool.AddCommand(create, &cobra.Command{
		Use: "status", Short: "Show the pool",
		Example: "  mkmachine pool status\n  mkmachine pool status --json",
		Args:    args(0, 0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			p, err := snapshot.PoolStatus(c.Context(), a.machines)
			if err != nil {
				return err
			}
			return show(p)
		},
	})
	return pool
}
