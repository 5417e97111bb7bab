// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/recipes"
)

// maxExcerptColumns of a recipe's line are shown.
const maxExcerptColumns = 160

// printError prints an error for people: what could not be done and why, its class, the
// line of the recipe that asked for it, and what to do about it. A nil err is silence.
func printError(w io.Writer, err error, c palette) {
	if err == nil {
		return
	}
	var b strings.Builder
	for _, e := range apart(err) {
		oneError(&b, e, c)
	}
	var seen []string
	for _, h := range fault.Hints(err) {
		if !slices.Contains(seen, h) {
			seen = append(seen, h)
			fmt.Fprintf(&b, "%s %s\n", c.yellow("mkmachine: hint:"), escape(h))
		}
	}
	_, _ = io.WriteString(w, b.String()) // stderr has gone: nobody to tell
}

// apart is the errors that errors.Join put together, each with its own class; an error
// that is one message is itself.
func apart(err error) []error {
	for e := err; e != nil; {
		switch x := e.(type) {
		case interface{ Unwrap() []error }:
			var texts []string
			for _, sub := range x.Unwrap() {
				texts = append(texts, sub.Error())
			}
			// Only a plain list may be taken apart: fmt.Errorf says more than its parts.
			if len(texts) == 0 || err.Error() != strings.Join(texts, "\n") {
				return []error{err}
			}
			var out []error
			for _, sub := range x.Unwrap() {
				out = append(out, apart(sub)...)
			}
			return out
		case interface{ Unwrap() error }:
			e = x.Unwrap()
		default:
			return []error{err}
		}
	}
	return []error{err}
}

// oneError is the message of an error, without its hints.
func oneError(b *strings.Builder, err error, c palette) {
	class := ""
	if k := fault.ClassOf(err); k != fault.Failed {
		class = " [" + string(k) + "]"
	}
	var problems recipes.Problems
	if errors.As(err, &problems) {
		what := "cannot use the recipe"
		if before, ok := strings.CutSuffix(err.Error(), problems.Error()); ok && strings.TrimRight(before, ": \n") != "" {
			what = escape(strings.TrimRight(before, ": \n"))
		}
		count := "1 problem"
		if len(problems) != 1 {
			count = fmt.Sprintf("%d problems", len(problems))
		}
		fmt.Fprintf(b, "%s %s: %s%s\n", c.red("mkmachine: error:"), what, count, class)
		for _, p := range problems {
			excerpt(b, p.Pos, p.Text, p.Hint, c)
		}
	} else {
		first, rest, _ := strings.Cut(strings.TrimRight(err.Error(), "\n"), "\n")
		fmt.Fprintf(b, "%s %s%s\n", c.red("mkmachine: error:"), escape(first), class)
		if rest != "" {
			for line := range strings.SplitSeq(rest, "\n") {
				fmt.Fprintf(b, "  | %s\n", escape(line))
			}
		}
		if pos, ok := fault.PosOf(err); ok {
			excerpt(b, pos, "", "", c)
		}
	}
}

// excerpt is FILE:LINE:COL: text, the line itself, and a caret with the hint.
func excerpt(b *strings.Builder, pos fault.Pos, text, hint string, c palette) {
	place := escape(pos.String())
	switch {
	case text != "" && place != "":
		fmt.Fprintf(b, "  %s: %s\n", place, escape(text))
	default:
		fmt.Fprintf(b, "  %s%s\n", place, escape(text))
	}
	if pos.Text == "" || pos.Line == 0 {
		if hint != "" {
			fmt.Fprintf(b, "  %s\n", c.yellow(escape(hint)))
		}
		return
	}
	number := fmt.Sprint(pos.Line)
	margin := strings.Repeat(" ", len(number))
	col := min(max(pos.Col-1, 0), len(pos.Text))
	// The whole line is escaped at once: a command could stand across the column.
	whole, caret := []rune(escape(pos.Text)), len([]rune(escape(pos.Text[:col])))
	caret = min(caret, len(whole))
	if caret > maxExcerptColumns/2 {
		// Far to the right: keep the end of what stands before.
		skip := caret - maxExcerptColumns/2 + 1
		whole, caret = append([]rune("…"), whole[skip:]...), caret-skip+1
	}
	fmt.Fprintf(b, "  %s %s %s\n", number, c.dim("|"), trimRight(cut(string(whole), maxExcerptColumns)))
	mark := c.red("^")
	if hint != "" {
		mark += " " + c.yellow(escape(hint))
	}
	fmt.Fprintf(b, "  %s %s %s%s\n", margin, c.dim("|"), strings.Repeat(" ", columns(string(whole[:caret]))), mark)
}
