// SPDX-License-Identifier: Apache-2.0

package recipes

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// Asked is one thing that the lock answers, as a line for people, and where it was written.
type Asked struct {
	Line string
	Pos  fault.Pos
}

// Asked lists what a lock of the recipe answers, sorted by line: the source, the packages
// and the repositories. Two recipes with the same lines have the same locks. Mirrors are
// not among them: what they bring is proved, wherever it comes from.
func (r *Recipe) Asked() []Asked {
	var out []Asked
	add := func(pos fault.Pos, format string, args ...any) {
		out = append(out, Asked{redact(fmt.Sprintf(format, args...)), pos})
	}
	one := func(key string, s String) {
		if s.Value != "" {
			add(s.Pos, "%s %s", key, s.Value)
		}
	}
	many := func(key string, list []String) {
		for _, s := range list {
			one(key, s)
		}
	}
	s := &r.Source
	one("source.kind", s.Kind)
	one("source.distribution", s.Distribution)
	one("source.suite", s.Suite)
	one("source.variant", s.Variant)
	one("source.arch", s.Arch)
	many("source.components", s.Components)
	many("source.pockets", s.Pockets)
	one("source.snapshot", s.Snapshot)
	many("source.keys", s.Keys)
	if s.KeyFile.Value != "" {
		add(s.KeyFile.Pos, "source.key_file sha256:%s", digest(s.KeyData))
	}
	one("source.insecure", s.Insecure)
	many("packages.add", r.Packages.Add)
	pos := r.Packages.RecommendsPos
	if pos.File == "" {
		pos = r.Packages.Pos
	}
	add(pos, "packages.recommends %t", r.Packages.Recommends)
	for _, x := range r.Repositories {
		key := "repository " + x.Name.Value
		add(x.Name.Pos, "%s", key)
		one(key+".url", x.URL)
		one(key+".suite", x.Suite)
		many(key+".components", x.Components)
		many(key+".keys", x.Keys)
		add(x.KeyFile.Pos, "%s.key_file sha256:%s", key, digest(x.KeyData))
	}
	slices.SortFunc(out, func(a, b Asked) int { return strings.Compare(a.Line, b.Line) })
	return out
}

// Request is the lines of Asked, for Lock.Asked.
func (r *Recipe) Request() []string {
	asked := r.Asked()
	out := make([]string, len(asked))
	for i, a := range asked {
		out[i] = a.Line
	}
	return out
}

// RequestDigest is the SHA-256 of Request in hex, for Lock.Request.
func (r *Recipe) RequestDigest() string {
	return digest(Canonical(r.Request()))
}

// Changed compares the recipe with the lines that a lock was made for: what the recipe
// asks in addition, and what it no longer asks.
func (r *Recipe) Changed(locked []string) (added []Asked, removed []string) {
	asked := r.Asked()
	for _, a := range asked {
		if !slices.Contains(locked, a.Line) {
			added = append(added, a)
		}
	}
	for _, line := range locked {
		if !slices.ContainsFunc(asked, func(a Asked) bool { return a.Line == line }) {
			removed = append(removed, line)
		}
	}
	return added, removed
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// Canonical is the recipe as bytes that are equal exactly when the same is to be done to
// a tree after its packages are installed: files, users, system, scripts, machine. Fields
// opt out with the tag layer:"-"; a new field is in by itself.
func (r *Recipe) Canonical() []byte { return Canonical(*r) }

// Canonical writes a value of plain data as bytes, for keys of layers: any part of a
// recipe (Canonical(r.Files)), lists of texts, numbers. Equal values give equal bytes and
// different values different ones; positions and fields tagged layer:"-" do not count.
func Canonical(value any) []byte {
	return appendValue(nil, reflect.ValueOf(value))
}

// appendValue writes a type letter, then the value; texts and lists have their length in
// front, so that no two values run into one another.
func appendValue(out []byte, v reflect.Value) []byte {
	switch v.Kind() {
	case reflect.String:
		return appendText(append(out, 's'), v.String())
	case reflect.Bool:
		if v.Bool() {
			return append(out, 'T')
		}
		return append(out, 'F')
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return binary.BigEndian.AppendUint64(append(out, 'i'), uint64(v.Int()))
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return binary.BigEndian.AppendUint64(append(out, 'u'), v.Uint())
	case reflect.Slice, reflect.Array:
		if v.Type().Elem().Kind() == reflect.Uint8 && v.Kind() == reflect.Slice {
			sum := sha256.Sum256(v.Bytes())
			return append(append(out, 'd'), sum[:]...)
		}
		out = binary.BigEndian.AppendUint64(append(out, 'l'), uint64(v.Len()))
		for i := range v.Len() {
			out = appendValue(out, v.Index(i))
		}
		return out
	case reflect.Map:
		return appendMap(out, v)
	case reflect.Struct:
		return appendStruct(out, v)
	}
	// Pointers, interfaces and functions have no place in plain data.
	panic("recipes: no canonical form of " + v.Type().String())
}

func appendText(out []byte, text string) []byte {
	return append(binary.BigEndian.AppendUint64(out, uint64(len(text))), text...)
}

func appendMap(out []byte, v reflect.Value) []byte {
	var pairs []string
	for it := v.MapRange(); it.Next(); {
		pairs = append(pairs, string(appendValue(appendValue(nil, it.Key()), it.Value())))
	}
	slices.Sort(pairs)
	out = binary.BigEndian.AppendUint64(append(out, 'm'), uint64(len(pairs)))
	for _, p := range pairs {
		out = append(out, p...)
	}
	return out
}

func appendStruct(out []byte, v reflect.Value) []byte {
	t := v.Type()
	out = append(out, '{')
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Type == reflect.TypeFor[fault.Pos]() || f.Tag.Get("layer") == "-" {
			continue
		}
		out = appendValue(appendText(out, f.Name), v.Field(i))
	}
	return append(out, '}')
}
