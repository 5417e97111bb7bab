// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"strings"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// Op is the operator of a versioned relation.
type Op uint8

// The operators. None means that any version will do.
const (
	None Op = iota
	Less
	LessEqual
	Equal
	GreaterEqual
	Greater
	// notEqual is not part of the syntax: packages of several architectures that are
	// Multi-Arch: same break each other unless their versions are equal.
	notEqual
)

// String is the operator as it is written in control files.
func (o Op) String() string {
	return [...]string{"", "<<", "<=", "=", ">=", ">>", "!="}[o]
}

// Satisfied says whether version v meets "o want". An empty v is a Provides without a
// version, which meets only relations without one.
func (o Op) Satisfied(v, want string) bool {
	if o == None || want == "" {
		return true
	}
	if v == "" {
		return false
	}
	c := CompareVersions(v, want)
	switch o {
	case Less:
		return c < 0
	case LessEqual:
		return c <= 0
	case Equal:
		return c == 0
	case GreaterEqual:
		return c >= 0
	case Greater:
		return c > 0
	}
	return c != 0
}

// Alternative is one member of a group of alternatives: NAME[:ARCH] [(OP VERSION)] [[ARCHS]].
type Alternative struct {
	Name string
	// Arch is the qualifier after the colon: "", "any", "native" or an architecture.
	Arch    string
	Op      Op
	Version string
	// Archs is the restriction in square brackets, as written, without them; empty when
	// there is none. Build profiles (<…>) are read over.
	Archs string
	// Or: the next alternative belongs to the same group.
	Or bool
}

// String writes the alternative as control files do, without restrictions.
func (a Alternative) String() string {
	s := a.Name
	if a.Arch != "" {
		s += ":" + a.Arch
	}
	if a.Op != None {
		s += " (" + a.Op.String() + " " + a.Version + ")"
	}
	return s
}

// AppliesTo says whether the architecture restriction lets the alternative count on arch.
func (a Alternative) AppliesTo(arch string) bool {
	if a.Archs == "" {
		return true
	}
	negated := false
	for _, w := range strings.Fields(a.Archs) {
		name, not := strings.CutPrefix(w, "!")
		negated = negated || not
		if name == arch || name == "any" || name == "linux-any" || name == "any-"+arch {
			return !not
		}
	}
	return negated
}

// ParseRelations reads the value of a relation field (Depends, Provides, Conflicts, …):
// groups separated by commas, alternatives by bars. The groups are flat; Or joins a
// member to the next one. An empty value has no relations; an empty group is read over,
// as dpkg and apt do at the end of a field. Errors are fault.Format.
func ParseRelations(s string) ([]Alternative, error) {
	out := make([]Alternative, 0, 1+strings.Count(s, ",")+strings.Count(s, "|"))
	p := relationParser{s: s}
	for {
		p.space()
		if p.end() {
			break
		}
		if p.s[p.i] == ',' && (len(out) == 0 || !out[len(out)-1].Or) {
			p.i++
			continue
		}
		a, err := p.alternative()
		if err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	if n := len(out); n > 0 && out[n-1].Or {
		return nil, p.fail("nothing follows the last bar")
	}
	return out, nil
}

type relationParser struct {
	s string
	i int
}

func (p *relationParser) end() bool { return p.i >= len(p.s) }

func (p *relationParser) space() {
	for !p.end() && blank(p.s[p.i]) {
		p.i++
	}
}

func (p *relationParser) fail(why string) error {
	from, to := max(0, p.i-30), min(len(p.s), p.i+30)
	return fault.New(fault.Format, "cannot read relation near %q: %s", p.s[from:to], why)
}

// alternative reads one member with the comma or bar behind it.
func (p *relationParser) alternative() (Alternative, error) {
	var a Alternative
	start := p.i
	for !p.end() && nameByte(p.s[p.i]) {
		p.i++
	}
	name := p.s[start:p.i]
	if i := strings.LastIndexByte(name, ':'); i >= 0 {
		a.Arch = name[i+1:]
		name = name[:i]
		if a.Arch == "" {
			return a, p.fail("the architecture after the colon is missing")
		}
	}
	if name == "" {
		return a, p.fail("a package name is missing")
	}
	a.Name = name
	p.space()
	if !p.end() && p.s[p.i] == '(' {
		if err := p.version(&a); err != nil {
			return a, err
		}
	}
	for p.space(); !p.end() && (p.s[p.i] == '[' || p.s[p.i] == '<'); p.space() {
		closing, restriction := byte('>'), ""
		if p.s[p.i] == '[' {
			closing = ']'
		}
		n := strings.IndexByte(p.s[p.i:], closing)
		if n < 0 {
			return a, p.fail("a closing bracket is missing")
		}
		restriction = p.s[p.i+1 : p.i+n]
		if closing == ']' {
			if a.Archs = strings.TrimSpace(restriction); a.Archs == "" {
				return a, p.fail("the list of architectures is empty")
			}
		}
		p.i += n + 1
	}
	if p.end() {
		return a, nil
	}
	switch p.s[p.i] {
	case '|':
		a.Or = true
	case ',':
	default:
		return a, p.fail("a comma, a bar or the end is expected")
	}
	p.i++
	return a, nil
}

// version reads "(OP VERSION)". "<" and ">" are the old spellings of "<=" and ">=".
func (p *relationParser) version(a *Alternative) error {
	p.i++
	p.space()
	start := p.i
	for !p.end() && strings.IndexByte("<>=", p.s[p.i]) >= 0 {
		p.i++
	}
	switch p.s[start:p.i] {
	case "<<":
		a.Op = Less
	case "<=", "<":
		a.Op = LessEqual
	case "=":
		a.Op = Equal
	case ">=", ">":
		a.Op = GreaterEqual
	case ">>":
		a.Op = Greater
	default:
		return p.fail("the operator is not one of << <= = >= >>")
	}
	n := strings.IndexByte(p.s[p.i:], ')')
	if n < 0 {
		return p.fail("a closing parenthesis is missing")
	}
	a.Version = strings.Trim(p.s[p.i:p.i+n], " \t\n\r")
	if a.Version == "" || len(a.Version) > maxVersion || strings.ContainsAny(a.Version, " \t\r\n(") {
		return p.fail("the version is not valid")
	}
	p.i += n + 1
	return nil
}

func blank(c byte) bool { return c == ' ' || c == '\t' || c == '\n' || c == '\r' }

// nameByte: everything that does not end a name. Whether it is a valid name is checked
// for the packages that are chosen.
func nameByte(c byte) bool {
	return c > ' ' && c != 0x7f && strings.IndexByte("(),|[]<>", c) < 0
}
