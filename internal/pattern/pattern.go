// SPDX-License-Identifier: Apache-2.0

// Package pattern holds regular expressions that are compiled when they are first used, so
// that a package with many of them costs nothing at start-up.
//
// It owns no expression itself and does nothing that package regexp does not. A pattern is
// a literal of the program: one that does not compile panics at its first use, which a test
// of its package reaches.
package pattern

import (
	"regexp"
	"sync"
)

// Pattern is an expression in the syntax of package regexp. It is safe for concurrent use.
type Pattern struct {
	compile func() *regexp.Regexp
}

// New remembers an expression.
func New(expression string) *Pattern {
	return &Pattern{sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expression) })}
}

// MatchString is that of regexp.Regexp.
func (p *Pattern) MatchString(s string) bool { return p.compile().MatchString(s) }

// FindStringSubmatch is that of regexp.Regexp.
func (p *Pattern) FindStringSubmatch(s string) []string { return p.compile().FindStringSubmatch(s) }

// ReplaceAllString is that of regexp.Regexp.
func (p *Pattern) ReplaceAllString(s, with string) string {
	return p.compile().ReplaceAllString(s, with)
}

// Regexp is the compiled expression.
func (p *Pattern) Regexp() *regexp.Regexp { return p.compile() }
