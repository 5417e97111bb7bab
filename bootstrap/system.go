// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"fmt"
	"strings"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/internal/pattern"
	"github.com/mkmachine/mkmachine/internal/rootfs"
)

// System is configuration that every distribution has. Empty values leave the tree's alone.
type System struct {
	Hostname  Text
	Timezone  Text // as below /usr/share/zoneinfo: "Europe/Berlin"
	Locale    Text // "C.UTF-8", "de_DE.UTF-8"
	Enable    []Text
	Disable   []Text
	Mask      []Text
	Autologin Text // user logged in on the consoles
	Pos       fault.Pos
}

func setSystem(root *rootfs.Root, s *System) (commands [][]string, err error) {
	parts := []struct {
		what  string
		value []Text
		apply func(root *rootfs.Root, value string) error
	}{
		{"set host name", []Text{s.Hostname}, SetHostname},
		{"set time zone", []Text{s.Timezone}, setTimezone},
		{"set locale", []Text{s.Locale}, func(root *rootfs.Root, value string) (err error) {
			commands, err = setLocale(root, value)
			return err
		}},
		{"disable unit", s.Disable, disableUnit},
		{"enable unit", s.Enable, enableUnit},
		{"mask unit", s.Mask, maskUnit},
		{"log in automatically", []Text{s.Autologin}, setAutologin},
	}
	for _, p := range parts {
		for _, v := range p.value {
			if v.Value == "" {
				continue
			}
			if err := p.apply(root, v.Value); err != nil {
				if v.Pos.File == "" {
					v.Pos = s.Pos
				}
				return nil, fault.At(fmt.Errorf("cannot %s %q: %w", p.what, v.Value, err), v.Pos)
			}
		}
	}
	return commands, nil
}

// maxConfig is the size in bytes of the largest configuration file that is read.
const maxConfig = 1 << 20

