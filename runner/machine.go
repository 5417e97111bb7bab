// SPDX-License-Identifier: Apache-2.0

// Package runner runs programs in a root tree that is not trusted.
//
// A Machine says what to run and how; Plan turns it into an ordered list of operations that
// can be printed and compared; Start carries the plan out and gives an Instance that executes
// commands; Run does all of it for one command. Confine runs a piece of this program itself
// with nothing but one directory in sight.
//
// How a machine comes to be, in one process and one re-execution:
//
//  1. A thread of the supervisor gets a mount namespace, owned by the host's user namespace.
//  2. It clones the machine's first process into new user, pid, network, ipc, uts and cgroup
//     namespaces. That process makes a fixed list of system calls (package spawn) and waits.
//  3. The thread maps ids, and from outside attaches the root and everything below it by
//     descriptor: the payload can neither undo nor redirect what it has no right to touch.
//  4. It changes the root, lets the process go on, which gives up everything that the profile
//     does not grant and executes a sealed copy of this program as the machine's init.
//  5. Init compares what it sees with the plan, and only then starts commands.
//
// The package owns namespaces and mounts. It never writes into a root tree, except for mount
// points that are missing; never passes a descriptor of the caller into a machine; and never
// goes on after a step of hardening has failed. Whatever it makes outside of the machine is
// written down first (see Clean), and dies or is removed with the supervisor.
package runner

import (
	"io"
	"os"
	"path"
	"strings"
	"time"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// Profile is a set of restrictions.
type Profile string

// The profiles. Build is for scripts of distributions and recipes: private /tmp and /run,
// set-user-id programs work. App is for commands: no new privileges.
const (
	Build Profile = "build"
	App   Profile = "app"
)

// Network says which network a machine sees.
type Network string

// The networks. Loopback is a network namespace of its own with nothing but lo. Host is the
// network of the host, including its loopback services and abstract sockets; it is taken only
// when the caller asks for it.
const (
	Loopback Network = "loopback"
	Host     Network = "host"
)

// IDMap says which ids of the host the machine's ids 0 to Size-1 are. A zero Size asks for a
// range of 65536 to be picked and leased.
type IDMap struct {
	Base, Size uint32
}

// Mount attaches a directory or file of the host.
type Mount struct {
	Source   string // absolute path on the host
	Target   string // absolute path in the machine; made where it is missing
	ReadOnly bool
	NoIDMap  bool // keep the ids of the host instead of mapping them like the root's
}

// Overlay makes the root out of layers instead of a directory.
type Overlay struct {
	Lower []string // directories, uppermost first
	// Upper and Work are directories of one file system that take the changes. Both empty
	// means a read-only root.
	Upper, Work string
}

// Limits of a machine. Zero means the default, negative no limit.
type Limits struct {
	Pids   int64   // processes and threads; default 4096
	Memory int64   // bytes; default half of the host's memory
	CPUs   float64 // processors' worth of time; default no limit
}

// Terminal connects a command to a terminal of the caller. The machine gets a fresh
// pseudo-terminal; bytes are relayed.
type Terminal struct {
	// File is the caller's terminal, in raw mode as long as the command runs. Its size is followed.
	File *os.File
	// Escape ends the command when ^] is typed three times within a second.
	Escape bool
}

// Machine describes what to run. It is plain data: nothing happens before Start.
type Machine struct {
	Name     string // in cgroup and lease names; [a-zA-Z0-9._-], at most 64 bytes; default "machine"
	Hostname string // default Name
	// Root is the directory of the tree. RootFD, where positive, is a descriptor of it that
	// is used instead; Root is then for messages only. Overlay, where set, goes before both.
	Root     string
	RootFD   int
	Overlay  *Overlay
	ReadOnly bool
	Profile  Profile // default App
	IDs      IDMap
	// Trusted turns off the user namespace: root inside is root outside, with the profile's
	// capabilities. It also lets the machine run where no cgroup can be made.
	Trusted bool
	// Argv is the main command; its end is the machine's end. Empty: the machine lives until
	// Close and runs what Exec asks for.
	Argv    []string
	Env     []string // all of it, KEY=VALUE; PATH and container are added where missing
	Dir     string   // absolute, in the machine; default the user's home, or /
	User    string   // NAME, UID, NAME:GROUP or UID:GID, looked up in the machine; default root
	Network Network  // default Loopback
	Mounts  []Mount
	// NoSync makes flushing to disk a no-op: for trees that are thrown away after a crash.
	NoSync   bool
	Limits   Limits
	Terminal *Terminal
	// Standard streams of the main command; nil means nothing to read, or thrown away.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Timeout        time.Duration // of the main command; 0: none
}

// defaultPath is the search path in a machine.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// validName reports whether a name can be part of the names of control groups and leases.
func validName(name string) bool {
	if name == "" || len(name) > 64 {
		return false
	}
	for i, c := range []byte(name) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !letter && (i == 0 || c != '.' && c != '_' && c != '-') {
			return false
		}
	}
	return true
}

