// SPDX-License-Identifier: Apache-2.0

package recipes

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// decoder lays one document over a Recipe: what the document says replaces or extends
// what the recipe inherited. It collects problems and never stops at one.
type decoder struct {
	files    *files // the files that the document may name
	problems Problems
}

// field is one key that a table may have.
type field struct {
	key string
	set func(*entry)
}

func (d *decoder) problem(pos fault.Pos, hint, format string, args ...any) {
	d.classed(fault.Config, pos, hint, format, args...)
}

func (d *decoder) classed(c fault.Class, pos fault.Pos, hint, format string, args ...any) {
	d.problems = append(d.problems, Problem{Pos: pos, Class: c, Text: redact(fmt.Sprintf(format, args...)), Hint: hint})
}

// want reports a value of the wrong type.
func (d *decoder) want(n *node, key string, kinds ...kind) bool {
	if slices.Contains(kinds, n.kind) {
		return true
	}
	words := make([]string, len(kinds))
	for i, k := range kinds {
		words[i] = string(k)
	}
	d.problem(n.pos, "", "%s must be %s, not %s", key, strings.Join(words, " or "), n.kind)
	return false
}

// table sets the fields that n has, in the order of fields, and reports all other keys.
func (d *decoder) table(n *node, fields []field) {
	known := make([]string, 0, len(fields))
	for _, f := range fields {
		known = append(known, f.key)
		if e := n.get(f.key); e != nil {
			f.set(e)
		}
	}
	for _, e := range n.entries {
		if !slices.Contains(known, e.name) {
			d.problem(e.pos, suggest(e.name, known), "unknown key %q", e.name)
		}
	}
}

// section is a [table] below the top.
func (d *decoder) section(key string, fields func(n *node) []field) field {
	return field{key, func(e *entry) {
		if d.want(e.value, key, kindTable) {
			d.table(e.value, fields(e.value))
		}
	}}
}

// sections is a [[list of tables]].
func (d *decoder) sections(key string, each func(n *node)) field {
	return field{key, func(e *entry) {
		if !d.want(e.value, key, kindArray) {
			return
		}
		for _, n := range e.value.items {
			if n.kind != kindTable {
				d.problem(n.pos, "write [["+key+"]]", "%s must be tables, not %s", key, n.kind)
				continue
			}
			each(n)
		}
	}}
}

// rule checks a text; problem is empty for a good one.
type rule func(text string) (problem, hint string)

func (d *decoder) text(n *node, key string, r rule) (String, bool) {
	if !d.want(n, key, kindString) {
		return String{}, false
	}
	if r != nil {
		if problem, hint := r(n.text); problem != "" {
			d.problem(n.pos, hint, "%s: %s", key, problem)
			return String{}, false
		}
	}
	return String{Value: n.text, Pos: n.pos}, true
}

func (d *decoder) str(key string, dst *String, r rule) field {
	return field{key, func(e *entry) {
		// A bad value leaves its place, so that nobody calls the key missing.
		s, ok := d.text(e.value, key, r)
		if !ok {
			s = String{Pos: e.value.pos}
		}
		*dst = s
	}}
}

func (d *decoder) boolean(key string, dst *bool, pos *fault.Pos) field {
	return field{key, func(e *entry) {
		if d.want(e.value, key, kindBool) {
			*dst = e.value.text == "true"
			if pos != nil {
				*pos = e.value.pos
			}
		}
	}}
}

// integer takes decimal numbers between low and high.
func (d *decoder) integer(key string, dst *int, low, high int) field {
	return field{key, func(e *entry) {
		if !d.want(e.value, key, kindInt) {
			return
		}
		i, err := strconv.Atoi(e.value.text)
		if err != nil || i < low || i > high {
			d.problem(e.value.pos, "", "%s must be a decimal number from %d to %d", key, low, high)
			return
		}
		*dst = i
	}}
}

// array reads a list of texts; a text twice is a problem.
func (d *decoder) array(n *node, key string, r rule) []String {
	if !d.want(n, key, kindArray) {
		return nil
	}
	out := make([]String, 0, len(n.items))
	for _, item := range n.items {
		s, ok := d.text(item, key, r)
		if !ok {
			continue
		}
		if i := position(out, s.Value); i >= 0 {
			d.problem(s.Pos, "", "%s has %q twice", key, s.Value)
			continue
		}
		out = append(out, s)
	}
	return out
}

// plain is a list that is written whole.
func (d *decoder) plain(key string, dst *[]String, r rule) field {
	return field{key, func(e *entry) { *dst = d.array(e.value, key, r) }}
}

