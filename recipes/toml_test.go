// SPDX-License-Identifier: Apache-2.0

package recipes

import (
	"testing"

	"github.com/pelletier/go-toml/v2"
)

// TestTables compares which texts we and the library's own decoder take: the rules of
// what may be added to a table are TOML's, not ours.
func TestTables(t *testing.T) {
	for _, text := range []string{
		"", "a=1", "a=1\na=2", "a.b=1\na.c=2", "a.b=1\na=2", "a=1\na.b=2", "a={b=1}\na.c=2", "a={b=1}\n[a]", "a={b=1}\n[a.c]",
		"[a]\n[a]", "[a.b]\n[a]", "[a.b]\n[a]\nc=1", "[a.b]\n[a]\nb=1", "[a]\nb.c=1\n[a.b]", "[a]\nb.c=1\n[a.b.d]", "[a.b]\n[a]\n[a.b]",
		"[[a]]\n[[a]]", "[[a]]\n[a]", "[a]\n[[a]]", "a=[]\n[[a]]", "a=[{}]\n[[a]]", "[[a]]\n[a.b]\n[[a]]\n[a.b]", "[[a]]\n[a.b]\n[a.b]", "[[a.b]]\n[a]", "[[a.b]]\n[a]\nb=1", "[a]\n[[a.b]]\n[[a.b]]\nc=1",
		"a={b.c=1,b.d=2}", "a={b=1,b=2}", "a={b.c=1,b=2}", "a={b={c=1},b.d=2}", "\"a\"=1\na=2", "a.'b'=1\n[a]", "[a]\n\"\"=1", "[a.b.c]\n[a.b]\nd=1\n[a]\ne=1", "a.b.c=1\n[a.b]\nd=1", "a.b.c=1\n[a]\nd=1",
		"[[a]]\nb=1\n[[a.c]]\nd=1\n[[a.c]]\n[a.c.e]", "[a]\nb=[{c=1},{c=1,c=2}]", "a=[[{b=1,b=1}]]", "[a]\r\nb=1\r\n", "a=1 b=2", "[a]b=1", "=1", "a=", "a", "[]", "[[a]", "a=\"\\q\"", "a='''\n'''\nb=\"\"\"\\\n  x\"\"\"",
	} {
		_, problems := parseTOML("t", []byte(text))
		var into map[string]any
		err := toml.Unmarshal([]byte(text), &into)
		if (len(problems) == 0) != (err == nil) {
			t.Errorf("%q: we say %v, the library says %v", text, problems, err)
		}
	}
}
