// SPDX-License-Identifier: Apache-2.0

package build

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

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
	file, removeFile, err := e.scriptFile(s.Data)
	if err != nil {
		return err
	}
	defer removeFile()
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

func scriptDir(runtime string) string { return filepath.Join(runtime, "scripts") }

// scriptFile writes the bytes to a file that the machine can be given. Its lock is held until
// remove is called, so that CleanScripts can tell it from those of dead processes.
func (e *Engine) scriptFile(data []byte) (path string, remove func(), err error) {
	fail := func(err error) (string, func(), error) {
		return "", nil, fault.As(fault.Host, fmt.Errorf("cannot make a file for the script: %w", err))
	}
	dir := scriptDir(e.Runtime)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fail(err)
	}
	f, err := os.OpenFile(dir, os.O_WRONLY|unix.O_TMPFILE, 0o700)
	if err != nil {
		return fail(err)
	}
	defer f.Close()
	// The lock is on a descriptor for reading: what is open for writing cannot be executed.
	name := "/proc/self/fd/" + strconv.Itoa(int(f.Fd()))
	lock, err := os.Open(name)
	if err != nil {
		return fail(err)
	}
	_, err = f.Write(data)
	path = filepath.Join(dir, "script-"+rand.Text())
	if err = errors.Join(err, f.Chmod(0o755), unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)); err == nil {
		// It gets a name when it is locked and whole.
		err = unix.Linkat(unix.AT_FDCWD, name, unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
	}
	if err != nil {
		lock.Close()
		return fail(err)
	}
	return path, func() { os.Remove(path); lock.Close() }, nil
}

// CleanScripts removes the scripts that killed builds left below runtime.
func CleanScripts(runtime string) error {
	entries, err := os.ReadDir(scriptDir(runtime))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fault.As(fault.Failed, fmt.Errorf("cannot list scripts: %w", err))
	}
	for _, entry := range entries {
		path := filepath.Join(scriptDir(runtime), entry.Name())
		f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if err != nil {
			continue // gone meanwhile, or nothing of ours
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			err = os.Remove(path)
		}
		f.Close()
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fault.As(fault.Failed, fmt.Errorf("cannot remove a script: %w", err))
		}
	}
	return nil
}