// list is a list that can be written whole, or changed by KEY.add and KEY.remove.
func (d *decoder) list(key string, dst *[]String, r rule) field {
	return field{key, func(e *entry) {
		if e.value.kind == kindTable {
			d.table(e.value, d.changes(key, dst, r, nil))
			return
		}
		if d.want(e.value, key, kindArray, kindTable) {
			*dst = d.array(e.value, key, r)
		}
	}}
}

// changes are the fields remove and add of a list. Remove acts on what was inherited.
// identity says what two values have in common of which the later one replaces the
// earlier one; nil is the value itself.
func (d *decoder) changes(key string, dst *[]String, r rule, identity func(string) string) []field {
	if identity == nil {
		identity = func(value string) string { return value }
	}
	find := func(value string) int {
		return slices.IndexFunc(*dst, func(s String) bool { return identity(s.Value) == identity(value) })
	}
	return []field{
		{"remove", func(e *entry) {
			for _, s := range d.array(e.value, key+".remove", r) {
				i := find(s.Value)
				if i < 0 {
					d.problem(s.Pos, suggestInherited(s.Value, *dst), "%s.remove: %q is not in what is inherited", key, s.Value)
					continue
				}
				*dst = slices.Delete(slices.Clone(*dst), i, i+1)
			}
		}},
		{"add", func(e *entry) {
			for _, s := range d.array(e.value, key+".add", r) {
				i := find(s.Value)
				switch {
				case i < 0:
					*dst = append(slices.Clip(*dst), s)
				case (*dst)[i].Value == s.Value: // inherited already
				case (*dst)[i].Pos.File == s.Pos.File:
					d.problem(s.Pos, "", "%s.add: %q and %q exclude each other", key, (*dst)[i].Value, s.Value)
				default:
					*dst = slices.Clone(*dst)
					(*dst)[i] = s
				}
			}
		}},
	}
}

func position(list []String, value string) int {
	return slices.IndexFunc(list, func(s String) bool { return s.Value == value })
}

func suggestInherited(word string, list []String) string {
	if len(list) == 0 {
		return "nothing is inherited; remove takes away what extends brings"
	}
	return suggest(word, values(list))
}

func values(list []String) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = s.Value
	}
	return out
}

// environment merges NAME = "VALUE" pairs into dst.
func (d *decoder) environment(key string, dst *map[string]string) field {
	return field{key, func(e *entry) {
		if !d.want(e.value, key, kindTable) {
			return
		}
		merged := make(map[string]string, len(*dst)+len(e.value.entries))
		for k, v := range *dst {
			merged[k] = v
		}
		for _, v := range e.value.entries {
			if problem, hint := ruleEnvName(v.name); problem != "" {
				d.problem(v.pos, hint, "%s: %s", key, problem)
				continue
			}
			if s, ok := d.text(v.value, key+"."+v.name, ruleEnvValue); ok {
				merged[v.name] = s.Value
			}
		}
		*dst = merged
	}}
}

const maxTimeout = 24 * time.Hour

// duration takes "90s", "5m", "1h30m"; dst is in seconds.
func (d *decoder) duration(key string, dst *int64) field {
	return field{key, func(e *entry) {
		if e.value.kind != kindString {
			d.problem(e.value.pos, `write a text with a unit: "90s", "5m", "1h30m"`, "%s must be a duration, not %s", key, e.value.kind)
			return
		}
		seconds, ok := parseDuration(e.value.text)
		if !ok {
			d.problem(e.value.pos, `for example "90s", "5m", "1h30m"; at most 24h`, "%s: %q is not a duration", key, e.value.text)
			return
		}
		*dst = seconds
	}}
}

// parseDuration reads whole hours, minutes and seconds in this order. It is stricter
// than time.ParseDuration, which takes signs, fractions and any order.
func parseDuration(text string) (seconds int64, ok bool) {
	m := durationText.FindStringSubmatch(text)
	if m == nil || text == "" {
		return 0, false
	}
	for i, unit := range []int64{3600, 60, 1} {
		if m[i+1] == "" {
			continue
		}
		n, err := strconv.ParseInt(m[i+1], 10, 32)
		if err != nil {
			return 0, false
		}
		seconds += n * unit
	}
	return seconds, seconds > 0 && seconds <= int64(maxTimeout/time.Second)
}

// mode takes "0644" or 0o644.
func (d *decoder) mode(key string, dst *uint32) field {
	return field{key, func(e *entry) {
		text, ok := e.value.text, true
		switch e.value.kind {
		case kindString:
			ok = len(text) == 3 || len(text) == 4
		case kindInt:
			text, ok = strings.CutPrefix(text, "0o")
		default:
			ok = false
		}
		m, err := strconv.ParseUint(text, 8, 32)
		if !ok || err != nil || m > 0o7777 {
			d.problem(e.value.pos, `write octal digits in quotes: "0644"`, "%s: %q is not a file mode", key, e.value.text)
			return
		}
		*dst = uint32(m)
	}}
}
