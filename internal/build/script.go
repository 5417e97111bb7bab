// SPDX-License-Identifier: Apache-2.0

package build

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/mkmachine/mkmachine/internal/event"
	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/recipes"
	"github.com/mkmachine/mkmachine/runner"
	"github.com/mkmachine/mkmachine/snapshot"
	"github.com/mkmachine/mkmachine/sources"
)

// scriptTarget is where a script lies in its machine: on the machine's own /run, so that
// nothing of it stays in the tree.
const scriptTarget = "/run/mkmachine/script"

// scriptName is how messages call a script.
func scriptName(s *recipes.Script, number int) string {
	switch {
	case s.Name.Value != "":
		return s.Name.Value
	case s.File.Value != "":
		return s.File.Value
	}
	return "script " + strconv.Itoa(number+1)
}

// script runs one script of the recipe in the stage.
func (e *Engine) script(ctx context.Context, lock *sources.Lock, s *recipes.Script, stage *snapshot.Stage, span *event.Span) (err error) {
	if err := canRun(lock.Arch); err != nil {
		return err
	}
	file, err := e.scriptFile(s.Data)
	if err != nil {
		return err
	}
	defer os.Remove(file)
	machine := e.buildMachine(lock.Recipe, stage.Dir(), s.Network, span)
	machine.machine.Mounts = []runner.Mount{{Source: file, Target: scriptTarget, ReadOnly: true}}
	defer machine.close(&err)

	argv := []string{"/bin/sh", "-e", scriptTarget}
	if bytes.HasPrefix(s.Data, []byte("#!")) {
		argv = []string{scriptTarget}
	}
	env := []string{
		"LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive",
		"SOURCE_DATE_EPOCH=" + strconv.FormatInt(lock.Date.Unix(), 10),
	}
	for key, value := range s.Env {
		env = append(env, key+"="+value)
	}
	limit := time.Duration(s.Timeout) * time.Second
	scriptCtx, cancel := context.WithTimeoutCause(ctx, limit, errScriptTimeout)
	defer cancel()
	out := event.NewLines(span)
	err = machine.exec(scriptCtx, runner.Command{Argv: argv, Env: env, Dir: "/", Stdout: out, Stderr: out})
	out.Flush()
	if err == nil {
		return nil
	}
	if errors.Is(context.Cause(scriptCtx), errScriptTimeout) {
		err = fault.Hint(fault.New(fault.Failed, "it ran longer than %s", limit), "raise the script's timeout in the recipe")
	}
	err = fmt.Errorf("cannot run script: %w%s", err, out.Tail())
	return fault.At(err, s.Pos)
}

var errScriptTimeout = errors.New("script timeout")

// scriptFile writes the bytes to a file that the machine can be given.
func (e *Engine) scriptFile(data []byte) (string, error) {
	dir := filepath.Join(e.Runtime, "scripts")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fault.As(fault.Host, err)
	}
	f, err := os.CreateTemp(dir, "script-*")
	if err != nil {
		return "", fault.As(fault.Host, err)
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(0o755)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		os.Remove(f.Name())
		return "", fault.As(fault.Host, err)
	}
	return f.Name(), nil
}
