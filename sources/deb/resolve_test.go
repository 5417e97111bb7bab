// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/sources"
)

// tiny is a distribution in the small: every variant can be resolved.
var tiny = []string{
	stanza("Package: apt", "Priority: required", "Depends: libapt, gpgv | sqv"),
	stanza("Package: base-files", "Essential: yes", "Priority: required", "Pre-Depends: awk"),
	stanza("Package: build-essential", "Depends: gcc"),
	stanza("Package: dash", "Essential: yes", "Priority: required", "Depends: libc"),
	stanza("Package: gcc", "Depends: libc (>= 1), dash"),
	stanza("Package: gpgv", "Depends: libc"),
	stanza("Package: init", "Priority: important", "Depends: libc, usrmerge | usr-is-merged"),
	stanza("Package: libapt"),
	stanza("Package: libc"),
	stanza("Package: mawk", "Priority: required", "Provides: awk"),
	stanza("Package: original-awk", "Provides: awk"),
	stanza("Package: sqv"),
	stanza("Package: usr-is-merged"),
	stanza("Package: usrmerge", "Depends: perl-base"),
	stanza("Package: perl-base"),
}

func universe(t testing.TB, stanzas ...string) *Universe {
	return NewUniverse(index(t, IndexSource{Repository: "r"}, stanzas...))
}

// got is what Resolve chooses beyond the variant, as "name=version:arch", with "+" for
// what was not pulled in automatically; or what is missing of the variant, with "-".
func added(t testing.TB, u *Universe, req Request) ([]string, error) {
	t.Helper()
	if req.Arch == "" {
		req.Arch, req.Suite = "amd64", "trixie"
	}
	if req.Variant == "" {
		req.Variant = VariantMinbase
	}
	bare := req
	bare.Add = nil
	before, err := Resolve(context.Background(), u, bare)
	if err != nil {
		t.Fatal(err)
	}
	after, err := Resolve(context.Background(), u, req)
	var out []string
	for _, p := range after {
		if p.Phase != sources.PhaseAdded {
			continue
		}
		s := p.Name + "=" + p.Version
		if p.Arch != "amd64" {
			s += ":" + p.Arch
		}
		if !p.Auto {
			s = "+" + s
		}
		out = append(out, s)
	}
	for _, p := range before {
		if err == nil && !slices.ContainsFunc(after, func(q sources.Package) bool { return q.Name == p.Name }) {
			out = append(out, "-"+p.Name)
		}
	}
	return out, err
}

func wants(names ...string) []Want {
	var out []Want
	for _, n := range names {
		var w Want
		n, w.Version, _ = strings.Cut(n, "=")
		w.Name, w.Arch, _ = strings.Cut(n, ":")
		out = append(out, w)
	}
	return out
}

func TestVariants(t *testing.T) {
	u := universe(t, tiny...)
	for _, test := range []struct {
		variant       Variant
		distribution  string
		suite         string
		exclude       []string
		required, all string
	}{
		{VariantEssential, "debian", "trixie", nil, "base-files dash libc mawk", ""},
		{VariantMinbase, "debian", "trixie", nil, "apt base-files dash gpgv libapt libc mawk", ""},
		{VariantMinbase, "debian", "bookworm", nil, "apt base-files dash gpgv libapt libc mawk usr-is-merged", ""},
		{VariantMinbase, "debian", "bullseye", nil, "apt base-files dash gpgv libapt libc mawk", ""},
		{VariantDefault, "debian", "trixie", []string{"init"}, "apt base-files dash gpgv libapt libc mawk", ""},
		{VariantDefault, "debian", "bullseye", nil, "apt base-files dash gpgv libapt libc mawk", "init perl-base usrmerge"},
		{VariantDefault, "debian", "bookworm", nil, "apt base-files dash gpgv libapt libc mawk usr-is-merged", "init"},
		{VariantDefault, "ubuntu", "noble", nil, "apt base-files dash gpgv libapt libc mawk", "init perl-base usrmerge"},
		{VariantBuildd, "debian", "trixie", nil, "base-files dash libc mawk", "apt build-essential gcc gpgv libapt"},
		{VariantBuildd, "debian", "bookworm", nil, "apt base-files dash gpgv libapt libc mawk usr-is-merged", "build-essential gcc"},
		{VariantBuildd, "ubuntu", "noble", nil, "apt base-files dash gpgv libapt libc mawk", "build-essential gcc"},
		{VariantBuildd, "debian", "trixie", []string{"gcc"}, "base-files dash libc mawk", "apt build-essential gcc gpgv libapt"},
	} {
		req := Request{Arch: "amd64", Distribution: test.distribution, Suite: test.suite, Variant: test.variant, Exclude: test.exclude}
		list, err := Resolve(context.Background(), u, req)
		if err != nil {
			t.Errorf("%s %s: %v", test.suite, test.variant, err)
			continue
		}
		var required, base []string
		for _, p := range list {
			switch {
			case p.Auto || p.Repository != "r":
				t.Errorf("%s %s: %+v", test.suite, test.variant, p)
			case p.Phase == sources.PhaseRequired:
				required = append(required, p.Name)
			case p.Phase == sources.PhaseBase:
				base = append(base, p.Name)
			}
		}
		if r, b := strings.Join(required, " "), strings.Join(base, " "); r != test.required || b != test.all {
			t.Errorf("%s %s: got %s + %s, want %s + %s", test.suite, test.variant, r, b, test.required, test.all)
		}
	}
}

