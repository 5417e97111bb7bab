// SPDX-License-Identifier: Apache-2.0

package recipes

import (
	"slices"
	"strings"
)

// Defaults of keys that have one value for everybody; docs/recipe.md lists them.
const (
	defaultFileMode      = 0o644
	defaultOwner         = "root:root"
	defaultScriptTimeout = 3600
	defaultTestTimeout   = 300
	defaultInterpreter   = "/bin/sh -e"
)

// body are the keys of a whole document, laid over r. name, description and extends are
// read before, by the loader.
func (d *decoder) body(r *Recipe) []field {
	read := func(*entry) {}
	var repositories, files, users, scripts, tests names
	return []field{
		{"schema", read}, {"name", read}, {"description", read}, {"extends", read},
		d.section("source", func(n *node) []field { return d.source(n, &r.Source) }),
		d.section("packages", func(n *node) []field { return d.packages(n, &r.Packages) }),
		d.sections("repository", func(n *node) {
			x := d.repository(n)
			if repositories.first(d, "repository", x.Name) {
				r.Repositories = put(r.Repositories, x, func(x Repository) string { return x.Name.Value })
			}
		}),
		d.sections("files", func(n *node) {
			x := d.file(n)
			if files.first(d, "files", x.Path) {
				r.Files = put(r.Files, x, func(x File) string { return x.Path.Value })
			}
		}),
		d.sections("users", func(n *node) {
			x := d.user(n)
			if users.first(d, "users", x.Name) {
				r.Users = put(r.Users, x, func(x User) string { return x.Name.Value })
			}
		}),
		d.section("system", func(n *node) []field { return d.system(n, &r.System) }),
		d.sections("script", func(n *node) {
			x := d.script(n)
			if scripts.first(d, "script", x.Name) {
				r.Scripts = put(r.Scripts, x, func(x Script) string { return x.Name.Value })
			}
		}),
		d.section("machine", func(n *node) []field { return d.machine(n, &r.Machine) }),
		d.sections("test", func(n *node) {
			x := d.test(n)
			if tests.first(d, "test", x.Name) {
				r.Tests = put(r.Tests, x, func(x Test) string { return x.Name.Value })
			}
		}),
	}
}

// names remembers the identities that one document has used in a list of tables.
type names struct{ seen []String }

// first reports a second table with the same identity. No identity is never the same.
func (ns *names) first(d *decoder, section string, name String) bool {
	if name.Value == "" {
		return true
	}
	if i := position(ns.seen, name.Value); i >= 0 {
		d.problem(name.Pos, "", "[[%s]] %q is written twice, first in line %d", section, name.Value, ns.seen[i].Pos.Line)
		return false
	}
	ns.seen = append(ns.seen, name)
	return true
}

// put replaces the inherited element of the same identity, or appends.
func put[T any](list []T, x T, identity func(T) string) []T {
	id := identity(x)
	if id != "" {
		if i := slices.IndexFunc(list, func(y T) bool { return identity(y) == id }); i >= 0 {
			out := slices.Clone(list)
			out[i] = x
			return out
		}
	}
	return append(slices.Clip(list), x)
}

// require reports a missing key of a table.
func (d *decoder) require(n *node, keys ...string) {
	for _, k := range keys {
		if n.get(k) == nil {
			d.problem(n.pos, "", "missing key %q", k)
		}
	}
}

// either reports a table that has not exactly one of two keys.
func (d *decoder) either(n *node, a, b string) {
	switch {
	case n.get(a) == nil && n.get(b) == nil:
		d.problem(n.pos, "", "missing key %q or %q", a, b)
	case n.get(a) != nil && n.get(b) != nil:
		d.problem(n.get(b).pos, "", "%q and %q exclude each other", a, b)
	}
}

func (d *decoder) source(n *node, s *Source) []field {
	s.Pos = n.pos
	return []field{
		d.str("kind", &s.Kind, ruleKind),
		d.str("distribution", &s.Distribution, matches(word, "a name", "")),
		d.str("suite", &s.Suite, matches(word, "a name", "")),
		d.str("variant", &s.Variant, matches(word, "a name", "")),
		d.str("arch", &s.Arch, matches(word, "a name", "")),
		d.list("components", &s.Components, matches(word, "a name", "")),
		d.list("pockets", &s.Pockets, matches(word, "a name", "")),
		d.snapshot("snapshot", &s.Snapshot),
		d.str("mirror", &s.Mirror, ruleURL),
		d.fingerprints("keys", &s.Keys),
		d.reference("key_file", &s.KeyFile, &s.KeyData, maxKeyFile),
		d.str("insecure", &s.Insecure, nonEmptyLine),
	}
}

func ruleKind(text string) (string, string) {
	kind, known := kindOf(text)
	switch {
	case !known:
		return "kind " + quote(text) + " is not known", suggest(text, kindNames(true))
	case !kind.supported:
		return "kind " + quote(text) + " is not supported by this version", "supported: " + strings.Join(kindNames(true), ", ")
	}
	return "", ""
}

