// SPDX-License-Identifier: Apache-2.0

package recipes

import (
	"slices"
	"strings"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// checker looks at a recipe after inheritance: what must be there, what must fit
// together, and what its distribution has. It fills in the defaults. A value that was
// reported when it was read is empty here but has a position, and is passed over.
type checker struct{ decoder }

func (c *checker) recipe(r *Recipe, top fault.Pos) {
	if r.Source.Pos.File == "" {
		c.problem(top, `write extends = "debian-stable", or a [source] section`, "the recipe has no source")
	} else {
		c.source(&r.Source)
	}
	c.packages(r)
	for i := range r.Repositories {
		if x := &r.Repositories[i]; len(x.Components) == 0 {
			x.Components = []String{{Value: "main", Pos: x.Pos}}
		}
	}
	c.paths(r.Files)
	c.services(r.System.Services)
	if m := r.Machine; m.Boot && len(m.Command) > 0 {
		c.problem(m.Command[0].Pos, "set boot = false", "machine.command is not run by a machine that boots")
	}
	if r.Machine.Network.Value == "" {
		r.Machine.Network.Value = "private"
	}
}

// given reports a missing required value, and says whether it can be looked at.
func (c *checker) given(s String, section fault.Pos, key string) bool {
	if s.Value == "" && s.Pos.File == "" {
		c.problem(section, "", "missing key %q", key)
	}
	return s.Value != ""
}

// among reports a value that its list does not have.
func (c *checker) among(s String, key, of string, allowed []string) bool {
	if s.Value == "" || slices.Contains(allowed, s.Value) {
		return s.Value != ""
	}
	c.problem(s.Pos, suggest(s.Value, allowed), "%s: %s has no %q that this version knows", key, of, s.Value)
	return false
}

func (c *checker) source(s *Source) {
	kind := c.given(s.Kind, s.Pos, "kind")
	named := c.given(s.Distribution, s.Pos, "distribution")
	suited := c.given(s.Suite, s.Pos, "suite")
	if s.Variant.Value == "" && s.Variant.Pos.File == "" {
		s.Variant = String{Value: "minbase", Pos: s.Pos}
	}
	if len(s.Components) == 0 {
		s.Components = []String{{Value: "main", Pos: s.Pos}}
	}
	c.keys(s)
	if !kind || !named {
		return
	}
	var ofKind []string
	for _, d := range Distributions() {
		if d.Kind == s.Kind.Value {
			ofKind = append(ofKind, d.Name)
		}
	}
	if !c.among(s.Distribution, "distribution", "kind "+quote(s.Kind.Value), ofKind) {
		return
	}
	d, _ := DistributionOf(s.Distribution.Value)
	c.among(s.Variant, "variant", d.Name, d.Variants)
	c.among(s.Arch, "arch", d.Name, d.Arches)
	for _, component := range s.Components {
		c.among(component, "components", d.Name, d.Components)
	}
	if suited && c.among(s.Suite, "suite", d.Name, d.suiteNames()) {
		suite, _ := d.Suite(s.Suite.Value)
		c.pockets(s, suite)
	}
}

func (c *checker) pockets(s *Source, suite Suite) {
	if len(s.Pockets) == 0 {
		for _, p := range suite.defaultPockets() {
			s.Pockets = append(s.Pockets, String{Value: p, Pos: s.Pos})
		}
	}
	for _, p := range s.Pockets {
		if !slices.Contains(suite.Pockets, p.Value) && p.Pos.File != s.Suite.Pos.File && p.Value != "" {
			// The suite was changed, and the inherited pockets do not fit it.
			c.problem(s.Suite.Pos, `write pockets = ["`+strings.Join(suite.defaultPockets(), `", "`)+`"]`, "pockets: %q has no %q", s.Suite.Value, p.Value)
			continue
		}
		c.among(p, "pockets", quote(s.Suite.Value), suite.Pockets)
	}
	if position(s.Pockets, "release") < 0 {
		c.problem(s.Pockets[0].Pos, `add "release"`, "pockets: %q is always needed", "release")
	}
	for _, p := range s.Pockets {
		if _, fingerprints := s.Signers(p.Value); len(s.Keys) > 0 && len(fingerprints) == 0 {
			c.problem(s.Keys[0].Pos, "", "keys: none of them signs the pocket %q", p.Value)
		}
	}
}

// keys: own fingerprints name keys of the embedded keyring, or of key_file.
func (c *checker) keys(s *Source) {
	if s.KeyFile.Value != "" && len(s.Keys) == 0 {
		c.problem(s.KeyFile.Pos, "list the fingerprints that may sign in keys", "key_file without keys")
	}
	if s.KeyFile.Value != "" || s.KeyFile.Pos.File != "" {
		return
	}
	for _, k := range s.Keys {
		if !slices.ContainsFunc(Keys(), func(p Key) bool {
			return p.Distribution == s.Distribution.Value && p.Fingerprint == k.Value
		}) {
			c.problem(k.Pos, "give the key itself in key_file", "keys: %s is not a pinned key of %q", k.Value, s.Distribution.Value)
		}
	}
}

func (c *checker) packages(r *Recipe) {
	kind, ok := kindOf(r.Source.Kind.Value)
	if !ok || kind.packages == nil {
		return
	}
	check := func(list []String, key string) {
		for _, p := range list {
			if problem, hint := kind.packages(p.Value); problem != "" {
				c.problem(p.Pos, hint, "%s: %s", key, problem)
			}
		}
	}
	check(r.Packages.Add, "packages.add")
	for _, t := range r.Tests {
		check(t.ExpectPackages, "expect_packages")
		for _, p := range t.ExpectPackages {
			if strings.Contains(p.Value, "=") {
				c.problem(p.Pos, "", "expect_packages: %q names a version", p.Value)
			}
		}
	}
}

// packageIdentity is what two entries of packages.add have in common when the later one
// is meant instead of the earlier one.
func packageIdentity(entry string) string {
	name, _, _ := strings.Cut(entry, "=")
	return name
}

// paths reports a file that lies below another file.
func (c *checker) paths(list []File) {
	known := make(map[string]bool, len(list))
	for _, f := range list {
		known[f.Path.Value] = true
	}
	for _, f := range list {
		for i, char := range f.Path.Value {
			if char == '/' && i > 0 && known[f.Path.Value[:i]] {
				c.problem(f.Path.Pos, "", "files: %q lies below the file %q", f.Path.Value, f.Path.Value[:i])
			}
		}
	}
}

func (c *checker) services(s Services) {
	for _, off := range []struct {
		word string
		list []String
	}{{"disabled", s.Disable}, {"masked", s.Mask}} {
		for _, unit := range off.list {
			if i := position(s.Enable, unit.Value); i >= 0 {
				later := unit
				if unit.Pos.File == s.Enable[i].Pos.File && s.Enable[i].Pos.Line > unit.Pos.Line {
					later = s.Enable[i]
				}
				c.problem(later.Pos, "", "services: %q is enabled and %s", unit.Value, off.word)
			}
		}
	}
}
