// SPDX-License-Identifier: Apache-2.0

package main

import (
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unicode"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/mkmachine/mkmachine/internal/event"
	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/internal/launch"
	"github.com/mkmachine/mkmachine/runner"
	"github.com/mkmachine/mkmachine/snapshot"
)

func (a *app) runCommand() *cobra.Command {
	var o launch.Options
	var network string
	var binds, bindsRO []string
	c := &cobra.Command{
		Use:   "run [OPTIONS] MACHINE|PATH [-- COMMAND...]",
		Short: "Run a command in a machine",
		Long: `Run starts a machine, runs a command in it, and ends the machine with the command. With -x the
machine is a throw-away copy; with --template it is made from a template when it does not exist.
Without a command, a shell is started.

The machine has its own users, processes, mounts and network; it sees nothing of the host.
Its network is loopback only, unless --network=host is given.

Exit codes: the command's own; 125 the machine could not be started, 126 the command could not
be executed, 127 it was not found, 128+N signal N ended it, 2 wrong arguments.`,
		Example: `  sudo mkmachine run -x debian-stable -- cat /etc/os-release
  sudo mkmachine run --template debian-stable web1 -- apt-get --version`,
		ValidArgsFunction: a.completeImages,
		Args: func(c *cobra.Command, got []string) error {
			if len(got) == 0 {
				return fault.Hint(fault.New(fault.Config, "run takes a machine or a path"), "mkmachine list shows the machines")
			}
			if dash := c.ArgsLenAtDash(); dash > 1 || dash < 0 && len(got) > 1 {
				return fault.Hint(fault.New(fault.Config, "run takes one machine, and the command behind --"),
					"mkmachine run %s -- %s", got[0], strings.Join(got[1:], " "))
			}
			return nil
		},
		RunE: func(c *cobra.Command, got []string) error {
			if err := a.needRoot("run"); err != nil {
				return err
			}
			switch network {
			case "loopback", "none", "private":
				o.Network = runner.Loopback
			case "host":
				o.Network = runner.Host
			default:
				return fault.Hint(fault.New(fault.Config, "--network=%s is not known", network), "loopback or host")
			}
			if err := addBinds(&o, binds, false); err != nil {
				return err
			}
			if err := addBinds(&o, bindsRO, true); err != nil {
				return err
			}
			if c.Flags().Changed("pids") && o.Limits.Pids < 1 {
				return fault.New(fault.Config, "--pids %d: a machine needs at least one process", o.Limits.Pids)
			}
			if err := checkUser(o.User); err != nil {
				return err
			}
			o.Target, o.Argv = got[0], got[1:]
			return a.runMachine(c, &o)
		},
	}
	f := c.Flags()
	f.BoolVarP(&o.Ephemeral, "ephemeral", "x", false, "run a throw-away copy, removed at the end")
	f.StringVar(&o.Template, "template", "", "make the machine from this `TEMPLATE` when it does not exist")
	f.StringVar(&network, "network", "loopback", "`KIND` of network: loopback or host")
	f.StringVarP(&o.User, "user", "u", "", "run the command as `USER` of the machine, by name or number")
	f.StringVar(&o.Dir, "chdir", "", "start in this `DIR`ectory of the machine")
	f.StringArrayVarP(&o.Env, "setenv", "E", nil, "set a variable for the command: `NAME=VALUE`; repeatable")
	f.StringArrayVar(&binds, "bind", nil, "show a file or directory of the host: `SOURCE[:TARGET]`; repeatable")
	f.StringArrayVar(&bindsRO, "bind-ro", nil, "the same, read-only")
	f.BoolVar(&o.ReadOnly, "read-only", false, "mount the tree read-only")
	f.StringVar(&o.Hostname, "hostname", "", "host `NAME` in the machine; its name by default")
	f.Int64Var(&o.Limits.Pids, "pids", 0, "at most `N` processes (4096)")
	f.Var(&sizeValue{&o.Limits.Memory}, "memory", "at most this much memory: `BYTES`, or with K, M, G (half of the host's)")
	f.BoolVar(&o.KeepIdentity, "keep-identity", false, "leave machine-id and host keys of a copy as they are")
	f.BoolVar(&o.Trusted, "trusted", false, "no user namespace: root inside is root outside")
	return c
}

