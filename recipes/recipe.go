// SPDX-License-Identifier: Apache-2.0

// Package recipes reads the text that describes a template.
//
// It owns the recipe format (docs/recipe.md): the TOML parser with positions, the checks,
// inheritance, and the embedded library. It never touches the network, never writes, and
// never runs anything. Its invariant: a *Recipe that Load returned without an error is
// complete and valid; every problem of a bad one is reported at once, with its position.
package recipes

import "github.com/mkmachine/mkmachine/internal/fault"

// Recipe is a description after inheritance, with defaults filled in.
type Recipe struct {
	Name        string
	Description string
	// Origin is the file the recipe came from, or "library:NAME".
	Origin string
	// Chain lists the origins of the recipe and all it extends, nearest first.
	Chain        []string
	Source       Source
	Packages     Packages
	Repositories []Repository
	Files        []File
	Users        []User
	System       System
	Scripts      []Script
	Machine      Machine
}

// String is a text with the place where it was written.
type String struct {
	Value string
	Pos   fault.Pos
}

// Source says where the tree comes from. Kind decides which of the other fields apply.
type Source struct {
	Kind         String // "deb"; tarball, pacman, … follow
	Distribution String // names the mirror family and the pinned keys: debian, ubuntu
	Suite        String // stable, trixie, noble
	Variant      String // essential | minbase | default | buildd
	Arch         String // the distribution's own name; "" means the host's
	Components   []String
	Pockets      []String // release, updates, security, backports, proposed
	Snapshot     String   // RFC 3339 time; "" means the archive as it is
	Mirror       String   // overrides the built-in list for Distribution
	Keys         []String // full fingerprints; "" means the ones pinned for Distribution
	Insecure     String   // reason for taking it unverified; taints
	Pos          fault.Pos
}

// Packages are installed on top of the variant.
type Packages struct {
	Add        []String // NAME, NAME:ARCH or NAME=VERSION
	Recommends bool
	Pos        fault.Pos
}

// Repository is an extra deb822-like package source.
type Repository struct {
	Name       String
	URL        String
	Suite      String
	Components []String
	Keys       []String // full fingerprints of the keys in KeyFile that may sign
	KeyFile    String   // armored or binary keyring, relative to the recipe
	KeyData    []byte   // its bytes
	Pos        fault.Pos
}

// File is put into the tree.
type File struct {
	Path   String // absolute, in the tree
	Data   []byte // from content or source
	Source String // a file beside the recipe; "" where content was given
	Mode   uint32 // permission bits, default 0644
	Owner  String // NAME, NAME:GROUP, or numbers; default root:root
	Pos    fault.Pos
}

// User is created, or changed where it exists.
type User struct {
	Name              String
	UID               int // -1: next free
	Groups            []String
	Shell             String
	Home              String
	PasswordHash      String // crypt(5); "" leaves the account locked
	EmptyPassword     bool
	SSHAuthorizedKeys []String
	Sudo              bool // passwordless sudo
	System            bool
	Pos               fault.Pos
}

// System is configuration that every distribution has.
type System struct {
	Hostname  String
	Timezone  String
	Locale    String
	Services  Services
	Autologin String // user logged in on the console
	Pos       fault.Pos
}

// Services are systemd units to enable, disable or mask.
type Services struct {
	Enable, Disable, Mask []String
}

// Script runs inside the tree.
type Script struct {
	At          String // "finish"
	Run         String // text of a shell script, or
	File        String // a file beside the recipe
	Interpreter String // from the #! line of the text; default /bin/sh -e
	Data        []byte // the script's bytes
	Network     bool
	Env         map[string]string
	Timeout     int64 // seconds, default 3600
	Pos         fault.Pos
}

// Machine holds defaults for running the template; the runner reads them.
type Machine struct {
	Boot    bool
	Network String // "private" | "host" | "none"
	Bind    []String
	Ports   []String
	Env     map[string]string
	User    String
	Dir     String
	Command []String
	Pos     fault.Pos
}

// Problem is one thing wrong with a recipe.
type Problem struct {
	Pos  fault.Pos
	Text string // "unknown key \"sutie\""
	Hint string // "did you mean \"suite\"?", or empty
}

// Problems is the error that Load returns: all problems, sorted by position.
type Problems []Problem
