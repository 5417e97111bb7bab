// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/mkmachine/mkmachine/internal/event"
	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/internal/kernel"
	"github.com/mkmachine/mkmachine/runner"
)

// stageMachine runs programs in a stage. The machine starts with the first of them, when
// the tree has something to run, and lives until close.
type stageMachine struct {
	machine runner.Machine
	options runner.Options

	mu       sync.Mutex
	instance *runner.Instance
}

// buildMachine describes the machine for the scripts of packages and recipes: profile
// build, no network unless the recipe asks, nothing flushed to disk before the store does.
func (e *Engine) buildMachine(name, dir string, network bool, span *event.Span) *stageMachine {
	m := &stageMachine{
		machine: runner.Machine{
			Name: "build-" + name, Hostname: "localhost", Root: dir,
			Profile: runner.Build, Network: runner.Loopback, NoSync: true,
		},
		options: runner.Options{Sink: span.Sink(), Runtime: e.Runtime},
	}
	if network {
		m.machine.Network = runner.Host
	}
	return m
}

// script runs one program as root of the tree; an exit status other than 0 is an error.
func (m *stageMachine) script(ctx context.Context, argv, env []string, output io.Writer) error {
	return m.exec(ctx, runner.Command{Argv: argv, Env: env, Stdout: output, Stderr: output})
}

func (m *stageMachine) exec(ctx context.Context, c runner.Command) error {
	instance, err := m.start(ctx)
	if err != nil {
		return err
	}
	status, err := instance.Exec(ctx, c)
	if err == nil && !status.Ok() {
		err = fault.New(fault.Failed, "%s", status)
	}
	return err
}

func (m *stageMachine) start(ctx context.Context) (*runner.Instance, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.instance == nil {
		instance, err := runner.Start(ctx, &m.machine, &m.options)
		if err != nil {
			return nil, err
		}
		m.instance = instance
	}
	return m.instance, nil
}

// close ends the machine and all that runs in it, and joins its error to *err.
func (m *stageMachine) close(err *error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.instance != nil {
		*err = errors.Join(*err, m.instance.Close())
		m.instance = nil
	}
}

// canRun says whether programs of an architecture (dpkg's name) run on this host.
func canRun(arch string) error {
	if p := kernel.Runs(arch); p != nil {
		return fault.As(fault.Host, fmt.Errorf("cannot run programs for %s: %w", arch, p))
	}
	return nil
}
