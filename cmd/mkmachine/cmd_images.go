// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/snapshot"
)

func (a *app) listCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls", "list-images"},
		Short: "List templates and machines",
		Long: `List shows all images of the machines directory, also those that other tools made.
It needs no root where the directory can be read.`,
		Example: "  mkmachine list\n  mkmachine list --json | jq -r '.result[].name'",
		Args:    args(0, 0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := a.store(c.Context(), true)
			if err != nil {
				return err
			}
			defer s.Close()
			images, err := s.Images()
			if err != nil {
				return err
			}
			if images == nil {
				images = []snapshot.Image{} // a list in JSON too
			}
			return a.result(images, func(t *table) {
				if len(images) == 0 {
					t.row("no images in " + a.machines)
					return
				}
				t.head("NAME", "ROLE", "KIND", "RO", "SIZE", "CREATED", "FROM", "VERIFIED")
				for i := range images {
					t.row(imageRow(&images[i], a.Now())...)
				}
			})
		},
	}
}

func imageRow(img *snapshot.Image, now time.Time) []string {
	ro, size, created, from, verified := "", "-", "-", "-", "-"
	if img.ReadOnly {
		ro = "ro"
	}
	if img.Size >= 0 {
		size = formatBytes(img.Size)
	}
	if !img.Created.IsZero() {
		created = ageText(now.Sub(img.Created))
	}
	if m := img.Meta; m != nil {
		if m.Recipe != "" {
			from = m.Recipe
		}
		if m.Source != "" {
			from = m.Source
		}
		if m.Verified != "" {
			verified = m.Verified
		}
		if len(m.Taints) > 0 {
			verified += fmt.Sprintf(" (%d taints)", len(m.Taints))
		}
	}
	return []string{img.Name, string(img.Role), string(img.Kind), ro, size, created, from, verified}
}

// ageText is how long ago something was, in its largest unit.
func ageText(d time.Duration) string {
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds ago", max(int(d.Seconds()), 0))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dmin ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh ago", int(d.Hours()))
	}
	return fmt.Sprintf("%dd ago", int(d.Hours()/24))
}

func (a *app) inspectCommand() *cobra.Command {
	return &cobra.Command{
		Use: "inspect NAME", Aliases: []string{"show-image"},
		Short:   "Show what an image is and what it was made from",
		Example: "  mkmachine inspect debian-stable\n  mkmachine inspect --json web1",
		Args:    args(1, 1, "the name of an image"), ValidArgsFunction: a.completeImages,
		RunE: func(c *cobra.Command, names []string) error {
			s, err := a.store(c.Context(), true)
			if err != nil {
				return err
			}
			defer s.Close()
			img, err := s.Image(names[0])
			if err != nil {
				return err
			}
			return a.result(img, func(t *table) { inspectTable(t, img) })
		},
	}
}

func inspectTable(t *table, img *snapshot.Image) {
	field := func(name, value string) {
		if value != "" {
			t.row(name+":", value)
		}
	}
	field("name", img.Name)
	field("path", img.Path)
	field("role", string(img.Role))
	field("kind", string(img.Kind))
	field("read-only", fmt.Sprint(img.ReadOnly))
	if !img.Created.IsZero() {
		field("created", img.Created.Local().Format(time.RFC3339))
	}
	if img.Size >= 0 {
		field("size", formatBytes(img.Size))
	}
	field("note", img.Note)
	m := img.Meta
	if m == nil {
		field("made by", "another tool")
		return
	}
	field("id", m.ID)
	field("recipe", m.Recipe)
	field("architecture", m.Arch)
	if m.Packages > 0 {
		field("packages", fmt.Sprint(m.Packages))
	}
	if !m.Date.IsZero() {
		field("archive of", m.Date.UTC().Format(time.RFC3339))
	}
	field("source", m.Source)
	field("verified", m.Verified)
	for _, k := range m.SignedBy {
		field("signed by", k)
	}
	for _, taint := range m.Taints {
		field("taint", taint)
	}
	field("lock", sha(m.Lock))
	field("tree", sha(m.Manifest))
	for _, l := range m.Layers {
		field("layer", sha(l))
	}
	field("engine", m.Engine)
}

func sha(digest string) string {
	if digest == "" {
		return ""
	}
	return "sha256:" + digest
}

