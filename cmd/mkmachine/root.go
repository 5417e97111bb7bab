// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"

	"github.com/spf13/cobra"

	"github.com/mkmachine/mkmachine/internal/event"
	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/sources/fetch"
)

// Exit codes that are not those of a fault.Class; docs/design.md has the whole table.
const (
	exitOwnFailure  = 125 // run, exec: the machine could not be started
	exitInterrupted = 130
)

// status is a payload's exit status on its way through cobra; nothing is printed for it.
type status int

func (s status) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// app is one invocation: the world, the global options, the renderer of events.
type app struct {
	*env
	global
	render  renderer
	shown   atomic.Pointer[renderer] // the same, for the signal handler
	fetcher *fetch.Fetcher
	value   any    // the result for --json
	table   *table // the result for people
	// ownFailure: failures of ours exit 125, so that they differ from the payload's.
	ownFailure bool
}

// sink receives the events of the libraries.
func (a *app) sink() event.Sink { return a.render.Sink }

func newApp(e *env) *app {
	a := &app{env: e}
	a.setDefaults()
	return a
}

// run is the program: it returns the exit code.
func (a *app) run(ctx context.Context, args []string) int {
	root := a.rootCommand()
	root.SetArgs(args)
	root.SetIn(a.Stdin)
	root.SetOut(a.Stdout)
	root.SetErr(a.Stderr)
	err := protect(func() error { return root.ExecuteContext(ctx) })
	return a.finish(ctx, err)
}

// say shows a line beside the live ones.
func (a *app) say(text string) {
	if r := a.shown.Load(); r != nil {
		(*r).Sink(event.Event{Time: a.Now(), Kind: event.Warning, Text: text})
	}
}

// protect turns a panic into an error of class Internal: a bug, but never a success.
func protect(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fault.Hint(fault.New(fault.Internal, "internal error: %v", p),
				"this is a bug; please report it with the command line and the recipe")
		}
	}()
	return f()
}

// finish reports the error and the result, and says the exit code.
func (a *app) finish(ctx context.Context, err error) int {
	var s status
	if errors.As(err, &s) {
		a.conclude(ctx, nil)
		return int(s)
	}
	var known exits
	switch {
	case err == nil || errors.As(err, &known):
	case errors.Is(context.Cause(ctx), errInterrupted):
		err = exits{err, exitInterrupted}
	case a.ownFailure && fault.ClassOf(err) != fault.Config:
		err = exits{err, exitOwnFailure}
	}
	if err = a.conclude(ctx, err); err != nil {
		return exitCode(err)
	}
	return 0
}

// exits is an error that does not end with the exit code of its class.
type exits struct {
	error
	code int
}

func (e exits) Unwrap() error { return e.error }

// exitCode is how the program ends with an error.
func exitCode(err error) int {
	var e exits
	if errors.As(err, &e) {
		return e.code
	}
	return fault.ClassOf(err).ExitCode()
}

// groups of verbs, in the order of help.
const (
	groupBuild  = "build"
	groupRun    = "run"
	groupImages = "images"
	groupHost   = "host"
)

func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "mkmachine",
		Short: "Make operating-system trees from recipes, and run them",
		Long: `Mkmachine turns a recipe into a verified operating-system tree, keeps it as a
template, and runs it: as a throw-away machine or as a clone with an identity of its own.`,
		Example: `  mkmachine build debian-stable
  mkmachine run -x debian-stable -- cat /etc/os-release`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       version(),
		Args:          cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return c.Help()
			}
			err := fault.New(fault.Config, "unknown command %q", args[0])
			if near := c.SuggestionsFor(args[0]); len(near) > 0 {
				return fault.Hint(err, "did you mean %s?", strings.Join(near, " or "))
			}
			return fault.Hint(err, "mkmachine --help lists the commands")
		},
		PersistentPreRunE: func(c *cobra.Command, _ []string) error { return a.start(c) },
	}
	root.SuggestionsMinimumDistance = 2
	root.AddGroup(
		&cobra.Group{ID: groupBuild, Title: "Build templates:"},
		&cobra.Group{ID: groupRun, Title: "Run machines:"},
		&cobra.Group{ID: groupImages, Title: "Keep images:"},
		&cobra.Group{ID: groupHost, Title: "This host:"},
	)
	root.SetCompletionCommandGroupID(groupHost)
	root.SetHelpCommandGroupID(groupHost)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return fault.Hint(fault.As(fault.Config, err), "%s --help lists the options", c.CommandPath())
	})
	a.addGlobalFlags(root.PersistentFlags())
	for _, c := range []struct {
		group string
		cmd   *cobra.Command
	}{
		{groupBuild, a.buildCommand()}, {groupBuild, a.lockCommand()}, {groupBuild, a.checkCommand()}, {groupBuild, a.recipesCommand()},
		{groupRun, a.runCommand()},
		{groupImages, a.listCommand()}, {groupImages, a.inspectCommand()}, {groupImages, a.cloneCommand()},
		{groupImages, a.renameCommand()}, {groupImages, a.removeCommand()}, {groupImages, a.cleanCommand()},
		{groupImages, a.verifyCommand()}, {groupImages, a.exportCommand()},
		{groupHost, a.poolCommand()}, {groupHost, a.versionCommand()},
	} {
		c.cmd.GroupID = c.group
		root.AddCommand(c.cmd)
	}
	return root
}

// args makes a wrong number of arguments an error of class Config.
func args(least, most int, what string) cobra.PositionalArgs {
	return func(c *cobra.Command, got []string) error {
		if len(got) >= least && (most < 0 || len(got) <= most) {
			return nil
		}
		err := fault.New(fault.Config, "%s takes %s, not %d arguments", c.CommandPath(), what, len(got))
		return fault.Hint(err, "usage: %s", c.UseLine())
	}
}