// snapshot takes a TOML date-time as well as the same in quotes.
func (d *decoder) snapshot(key string, dst *String) field {
	return field{key, func(e *entry) {
		if !d.want(e.value, key, kindString, kindTime) {
			return
		}
		if problem, hint := ruleSnapshot(e.value.text); problem != "" {
			d.problem(e.value.pos, hint, "%s: %s", key, problem)
			return
		}
		*dst = String{Value: e.value.text, Pos: e.value.pos}
	}}
}

// fingerprints are kept in upper case.
func (d *decoder) fingerprints(key string, dst *[]String) field {
	return field{key, func(e *entry) {
		*dst = nil
		for _, s := range d.array(e.value, key, ruleFingerprint) {
			s.Value = strings.ToUpper(s.Value)
			*dst = append(*dst, s)
		}
	}}
}

func (d *decoder) packages(n *node, p *Packages) []field {
	p.Pos = n.pos
	// Which syntax a package has depends on the kind, which may be inherited by a recipe
	// that extends this one: check looks at the entries.
	return append(d.changes("packages", &p.Add, nil, packageIdentity), d.boolean("recommends", &p.Recommends, &p.RecommendsPos))
}

func (d *decoder) repository(n *node) Repository {
	r := Repository{Pos: n.pos}
	d.require(n, "name", "url", "suite", "keys", "key_file")
	d.table(n, []field{
		d.str("name", &r.Name, ruleName),
		d.str("url", &r.URL, ruleURL),
		d.str("suite", &r.Suite, matches(suitePath, "a suite", "the name of a directory below dists/")),
		d.plain("components", &r.Components, matches(word, "a name", "")),
		d.fingerprints("keys", &r.Keys),
		d.reference("key_file", &r.KeyFile, &r.KeyData, maxKeyFile),
	})
	if e := n.get("keys"); e != nil && e.value.kind == kindArray && len(e.value.items) == 0 {
		d.problem(e.value.pos, "", "keys is empty: a repository without a key cannot be verified")
	}
	return r
}

func (d *decoder) file(n *node) File {
	f := File{Pos: n.pos, Mode: defaultFileMode, Owner: String{Value: defaultOwner, Pos: n.pos}}
	d.require(n, "path")
	d.either(n, "content", "source")
	var content String
	d.table(n, []field{
		d.str("path", &f.Path, ruleTreePath),
		d.str("content", &content, nil),
		d.reference("source", &f.Source, &f.Data, maxFile),
		d.mode("mode", &f.Mode),
		d.str("owner", &f.Owner, ruleOwner),
	})
	if n.get("content") != nil {
		f.Data = []byte(content.Value)
	}
	return f
}

func (d *decoder) user(n *node) User {
	u := User{Pos: n.pos, UID: -1}
	d.require(n, "name")
	name := matches(userName, "a user or group name", "lower-case letters, digits, _ and -; at most 32 bytes")
	d.table(n, []field{
		d.str("name", &u.Name, name),
		d.integer("uid", &u.UID, 0, 65533),
		d.plain("groups", &u.Groups, name),
		d.str("shell", &u.Shell, ruleAccountPath),
		d.str("home", &u.Home, ruleAccountPath),
		d.str("password_hash", &u.PasswordHash, rulePasswordHash),
		d.boolean("empty_password", &u.EmptyPassword, nil),
		d.plain("ssh_authorized_keys", &u.SSHAuthorizedKeys, ruleSSHKey),
		d.boolean("sudo", &u.Sudo, nil),
		d.boolean("system", &u.System, nil),
	})
	if u.EmptyPassword && u.PasswordHash.Value != "" {
		d.problem(u.PasswordHash.Pos, "", "%q and %q exclude each other", "password_hash", "empty_password")
	}
	if (u.UID == 0) != (u.Name.Value == "root") && u.UID >= 0 && u.Name.Value != "" {
		d.problem(n.get("uid").value.pos, "", "uid 0 is root, and only root")
	}
	return u
}

// ruleAccountPath is a path that /etc/passwd can hold.
func ruleAccountPath(text string) (string, string) {
	if strings.Contains(text, ":") {
		return quote(text) + " has a colon", ""
	}
	return rulePath(text)
}

func (d *decoder) system(n *node, s *System) []field {
	s.Pos = n.pos
	units := func(key string, dst *[]String) field { return d.list(key, dst, ruleUnit) }
	return []field{
		d.str("hostname", &s.Hostname, ruleHostname),
		d.str("timezone", &s.Timezone, matches(zoneName, "a time zone", `for example "UTC" or "Europe/Berlin"`)),
		d.str("locale", &s.Locale, matches(localeName, "a locale", `for example "C.UTF-8" or "de_DE.UTF-8"`)),
		d.section("services", func(*node) []field {
			return []field{
				units("enable", &s.Services.Enable),
				units("disable", &s.Services.Disable),
				units("mask", &s.Services.Mask),
			}
		}),
		d.str("autologin", &s.Autologin, matches(userName, "a user name", "")),
	}
}