// TestAdd checks apt's rules one by one. The expectations were made with apt 2.6.1 on the
// same stanzas; TestAddAgainstApt runs that again.
func TestAdd(t *testing.T) {
	for _, test := range addCases {
		u := universe(t, append(slices.Clone(tiny), test.stanzas...)...)
		got, err := added(t, u, Request{Add: wants(strings.Fields(test.add)...), Recommends: test.recommends})
		if err != nil {
			got = []string{err.Error()}
		}
		if s := strings.Join(got, " "); s != test.want && (err == nil || !strings.Contains(s, test.want)) {
			t.Errorf("%s: got %s\nwant %s", test.name, s, test.want)
		}
	}
}

var addCases = []struct {
	name       string
	stanzas    []string
	add        string
	recommends bool
	want       string
}{
	{"a plain package", []string{stanza("Package: aa", "Depends: bb"), stanza("Package: bb", "Pre-Depends: cc, libc"), stanza("Package: cc")},
		"aa", false, "cc=1 bb=1 +aa=1"},
	{"already in the variant", nil, "dash", false, ""},
	{"recommends off", []string{stanza("Package: aa", "Recommends: bb", "Suggests: cc"), stanza("Package: bb"), stanza("Package: cc")}, "aa", false, "+aa=1"},
	{"recommends on", []string{stanza("Package: aa", "Recommends: bb, nowhere", "Suggests: cc"), stanza("Package: bb"), stanza("Package: cc")}, "aa", true, "+aa=1 bb=1"},
	{"first alternative", []string{stanza("Package: aa", "Depends: bb | cc"), stanza("Package: bb"), stanza("Package: cc")}, "aa", false, "bb=1 +aa=1"},
	{"an alternative asked for too", []string{stanza("Package: aa", "Depends: bb | cc"), stanza("Package: bb"), stanza("Package: cc")}, "aa cc", false, "+cc=1 +aa=1"},
	{"an alternative of the variant", []string{stanza("Package: aa", "Depends: bb | dash"), stanza("Package: bb")}, "aa", false, "+aa=1"},
	{"alternative with unmet version", []string{stanza("Package: aa", "Depends: bb (>= 2) | cc"), stanza("Package: bb"), stanza("Package: cc")}, "aa", false, "cc=1 +aa=1"},
	{"alternative that cannot be installed", []string{stanza("Package: aa", "Depends: bb | cc"), stanza("Package: bb", "Depends: nowhere"), stanza("Package: cc")}, "aa", false, "cc=1 +aa=1"},
	{"alternative that fails deep down", []string{
		stanza("Package: aa", "Depends: bb | cc"), stanza("Package: bb", "Depends: dd"), stanza("Package: cc"),
		stanza("Package: dd", "Depends: ee, ff"), stanza("Package: ee"), stanza("Package: ff", "Depends: nowhere")},
		"aa", false, "cc=1 +aa=1"},
	{"virtual by priority", []string{stanza("Package: aa", "Depends: virt"), stanza("Package: bb", "Provides: virt", "Priority: optional"), stanza("Package: cc", "Provides: virt", "Priority: standard")},
		"aa", false, "cc=1 +aa=1"},
	{"virtual of equal rank, last made wins", []string{stanza("Package: aa", "Depends: virt"), stanza("Package: bb", "Provides: virt"), stanza("Package: cc", "Provides: virt")},
		"aa", false, "cc=1 +aa=1"},
	{"virtual of equal rank, made by a mention", []string{stanza("Package: a0", "Suggests: cc"), stanza("Package: aa", "Depends: virt"), stanza("Package: bb", "Provides: virt"), stanza("Package: cc", "Provides: virt")},
		"aa", false, "bb=1 +aa=1"},
	{"a real package before providers", []string{stanza("Package: aa", "Depends: virt"), stanza("Package: bb", "Provides: virt", "Priority: standard"), stanza("Package: virt")},
		"aa", false, "virt=1 +aa=1"},
	{"versioned provides", []string{stanza("Package: aa", "Depends: virt (>= 2)"), stanza("Package: bb", "Provides: virt"), stanza("Package: cc", "Provides: virt (= 1)"), stanza("Package: dd", "Provides: virt (= 2)")},
		"aa", false, "dd=1 +aa=1"},
	{"a virtual name asked for", []string{stanza("Package: bb", "Provides: virt")}, "virt", false, "+bb=1"},
	{"a virtual name with a choice", []string{stanza("Package: bb", "Provides: virt"), stanza("Package: cc", "Provides: virt")}, "virt", false, "virtual package with several providers"},
	{"a version asked for", []string{stanza("Package: aa", "Version: 1"), stanza("Package: aa", "Version: 2")}, "aa=1", false, "+aa=1"},
	{"the highest version", []string{stanza("Package: aa", "Version: 1:1"), stanza("Package: aa", "Version: 2")}, "aa", false, "+aa=1:1"},
	{"no such version", []string{stanza("Package: aa")}, "aa=7", false, "no such version"},
	{"no such package", nil, "nowhere", false, "no package of that name"},
	{"missing dependency", []string{stanza("Package: aa", "Depends: bb"), stanza("Package: bb", "Depends: cc (>= 2)"), stanza("Package: cc")}, "aa", false,
		"cannot add aa: aa 1 depends on bb; bb 1 depends on cc (>= 2); only cc 1 is available"},
	{"conflict with the variant removes", []string{stanza("Package: aa", "Conflicts: gpgv", "Provides: sqv")}, "aa", false, "+aa=1 -gpgv"},
	{"conflict with an essential package", []string{stanza("Package: aa", "Conflicts: dash")}, "aa", false, "conflicts with dash"},
	{"breaks an older version", []string{stanza("Package: aa", "Breaks: gpgv (<< 1)")}, "aa", false, "+aa=1"},
	{"two that conflict", []string{stanza("Package: aa", "Conflicts: virt", "Provides: virt"), stanza("Package: bb", "Conflicts: virt", "Provides: virt")}, "aa bb", false, "conflicts with virt"},
	{"conflict of a first alternative", []string{
		stanza("Package: aa", "Depends: xx | yy, zz"), stanza("Package: xx", "Conflicts: zz"), stanza("Package: yy"), stanza("Package: zz")},
		"aa", false, "xx 1 conflicts with zz; zz 1 is needed by another package"},
	{"self conflict through provides", []string{stanza("Package: aa", "Conflicts: virt", "Provides: virt", "Replaces: virt")}, "aa", false, "+aa=1"},
	{"self conflict by name", []string{stanza("Package: aa", "Conflicts: aa")}, "aa", false, "+aa=1"},
	{"a cycle", []string{stanza("Package: aa", "Depends: bb"), stanza("Package: bb", "Depends: cc"), stanza("Package: cc", "Depends: aa")}, "aa", false, "cc=1 bb=1 +aa=1"},
	{"any qualifier", []string{stanza("Package: aa", "Depends: bb:any (>= 1)"), stanza("Package: bb", "Multi-Arch: allowed")}, "aa", false, "bb=1 +aa=1"},
	{"any qualifier not allowed", []string{stanza("Package: aa", "Depends: bb:any"), stanza("Package: bb")}, "aa", false, "depends on bb:any"},
	{"own architecture as qualifier", []string{stanza("Package: aa", "Depends: bb:amd64"), stanza("Package: bb")}, "aa", false, "bb=1 +aa=1"},
	{"recommended one conflicts", []string{stanza("Package: aa", "Depends: cc", "Recommends: bb"), stanza("Package: bb", "Conflicts: cc"), stanza("Package: cc")}, "aa", true, "cc=1 +aa=1"},
	{"downgrade of the variant", []string{stanza("Package: libapt", "Version: 0.9")}, "libapt=0.9", false, ""},
}

