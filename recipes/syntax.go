// SPDX-License-Identifier: Apache-2.0

package recipes

import (
	"encoding/base64"
	"fmt"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/mkmachine/mkmachine/internal/pattern"
)

var (
	durationText = pattern.New(`^(?:([0-9]{1,6})h)?(?:([0-9]{1,6})m)?(?:([0-9]{1,6})s)?$`)
	nameLabel    = pattern.New(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	userName     = pattern.New(`^[a-z_][a-z0-9_-]{0,31}$`)
	envName      = pattern.New(`^[A-Za-z_][A-Za-z0-9_]*$`)
	debPackage   = pattern.New(`^[a-z0-9][a-z0-9+.-]+(:[a-z0-9][a-z0-9-]*)?(=[0-9][A-Za-z0-9.+~:-]*)?$`)
	unitName     = pattern.New(`^[A-Za-z0-9_:][A-Za-z0-9:_.\\@-]*\.(service|socket|timer|target|path|mount|automount|swap|slice|scope|device)$`)
	zoneName     = pattern.New(`^[A-Za-z0-9][A-Za-z0-9+_-]*(/[A-Za-z0-9][A-Za-z0-9+_-]*){0,2}$`)
	localeName   = pattern.New(`^(C|POSIX|[a-z]{2,3}(_[A-Z]{2})?)(\.[A-Za-z0-9-]{1,16})?(@[a-z]{1,16})?$`)
	hashText     = pattern.New(`^\$[0-9a-z]{1,8}\$[./A-Za-z0-9$,=+-]{8,384}$`)
	fingerprint  = pattern.New(`^[0-9A-Fa-f]{40}$`)
	word         = pattern.New(`^[a-z0-9][a-z0-9.+_-]{0,63}$`)
	suitePath    = pattern.New(`^[A-Za-z0-9][A-Za-z0-9.+~_-]*(/[A-Za-z0-9][A-Za-z0-9.+~_-]*)*$`)
	keyLine      = pattern.New(`^(?:.* )?(?:ssh-[a-z0-9-]+|ecdsa-sha2-[a-z0-9-]+|sk-[a-z0-9@.-]+) ([A-Za-z0-9+/]{20,}={0,2})(?: .*)?$`)
)

// reservedSuffixes would make a name look like another tool's file or unit.
var reservedSuffixes = []string{".raw", ".nspawn", ".service", ".mount"}

// CheckName says whether a name can be that of a recipe, template or machine: labels of
// lower-case letters, digits and inner hyphens, joined by dots; at most 63 bytes a label
// and 64 in all; no ending that another tool gives a meaning to.
func CheckName(name string) error {
	if problem, _ := ruleName(name); problem != "" {
		return fmt.Errorf("%s", problem)
	}
	return nil
}

func ruleName(name string) (string, string) {
	if name == "" {
		return "name is empty", ""
	}
	if len(name) > 64 {
		return fmt.Sprintf("name %.20q… is longer than 64 bytes", name), ""
	}
	for label := range strings.SplitSeq(name, ".") {
		if !nameLabel.MatchString(label) {
			return fmt.Sprintf("%q is not a name", name), "use lower-case letters, digits, inner hyphens and dots; at most 63 bytes between dots"
		}
	}
	for _, s := range reservedSuffixes {
		if strings.HasSuffix(name, s) {
			return fmt.Sprintf("name %q has the reserved ending %q", name, s), ""
		}
	}
	return "", ""
}

// oneOf is the rule of a closed list.
func oneOf(allowed ...string) rule {
	return func(text string) (string, string) {
		if slices.Contains(allowed, text) {
			return "", ""
		}
		return fmt.Sprintf("%q is not known", text), suggest(text, allowed)
	}
}

// matches is the rule of a pattern; what names it.
func matches(re *pattern.Pattern, what, hint string) rule {
	return func(text string) (string, string) {
		if re.MatchString(text) {
			return "", ""
		}
		return fmt.Sprintf("%q is not %s", text, what), hint
	}
}

// ruleLine takes any text without control characters.
func ruleLine(text string) (string, string) {
	if i := strings.IndexFunc(text, isControl); i >= 0 {
		return fmt.Sprintf("%q has a control character", text), ""
	}
	if len(text) > 4096 {
		return "longer than 4096 bytes", ""
	}
	return "", ""
}

// isControl is true for C0, DEL, C1, the line separators and the marks that reorder or hide text.
func isControl(r rune) bool {
	return r < ' ' || r >= 0x7f && r < 0xa0 || r == utf8.RuneError ||
		r >= 0x200b && r <= 0x200f || r >= 0x2028 && r <= 0x202e || r >= 0x2066 && r <= 0x2069 || r == 0xfeff
}

func nonEmptyLine(text string) (string, string) {
	if text == "" {
		return "is empty", ""
	}
	return ruleLine(text)
}

// rulePath takes an absolute, clean path.
func rulePath(text string) (string, string) {
	if problem, hint := nonEmptyLine(text); problem != "" {
		return problem, hint
	}
	if !strings.HasPrefix(text, "/") {
		return fmt.Sprintf("%q is not an absolute path", text), "begin it with /"
	}
	if clean := path.Clean(text); clean != text {
		return fmt.Sprintf("path %q is not clean", text), "write " + strconv.Quote(clean)
	}
	for part := range strings.SplitSeq(text, "/") {
		if len(part) > 255 {
			return "a name in the path is longer than 255 bytes", ""
		}
	}
	return "", ""
}

// ruleTreePath takes a path at which a file can be put: not the root, and not below what
// the runner mounts over.
func ruleTreePath(text string) (string, string) {
	if problem, hint := rulePath(text); problem != "" {
		return problem, hint
	}
	top, _, _ := strings.Cut(text[1:], "/")
	switch top {
	case "":
		return "a file cannot be the root directory", ""
	case "proc", "sys", "dev", "run":
		return fmt.Sprintf("%q would be hidden: /%s is mounted when a machine runs", text, top), ""
	}
	return "", ""
}

func ruleOwner(text string) (string, string) {
	user, group, both := strings.Cut(text, ":")
	ok := userOrID(user) && (!both || userOrID(group))
	if !ok {
		return fmt.Sprintf("%q is not an owner", text), `write "NAME", "NAME:GROUP" or numbers up to 65534`
	}
	return "", ""
}

func userOrID(text string) bool {
	if text == "" || text[0] < '0' || text[0] > '9' {
		return userName.MatchString(text)
	}
	n, err := strconv.ParseUint(text, 10, 16)
	return err == nil && n < 65535 && (text == "0" || text[0] != '0')
}

func ruleEnvName(text string) (string, string) {
	return matches(envName, "a name of an environment variable", "use letters, digits and _; not a digit first")(text)
}

func ruleEnvValue(text string) (string, string) {
	if strings.ContainsAny(text, "\n\r\x00") {
		return "has a newline or NUL", "put longer texts into a file with [[files]]"
	}
	if len(text) > 32<<10 {
		return "longer than 32 KiB", ""
	}
	return "", ""
}

// ruleURL takes http and https with a host. Who may be reached is decided when dialling.
func ruleURL(text string) (string, string) {
	if problem, hint := nonEmptyLine(text); problem != "" {
		return problem, hint
	}
	shown := redact(text)
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return fmt.Sprintf("%q is not a URL", shown), ""
	case u.Scheme != "https" && u.Scheme != "http":
		return fmt.Sprintf("%q is not an http or https URL", shown), ""
	case u.Host == "" || u.Hostname() == "":
		return fmt.Sprintf("URL %q has no host", shown), ""
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return fmt.Sprintf("URL %q has a query or fragment", shown), "give the address of a directory"
	case strings.ContainsAny(text, " \\"):
		return fmt.Sprintf("%q is not a URL", shown), "write a space as %20"
	}
	return "", ""
}