// resolved is a Machine with defaults filled in and checked.
func (m *Machine) resolved() (*Machine, error) {
	r := *m
	bad := func(format string, args ...any) (*Machine, error) {
		return nil, fault.New(fault.Config, format, args...)
	}
	if r.Name == "" {
		r.Name = "machine"
	}
	if !validName(r.Name) {
		return bad("cannot name a machine %q: use letters, digits, dots, hyphens and underscores", r.Name)
	}
	if r.Hostname == "" {
		r.Hostname = r.Name
	}
	if len(r.Hostname) > 64 || strings.ContainsAny(r.Hostname, "\x00\n/ ") {
		return bad("cannot use host name %q", r.Hostname)
	}
	switch r.Profile {
	case "":
		r.Profile = App
	case Build, App:
	default:
		return bad("cannot use profile %q", r.Profile)
	}
	switch r.Network {
	case "":
		r.Network = Loopback
	case Loopback, Host:
	default:
		return bad("cannot use network %q", r.Network)
	}
	if r.Root == "" && r.RootFD <= 0 && r.Overlay == nil {
		return bad("cannot run a machine without a root")
	}
	if r.Overlay != nil && len(r.Overlay.Lower) == 0 {
		return bad("cannot make an overlay without a lower directory")
	}
	if r.Overlay != nil && (r.Overlay.Upper == "") != (r.Overlay.Work == "") {
		return bad("cannot make an overlay with only one of upper and work directory")
	}
	if r.Dir != "" && !path.IsAbs(r.Dir) {
		return bad("cannot start in %q: not an absolute path", r.Dir)
	}
	if r.IDs.Size != 0 && (r.IDs.Base == 0 || r.IDs.Size < 1000) {
		return bad("cannot map ids %d+%d: user 0 of the host is never mapped, and fewer than 1000 ids are no system", r.IDs.Base, r.IDs.Size)
	}
	for _, mount := range r.Mounts {
		if !path.IsAbs(mount.Source) || !path.IsAbs(mount.Target) || path.Clean(mount.Target) == "/" {
			return bad("cannot mount %q at %q: not two absolute paths below /", mount.Source, mount.Target)
		}
	}
	for _, text := range append(append([]string{r.User, r.Dir}, r.Argv...), r.Env...) {
		if strings.ContainsRune(text, 0) {
			return bad("cannot pass %q: it has a zero byte", text)
		}
	}
	r.Env = environment(r.Env)
	return &r, nil
}

// environment is the caller's list with what every command gets.
func environment(env []string) []string {
	out := make([]string, 0, len(env)+4)
	out = append(out, env...)
	for _, e := range []string{"PATH=" + defaultPath, "HOME=/root", "USER=root", "LOGNAME=root", "container=mkmachine"} {
		key, _, _ := strings.Cut(e, "=")
		found := false
		for _, have := range env {
			found = found || strings.HasPrefix(have, key+"=")
		}
		if !found {
			out = append(out, e)
		}
	}
	return out
}

// caps are the capabilities of a profile, in the machine's user namespace.
func (p Profile) caps() []uintptr {
	return []uintptr{
		0,  // CHOWN
		1,  // DAC_OVERRIDE
		3,  // FOWNER
		4,  // FSETID
		5,  // KILL
		6,  // SETGID
		7,  // SETUID
		8,  // SETPCAP
		10, // NET_BIND_SERVICE
		18, // SYS_CHROOT
		31, // SETFCAP
	}
}
