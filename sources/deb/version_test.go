// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"fmt"
	"math/rand"
	"os/exec"
	"strings"
	"testing"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/internal/kernel/kerneltest"
)

// ascending is a chain of versions, each below the next; "=" joins equal ones.
var ascending = []string{
	"0~~", "0~~a", "0~", "0=0-0=0:0=000", "0a", "0.1", "0.a", "0.+", "1~rc1-1", "1~rc2", "1=1-0=0:1=01",
	"1-0.1", "1-1~bpo12+1", "1-1", "1-1+b1", "1-1+deb12u1", "1-2", "1-10", "1+dfsg-1", "1.0~", "1.0=1.00",
	"1.0.1", "1.2.3", "1.2.3a", "1.2.3+b1", "1.2.10", "2", "9", "10", "99999999999999999999999999",
	"99999999999999999999999999+1", "1:0", "1:0.1-2", "2:0~", "10:0",
}

func TestCompare(t *testing.T) {
	for i, group := range ascending {
		for j, other := range ascending {
			for a := range strings.SplitSeq(group, "=") {
				for b := range strings.SplitSeq(other, "=") {
					va, err := ParseVersion(a)
					if err != nil {
						t.Fatal(err)
					}
					vb, err := ParseVersion(b)
					if err != nil {
						t.Fatal(err)
					}
					if got := sign(va.Compare(vb)); got != sign(i-j) {
						t.Errorf("compare %s %s: got %d", a, b, got)
					}
					if got := sign(CompareVersions(a, b)); got != sign(i-j) {
						t.Errorf("compare strings %s %s: got %d", a, b, got)
					}
				}
			}
		}
	}
}

func sign(n int) int {
	switch {
	case n < 0:
		return -1
	case n > 0:
		return 1
	}
	return 0
}

func TestParseVersionRefuses(t *testing.T) {
	for _, s := range []string{
		"", "1:2:3", "1 0", " 1", "1 ", ":1", "1:", "a:1", "-1:1", "+1:1", "99999999999:1", "2147483648:1",
		"1-", "-1", "1:-1", "a1", "~1", ".1", "1_2", "1-1_2", "1/2", "1\n", "1\x00", "1é", "1-a:b", "1%3a2",
		strings.Repeat("1", 1<<16), strings.Repeat("1", 256),
	} {
		if _, err := ParseVersion(s); fault.ClassOf(err) != fault.Format || err == nil {
			t.Errorf("%.40q: got %v", s, err)
		}
	}
	if v, err := ParseVersion("2147483647:1.2-3-4"); err != nil || v != (Version{1<<31 - 1, "1.2-3", "4"}) {
		t.Errorf("got %v, %v", v, err)
	}
}

// TestVersionsAgainstDpkg compares pairs with dpkg. One shell runs all comparisons, as
// starting a program for each from here would take most of the time.
func TestVersionsAgainstDpkg(t *testing.T) {
	dpkg := kerneltest.Program(t, "dpkg")
	kerneltest.Program(t, "sh")
	rnd := rand.New(rand.NewSource(1))
	var pairs [][2]string
	for range 400 {
		a := randomVersion(rnd)
		b := randomVersion(rnd)
		if rnd.Intn(2) == 0 { // a near miss finds more
			b = mutate(rnd, a)
		}
		if _, err := ParseVersion(a); err != nil {
			continue
		}
		if _, err := ParseVersion(b); err != nil {
			continue
		}
		pairs = append(pairs, [2]string{a, b})
	}
	var script strings.Builder
	for _, p := range pairs {
		fmt.Fprintf(&script, "if %s --compare-versions '%s' lt '%s'; then echo -1; elif %s --compare-versions '%s' eq '%s'; then echo 0; else echo 1; fi\n",
			dpkg, p[0], p[1], dpkg, p[0], p[1])
	}
	cmd := exec.Command("sh")
	cmd.Stdin = strings.NewReader(script.String())
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	answers := strings.Fields(string(out))
	if len(answers) != len(pairs) {
		t.Fatalf("%d answers for %d pairs", len(answers), len(pairs))
	}
	for i, p := range pairs {
		va, _ := ParseVersion(p[0])
		vb, _ := ParseVersion(p[1])
		got := fmt.Sprint(sign(va.Compare(vb)))
		if got != answers[i] || fmt.Sprint(sign(CompareVersions(p[0], p[1]))) != got {
			t.Errorf("%s %s: got %s, dpkg says %s", p[0], p[1], got, answers[i])
		}
	}
}

func randomVersion(rnd *rand.Rand) string {
	const chars = "0019ab~+.-"
	b := []byte{byte('0' + rnd.Intn(3))}
	for range rnd.Intn(7) {
		b = append(b, chars[rnd.Intn(len(chars))])
	}
	if rnd.Intn(4) == 0 {
		return fmt.Sprintf("%d:%s", rnd.Intn(3), b)
	}
	return string(b)
}

func mutate(rnd *rand.Rand, s string) string {
	const chars = "01a~+."
	i := rnd.Intn(len(s) + 1)
	if rnd.Intn(2) == 0 && i < len(s) {
		return s[:i] + s[i+1:]
	}
	return s[:i] + string(chars[rnd.Intn(len(chars))]) + s[i:]
}

func FuzzVersion(f *testing.F) {
	for _, s := range ascending {
		f.Add(s, "1:1.0-1")
	}
	f.Add("1:2:3", "-")
	f.Fuzz(func(t *testing.T, a, b string) {
		x := CompareVersions(a, b)
		if y := CompareVersions(b, a); sign(x) != -sign(y) {
			t.Errorf("%q %q: %d and back %d", a, b, x, y)
		}
		if CompareVersions(a, a) != 0 {
			t.Errorf("%q is not equal to itself", a)
		}
		va, err := ParseVersion(a)
		if err != nil {
			if fault.ClassOf(err) != fault.Format {
				t.Errorf("%q: class of %v", a, err)
			}
			return
		}
		if vb, err := ParseVersion(b); err == nil && sign(va.Compare(vb)) != sign(x) {
			t.Errorf("%q %q: parsed %d, as strings %d", a, b, va.Compare(vb), x)
		}
	})
}