func (a *app) cloneCommand() *cobra.Command {
	var o snapshot.CloneOptions
	c := &cobra.Command{
		Use: "clone SOURCE NEW", Aliases: []string{"clone-image"},
		Short: "Make a machine from a template or another machine",
		Long: `Clone makes a writable machine with an identity of its own: a new machine-id, host keys and
host name. On btrfs it is a snapshot, elsewhere an overlay; either way it takes milliseconds.`,
		Example: "  sudo mkmachine clone debian-stable web1\n  sudo mkmachine clone --keep-identity web1 web1-copy",
		Args:    args(2, 2, "a source and a new name"), ValidArgsFunction: a.completeImages,
		RunE: func(c *cobra.Command, names []string) error {
			return a.withStore(c, "clone", func(s *snapshot.Store) error {
				img, err := s.Clone(c.Context(), names[0], names[1], &o)
				if err != nil {
					return err
				}
				return a.result(img, func(t *table) { t.row("cloned", names[0], "to", img.Path) })
			})
		},
	}
	c.Flags().BoolVar(&o.KeepIdentity, "keep-identity", false, "leave machine-id, host keys and host name as they are")
	c.Flags().BoolVar(&o.ReadOnly, "read-only", false, "make a machine that cannot be changed")
	return c
}

func (a *app) renameCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rename NAME NEW", Aliases: []string{"rename-image", "mv"},
		Short:   "Give an image another name",
		Example: "  sudo mkmachine rename web1 web-old\n  sudo mkmachine rename debian-stable debian-2026-11",
		Args:    args(2, 2, "a name and a new name"), ValidArgsFunction: a.completeImages,
		RunE: func(c *cobra.Command, names []string) error {
			return a.withStore(c, "rename", func(s *snapshot.Store) error {
				if err := s.Rename(c.Context(), names[0], names[1]); err != nil {
					return err
				}
				return a.result(map[string]string{"name": names[1]}, func(t *table) { t.row("renamed", names[0], "to", names[1]) })
			})
		},
	}
}

func (a *app) removeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "remove NAME...", Aliases: []string{"rm", "remove-image"},
		Short: "Remove images",
		Long: `Remove deletes templates and machines with all that is in them. A machine that runs is
refused. Clones of a template stay whole when it is removed.`,
		Example: "  sudo mkmachine remove web1\n  sudo mkmachine remove web1 web2 web3",
		Args:    args(1, -1, "one or more names"), ValidArgsFunction: a.completeImages,
		RunE: func(c *cobra.Command, names []string) error {
			for _, n := range names {
				if err := snapshot.CheckName(n); err != nil {
					return err
				}
			}
			return a.withStore(c, "remove", func(s *snapshot.Store) error {
				if err := s.Remove(c.Context(), names...); err != nil {
					return err
				}
				return a.result(map[string][]string{"removed": names}, func(t *table) {
					for _, n := range names {
						t.row("removed", n)
					}
				})
			})
		},
	}
}

// withStore opens the store for a change, and closes it.
func (a *app) withStore(c *cobra.Command, verb string, f func(*snapshot.Store) error) error {
	if err := a.needRoot(verb); err != nil {
		return err
	}
	if verb != "clean" { // which does it itself and reports it
		if _, err := a.collect(c.Context()); err != nil {
			return err
		}
	}
	s, err := a.store(c.Context(), false)
	if err != nil {
		return err
	}
	defer s.Close()
	return f(s)
}

// completeImages completes names of templates and machines.
func (a *app) completeImages(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	s, err := a.store(c.Context(), true)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer s.Close()
	images, err := s.Images()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []string
	for _, img := range images {
		out = append(out, img.Name+"\t"+string(img.Role))
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// parseAge reads a duration for --unused: Go's forms, or whole days as Nd.
func parseAge(text string) (time.Duration, error) {
	var days int
	if n, err := fmt.Sscanf(text, "%dd", &days); n == 1 && err == nil && fmt.Sprintf("%dd", days) == text && days >= 0 {
		return time.Duration(days) * 24 * time.Hour, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return 0, fault.Hint(fault.New(fault.Config, "%q is not a duration", text), "for example 30d, 12h or 0s")
	}
	return d, nil
}
