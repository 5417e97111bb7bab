// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"fmt"
	"slices"
	"strings"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/internal/pattern"
	"github.com/mkmachine/mkmachine/internal/rootfs"
)

// Where units are: the administrator's first (systemd.unit(5)).
const adminUnits = "etc/systemd/system"

var unitDirs = []string{adminUnits, "usr/local/lib/systemd/system", "usr/lib/systemd/system", "lib/systemd/system"}

var unitRE = pattern.New(`^[A-Za-z0-9:_.\\-]+(@[A-Za-z0-9:_.\\-]*)?\.(service|socket|timer|target|mount|automount|path|slice|swap)$`)

// unitName adds ".service" where there is no suffix.
func unitName(name string) (string, error) {
	if !unitRE.MatchString(name) {
		name += ".service"
	}
	if len(name) > 255 || !unitRE.MatchString(name) {
		return "", fault.New(fault.Config, "%q is no name of a unit", name)
	}
	return name, nil
}

// unit is a unit file of the tree.
type unit struct {
	name     string // as asked for, with its instance
	file     string // clean path of the file
	instance string
	template bool
	install  map[string][]string
}

// templateOf is "a@.service" for "a@b.service", and "" for others.
func templateOf(name string) (template, instance string) {
	prefix, rest, ok := strings.Cut(name, "@")
	if !ok {
		return "", ""
	}
	dot := strings.LastIndexByte(rest, '.')
	return prefix + "@" + rest[dot:], rest[:dot]
}

// findUnit looks for a unit; links to other names are followed, as they are aliases.
func findUnit(root *rootfs.Root, name string) (*unit, error) {
	u := &unit{name: name}
	names := []string{name}
	if t, instance := templateOf(name); t != "" {
		u.template, u.instance = true, instance
		if instance != "" {
			names = append(names, t)
		}
	}
	for range 8 {
		file, target, err := locate(root, names)
		if err != nil {
			return nil, err
		}
		if target == "" {
			u.file = file
			return u, u.readInstall(root)
		}
		if target == "/dev/null" {
			return nil, fault.Hint(fault.New(fault.State, "unit %q is masked", u.name), "take it out of services.mask, or remove /%s", file)
		}
		base := target[strings.LastIndexByte(target, '/')+1:]
		if !unitRE.MatchString(base) {
			return nil, fault.New(fault.State, "unit %q is a link to %q", u.name, target)
		}
		if slices.Contains(names, base) {
			u.file = file // a link to a file of the same name elsewhere
			return u, u.readInstall(root)
		}
		names = []string{base}
		u.name = base
	}
	return nil, fault.New(fault.State, "unit %q is a link to a link without end", name)
}

func locate(root *rootfs.Root, names []string) (file, target string, err error) {
	for _, name := range names {
		for _, dir := range unitDirs {
			file := dir + "/" + name
			st, err := root.Lstat(file)
			if rootfs.IsNotExist(err) {
				continue
			}
			if err != nil {
				return "", "", err
			}
			if st.Type == rootfs.Symlink {
				target, err = root.Readlink(file)
			}
			return file, target, err
		}
	}
	return "", "", noUnit(root, names[0])
}

func noUnit(root *rootfs.Root, name string) error {
	err := fault.New(fault.Config, "the tree has no unit %q", name)
	base := strings.TrimSuffix(name, ".service")
	if _, serr := root.Stat("etc/init.d/" + base); serr == nil {
		return fault.Hint(err, "it has the init script /etc/init.d/%s: a script with \"update-rc.d %s defaults\" enables that", base, base)
	}
	return fault.Hint(err, "check the spelling, or add the package that has it")
}

// readInstall reads the [Install] sections of the unit and its drop-ins.
func (u *unit) readInstall(root *rootfs.Root) error {
	u.install = map[string][]string{}
	files := []string{u.file}
	base := u.file[strings.LastIndexByte(u.file, '/')+1:]
	for _, dir := range slices.Backward(unitDirs) {
		names, err := root.Readdir(dir + "/" + base + ".d")
		if err != nil {
			continue
		}
		for _, n := range names {
			if strings.HasSuffix(n, ".conf") {
				files = append(files, dir+"/"+base+".d/"+n)
			}
		}
	}
	for _, f := range files {
		data, err := root.ReadFile(f, maxConfig)
		if err != nil {
			return err
		}
		parseUnit(string(data), func(section, key, value string) {
			if section != "Install" {
				return
			}
			if value == "" {
				delete(u.install, key)
				return
			}
			u.install[key] = append(u.install[key], strings.Fields(value)...)
		})
	}
	return nil
}

