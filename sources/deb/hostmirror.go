// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"errors"
	"io"
	"io/fs"
	"net/url"
	"slices"
	"strings"
)

// maxHostFile bounds each of the host's configuration files, in bytes.
const maxHostFile = 1 << 20

// HostMirrors says which mirrors this host's apt uses for its own distribution, by mirror
// family (debian, debian-security, ubuntu, ubuntu-ports), in the order of its configuration.
// fsys is the host's root. Files that cannot be read or understood are passed over: this is
// a wish for a near mirror, and everything that comes from one is verified.
func HostMirrors(fsys fs.FS) map[string][]string {
	id := osReleaseID(fsys)
	if id != "debian" && id != "ubuntu" {
		return nil
	}
	var entries []aptSource
	if data, ok := readHostFile(fsys, "etc/apt/sources.list"); ok {
		entries = append(entries, parseOneLine(data)...)
	}
	names, err := fs.ReadDir(fsys, "etc/apt/sources.list.d")
	if err == nil {
		for _, e := range names {
			path := "etc/apt/sources.list.d/" + e.Name()
			data, ok := readHostFile(fsys, path)
			switch {
			case !ok:
			case strings.HasSuffix(path, ".list"):
				entries = append(entries, parseOneLine(data)...)
			case strings.HasSuffix(path, ".sources"):
				entries = append(entries, parseDeb822(data)...)
			}
		}
	}
	out := map[string][]string{}
	for _, e := range entries {
		family := e.family(id)
		if family == "" {
			continue
		}
		if u := strings.TrimRight(e.uri, "/"); !slices.Contains(out[family], u) {
			out[family] = append(out[family], u)
		}
	}
	return out
}

// aptSource is one address with one suite.
type aptSource struct {
	uri, suite string
	components []string
	signedBy   string
}

// family is the mirror family that the entry serves for a host of the distribution id, or
// "" where it is somebody else's repository.
func (e aptSource) family(id string) string {
	u, err := url.Parse(e.uri)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https" && u.Scheme != "file") || !slices.Contains(e.components, "main") {
		return ""
	}
	if e.signedBy != "" && !strings.Contains(e.signedBy, id+"-archive-keyring") {
		return ""
	}
	last := u.Path[strings.LastIndexByte(strings.TrimRight(u.Path, "/"), '/')+1:]
	last = strings.TrimRight(last, "/")
	security := strings.HasSuffix(e.suite, "-security") || strings.HasSuffix(e.suite, "/updates")
	switch {
	case id == "debian" && last == "debian" && !security:
		return "debian"
	case id == "debian" && security && (last == "debian-security" || strings.HasPrefix(u.Hostname(), "security.")):
		return "debian-security"
	case id == "ubuntu" && last == "ubuntu" && !security:
		return "ubuntu"
	case id == "ubuntu" && last == "ubuntu-ports" && !security:
		return "ubuntu-ports"
	}
	return ""
}

func readHostFile(fsys fs.FS, path string) (string, bool) {
	f, err := fsys.Open(path)
	if err != nil {
		return "", false
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return "", false
	}
	data, err := io.ReadAll(io.LimitReader(f, maxHostFile))
	if err != nil && !errors.Is(err, io.EOF) {
		return "", false
	}
	return string(data), true
}

func osReleaseID(fsys fs.FS) string {
	data, ok := readHostFile(fsys, "etc/os-release")
	if !ok {
		if data, ok = readHostFile(fsys, "usr/lib/os-release"); !ok {
			return ""
		}
	}
	for line := range strings.Lines(data) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "ID="); ok {
			return strings.Trim(v, `"'`)
		}
	}
	return ""
}

// parseOneLine reads "deb [options] URI SUITE COMPONENT…" lines.
func parseOneLine(data string) []aptSource {
	var out []aptSource
	for line := range strings.Lines(data) {
		line, _, _ = strings.Cut(line, "#")
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), "deb")
		if !ok || rest == "" || (rest[0] != ' ' && rest[0] != '\t') {
			continue
		}
		var e aptSource
		rest = strings.TrimSpace(rest)
		if strings.HasPrefix(rest, "[") {
			options, after, ok := strings.Cut(rest[1:], "]")
			if !ok {
				continue
			}
			for o := range strings.FieldsSeq(options) {
				if v, ok := strings.CutPrefix(o, "signed-by="); ok {
					e.signedBy = v
				}
			}
			rest = after
		}
		words := strings.Fields(rest)
		if len(words) < 3 {
			continue
		}
		e.uri, e.suite, e.components = words[0], words[1], words[2:]
		out = append(out, e)
	}
	return out
}

// parseDeb822 reads paragraphs of a .sources file.
func parseDeb822(data string) []aptSource {
	var out []aptSource
	fields := map[string]string{}
	name := ""
	flush := func() {
		if strings.EqualFold(fields["enabled"], "no") || !slices.Contains(strings.Fields(fields["types"]), "deb") {
			clear(fields)
			return
		}
		for uri := range strings.FieldsSeq(fields["uris"]) {
			for suite := range strings.FieldsSeq(fields["suites"]) {
				out = append(out, aptSource{uri, suite, strings.Fields(fields["components"]), fields["signed-by"]})
			}
		}
		clear(fields)
	}
	for line := range strings.Lines(data) {
		line = strings.TrimRight(line, "\r\n")
		switch {
		case strings.HasPrefix(line, "#"):
		case strings.TrimSpace(line) == "":
			flush()
			name = ""
		case line[0] == ' ' || line[0] == '\t':
			fields[name] += "\n" + strings.TrimSpace(line)
		default:
			key, value, ok := strings.Cut(line, ":")
			if ok {
				name = strings.ToLower(key)
				fields[name] = strings.TrimSpace(value)
			}
		}
	}
	flush()
	return out
}
