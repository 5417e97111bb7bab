// SPDX-License-Identifier: Apache-2.0

package deb_test

import (
	"fmt"
	"testing"
	"testing/fstest"

	"github.com/mkmachine/mkmachine/sources/deb"
)

func TestHostMirrors(t *testing.T) {
	const debian = "PRETTY_NAME=\"Debian\"\nID=debian\n"
	for _, c := range []struct {
		name, osRelease string
		files           map[string]string
		want            string
	}{
		{"other distribution", "ID=fedora\n", map[string]string{"sources.list": "deb http://m.example/debian trixie main\n"}, "map[]"},
		{"no os-release", "", nil, "map[]"},
		{"one-line", debian, map[string]string{"sources.list": "# comment\ndeb http://m.example/debian/ trixie main contrib # x\ndeb-src http://src.example/debian trixie main\n" +
			"deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://m.example/debian trixie-updates main\n" +
			"deb http://s.example/debian-security trixie-security main\n"}, "map[debian:[http://m.example/debian] debian-security:[http://s.example/debian-security]]"},
		{"deb822", debian, map[string]string{
			"sources.list.d/debian.sources": "Types: deb deb-src\nURIs: http://a.example/debian\n https://b.example/debian\nSuites: trixie trixie-updates\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n" +
				"# second\nTypes: deb\nURIs: http://a.example/debian-security\nSuites: trixie-security\nComponents: main\n",
			"sources.list.d/off.sources": "Enabled: no\nTypes: deb\nURIs: http://off.example/debian\nSuites: trixie\nComponents: main\n",
			"sources.list.d/src.sources": "Types: deb-src\nURIs: http://src.example/debian\nSuites: trixie\nComponents: main\n",
		}, "map[debian:[http://a.example/debian https://b.example/debian] debian-security:[http://a.example/debian-security]]"},
		{"strangers", debian, map[string]string{
			"sources.list": "deb https://vendor.example/linux/debian trixie stable\ndeb [signed-by=/etc/apt/keyrings/v.gpg] https://v.example/debian trixie main\n" +
				"deb https://v.example/repo trixie main\ndeb cdrom:[x]/ trixie main\ndeb mirror+file:/etc/m trixie main\n",
			"sources.list.d/x.disabled": "deb http://m.example/debian trixie main\n"}, "map[]"},
		{"directory of this machine", debian, map[string]string{"sources.list": "deb file:///srv/mirror/debian trixie main\n"}, "map[debian:[file:///srv/mirror/debian]]"},
		{"ubuntu", "ID=ubuntu\nID_LIKE=debian\n", map[string]string{"sources.list": "deb http://u.example/ubuntu noble main universe\ndeb http://sec.example/ubuntu noble-security main\ndeb http://p.example/ubuntu-ports noble main\n"},
			"map[ubuntu:[http://u.example/ubuntu] ubuntu-ports:[http://p.example/ubuntu-ports]]"},
		{"nonsense", debian, map[string]string{"sources.list": "deb\ndeb [x\ndeb a b\ndeb ::: x main\n\x00\xff\n", "sources.list.d/a.sources": ": x\n y\nURIs\n"}, "map[]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			fsys := fstest.MapFS{}
			if c.osRelease != "" {
				fsys["etc/os-release"] = &fstest.MapFile{Data: []byte(c.osRelease)}
			}
			for name, data := range c.files {
				fsys["etc/apt/"+name] = &fstest.MapFile{Data: []byte(data)}
			}
			if got := fmt.Sprint(deb.HostMirrors(fsys)); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}