func TestPockets(t *testing.T) {
	u := NewUniverse(
		index(t, IndexSource{Repository: "main"}, append(slices.Clone(tiny), stanza("Package: aa"), stanza("Package: bb", "Version: 2"))...),
		index(t, IndexSource{Repository: "security"}, stanza("Package: aa", "Version: 1+deb13u1"), stanza("Package: libc", "Version: 1.1"), stanza("Package: bb", "Version: 1")),
		index(t, IndexSource{Repository: "copy"}, stanza("Package: aa", "Version: 1+deb13u1")),
		index(t, IndexSource{Repository: "backports", NotAutomatic: true, ButAutomaticUpgrades: true},
			stanza("Package: aa", "Version: 5"), stanza("Package: libc", "Version: 5"), stanza("Package: new", "Depends: aa (>= 5)"), stanza("Package: only")),
		index(t, IndexSource{Repository: "experimental", NotAutomatic: true}, stanza("Package: only", "Version: 9"), stanza("Package: exp")),
	)
	list, err := Resolve(context.Background(), u, Request{Arch: "amd64", Suite: "trixie", Variant: VariantMinbase, Add: wants("aa", "bb", "only", "exp")})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, p := range list {
		got[p.Name] = p.Version + " " + p.Repository
	}
	for name, want := range map[string]string{
		"aa": "1+deb13u1 security", "bb": "2 main", "libc": "1.1 security", "dash": "1 main", "only": "1 backports", "exp": "1 experimental",
	} {
		if got[name] != want {
			t.Errorf("%s: got %s, want %s", name, got[name], want)
		}
	}
	// Nothing pulls a version out of a lower priority: apt does not either.
	if got, err := added(t, u, Request{Add: wants("new")}); fault.ClassOf(err) != fault.Dep {
		t.Errorf("got %v, %v", got, err)
	}
	if got, err := added(t, u, Request{Add: wants("new", "aa=5")}); err != nil || !reflect.DeepEqual(got, []string{"+aa=5", "+new=1"}) {
		t.Errorf("got %v, %v", got, err)
	}
}

