// SPDX-License-Identifier: Apache-2.0

// Command mkmachine makes operating-system trees from recipes and runs them.
//
// This package owns the command line: flags, the rendering of events, errors and results,
// and the exit codes. It holds no logic of the product: each verb parses its arguments,
// calls one function of a library, and prints. It is the only place that prints, reads the
// environment, or ends the process.
package main

import (
	"context"
	"errors"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/bootstrap/deb"
	"github.com/mkmachine/mkmachine/internal/build"
	"github.com/mkmachine/mkmachine/runner"
)

// entries are the functions that run in a confined re-execution of this program.
func entries() map[string]runner.Entry {
	return map[string]runner.Entry{build.UnpackEntry: deb.Serve}
}

func main() {
	runner.Dispatch(entries())
	e := osEnv()
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	ctx, cancel := context.WithCancelCause(context.Background())
	a := newApp(e)
	go func() {
		for range signals {
			if context.Cause(ctx) != nil {
				os.Exit(exitInterrupted)
			}
			a.say("interrupted; cleaning up, once more stops at once")
			cancel(errInterrupted)
		}
	}()
	os.Exit(a.run(ctx, os.Args[1:]))
}

// errInterrupted is the cause of a context that a signal ended. A second signal ends the
// process: what it leaves is recorded in the journals, the next command removes it.
var errInterrupted = errors.New("interrupted")
