// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/mkmachine/mkmachine/internal/pattern"
)

// unsafeRune is true for what could steer a terminal, reorder or hide text: C0, DEL, C1,
// invalid bytes, and the invisible formatting characters (bidi marks, zero widths, tags).
func unsafeRune(r rune) bool {
	return r < ' ' || r >= 0x7f && r < 0xa0 || r == 0xad || r == 0x2028 || r == 0x2029 ||
		r == 0x115f || r == 0x1160 || r == 0x3164 || r == 0xffa0 || unicode.Is(unicode.Cf, r) || unicode.Is(unicode.Co, r) ||
		r >= 0xfe00 && r <= 0xfe0f || r >= 0xe0100 && r <= 0xe01ef
}

// ciCommand is how the log viewers of CI systems recognise commands inside a line.
var ciCommand = pattern.New(`##([A-Za-z]*)\[`)

// escape makes foreign text safe to print on one line: nothing in it reaches a terminal
// or a CI system as a command.
func escape(text string) string {
	clean := strings.IndexFunc(text, func(r rune) bool { return unsafeRune(r) || r == utf8.RuneError }) < 0
	if !clean {
		var b strings.Builder
		for i := 0; i < len(text); {
			r, size := utf8.DecodeRuneInString(text[i:])
			switch {
			case r == utf8.RuneError && size == 1:
				fmt.Fprintf(&b, `\x%02x`, text[i])
			case r == '\t':
				b.WriteByte(' ')
			case r == '\n':
				b.WriteString(`\n`)
			case unsafeRune(r) && r < 0x80:
				fmt.Fprintf(&b, `\x%02x`, r)
			case unsafeRune(r) && r > 0xffff:
				fmt.Fprintf(&b, `\U%08x`, r)
			case unsafeRune(r):
				fmt.Fprintf(&b, `\u%04x`, r)
			default:
				b.WriteString(text[i : i+size])
			}
			i += size
		}
		text = b.String()
	}
	if strings.Contains(text, "##") {
		text = ciCommand.ReplaceAllString(text, `#\x23$1[`)
	}
	if trimmed := strings.TrimLeft(text, " "); strings.HasPrefix(trimmed, "::") {
		text = strings.Replace(text, "::", `\x3a:`, 1)
	}
	return text
}

// palette colours words, or does not.
type palette struct{ on bool }

func (p palette) paint(code, text string) string {
	if !p.on {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

func (p palette) red(s string) string    { return p.paint("31;1", s) }
func (p palette) green(s string) string  { return p.paint("32", s) }
func (p palette) yellow(s string) string { return p.paint("33", s) }
func (p palette) dim(s string) string    { return p.paint("2", s) }

// label names a span.
func label(name, subject string) string {
	if subject == "" {
		return escape(name)
	}
	return escape(name) + " " + escape(subject)
}

// columns is the width of escaped text on a terminal.
func columns(text string) int {
	n := 0
	for _, r := range text {
		n += runeColumns(r)
	}
	return n
}

func runeColumns(r rune) int {
	switch {
	case unicode.In(r, unicode.Mn, unicode.Me):
		return 0
	case r >= 0x1100 && r <= 0x115f, r >= 0x2e80 && r <= 0xa4cf, r >= 0xac00 && r <= 0xd7a3, r >= 0xf900 && r <= 0xfaff,
		r >= 0xfe30 && r <= 0xfe6f, r >= 0xff00 && r <= 0xff60, r >= 0x1f300 && r <= 0x1faff, r >= 0x20000 && r <= 0x3fffd:
		return 2
	}
	return 1
}

// cut shortens text to at most width columns, with an ellipsis where something is lost.
func cut(text string, width int) string {
	if columns(text) <= width {
		return text
	}
	if width <= 0 {
		return ""
	}
	n := 0
	for i, r := range text {
		if n+runeColumns(r) > width-1 {
			return text[:i] + "…"
		}
		n += runeColumns(r)
	}
	return text
}

// pad fills text with spaces up to width columns.
func pad(text string, width int) string {
	return text + strings.Repeat(" ", max(0, width-columns(text)))
}

func trimRight(text string) string { return strings.TrimRight(text, " ") }

// formatBytes uses binary multiples.
func formatBytes(n int64) string {
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	value, units := float64(n), []string{"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	i := -1
	for value >= 1024 && i < len(units)-1 {
		value /= 1024
		i++
	}
	if value >= 99.95 {
		return fmt.Sprintf("%.0f %s", value, units[i])
	}
	return fmt.Sprintf("%.1f %s", value, units[i])
}

func formatDuration(d time.Duration) string {
	switch {
	case d < 0:
		return "0ms"
	case d < time.Second:
		return fmt.Sprintf("%dms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%.2fs", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", d/time.Minute, d%time.Minute/time.Second)
	}
	return fmt.Sprintf("%dh%02dm", d/time.Hour, d%time.Hour/time.Minute)
}

// amount is "3 of 79 packages", "1.2 of 33.1 MiB", or without a total only the count.
func amount(done, total int64, unit string) string {
	count := func(n int64) string {
		if unit == "bytes" {
			return formatBytes(n)
		}
		return fmt.Sprint(n)
	}
	text := count(done)
	if total > 0 {
		of := count(total)
		if unit == "bytes" && text[strings.IndexByte(text, ' '):] == of[strings.IndexByte(of, ' '):] {
			text, _, _ = strings.Cut(text, " ")
		}
		text += " of " + of
	}
	if unit != "bytes" && unit != "" {
		text += " " + escape(unit)
	}
	return text
}

// printTable prints aligned columns, every cell escaped. Without rows it prints nothing; a
// nil header is left out.
func printTable(w io.Writer, header []string, rows [][]string) error {
	if len(rows) == 0 {
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	if header != nil {
		rows = append([][]string{header}, rows...)
	}
	for _, row := range rows {
		cells := make([]string, len(row))
		for i, c := range row {
			if cells[i] = escape(c); cells[i] == "" {
				cells[i] = "-"
			}
		}
		if _, err := fmt.Fprintln(t, strings.Join(cells, "\t")); err != nil {
			return err
		}
	}
	return t.Flush()
}