// ruleFingerprint takes 40 hex digits, with or without the spaces that gpg prints.
func ruleFingerprint(text string) (string, string) {
	if fingerprint.MatchString(text) {
		return "", ""
	}
	hint := "give all 40 hex digits, without spaces: gpg --show-keys --with-fingerprint FILE"
	if n := len(strings.TrimPrefix(text, "0x")); n == 8 || n == 16 {
		return fmt.Sprintf("%q is a short key id, which others can forge", text), hint
	}
	return fmt.Sprintf("%q is not a full fingerprint", text), hint
}

func ruleSnapshot(text string) (string, string) {
	if _, err := time.Parse(time.RFC3339, text); err != nil {
		return fmt.Sprintf("%q is not a time", text), `for example "2026-09-20T00:00:00Z"`
	}
	return "", ""
}

func rulePasswordHash(text string) (string, string) {
	if hashText.MatchString(text) {
		return "", ""
	}
	// Not quoted: it may be somebody's password.
	return "not a crypt(5) hash", "make one with: mkpasswd, or openssl passwd -6"
}

func ruleSSHKey(text string) (string, string) {
	if problem, hint := ruleLine(text); problem != "" {
		return problem, hint
	}
	if m := keyLine.FindStringSubmatch(text); m != nil {
		if _, err := base64.StdEncoding.DecodeString(m[1]); err == nil {
			return "", ""
		}
	}
	return fmt.Sprintf("%.40q is not a public key", text), "write one line of a .pub file"
}

func ruleUnit(text string) (string, string) {
	if unitName.MatchString(text) && len(text) <= 255 {
		return "", ""
	}
	hint := ""
	if unitName.MatchString(text + ".service") {
		hint = "did you mean " + strconv.Quote(text+".service") + "?"
	}
	return fmt.Sprintf("%q is not a unit name", text), hint
}

// ruleBind takes systemd-nspawn's SOURCE[:TARGET[:OPTIONS]].
func ruleBind(text string) (string, string) {
	if problem, hint := nonEmptyLine(text); problem != "" {
		return problem, hint
	}
	parts := strings.SplitN(text, ":", 3)
	for i, p := range parts[:min(len(parts), 2)] {
		if i == 0 {
			p = strings.TrimLeft(p, "+-")
			if p == "" && len(parts) > 1 {
				continue // a throw-away directory
			}
		}
		if problem, hint := rulePath(p); problem != "" {
			return problem, hint
		}
	}
	return "", ""
}

// rulePort takes systemd-nspawn's [PROTOCOL:]HOST[:CONTAINER].
func rulePort(text string) (string, string) {
	hint := `for example "8080", "8080:80" or "udp:53:53"`
	parts := strings.Split(text, ":")
	if parts[0] == "tcp" || parts[0] == "udp" {
		parts = parts[1:]
	}
	if len(parts) == 0 || len(parts) > 2 {
		return fmt.Sprintf("%q is not a port", text), hint
	}
	for _, p := range parts {
		if n, err := strconv.ParseUint(p, 10, 16); err != nil || n == 0 || p[0] == '0' {
			return fmt.Sprintf("%q is not a port", text), hint
		}
	}
	return "", ""
}

func quote(text string) string { return strconv.Quote(text) }

func ruleArgument(text string) (string, string) {
	if strings.ContainsRune(text, 0) {
		return "has a NUL", ""
	}
	return "", ""
}
