// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/mkmachine/mkmachine/runner"
)

func TestMain(m *testing.M) {
	runner.Dispatch(entries())
	testscript.Main(m, map[string]func(){"mkmachine": main, "idle": idle})
}

// idle is a program for machines: it says that it runs, and waits for its end.
func idle() {
	fmt.Println("running")
	time.Sleep(time.Minute)
}

// TestStories runs the command-line stories of testdata/script.
func TestStories(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/script", RequireExplicitExec: true})
}

// world is a host for one test: its own machines, cache and runtime directories.
type world struct {
	t                        testing.TB
	dir                      string
	machines, cache, runtime string
	vars                     map[string]string
	adjust                   func(*env) // changes the environment of each command; may be nil
}

func newWorld(t testing.TB, machines string) *world {
	t.Helper()
	dir := t.TempDir()
	if machines == "" {
		machines = filepath.Join(dir, "machines")
	}
	return &world{t: t, dir: dir, machines: machines, cache: filepath.Join(dir, "cache"), runtime: filepath.Join(dir, "run"), vars: map[string]string{}}
}

// empty removes every image and layer, so that the directory can be removed: trees are
// immutable where the file system can mark them so.
func (w *world) empty() {
	if os.Geteuid() != 0 {
		return
	}
	ctx := context.Background() // the test's own is over
	var images []struct{ Name string }
	o := w.runWith(ctx, "", "--json", "list")
	if o.code != 0 {
		return
	}
	o.result(w.t, &images)
	for _, img := range images {
		w.runWith(ctx, "", "remove", img.Name)
	}
	w.runWith(ctx, "", "clean", "--layers", "--downloads", "--unused", "0s")
}

// outcome is how a command ended.
type outcome struct {
	code           int
	stdout, stderr string
}

// safeBuffer is written by several goroutines.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// run runs the program in this process.
func (w *world) run(args ...string) outcome {
	w.t.Helper()
	return w.runWith(w.t.Context(), "", args...)
}

func (w *world) runWith(ctx context.Context, stdin string, args ...string) outcome {
	w.t.Helper()
	var stdout, stderr safeBuffer
	vars := map[string]string{"MKMACHINE_MACHINES": w.machines, "MKMACHINE_CACHE": w.cache, "MKMACHINE_RUNTIME": w.runtime, "HOME": w.dir}
	for k, v := range w.vars {
		vars[k] = v
	}
	e := &env{
		Stdin: strings.NewReader(stdin), Stdout: &stdout, Stderr: &stderr,
		Getenv: func(k string) string { return vars[k] }, Now: time.Now,
		Terminal: func() int { return 0 }, UID: os.Geteuid(), Dir: w.dir,
	}
	if w.adjust != nil {
		w.adjust(e)
	}
	code := newApp(e).run(ctx, args)
	return outcome{code, stdout.String(), stderr.String()}
}

// must fails the test unless the command ends with 0.
func (w *world) must(args ...string) outcome {
	w.t.Helper()
	o := w.run(args...)
	if o.code != 0 {
		w.t.Fatalf("mkmachine %s: exit %d\n%s%s", strings.Join(args, " "), o.code, o.stdout, o.stderr)
	}
	return o
}

// result decodes the result line of a command that was run with --json.
func (o outcome) result(t testing.TB, into any) {
	t.Helper()
	var line struct {
		Type   string          `json:"type"`
		Result json.RawMessage `json:"result"`
	}
	text := strings.TrimSpace(o.stdout)
	if err := json.Unmarshal([]byte(text[strings.LastIndex(text, "\n")+1:]), &line); err != nil || line.Type != "result" {
		t.Fatalf("no result line: %v\n%s%s", err, o.stdout, o.stderr)
	}
	if err := json.Unmarshal(line.Result, into); err != nil {
		t.Fatal(err)
	}
}

// write puts a file into the world's directory.
func (w *world) write(name, text string) {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.dir, name), []byte(text), 0o644); err != nil {
		w.t.Fatal(err)
	}
}
