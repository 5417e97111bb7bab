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
	Name        string `layer:"-"`
	Description string `layer:"-"`
	// Origin is the file the recipe came from, or "library:NAME".
	Origin string `layer:"-"`
	// Chain lists the origins of the recipe and all it extends, nearest first.
	Chain []string `layer:"-"`
	// The three that the lock answers; see Request.
	Source       Source       `layer:"-"`
	Packages     Packages     `layer:"-"`
	Repositories []Repository `layer:"-"`
	Files        []File
	Users        []User
	System       System
	Scripts      []Script
	Machine      Machine
	Tests        []Test `layer:"-"`
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
	Keys         []String // full fingerprints; none means the ones pinned for Distribution
	KeyFile      String   // keyring with Keys, relative to the recipe; "" means the embedded one
	KeyData      []byte   // its bytes
	Insecure     String   // reason for taking it unverified; taints
	Pos          fault.Pos
}

// Packages are installed on top of the variant.
type Packages struct {
	Add        []String // NAME, NAME:ARCH or NAME=VERSION
	Recommends bool
	// RecommendsPos is where recommends was set; zero where it is the default.
	RecommendsPos fault.Pos
	Pos           fault.Pos
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
	Source String `layer:"-"` // a file beside the recipe; "" where content was given
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
	Name        String `layer:"-"` // optional; a recipe replaces an inherited script of the same name
	At          String // "finish"
	Run         String `layer:"-"` // text of a shell script, or
	File        String `layer:"-"` // a file beside the recipe
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

// Test says how a machine made from the template proves that it works.
type Test struct {
	Name              String
	Boot              bool       // boot an init; otherwise the commands run without one
	Wait              String     // "running": until the init has started everything; "none"
	Commands          [][]String // each must exit with status 0
	Timeout           int64      // seconds, default 300
	ExpectPackages    []String   // names that must be installed
	FailOnFailedUnits bool       // a failed systemd unit fails the test
	Pos               fault.Pos
}