// parseUnit calls visit for each assignment: systemd.syntax(7) as far as units use it here.
func parseUnit(text string, visit func(section, key, value string)) {
	section, pending := "", ""
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n\r")
		trimmed := strings.TrimSpace(line)
		if strings.HasPrefix(trimmed, "#") || strings.HasPrefix(trimmed, ";") {
			continue
		}
		if body, ok := strings.CutSuffix(line, `\`); ok {
			pending += body + " "
			continue
		}
		line, pending = strings.TrimSpace(pending+line), ""
		if strings.HasPrefix(line, "[") && strings.HasSuffix(line, "]") {
			section = line[1 : len(line)-1]
			continue
		}
		if key, value, ok := strings.Cut(line, "="); ok {
			visit(section, strings.TrimSpace(key), strings.TrimSpace(value))
		}
	}
}

// expand replaces the specifiers that [Install] may have (systemd.unit(5)).
func (u *unit) expand(s, instance string) (string, error) {
	name := u.linkName(instance)
	stem := name[:strings.LastIndexByte(name, '.')]
	prefix, _, _ := strings.Cut(stem, "@")
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '%' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		i++
		switch s[i] {
		case '%':
			b.WriteByte('%')
		case 'i':
			b.WriteString(instance)
		case 'n':
			b.WriteString(name)
		case 'N':
			b.WriteString(stem)
		case 'p':
			b.WriteString(prefix)
		case 'j':
			b.WriteString(prefix[strings.LastIndexByte(prefix, '-')+1:])
		default:
			return "", fault.New(fault.Config, "unit %q installs itself with the specifier %%%c, which depends on the running system", u.name, s[i])
		}
	}
	return unitName(b.String())
}

// linkName is the unit's name with an instance put in.
func (u *unit) linkName(instance string) string {
	if !u.template || u.instance != "" {
		return u.name
	}
	return strings.Replace(u.name, "@.", "@"+instance+".", 1)
}

func enableUnit(root *rootfs.Root, name string) error {
	return enable(root, name, map[string]bool{})
}

// dependencies of [Install] and the directories their links are in.
var wants = [][2]string{{"WantedBy", ".wants"}, {"RequiredBy", ".requires"}, {"UpheldBy", ".upholds"}}

func enable(root *rootfs.Root, name string, seen map[string]bool) error {
	name, err := unitName(name)
	if err != nil || seen[name] {
		return err
	}
	seen[name] = true
	u, err := findUnit(root, name)
	if err != nil {
		return err
	}
	if len(u.install) == 0 {
		return fault.Hint(fault.New(fault.Config, "unit %q has no [Install] section: it cannot be enabled", u.name),
			"such a unit is started by others; a drop-in in [[files]] can give it an [Install] section")
	}
	instance := u.instance
	if u.template && instance == "" {
		if d := u.install["DefaultInstance"]; len(d) > 0 {
			instance = d[len(d)-1]
		} else if len(u.install["WantedBy"])+len(u.install["RequiredBy"])+len(u.install["UpheldBy"]) > 0 {
			return fault.Hint(fault.New(fault.Config, "unit %q is a template", u.name), "name an instance: \"%s\"", strings.Replace(u.name, "@.", "@NAME.", 1))
		}
	}
	for _, w := range wants {
		for _, target := range u.install[w[0]] {
			if target, err = u.expand(target, instance); err != nil {
				return err
			}
			if err := linkUnit(root, u.file, adminUnits+"/"+target+w[1]+"/"+u.linkName(instance)); err != nil {
				return err
			}
		}
	}
	for _, alias := range u.install["Alias"] {
		if alias, err = u.expand(alias, instance); err != nil {
			return err
		}
		if err := linkUnit(root, u.file, adminUnits+"/"+alias); err != nil {
			return err
		}
	}
	for _, also := range u.install["Also"] {
		if also, err = u.expand(also, instance); err == nil {
			err = enable(root, also, seen)
		}
		if err != nil {
			return fmt.Errorf("with it %q: %w", also, err)
		}
	}
	return nil
}

func linkUnit(root *rootfs.Root, file, link string) error {
	if err := root.MkdirAll(parentOf(link), 0o755, 0, 0); err != nil {
		return err
	}
	target := "/" + file
	if rest, ok := strings.CutPrefix(target, "/lib/"); ok {
		if t, err := root.Readlink("lib"); err == nil && strings.TrimPrefix(t, "/") == "usr/lib" {
			target = "/usr/lib/" + rest
		}
	}
	if st, err := root.Lstat(link); err == nil && st.Type == rootfs.File {
		return fault.New(fault.State, "/%s is a file, not a link", link)
	}
	return root.Symlink(target, link, 0, 0)
}

// disableUnit removes every link below /etc/systemd/system that enables the unit, its
// aliases, the instances of a template, and what its Also= names.
func disableUnit(root *rootfs.Root, name string) error {
	name, err := unitName(name)
	if err != nil {
		return err
	}
	names := []string{name}
	u, err := findUnit(root, name)
	if err == nil {
		for _, also := range append(u.install["Also"], u.name) {
			if n, err := unitName(also); err == nil && !slices.Contains(names, n) {
				names = append(names, n)
			}
		}
	}
	removed, rerr := removeLinks(root, names)
	if rerr != nil {
		return rerr
	}
	if err != nil && fault.ClassOf(err) == fault.Config && removed {
		return nil // links to a unit that is gone
	}
	if err != nil && fault.ClassOf(err) == fault.State {
		return nil // masked is more than disabled
	}
	return err
}

func removeLinks(root *rootfs.Root, names []string) (removed bool, err error) {
	dirs := []string{""}
	entries, err := root.Readdir(adminUnits)
	if rootfs.IsNotExist(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	for _, e := range entries {
		for _, w := range wants {
			if strings.HasSuffix(e, w[1]) {
				dirs = append(dirs, "/"+e)
			}
		}
	}
	for _, dir := range dirs {
		links, err := root.Readdir(adminUnits + dir)
		if err != nil {
			return removed, err
		}
		for _, l := range links {
			path := adminUnits + dir + "/" + l
			target, err := root.Readlink(path)
			if err != nil || target == "/dev/null" {
				continue
			}
			base := target[strings.LastIndexByte(target, '/')+1:]
			template, _ := templateOf(l)
			if dir == "" && !slices.Contains(names, base) || dir != "" && !slices.Contains(names, l) &&
				!slices.Contains(names, base) && (template == "" || !slices.Contains(names, template)) {
				continue
			}
			// An instance disables itself only, though its link leads to the template.
			if _, instance := templateOf(l); instance != "" && !slices.Contains(names, l) && !slices.Contains(names, template) {
				continue
			}
			if err := root.Remove(path); err != nil {
				return removed, err
			}
			removed = true
		}
	}
	return removed, nil
}

func maskUnit(root *rootfs.Root, name string) error {
	name, err := unitName(name)
	if err != nil {
		return err
	}
	path := adminUnits + "/" + name
	if st, err := root.Lstat(path); err == nil && st.Type != rootfs.Symlink {
		return fault.New(fault.State, "/%s exists and is no link", path)
	}
	if err := root.MkdirAll(adminUnits, 0o755, 0, 0); err != nil {
		return err
	}
	return root.Symlink("/dev/null", path, 0, 0)
}

// agettyOptions finds the options with which a console unit lets agetty call login.
var agettyOptions = pattern.New(`-o '((?:-p )?)-- `)

// consoles are the units that a login prompt is on, in containers and on hardware.
var consoles = []string{"console-getty.service", "container-getty@.service", "serial-getty@.service", "getty@.service"}

// setAutologin gives the consoles drop-ins that log a user in without asking. The command
// line is the unit's own with the user put in, so that it fits the tree's version.
func setAutologin(root *rootfs.Root, name string) error {
	a, err := openAccounts(root)
	if err != nil {
		return err
	}
	if _, err := a.user(name); err != nil || !nameRE.MatchString(name) {
		return fault.Hint(fault.New(fault.Config, "the tree has no user %q", name), "add it to [[users]]")
	}
	done := false
	for _, c := range consoles {
		u, err := findUnit(root, c)
		if err != nil {
			continue
		}
		data, err := root.ReadFile(u.file, maxConfig)
		if err != nil {
			return err
		}
		command := ""
		parseUnit(string(data), func(section, key, value string) {
			if section == "Service" && key == "ExecStart" {
				command = value
			}
		})
		program, args, ok := strings.Cut(command, "agetty ")
		if !ok {
			continue
		}
		command = program + "agetty --autologin " + name + " " + agettyOptions.ReplaceAllString(args, "-o '${1}-f -- ")
		dir := adminUnits + "/" + c + ".d"
		if err := root.MkdirAll(dir, 0o755, 0, 0); err != nil {
			return err
		}
		text := "[Service]\nExecStart=\nExecStart=" + command + "\n"
		if err := root.Put(dir+"/autologin.conf", 0o644, 0, 0, []byte(text)); err != nil {
			return err
		}
		done = true
	}
	if !done {
		return fault.Hint(fault.New(fault.Config, "the tree has no console units"), "add the package \"systemd-sysv\"")
	}
	return nil
}
