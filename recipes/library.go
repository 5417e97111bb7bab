// SPDX-License-Identifier: Apache-2.0

package recipes

import (
	"embed"
	"fmt"
	"io/fs"
	"strings"

	"github.com/mkmachine/mkmachine/internal/fault"
)

//go:embed library/*.toml library/keys/*.pgp
var library embed.FS

// libraryFS is the directory of the embedded recipes.
func libraryFS() fs.FS {
	sub, err := fs.Sub(library, "library")
	if err != nil {
		panic(err) // only for a name that is not a path
	}
	return sub
}

// libraryNames are the embedded recipes in alphabetical order.
func libraryNames() []string {
	entries, err := fs.ReadDir(library, "library")
	if err != nil {
		panic(err) // embedded
	}
	var out []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".toml"); ok {
			out = append(out, name)
		}
	}
	return out
}

// Grade says what proves that a recipe's source is what its makers published.
type Grade string

// The grades, best first.
const (
	Signed   Grade = "signed"   // by a key that is embedded or given with its full fingerprint
	Insecure Grade = "insecure" // by nothing: the recipe says why
)

// Grade of verification of the source.
func (s *Source) Grade() Grade {
	if s.Insecure.Value != "" {
		return Insecure
	}
	return Signed
}

// Summary is a library recipe in one line.
type Summary struct {
	Name         string `json:"name"`
	Description  string `json:"description"`
	Kind         string `json:"kind"`
	Distribution string `json:"distribution"`
	Suite        string `json:"suite"`
	Grade        Grade  `json:"grade"`
}

// List describes the library recipes, by name.
func List() ([]Summary, error) {
	var out []Summary
	for _, name := range libraryNames() {
		r, err := Load("", name)
		if err != nil {
			return nil, fault.New(fault.Internal, "cannot load library recipe %q: %w", name, err)
		}
		out = append(out, Summary{
			Name: r.Name, Description: r.Description, Kind: r.Source.Kind.Value,
			Distribution: r.Source.Distribution.Value, Suite: r.Source.Suite.Value, Grade: r.Source.Grade(),
		})
	}
	return out, nil
}

// LibrarySource is the text of a library recipe.
func LibrarySource(name string) ([]byte, error) {
	if problem, _ := ruleName(name); problem == "" {
		if data, err := library.ReadFile("library/" + name + ".toml"); err == nil {
			return data, nil
		}
	}
	err := fault.New(fault.Config, "cannot load recipe: there is no library recipe %q", name)
	if near := nearest(name, libraryNames()); near != "" {
		return nil, fault.Hint(err, "did you mean %q?", near)
	}
	return nil, fault.Hint(err, "mkmachine recipes lists them; a file is named with a slash or .toml: ./%s.toml", strings.ToValidUTF8(name, "?"))
}

// Init is the text of a starter recipe: commented, and valid as it is.
func Init(name string) ([]byte, error) {
	if problem, hint := ruleName(name); problem != "" {
		err := fault.New(fault.Config, "cannot make a recipe: %s", problem)
		if hint != "" {
			err = fault.Hint(err, "%s", hint)
		}
		return nil, err
	}
	return fmt.Appendf(nil, starter, name), nil
}

const starter = `# A recipe for mkmachine. Check it:  mkmachine check %[1]s.toml
# Build it, then run it in a throw-away machine:
#   sudo mkmachine build %[1]s.toml
#   sudo mkmachine run -x %[1]s
schema = 1
name = "%[1]s"
description = "what this machine is for"

# Stand on a library recipe (list them: mkmachine recipes) or on another file.
extends = "debian-stable"

# Packages on top of what is inherited.
[packages]
add = ["nano"]
# remove = ["iputils-ping"]    # takes away what was inherited
# recommends = true            # install recommended packages too

# Files come from a text here, or from a file beside this one (source = "motd").
[[files]]
path = "/etc/motd"
content = "Welcome to %[1]s.\n"
# mode = "0644"
# owner = "root:root"

# [[users]]
# name = "deploy"
# shell = "/bin/bash"
# groups = ["sudo"]
# ssh_authorized_keys = ["ssh-ed25519 AAAA... you@example"]

[system]
hostname = "%[1]s"
timezone = "UTC"
# locale = "C.UTF-8"
# services.enable.add = ["nginx.service"]

# A script is the last step. It has no network unless it says so.
# [[script]]
# run = '''
# touch /etc/built-by-mkmachine
# '''

# How it is run when the command line does not say.
[machine]
boot = true
# ports.add = ["8080:80"]

# What mkmachine test checks.
# [[test]]
# boot = true
# commands = [["systemctl", "is-active", "dbus"]]
`
