// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/mkmachine/mkmachine/internal/event"
)

// lifeSign is how long a log stays silent while something still moves.
const lifeSign = 15 * time.Second

// plainRenderer writes one line per finished step, for logs.
type plainRenderer struct {
	out     io.Writer
	mode    mode
	palette palette

	mu     sync.Mutex
	spans  *tracker
	last   time.Time // of the last line
	paused bool
	held   []string // lines of the pause
}

func newPlainRenderer(out io.Writer, m mode, color bool) *plainRenderer {
	return &plainRenderer{out: out, mode: m, palette: palette{color}, spans: newTracker()}
}

func (r *plainRenderer) Sink(e event.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	w := r.spans.apply(e)
	lines := r.mode.logLines(w, e, r.palette)
	if r.last.IsZero() {
		r.last = e.Time
	}
	if len(lines) == 0 && e.Kind == event.Progress && w != nil && !r.mode.Quiet && !r.paused && e.Time.Sub(r.last) >= lifeSign {
		lines = []string{r.palette.dim("  busy   ") + " " + pad(label(w.name, w.subject), 32) + " " + amount(w.done, w.total, w.unit)}
	}
	if r.paused {
		r.held = append(r.held, lines...)
		return
	}
	if len(lines) == 0 {
		return
	}
	r.last = e.Time
	for _, line := range lines {
		fmt.Fprintln(r.out, line)
	}
}

func (r *plainRenderer) Pause() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.paused = true
}

func (r *plainRenderer) Close(_ any, err error) {
	r.mu.Lock()
	held := r.held
	r.paused, r.held = true, nil
	r.mu.Unlock()
	for _, line := range held {
		fmt.Fprintln(r.out, line)
	}
	printError(r.out, err, r.palette)
}