func ruleHostname(text string) (string, string) {
	if problem, hint := ruleName(text); problem != "" {
		return quote(text) + " is not a host name", hint
	}
	return "", ""
}

func (d *decoder) script(n *node) Script {
	s := Script{Pos: n.pos, At: String{Value: "finish", Pos: n.pos}, Timeout: defaultScriptTimeout}
	d.either(n, "run", "file")
	d.table(n, []field{
		d.str("name", &s.Name, ruleName),
		d.str("at", &s.At, oneOf("finish")),
		d.str("run", &s.Run, ruleScript),
		d.reference("file", &s.File, &s.Data, maxScript),
		d.boolean("network", &s.Network, nil),
		d.environment("env", &s.Env),
		d.duration("timeout", &s.Timeout),
	})
	if s.Run.Value != "" {
		s.Data = []byte(s.Run.Value)
	}
	if s.File.Value != "" && strings.TrimSpace(string(s.Data)) == "" {
		d.problem(s.File.Pos, "", "file: %q is empty", s.File.Value)
	}
	s.Interpreter = String{Value: defaultInterpreter, Pos: n.pos}
	if line, ok := strings.CutPrefix(string(s.Data), "#!"); ok {
		line, _, _ = strings.Cut(line, "\n")
		line = strings.TrimSpace(line)
		pos := s.Run.Pos
		if s.File.Value != "" {
			pos = s.File.Pos
		}
		s.Interpreter = String{Value: line, Pos: pos}
		if program, _, _ := strings.Cut(line, " "); !strings.HasPrefix(program, "/") {
			d.problem(pos, `for example "#!/bin/bash"`, "the #! line %q names no absolute path", line)
		}
	}
	return s
}

func ruleScript(text string) (string, string) {
	if strings.TrimSpace(text) == "" {
		return "is empty", ""
	}
	return ruleArgument(text)
}

func (d *decoder) machine(n *node, m *Machine) []field {
	m.Pos = n.pos
	return []field{
		d.boolean("boot", &m.Boot, nil),
		d.str("network", &m.Network, oneOf("private", "host", "none")),
		d.list("bind", &m.Bind, ruleBind),
		d.list("ports", &m.Ports, rulePort),
		d.environment("env", &m.Env),
		d.str("user", &m.User, matches(userName, "a user name", "")),
		d.str("dir", &m.Dir, rulePath),
		{"command", func(e *entry) { m.Command = d.command(e.value, "command") }},
	}
}

// command is an argument list: unlike other lists it may repeat itself.
func (d *decoder) command(n *node, key string) []String {
	if !d.want(n, key, kindArray) {
		return nil
	}
	if len(n.items) == 0 || n.items[0].text == "" {
		d.problem(n.pos, `for example ["systemctl", "is-active", "ssh"]`, "%s has no program", key)
		return nil
	}
	var out []String
	for _, item := range n.items {
		if s, ok := d.text(item, key, ruleArgument); ok {
			out = append(out, s)
		}
	}
	return out
}

func (d *decoder) test(n *node) Test {
	t := Test{Pos: n.pos, Timeout: defaultTestTimeout}
	d.table(n, []field{
		d.str("name", &t.Name, ruleName),
		d.boolean("boot", &t.Boot, nil),
		d.str("wait", &t.Wait, oneOf("running", "none")),
		{"commands", func(e *entry) {
			if d.want(e.value, "commands", kindArray) {
				for _, c := range e.value.items {
					if c.kind != kindArray {
						d.problem(c.pos, `commands = [["true"], ["test", "-e", "/etc/motd"]]`, "commands must be arrays of arguments, not %s", c.kind)
						continue
					}
					t.Commands = append(t.Commands, d.command(c, "commands"))
				}
			}
		}},
		d.duration("timeout", &t.Timeout),
		d.plain("expect_packages", &t.ExpectPackages, nonEmptyLine),
		d.boolean("fail_on_failed_units", &t.FailOnFailedUnits, nil),
	})
	if t.Wait.Value == "" {
		t.Wait = String{Value: "none", Pos: n.pos}
		if t.Boot {
			t.Wait.Value = "running"
		}
	}
	if !t.Boot && (t.Wait.Value == "running" || t.FailOnFailedUnits) {
		d.problem(n.pos, "set boot = true", "a test that does not boot has no units and nothing to wait for")
	}
	if len(t.Commands) == 0 && len(t.ExpectPackages) == 0 && !t.FailOnFailedUnits && t.Wait.Value != "running" {
		d.problem(n.pos, "give commands, expect_packages or boot", "the test tests nothing")
	}
	return t
}