// addBinds parses SOURCE[:TARGET].
func addBinds(o *launch.Options, list []string, readOnly bool) error {
	for _, b := range list {
		source, target, ok := strings.Cut(b, ":")
		if !ok {
			target = source
		}
		if !strings.HasPrefix(source, "/") || !strings.HasPrefix(target, "/") || strings.ContainsAny(b, "\n\x00") || strings.Contains(target, ":") {
			return fault.Hint(fault.New(fault.Config, "cannot bind %q: not SOURCE[:TARGET] with absolute paths", b),
				"read-only binds have an option of their own: --bind-ro")
		}
		switch real, err := filepath.EvalSymlinks(source); {
		case err != nil:
			return fault.New(fault.Config, "cannot bind %q: %w", b, err)
		case real == "/" && filepath.Clean(source) != "/":
			return fault.Hint(fault.New(fault.Policy, "cannot bind %q: it is a link to the root of this host", b), "name / itself where that is meant")
		}
		o.Mounts = append(o.Mounts, runner.Mount{Source: source, Target: target, ReadOnly: readOnly})
	}
	return nil
}

// checkUser accepts USER or USER:GROUP, each a name or a number. What only looks like a number
// is refused: it must not become another id, least of all 0, on the way.
func checkUser(spec string) error {
	if spec == "" {
		return nil
	}
	user, group, hasGroup := strings.Cut(spec, ":")
	if !accountWord(user) || hasGroup && !accountWord(group) {
		return fault.Hint(fault.New(fault.Config, "--user %q is not a user", spec), "NAME, UID, NAME:GROUP or UID:GID, in decimal digits")
	}
	return nil
}

// accountWord: the name of an account, or an id that the kernel has.
func accountWord(s string) bool {
	if s == "" || len(s) > 256 || strings.Trim(s[:1], "0123456789") == "" {
		id, err := strconv.ParseUint(s, 10, 32)
		return err == nil && id != math.MaxUint32 && strconv.FormatUint(id, 10) == s
	}
	return s[0] != '-' && strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '/' || r == ',' || !unicode.IsPrint(r) }) < 0 && !strings.Contains(s, ":")
}

func (a *app) runMachine(c *cobra.Command, o *launch.Options) error {
	ctx := c.Context()
	a.ownFailure = true
	if _, err := a.collect(ctx); err != nil {
		return err
	}
	store, err := snapshot.Open(ctx, a.machines, &snapshot.Options{Sink: a.remarks(), Backend: a.backend, Engine: version()})
	if err != nil {
		return err
	}
	defer store.Close()
	o.Stdin, o.Stdout, o.Stderr = a.Stdin, a.Stdout, a.Stderr
	if f, ok := a.Stdin.(*os.File); ok && term.IsTerminal(int(f.Fd())) && outputIsTerminal(a) {
		o.Terminal = &runner.Terminal{File: f, Escape: true}
	}
	o.Cloned = func(img *snapshot.Image) {
		a.sink().Start("clone", img.Name).End(nil)
	}
	a.render.Pause()
	st, err := launch.Run(ctx, store, o, &runner.Options{Sink: a.remarks(), Runtime: a.runtime})
	switch {
	case err != nil && (st.Code == 126 || st.Code == 127):
		return exits{err, st.Code} // the machine was there, the command was not
	case err != nil:
		return err
	}
	return status(st.Code)
}

func outputIsTerminal(a *app) bool {
	f, ok := a.Stdout.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// remarks is a sink for what goes on around a payload: the terminal is the payload's, and
// only what is out of order is worth a line. With --verbose or --json everything is shown.
func (a *app) remarks() event.Sink {
	if a.verbose || a.json {
		return a.sink()
	}
	return func(e event.Event) {
		if e.Kind == event.Warning || e.Kind == event.Fallback {
			a.render.Sink(e)
		}
	}
}
