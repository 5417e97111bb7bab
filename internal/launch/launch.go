// SPDX-License-Identifier: Apache-2.0

// Package launch runs an image of a store in the runner.
//
// It owns the step between a name and a running machine: which tree is used, copied or made
// first, and the description of the machine around it. It never mounts and never changes a
// tree itself. Invariant: the lease on the tree is held as long as anything runs in it, and
// a throw-away tree is removed before Run returns.
package launch

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/runner"
	"github.com/mkmachine/mkmachine/snapshot"
)

// Options say what to run and on what.
type Options struct {
	Target    string // name of an image, or the path of a tree
	Ephemeral bool   // run a throw-away copy of it
	Template  string // make Target from this image when it does not exist

	Argv     []string // empty: a shell
	Env      []string // KEY=VALUE
	Dir      string
	User     string
	Hostname string
	Network  runner.Network
	Mounts   []runner.Mount
	Limits   runner.Limits
	ReadOnly bool
	Trusted  bool
	// KeepIdentity leaves the identity of a copy as it is in its source.
	KeepIdentity bool

	Terminal       *runner.Terminal
	Stdin          io.Reader
	Stdout, Stderr io.Writer

	// Cloned is told of a machine that was made from Template; may be nil.
	Cloned func(*snapshot.Image)
}

// shell is what runs where no command is given: the login shell of root if there is one.
var shell = []string{"/bin/sh", "-c", "exec $(command -v bash || echo /bin/sh) -l"}

// Run runs the command and waits for its end. The error says why it could not be run; how
// it ended is the status.
func Run(ctx context.Context, store *snapshot.Store, o *Options, ro *runner.Options) (_ runner.ExitStatus, err error) {
	lease, name, err := lease(ctx, store, o)
	if err != nil {
		return runner.ExitStatus{}, err
	}
	defer func() { err = errors.Join(err, lease.Close(context.WithoutCancel(ctx))) }()
	m := &runner.Machine{
		Name: name, Hostname: o.Hostname, Root: lease.Tree.Dir,
		ReadOnly: o.ReadOnly, Profile: runner.App, Trusted: o.Trusted,
		Argv: o.Argv, Env: o.Env, Dir: o.Dir, User: o.User,
		Network: o.Network, Mounts: o.Mounts, Limits: o.Limits,
		Terminal: o.Terminal, Stdin: o.Stdin, Stdout: o.Stdout, Stderr: o.Stderr,
	}
	if t := lease.Tree; t.Dir == "" {
		m.Overlay = &runner.Overlay{Lower: t.Lower, Upper: t.Upper, Work: t.Work}
	}
	if len(m.Argv) == 0 {
		m.Argv = shell
	}
	return runner.Run(ctx, m, ro)
}

// lease finds or makes the tree and the name of the machine that runs on it.
func lease(ctx context.Context, store *snapshot.Store, o *Options) (*snapshot.Lease, string, error) {
	isPath := strings.Contains(o.Target, "/")
	name := o.Target
	if isPath {
		abs, err := filepath.Abs(o.Target)
		if err != nil {
			return nil, "", fault.As(fault.Config, err)
		}
		o.Target, name = abs, filepath.Base(abs)
	}
	switch {
	case o.Template != "" && isPath:
		return nil, "", fault.New(fault.Config, "--template makes a machine by name, not by path")
	case o.Template != "" && o.Ephemeral:
		return nil, "", fault.Hint(fault.New(fault.Config, "--template and -x exclude each other"), "a throw-away copy of the template itself: run -x %s", o.Template)
	case o.Ephemeral:
		l, err := store.Ephemeral(ctx, o.Target, &snapshot.EphemeralOptions{KeepIdentity: o.KeepIdentity, Hostname: o.Hostname})
		return l, name, err
	case isPath:
		info, err := os.Stat(o.Target)
		if err != nil || !info.IsDir() {
			return nil, "", fault.New(fault.State, "cannot run %s: it is no directory", o.Target)
		}
		l, err := store.UsePath(ctx, o.Target, o.ReadOnly)
		return l, name, err
	}
	if o.Template != "" {
		if err := makeFrom(ctx, store, o); err != nil {
			return nil, "", err
		}
	}
	l, err := store.Use(ctx, o.Target, o.ReadOnly)
	return l, name, err
}

// makeFrom clones the template unless the machine is there already.
func makeFrom(ctx context.Context, store *snapshot.Store, o *Options) error {
	if err := snapshot.CheckName(o.Target); err != nil {
		return err
	}
	if _, err := store.Image(o.Target); err == nil {
		return nil
	}
	img, err := store.Clone(ctx, o.Template, o.Target, &snapshot.CloneOptions{KeepIdentity: o.KeepIdentity})
	if err == nil && o.Cloned != nil {
		o.Cloned(img)
	}
	return err
}
