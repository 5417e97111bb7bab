// SPDX-License-Identifier: Apache-2.0

package recipes

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/internal/pattern"
)

// Problem is one thing wrong with a recipe.
type Problem struct {
	Pos   fault.Pos
	Class fault.Class // Config, or Path, Policy, Limit where reference rules say so
	Text  string      // "unknown key \"sutie\""; foreign text in it is quoted
	Hint  string      // "did you mean \"suite\"?", or empty
}

// Problems is the error that Load returns: all problems, sorted by position. The error
// that wraps it carries the gravest of their classes.
type Problems []Problem

// Error has one line for each problem.
func (ps Problems) Error() string {
	lines := make([]string, 0, len(ps))
	for _, p := range ps {
		line := p.Text
		if p.Pos.File != "" {
			line = p.Pos.String() + ": " + line
		}
		if p.Hint != "" {
			line += " (" + p.Hint + ")"
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}

// err is nil for no problems, else ps sorted, without repetitions, and classed.
func (ps Problems) err() error {
	if len(ps) == 0 {
		return nil
	}
	out := slices.Clone(ps)
	slices.SortStableFunc(out, func(a, b Problem) int {
		return cmp.Or(
			cmp.Compare(a.Pos.File, b.Pos.File),
			cmp.Compare(a.Pos.Line, b.Pos.Line),
			cmp.Compare(a.Pos.Col, b.Pos.Col),
			cmp.Compare(a.Text, b.Text))
	})
	out = slices.Compact(out)
	class := fault.Config
	for _, c := range []fault.Class{fault.Policy, fault.Path, fault.Limit} {
		if slices.ContainsFunc(out, func(p Problem) bool { return p.Class == c }) {
			class = c
		}
	}
	return fault.As(class, out)
}

// userinfo is the secret part of a URL: between // and the last @ of the authority.
var userinfo = pattern.New(`://[^/\s"']*@`)

// redact hides the user and password of every URL in a text.
func redact(text string) string {
	return userinfo.ReplaceAllString(text, "://***@")
}

// nearest finds the candidate with the smallest edit distance to word, or "" where none
// is near enough to be what the author meant.
func nearest(word string, candidates []string) string {
	best, bestDistance := "", len(word)/3+2
	if len(word) > 64 {
		return ""
	}
	for _, c := range candidates {
		if d := distance(word, c); d < bestDistance {
			best, bestDistance = c, d
		}
	}
	return best
}

// distance counts insertions, deletions, replacements and swaps of neighbours.
func distance(a, b string) int {
	before, last, now := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		now[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			now[j] = min(last[j]+1, now[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				now[j] = min(now[j], before[j-2]+1)
			}
		}
		before, last, now = last, now, before
	}
	return last[len(b)]
}

// suggest is the hint for a word that is not in a closed list.
func suggest(word string, candidates []string) string {
	if near := nearest(word, candidates); near != "" {
		return fmt.Sprintf("did you mean %q?", near)
	}
	return "one of: " + strings.Join(candidates, ", ")
}
