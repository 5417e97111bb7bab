// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"reflect"
	"testing"

	"github.com/mkmachine/mkmachine/internal/fault"
)

func TestParseRelations(t *testing.T) {
	for _, test := range []struct {
		in   string
		want []Alternative
	}{
		{"", nil},
		{" \n ", nil},
		{"a", []Alternative{{Name: "a"}}},
		{"a, b|c", []Alternative{{Name: "a"}, {Name: "b", Or: true}, {Name: "c"}}},
		{"a (>= 1:2-3)", []Alternative{{Name: "a", Op: GreaterEqual, Version: "1:2-3"}}},
		{"a(<<1)", []Alternative{{Name: "a", Op: Less, Version: "1"}}},
		{"a (< 1), b (> 2), c (<= 3), d (>> 4), e (=5)", []Alternative{
			{Name: "a", Op: LessEqual, Version: "1"}, {Name: "b", Op: GreaterEqual, Version: "2"},
			{Name: "c", Op: LessEqual, Version: "3"}, {Name: "d", Op: Greater, Version: "4"}, {Name: "e", Op: Equal, Version: "5"},
		}},
		{"python3:any (>= 3.5~)", []Alternative{{Name: "python3", Arch: "any", Op: GreaterEqual, Version: "3.5~"}}},
		{"g++:amd64 | gcc:native", []Alternative{{Name: "g++", Arch: "amd64", Or: true}, {Name: "gcc", Arch: "native"}}},
		{"a [amd64 !i386] <!nocheck> <x y>, b", []Alternative{{Name: "a", Archs: "amd64 !i386"}, {Name: "b"}}},
		{"a,\n b,\n c", []Alternative{{Name: "a"}, {Name: "b"}, {Name: "c"}}},
		{"a, , b,", []Alternative{{Name: "a"}, {Name: "b"}}},
	} {
		got, err := ParseRelations(test.in)
		if err != nil || len(got) != len(test.want) || len(got) > 0 && !reflect.DeepEqual(got, test.want) {
			t.Errorf("%q: got %v, %v", test.in, got, err)
		}
	}
}

func TestParseRelationsRefuses(t *testing.T) {
	for _, s := range []string{
		"a b", "a |", "| a", "a ||b", "a (1)", "a (>= )", "a (>=", "a (== 1)", "a (=> 1)", "a (>= 1", "a )", "(>= 1)",
		"a:", ":any", "a [", "a []", "a <", "a (>= 1 2)", "a (>= (1))", "a\x00b", "a (>= 1) b", "a | , b",
	} {
		if got, err := ParseRelations(s); err == nil || fault.ClassOf(err) != fault.Format {
			t.Errorf("%q: got %v, %v", s, got, err)
		}
	}
}

func TestAppliesTo(t *testing.T) {
	for _, test := range []struct {
		archs string
		want  bool
	}{
		{"", true}, {"amd64", true}, {"i386", false}, {"!amd64", false}, {"!i386", true}, {"linux-any", true},
		{"any-amd64", true}, {"i386 amd64", true}, {"!i386 !amd64", false}, {"any", true},
	} {
		if got := (Alternative{Archs: test.archs}).AppliesTo("amd64"); got != test.want {
			t.Errorf("[%s]: got %v", test.archs, got)
		}
	}
}

func TestOpSatisfied(t *testing.T) {
	for _, test := range []struct {
		have string
		op   Op
		want string
		ok   bool
	}{
		{"1", None, "", true}, {"", None, "", true}, {"", Equal, "1", false}, {"1", Equal, "1-0", true},
		{"1", Less, "1", false}, {"1~", Less, "1", true}, {"1", LessEqual, "1", true}, {"2", GreaterEqual, "1:1", false},
		{"2", Greater, "2", false}, {"2+b1", Greater, "2", true}, {"1", notEqual, "2", true}, {"1", notEqual, "1", false},
	} {
		if got := test.op.Satisfied(test.have, test.want); got != test.ok {
			t.Errorf("%q %s %q: got %v", test.have, test.op, test.want, got)
		}
	}
}

func FuzzRelations(f *testing.F) {
	for _, s := range []string{"a, b | c:any (>= 1) [amd64] <!x>", "a (<< 2:1~)", "a,", "a |", "a (= 1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		list, err := ParseRelations(s)
		eachName(s, func(string) {})
		if err != nil {
			if fault.ClassOf(err) != fault.Format {
				t.Errorf("%q: class of %v", s, err)
			}
			return
		}
		// Written again, without restrictions, it reads the same.
		text := ""
		for i, a := range list {
			a.AppliesTo("amd64")
			list[i].Archs = ""
			text += a.String()
			if a.Or {
				text += " | "
			} else {
				text += ", "
			}
		}
		again, err := ParseRelations(text)
		if err != nil || len(again) != len(list) || len(list) > 0 && !reflect.DeepEqual(again, list) {
			t.Errorf("%q: %v became %q: %v, %v", s, list, text, again, err)
		}
	})
}
