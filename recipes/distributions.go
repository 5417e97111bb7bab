// SPDX-License-Identifier: Apache-2.0

package recipes

import "slices"

// sourceKind is one way to get a tree. To add a kind: a line here, its checks in check.go.
type sourceKind struct {
	name string
	// supported: this version can build it. The others are known words, so that the
	// message can say what is the matter.
	supported bool
	// packages is the syntax of a packages.add entry.
	packages rule
}

func sourceKinds() []sourceKind {
	return []sourceKind{
		{"deb", true, matches(debPackage, "a package", `write NAME, NAME:ARCH or NAME=VERSION, one package each`)},
		{"pacman", false, nil},
		{"tarball", false, nil},
		{"oci", false, nil},
		{"image", false, nil},
		{"simplestreams", false, nil},
		{"template", false, nil},
	}
}

func kindNames(supportedOnly bool) []string {
	var out []string
	for _, k := range sourceKinds() {
		if k.supported || !supportedOnly {
			out = append(out, k.name)
		}
	}
	return out
}

func kindOf(name string) (sourceKind, bool) {
	all := sourceKinds()
	i := slices.IndexFunc(all, func(k sourceKind) bool { return k.name == name })
	if i < 0 {
		return sourceKind{}, false
	}
	return all[i], true
}

// Distribution is what this version knows about one distribution of a kind.
type Distribution struct {
	Name       string
	Kind       string
	Suites     []Suite
	Variants   []string
	Components []string
	Arches     []string
}

// Suite is a release of a distribution. Every alias names the same directory of the archive.
type Suite struct {
	Codename string
	Aliases  []string // stable, unstable
	Pockets  []string // the ones it has
}

// Distributions lists what recipes can name, in a fixed order.
func Distributions() []Distribution {
	full := []string{"release", "updates", "security", "backports", "proposed"}
	return []Distribution{
		{
			Name: "debian", Kind: "deb",
			Suites: []Suite{
				{"trixie", []string{"stable"}, full},
				{"bookworm", []string{"oldstable"}, full},
				{"bullseye", []string{"oldoldstable"}, []string{"release", "updates", "security"}},
				{"forky", []string{"testing"}, []string{"release", "updates", "security", "proposed"}},
				{"sid", []string{"unstable"}, []string{"release"}},
			},
			Variants:   []string{"essential", "minbase", "default", "buildd"},
			Components: []string{"main", "contrib", "non-free", "non-free-firmware"},
			Arches:     []string{"amd64", "arm64", "armel", "armhf", "i386", "loong64", "mips64el", "ppc64el", "riscv64", "s390x"},
		},
		{
			Name: "ubuntu", Kind: "deb",
			Suites: []Suite{
				{"noble", nil, full},
				{"jammy", nil, full},
				{"focal", nil, full},
			},
			Variants:   []string{"essential", "minbase", "default", "buildd"},
			Components: []string{"main", "restricted", "universe", "multiverse"},
			Arches:     []string{"amd64", "arm64", "armhf", "i386", "ppc64el", "riscv64", "s390x"},
		},
	}
}

// DistributionOf finds a distribution by its name.
func DistributionOf(name string) (Distribution, bool) {
	all := Distributions()
	i := slices.IndexFunc(all, func(d Distribution) bool { return d.Name == name })
	if i < 0 {
		return Distribution{}, false
	}
	return all[i], true
}

// Suite finds a suite by its codename or an alias.
func (d Distribution) Suite(name string) (Suite, bool) {
	i := slices.IndexFunc(d.Suites, func(s Suite) bool {
		return s.Codename == name || slices.Contains(s.Aliases, name)
	})
	if i < 0 {
		return Suite{}, false
	}
	return d.Suites[i], true
}

func (d Distribution) suiteNames() []string {
	var out []string
	for _, s := range d.Suites {
		out = append(out, s.Codename)
		out = append(out, s.Aliases...)
	}
	return out
}

// defaultPockets are the ones that keep a machine safe, as far as the suite has them.
func (s Suite) defaultPockets() []string {
	var out []string
	for _, p := range []string{"release", "updates", "security"} {
		if slices.Contains(s.Pockets, p) {
			out = append(out, p)
		}
	}
	return out
}