var hostnameRE = pattern.New(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$`)

// SetHostname writes /etc/hostname and the name's line in /etc/hosts.
func SetHostname(root *rootfs.Root, name string) error {
	if len(name) > 64 || !hostnameRE.MatchString(name) {
		return fault.New(fault.Config, "%q is no host name: at most 64 lower-case letters, digits, dots and dashes", name)
	}
	if err := root.Put("etc/hostname", 0o644, 0, 0, []byte(name+"\n")); err != nil {
		return err
	}
	names := name
	if short, _, dotted := strings.Cut(name, "."); dotted {
		names += " " + short
	}
	old, err := root.ReadFile("etc/hosts", maxConfig)
	if rootfs.IsNotExist(err) {
		old, err = []byte("127.0.0.1\tlocalhost\n::1\t\tlocalhost ip6-localhost ip6-loopback\n"), nil
	}
	if err != nil {
		return err
	}
	// 127.0.1.1 is Debian's address for the machine's own name; other systems have no rule.
	line := "127.0.1.1\t" + names + "\n"
	var text strings.Builder
	done := false
	for l := range strings.Lines(string(old)) {
		if f := strings.Fields(l); len(f) > 0 && f[0] == "127.0.1.1" {
			if !done {
				text.WriteString(line)
			}
			done = true
			continue
		}
		text.WriteString(strings.TrimSuffix(l, "\n") + "\n")
		if f := strings.Fields(l); !done && len(f) > 0 && f[0] == "127.0.0.1" {
			text.WriteString(line)
			done = true
		}
	}
	if !done {
		text.WriteString(line)
	}
	return root.Put("etc/hosts", 0o644, 0, 0, []byte(text.String()))
}

var zoneRE = pattern.New(`^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*$`)

func setTimezone(root *rootfs.Root, name string) error {
	if len(name) > 255 || !zoneRE.MatchString(name) {
		return fault.New(fault.Config, "%q is no name of a time zone", name)
	}
	zone := "/usr/share/zoneinfo/" + name
	if st, err := root.Stat(zone); err != nil || st.Type != rootfs.File {
		return fault.Hint(fault.New(fault.Config, "the tree has no %s", zone), "check the spelling, or add the package \"tzdata\" (or \"tzdata-legacy\" for old names)")
	}
	if err := root.Symlink(zone, "etc/localtime", 0, 0); err != nil {
		return err
	}
	if _, err := root.Lstat("etc/timezone"); err != nil {
		return nil // a Debian file that new releases no longer have
	}
	return root.Put("etc/timezone", 0o644, 0, 0, []byte(name+"\n"))
}

var localeRE = pattern.New(`^([a-z]{2,3}(_[A-Z]{2})?|C|POSIX)(\.[A-Za-z0-9-]+)?(@[a-z]+)?$`)

// setLocale makes a locale the default. One that must be compiled first, which only the
// tree's own locale-gen can do, comes back as a command.
func setLocale(root *rootfs.Root, name string) (commands [][]string, err error) {
	m := localeRE.FindStringSubmatch(name)
	if m == nil {
		return nil, fault.New(fault.Config, "%q is no name of a locale", name)
	}
	if builtin := name == "C" || name == "POSIX" || strings.EqualFold(name, "C.UTF-8") || strings.EqualFold(name, "C.utf8"); !builtin {
		if commands, err = generateLocale(root, name, strings.TrimPrefix(m[3], ".")); err != nil {
			return nil, err
		}
	}
	line := []byte("LANG=" + name + "\n")
	wrote := false
	for _, path := range []string{"etc/locale.conf", "etc/default/locale"} {
		st, err := root.Lstat(path)
		if err != nil || st.Type != rootfs.File {
			continue
		}
		if err := replaceSetting(root, path, "LANG", string(line)); err != nil {
			return nil, err
		}
		wrote = true
	}
	if wrote {
		return commands, nil
	}
	path := "etc/locale.conf"
	if _, err := root.Stat("etc/debian_version"); err == nil {
		if target, err := root.Readlink("etc/default/locale"); err != nil || !strings.HasSuffix(target, "/locale.conf") {
			path = "etc/default/locale"
			if err := root.MkdirAll("etc/default", 0o755, 0, 0); err != nil {
				return nil, err
			}
		}
	}
	return commands, root.Put(path, 0o644, 0, 0, line)
}

// replaceSetting replaces the lines KEY=… of a shell-like file by line, or appends it.
func replaceSetting(root *rootfs.Root, path, key, line string) error {
	old, err := root.ReadFile(path, maxConfig)
	if err != nil {
		return err
	}
	var text strings.Builder
	done := false
	for l := range strings.Lines(string(old)) {
		if strings.HasPrefix(strings.TrimSpace(l), key+"=") {
			if !done {
				text.WriteString(line)
			}
			done = true
			continue
		}
		text.WriteString(strings.TrimSuffix(l, "\n") + "\n")
	}
	if !done {
		text.WriteString(line)
	}
	return root.Put(path, 0o644, 0, 0, []byte(text.String()))
}

// generateLocale enables the locale in locale.gen(5).
func generateLocale(root *rootfs.Root, name, charset string) ([][]string, error) {
	if charset == "" {
		charset = "ISO-8859-1"
	}
	if strings.EqualFold(charset, "utf8") {
		charset = "UTF-8"
	}
	if _, err := root.Stat("usr/sbin/locale-gen"); err != nil {
		return nil, fault.Hint(fault.New(fault.Config, "the tree cannot make locales"), "add the package \"locales\", or use \"C.UTF-8\", which needs none")
	}
	want := name + " " + charset
	supported, err := root.ReadFile("usr/share/i18n/SUPPORTED", maxConfig)
	if err == nil && !hasLine(string(supported), want) {
		return nil, fault.Hint(fault.New(fault.Config, "the tree does not know the locale"), "/usr/share/i18n/SUPPORTED lists those it knows, such as \"de_DE.UTF-8\"")
	}
	old, err := root.ReadFile("etc/locale.gen", maxConfig)
	if err != nil && !rootfs.IsNotExist(err) {
		return nil, err
	}
	var text strings.Builder
	done := false
	for l := range strings.Lines(string(old)) {
		l = strings.TrimSuffix(l, "\n")
		if strings.Join(strings.Fields(strings.TrimLeft(l, "# ")), " ") == want && !done {
			l, done = want, true
		}
		text.WriteString(l + "\n")
	}
	if !done {
		text.WriteString(want + "\n")
	}
	if err := root.Put("etc/locale.gen", 0o644, 0, 0, []byte(text.String())); err != nil {
		return nil, err
	}
	return [][]string{{"/usr/sbin/locale-gen"}}, nil
}

func hasLine(text, want string) bool {
	for l := range strings.Lines(text) {
		if strings.Join(strings.Fields(l), " ") == want {
			return true
		}
	}
	return false
}