// foreignPocket has packages of two architectures.
func foreignPocket() pocket {
	native := append(slices.Clone(tiny),
		stanza("Package: libx", "Multi-Arch: same"), stanza("Package: tool", "Multi-Arch: foreign"), stanza("Package: plain"), stanza("Package: data", "Architecture: all"),
		stanza("Package: libskew", "Version: 2", "Multi-Arch: same"), stanza("Package: interp", "Multi-Arch: allowed"))
	i386 := []string{
		stanza("Package: libc", "Architecture: i386", "Multi-Arch: same"),
		stanza("Package: libx", "Architecture: i386", "Multi-Arch: same"),
		stanza("Package: tool", "Architecture: i386", "Multi-Arch: foreign"),
		stanza("Package: plain", "Architecture: i386"),
		stanza("Package: libskew", "Architecture: i386", "Version: 1", "Multi-Arch: same"),
		stanza("Package: interp", "Architecture: i386", "Multi-Arch: allowed"),
		stanza("Package: app", "Architecture: i386", "Depends: libx, tool, data, interp:any"),
		stanza("Package: strict", "Architecture: i386", "Depends: plain"),
		stanza("Package: mixed", "Architecture: i386", "Depends: plain:amd64"),
		stanza("Package: data", "Architecture: all"),
	}
	return pocket{suite: "trixie", indexes: map[string]string{"amd64": strings.Join(native, ""), "i386": strings.Join(i386, "")}}
}

var foreignCases = []struct{ add, want string }{
	{"libx", "+libx=1"},
	{"libx:i386", "+libx=1:i386"},
	{"libx libx:i386", "+libx=1 +libx=1:i386"},
	{"app", "data of amd64 does not satisfy packages of i386"},
	{"tool plain", "+plain=1 +tool=1"},
	{"strict:i386", "plain=1:i386 +strict=1:i386"},
	{"strict:i386 plain", "plain 1 is asked for"},
	{"mixed:i386", "plain=1 +mixed=1:i386"},
	{"libskew libskew:i386", "libskew"},
	{"libc:i386", "conflicts with libc"},
}

