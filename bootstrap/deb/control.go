// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"bytes"
	"strings"

	"github.com/mkmachine/mkmachine/internal/fault"
	archive "github.com/mkmachine/mkmachine/sources/deb"
)

// statusFields is the order in which dpkg writes the fields that it knows; the others
// follow in the order of the control file. "Status" and "Conffiles" are ours to fill in.
var statusFields = [...]string{
	"Package", "Essential", "Protected", "Status", "Priority", "Section", "Installed-Size",
	"Origin", "Maintainer", "Bugs", "Architecture", "Multi-Arch", "Source", "Version",
	"Replaces", "Provides", "Depends", "Pre-Depends", "Recommends", "Suggests", "Breaks",
	"Conflicts", "Enhances", "Conffiles", "Description",
}

// notInStatus are fields of a control file that dpkg does not carry over to status.
var notInStatus = map[string]bool{
	"filename": true, "size": true, "md5sum": true, "msdos-filename": true, "config-version": true,
	"triggers-pending": true, "triggers-awaited": true,
}

// relationFields are the fields that dpkg parses and writes in its own spacing.
var relationFields = map[string]bool{
	"Replaces": true, "Provides": true, "Depends": true, "Pre-Depends": true, "Recommends": true,
	"Suggests": true, "Breaks": true, "Conflicts": true, "Enhances": true,
}

// conffile is a conffile of a package and the MD5 of its shipped bytes, in hex; "" until
// they were read.
type conffile struct {
	archive.Conffile
	MD5 string
}

// formatStatus writes the stanza of a package for /var/lib/dpkg/status. state is the
// third word of Status: "unpacked" or "installed".
func formatStatus(w *bytes.Buffer, c *archive.Control, state string, conffiles []conffile) {
	known := map[string]bool{}
	for _, name := range statusFields {
		known[strings.ToLower(name)] = true
		value := c.Value(name)
		switch {
		case name == "Status":
			value = "install ok " + state
		case name == "Conffiles":
			writeConffiles(w, state, conffiles)
			continue
		case name == "Essential" || name == "Protected":
			if value != "yes" {
				continue
			}
		case relationFields[name]:
			value = formatRelations(value)
		}
		if value != "" {
			writeField(w, name, value)
		}
	}
	for _, f := range c.Fields {
		if key := strings.ToLower(f.Name); !known[key] && !notInStatus[key] && f.Value != "" {
			writeField(w, f.Name, f.Value)
		}
	}
	w.WriteByte('\n')
}

func writeField(w *bytes.Buffer, name, value string) {
	w.WriteString(name)
	w.WriteByte(':')
	if !strings.HasPrefix(value, "\n") {
		w.WriteByte(' ')
	}
	w.WriteString(value)
	w.WriteByte('\n')
}

func writeConffiles(w *bytes.Buffer, state string, conffiles []conffile) {
	if len(conffiles) == 0 {
		return
	}
	w.WriteString("Conffiles:\n")
	for _, c := range conffiles {
		digest := "newconffile"
		if state == "installed" && !c.RemoveOnUpgrade {
			digest = c.MD5
		}
		w.WriteString(" " + c.Path + " " + digest)
		if c.RemoveOnUpgrade {
			w.WriteString(" remove-on-upgrade")
		}
		w.WriteByte('\n')
	}
}

// formatRelations writes a relation field with dpkg's spacing. What does not parse is
// kept as it is: dpkg itself judges it when it reads the file.
func formatRelations(value string) string {
	alternatives, err := archive.ParseRelations(value)
	if err != nil {
		return value
	}
	var b strings.Builder
	for i, a := range alternatives {
		b.WriteString(a.String())
		switch {
		case i == len(alternatives)-1:
		case a.Or:
			b.WriteString(" | ")
		default:
			b.WriteString(", ")
		}
	}
	return b.String()
}

// interest and activation are the two sides of a package's triggers member.
type trigger struct {
	Name    string // a path when it begins with a slash
	NoAwait bool
}

// parseTriggers reads a triggers member (deb-triggers(5)).
func parseTriggers(data []byte) (interests, activations []trigger, err error) {
	for line := range strings.SplitSeq(string(data), "\n") {
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		if len(words) != 2 || !validTrigger(words[1]) {
			return nil, nil, fault.New(fault.Format, "cannot read triggers: bad line %q", line)
		}
		t := trigger{words[1], strings.HasSuffix(words[0], "-noawait")}
		switch words[0] {
		case "interest", "interest-await", "interest-noawait":
			interests = append(interests, t)
		case "activate", "activate-await", "activate-noawait":
			activations = append(activations, t)
		default:
			return nil, nil, fault.New(fault.Format, "cannot read triggers: unknown directive %q", words[0])
		}
	}
	return interests, activations, nil
}

// validTrigger: a clean absolute path, or a name that is safe as a file name below triggers/.
func validTrigger(name string) bool {
	if strings.HasPrefix(name, "/") {
		return cleanPath(name)
	}
	for i := range len(name) {
		c := name[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || i > 0 && strings.IndexByte("+-.", c) >= 0) {
			return false
		}
	}
	return name != ""
}

// cleanPath: absolute, no empty, "." or ".." component, no zero byte or newline.
func cleanPath(path string) bool {
	if !strings.HasPrefix(path, "/") || strings.ContainsAny(path, "\x00\n") {
		return false
	}
	for part := range strings.SplitSeq(path[1:], "/") {
		if part == "" || part == "." || part == ".." || len(part) > 255 {
			return false
		}
	}
	return len(path) <= 4096
}
