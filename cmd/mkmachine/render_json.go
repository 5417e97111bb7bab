// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/mkmachine/mkmachine/internal/event"
	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/recipes"
)

// progressEvery thins out the progress of one span in JSON lines.
const progressEvery = 200 * time.Millisecond

// jsonRenderer writes {"type":"event",…} lines to stderr, and one last line to stdout:
// {"type":"result",…} or {"type":"error",…}.
type jsonRenderer struct {
	out, events io.Writer
	verbose     bool
	quiet       bool

	mu     sync.Mutex
	last   map[uint64]time.Time // progress, by span
	paused bool
	held   []event.Event // events of the pause
}

func newJSONRenderer(out, events io.Writer, verbose, quiet bool) *jsonRenderer {
	return &jsonRenderer{out: out, events: events, verbose: verbose, quiet: quiet, last: map[uint64]time.Time{}}
}

func (r *jsonRenderer) Sink(e event.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch e.Kind {
	case event.Debug:
		if !r.verbose {
			return
		}
	case event.Progress:
		if e.Time.Sub(r.last[e.Span]) < progressEvery {
			return
		}
		r.last[e.Span] = e.Time
	case event.End:
		delete(r.last, e.Span)
	}
	switch {
	case r.quiet:
	case r.paused && e.Kind != event.Progress:
		r.held = append(r.held, e)
	case !r.paused:
		r.event(e)
	}
}

func (r *jsonRenderer) event(e event.Event) {
	line(r.events, struct {
		Type string `json:"type"`
		event.Event
	}{"event", e})
}

func (r *jsonRenderer) Pause() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.paused = true
}

func (r *jsonRenderer) Close(result any, err error) {
	r.mu.Lock()
	for _, e := range r.held {
		r.event(e)
	}
	r.paused, r.held, r.quiet = true, nil, true
	r.mu.Unlock()
	switch {
	case err != nil:
		line(r.out, describe(err))
	case result != nil:
		line(r.out, struct {
			Type   string `json:"type"`
			Result any    `json:"result"`
		}{"result", result})
	}
}

// errorLine is an error as JSON.
type errorLine struct {
	Type     string        `json:"type"`
	Class    fault.Class   `json:"class"`
	Exit     int           `json:"exit"`
	Message  string        `json:"message"`
	Position *fault.Pos    `json:"position,omitempty"`
	Problems []problemLine `json:"problems,omitempty"`
	Hints    []string      `json:"hints,omitempty"`
}

type problemLine struct {
	Position fault.Pos   `json:"position"`
	Class    fault.Class `json:"class"`
	Message  string      `json:"message"`
	Hint     string      `json:"hint,omitempty"`
}

func describe(err error) errorLine {
	out := errorLine{Type: "error", Class: fault.ClassOf(err), Message: err.Error(), Hints: fault.Hints(err)}
	out.Exit = exitCode(err)
	if pos, ok := fault.PosOf(err); ok {
		out.Position = &pos
	}
	for _, e := range apart(err) {
		var problems recipes.Problems
		if errors.As(e, &problems) {
			for _, p := range problems {
				out.Problems = append(out.Problems, problemLine{p.Pos, p.Class, p.Text, p.Hint})
			}
		}
	}
	return out
}

// line writes a value as one line of JSON that is safe on a terminal and in a CI log:
// what encoding/json leaves as it is but escape would not, is written as \u escapes.
func line(w io.Writer, value any) {
	data, err := json.Marshal(value)
	if err != nil {
		data, _ = json.Marshal(errorLine{Type: "error", Class: fault.Internal, Exit: fault.Internal.ExitCode(), Message: "internal error: " + err.Error()})
	}
	text := ciCommand.ReplaceAllString(string(data), `\u0023#$1[`)
	if strings.IndexFunc(text, unsafeRune) < 0 {
		fmt.Fprintln(w, text)
		return
	}
	var b strings.Builder
	for _, r := range text {
		switch {
		case !unsafeRune(r):
			b.WriteRune(r)
		case r > 0xffff:
			fmt.Fprintf(&b, `\u%04x\u%04x`, 0xd800+(r-0x10000)>>10, 0xdc00+(r-0x10000)&0x3ff)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	fmt.Fprintln(w, b.String())
}