func TestForeignArchitectures(t *testing.T) {
	u := universeOf(t, []pocket{foreignPocket()}, []string{"amd64", "i386"})
	for _, test := range foreignCases {
		got, err := added(t, u, Request{Arch: "amd64", Suite: "trixie", ForeignArchs: []string{"i386"}, Add: wants(strings.Fields(test.add)...)})
		s := strings.Join(got, " ")
		if err != nil {
			s = err.Error()
		}
		if s != test.want && (err == nil || !strings.Contains(s, test.want)) {
			t.Errorf("%s: got %s, want %s", test.add, s, test.want)
		}
	}
}

func TestExclude(t *testing.T) {
	u := universe(t, append(slices.Clone(tiny), stanza("Package: aa", "Depends: bb | cc", "Recommends: dd"), stanza("Package: bb"), stanza("Package: cc"), stanza("Package: dd"))...)
	req := Request{Add: wants("aa"), Recommends: true, Exclude: []string{"bb", "dd"}}
	if got, err := added(t, u, req); err != nil || !reflect.DeepEqual(got, []string{"cc=1", "+aa=1"}) {
		t.Errorf("got %v, %v", got, err)
	}
	req.Exclude = []string{"bb", "cc"}
	if _, err := added(t, u, req); fault.ClassOf(err) != fault.Dep || !strings.Contains(err.Error(), "excluded by the request") {
		t.Errorf("got %v", err)
	}
	req.Add = wants("bb")
	if _, err := added(t, u, req); fault.ClassOf(err) != fault.Dep {
		t.Errorf("got %v", err)
	}
}

// TestNothingToStartFrom is REL-26: never an almost empty tree.
func TestNothingToStartFrom(t *testing.T) {
	full := universe(t, tiny...)
	for _, test := range []struct {
		name  string
		u     *Universe
		req   Request
		class fault.Class
		says  string
	}{
		{"no index", NewUniverse(), Request{Arch: "amd64"}, fault.Dep, "no package for it"},
		{"another architecture", full, Request{Arch: "arm64"}, fault.Dep, "no package for it"},
		{"another foreign architecture", full, Request{Arch: "amd64", ForeignArchs: []string{"arm64"}}, fault.Dep, "no package for it"},
		{"no architecture", full, Request{}, fault.Config, "not valid"},
		{"unknown variant", full, Request{Arch: "amd64", Variant: "tiny"}, fault.Config, "not one of"},
		{"no essential package", universe(t, stanza("Package: apt", "Priority: required")), Request{Arch: "amd64", Variant: VariantEssential}, fault.Dep, "Essential"},
		{"no required package", universe(t, stanza("Package: apt")), Request{Arch: "amd64"}, fault.Dep, "required"},
		{"no apt", universe(t, stanza("Package: aa", "Priority: required")), Request{Arch: "amd64"}, fault.Dep, "no package apt"},
		{"broken variant", universe(t, stanza("Package: apt", "Priority: required", "Depends: nowhere")), Request{Arch: "amd64"}, fault.Dep,
			"apt 1 depends on nowhere; no package of that name is available"},
		{"malformed relation", universe(t, stanza("Package: apt", "Priority: required", "Depends: a b c")), Request{Arch: "amd64"}, fault.Format, "Depends of package \"apt\""},
	} {
		if test.req.Variant == "" {
			test.req.Variant = VariantMinbase
		}
		test.req.Suite = "trixie"
		_, err := Resolve(context.Background(), test.u, test.req)
		if err == nil || fault.ClassOf(err) != test.class || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: got %v (%s)", test.name, err, fault.ClassOf(err))
		}
	}
}

