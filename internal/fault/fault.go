// SPDX-License-Identifier: Apache-2.0

// Package fault adds to an error what the command line needs to report it: the class
// that decides the exit code, hints that tell the user what to type or change, and the
// place in a recipe where the problem was asked for.
//
// It never prints and never decides control flow inside the libraries. Wrapping keeps
// the wrapped error reachable for errors.Is and errors.As; the outermost class wins,
// hints accumulate, the innermost position wins.
package fault

import (
	"errors"
	"fmt"
)

// Class says what kind of failure an error is; docs/design.md lists them with their exit codes.
type Class string

// The classes. Their string form is printed and appears in --json.
const (
	Failed   Class = "E_FAILED"   // the work was tried and failed (a script, a write)
	Config   Class = "E_CONFIG"   // recipe, settings or command line not valid
	Policy   Class = "E_POLICY"   // valid, but not allowed without an explicit operator flag
	Verify   Class = "E_VERIFY"   // signature, digest, freshness or identity check failed
	Format   Class = "E_FORMAT"   // malformed or ambiguous container format
	Path     Class = "E_PATH"     // a path or link would leave its root, or is illegal there
	Limit    Class = "E_LIMIT"    // a resource limit was reached
	Net      Class = "E_NET"      // transport failure after retries
	Dep      Class = "E_DEP"      // dependency resolution failed
	Lock     Class = "E_LOCK"     // the lock is missing or stale
	State    Class = "E_STATE"    // conflicting, busy or stale state
	Host     Class = "E_HOST"     // the host lacks a needed feature; refused rather than weakened
	Internal Class = "E_INTERNAL" // a bug
)

// ExitCode is the process exit status of a class.
func (c Class) ExitCode() int {
	switch c {
	case Config, Policy:
		return 2
	case Verify, Format, Path, Limit:
		return 3
	case Lock:
		return 4
	case Host:
		return 5
	case State:
		return 6
	case Internal:
		return 70
	}
	return 1
}

// Pos is a place in a text file. Line and Col count from 1; Col counts bytes. Line 0 means unknown.
type Pos struct {
	File string `json:"file"`
	Line int    `json:"line"`
	Col  int    `json:"col"`
	// Text is the whole source line, without its newline, for the excerpt. May be empty.
	Text string `json:"text,omitempty"`
}

// String is FILE:LINE:COL, or FILE where the line is unknown.
func (p Pos) String() string {
	if p.Line == 0 {
		return p.File
	}
	return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Col)
}

type classed struct {
	error
	class Class
}

func (e *classed) Unwrap() error { return e.error }

type hinted struct {
	error
	hint string
}

func (e *hinted) Unwrap() error { return e.error }

type placed struct {
	error
	pos Pos
}

func (e *placed) Unwrap() error { return e.error }

// New makes an error of a class; format and args as in fmt.Errorf, %w included.
func New(c Class, format string, args ...any) error {
	return &classed{fmt.Errorf(format, args...), c}
}

// As gives err a class. A nil err stays nil.
func As(c Class, err error) error {
	if err == nil {
		return nil
	}
	return &classed{err, c}
}

// Hint adds a hint: a command to type or a setting to change. A nil err stays nil.
func Hint(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &hinted{err, fmt.Sprintf(format, args...)}
}

// At says where in a recipe the failing thing was asked for. A nil err stays nil.
func At(err error, pos Pos) error {
	if err == nil || pos.File == "" {
		return err
	}
	return &placed{err, pos}
}

// ClassOf is the outermost class of err, or Failed where none was given.
func ClassOf(err error) Class {
	var c *classed
	if errors.As(err, &c) {
		return c.class
	}
	return Failed
}

// Hints lists the hints of err, innermost first. Joined errors are walked in order.
func Hints(err error) []string {
	var out []string
	walk(err, func(e error) {
		if h, ok := e.(*hinted); ok {
			out = append([]string{h.hint}, out...)
		}
	})
	return out
}

// PosOf is the innermost position of err, and whether there is one.
func PosOf(err error) (Pos, bool) {
	var pos Pos
	found := false
	walk(err, func(e error) {
		if p, ok := e.(*placed); ok {
			pos, found = p.pos, true
		}
	})
	return pos, found
}

func walk(err error, visit func(error)) {
	for err != nil {
		visit(err)
		switch e := err.(type) {
		case interface{ Unwrap() error }:
			err = e.Unwrap()
		case interface{ Unwrap() []error }:
			for _, sub := range e.Unwrap() {
				walk(sub, visit)
			}
			return
		default:
			return
		}
	}
}