// TestHostile is REL-18: bad input ends in time, with a fault.
func TestHostile(t *testing.T) {
	many := func(n int, f func(i int) string) string {
		var b strings.Builder
		for i := range n {
			b.WriteString(f(i))
		}
		return b.String()
	}
	names := func(n int, sep string) string {
		return many(n, func(i int) string { return fmt.Sprintf("n%d%s", i, sep) }) + "n0"
	}
	for _, test := range []struct {
		name  string
		extra []string
		ok    bool
	}{
		{"100k alternatives, none there", []string{stanza("Package: aa", "Depends: "+names(100_000, " | "))}, false},
		{"100k alternatives, all providers of one name", []string{stanza("Package: aa", "Depends: virt"),
			many(100_000, func(i int) string { return stanza(fmt.Sprintf("Package: n%d", i), "Provides: virt") })}, true},
		{"20k alternatives that cannot be installed", []string{stanza("Package: aa", "Depends: "+names(20_000, " | ")),
			many(20_001, func(i int) string { return stanza(fmt.Sprintf("Package: n%d", i), "Depends: nowhere") })}, false},
		{"a chain of 50k", []string{stanza("Package: aa", "Depends: n0"),
			many(50_000, func(i int) string {
				return stanza(fmt.Sprintf("Package: n%d", i), fmt.Sprintf("Depends: n%d", i+1))
			})}, false},
		{"a clique of 300", []string{stanza("Package: aa", "Depends: n0"),
			many(300, func(i int) string { return stanza(fmt.Sprintf("Package: n%d", i), "Depends: "+names(300, ", ")) })}, true},
		{"conflicts all around", []string{stanza("Package: aa", "Depends: "+names(300, ", ")),
			many(300, func(i int) string { return stanza(fmt.Sprintf("Package: n%d", i), "Conflicts: "+names(300, ", ")) })}, false},
		{"two ways at each of 40 steps, none ends", []string{stanza("Package: aa", "Depends: l0"),
			many(40, func(i int) string {
				return stanza(fmt.Sprintf("Package: l%d", i), fmt.Sprintf("Depends: l%d | r%d", i+1, i+1)) +
					stanza(fmt.Sprintf("Package: r%d", i), fmt.Sprintf("Depends: r%d | l%d", i+1, i+1))
			})}, false},
	} {
		start := time.Now()
		u := universe(t, append(slices.Clone(tiny), test.extra...)...)
		_, err := Resolve(context.Background(), u, Request{Arch: "amd64", Suite: "trixie", Variant: VariantMinbase, Add: wants("aa")})
		if d := time.Since(start); d > 10*time.Second {
			t.Errorf("%s: took %v", test.name, d)
		}
		if test.ok != (err == nil) || err != nil && (fault.ClassOf(err) != fault.Dep || len(err.Error()) > 4000) {
			t.Errorf("%s: got %.300v", test.name, err)
		}
	}
}

func TestResolveIsCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Resolve(ctx, universe(t, tiny...), Request{Arch: "amd64", Variant: VariantMinbase}); err != context.Canceled {
		t.Errorf("got %v", err)
	}
}

func TestResolveIsDeterministic(t *testing.T) {
	stanzas := slices.Clone(tiny)
	for i := range 200 {
		stanzas = append(stanzas, stanza(fmt.Sprintf("Package: n%d", i), "Provides: virt", fmt.Sprintf("Depends: n%d | virt", (i*7+3)%250)))
	}
	var first []sources.Package
	for i := range 5 {
		got, err := Resolve(context.Background(), universe(t, stanzas...), Request{Arch: "amd64", Suite: "trixie", Variant: VariantMinbase, Add: wants("n5", "n77", "n130")})
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = got
		} else if !reflect.DeepEqual(got, first) {
			t.Fatalf("run %d differs", i)
		}
	}
}

func FuzzResolve(f *testing.F) {
	for _, test := range addCases {
		f.Add(strings.Join(tiny, "")+strings.Join(test.stanzas, ""), test.add, test.recommends)
	}
	f.Fuzz(func(t *testing.T, packages, add string, recommends bool) {
		x, err := ParseIndex(IndexSource{Name: "i"}, []byte(packages))
		if err != nil {
			return
		}
		for _, v := range []Variant{VariantEssential, VariantMinbase, VariantBuildd} {
			list, err := Resolve(context.Background(), NewUniverse(x), Request{
				Arch: "amd64", Suite: "trixie", Variant: v, Add: wants(strings.Fields(add)...), Recommends: recommends,
			})
			if err != nil {
				if fault.ClassOf(err) == fault.Failed {
					t.Errorf("no class: %v", err)
				}
				continue
			}
			seen := map[string]bool{}
			for _, p := range list {
				if seen[p.Name+":"+p.Arch] {
					t.Errorf("%s is chosen twice", p.Name)
				}
				seen[p.Name+":"+p.Arch] = true
			}
		}
	})
}
