// SPDX-License-Identifier: Apache-2.0

package main

import (
	"time"

	"github.com/mkmachine/mkmachine/internal/event"
)

// renderer shows the one stream of events in one way. Sink is an event.Sink.
type renderer interface {
	// Sink takes an event. It may be called from many goroutines at once.
	Sink(e event.Event)
	// Pause takes everything live off the terminal, which belongs to a payload from now
	// on, until Close.
	Pause()
	// Close shows how the work ended: the error for people, or with --json the result or
	// the error as the last line. A nil result is not printed. Events after Close are lost.
	Close(result any, err error)
}

// mode is how to show events.
type mode struct {
	JSON    bool
	Quiet   bool // errors only
	Verbose bool // also details, and what scripts print
	NoColor bool
	Trace   string // file for a Chrome trace, beside the rest; "" for none
}

// newRenderer is the renderer for the world and the options: JSON lines, live lines on a
// terminal, or one line per finished step.
func newRenderer(e *env, m mode) (renderer, error) {
	var r renderer
	switch {
	case m.JSON:
		r = newJSONRenderer(e.Stdout, e.Stderr, m.Verbose, m.Quiet)
	case e.Terminal() > 0 && e.Getenv("TERM") != "dumb" && !m.Quiet:
		r = newTTYRenderer(e, m)
	default:
		color := e.Terminal() > 0 && e.Getenv("TERM") != "dumb" && !m.NoColor
		r = newPlainRenderer(e.Stderr, m, color)
	}
	if m.Trace == "" {
		return r, nil
	}
	return newTraceRenderer(e, m.Trace, r)
}

const (
	// stepDepth is how deep below a verb a span is still a step with a line of its own:
	// build is 0, its unpack is 1, the single packages are deeper.
	stepDepth = 1
	// tailLines of a script's output are shown when it fails.
	tailLines = 20
)

// work is a span as the renderers know it.
type work struct {
	id, parent    uint64
	depth         int
	name, subject string
	started       time.Time
	done, total   int64
	unit          string
	speed         speed
	tail          []string // last lines of output, raw
}

// speed is a moving average in units per second.
type speed struct {
	at   time.Time
	done int64
	rate float64
}

// update takes a count; samples closer than 200 ms wait for the next.
func (s *speed) update(now time.Time, done int64) {
	if s.at.IsZero() {
		s.at, s.done = now, done
		return
	}
	d := now.Sub(s.at).Seconds()
	if d < 0.2 {
		return
	}
	rate := float64(done-s.done) / d
	if s.rate == 0 {
		s.rate = rate
	} else {
		s.rate += (rate - s.rate) * min(1, d/3)
	}
	s.at, s.done = now, done
}

// tracker follows the spans that run.
type tracker struct {
	running map[uint64]*work
	order   []*work // by start
}

func newTracker() *tracker { return &tracker{running: map[uint64]*work{}} }

// apply takes an event and returns the span it belongs to; nil where it has none. A span
// that ends is returned a last time.
func (t *tracker) apply(e event.Event) *work {
	if e.Kind == event.Start {
		w := &work{id: e.Span, parent: e.Parent, name: e.Name, subject: e.Subject, started: e.Time}
		if p := t.running[e.Parent]; p != nil {
			w.depth = p.depth + 1
		}
		w.speed.update(e.Time, 0)
		t.running[e.Span] = w
		t.order = append(t.order, w)
		return w
	}
	w := t.running[e.Span]
	if w == nil {
		return nil
	}
	switch e.Kind {
	case event.Progress, event.End:
		w.done, w.total, w.unit = e.Done, e.Total, e.Unit
		w.speed.update(e.Time, e.Done)
	case event.Output:
		if len(w.tail) == tailLines {
			w.tail = append(w.tail[:0], w.tail[1:]...)
		}
		w.tail = append(w.tail, e.Text)
	}
	if e.Kind == event.End {
		delete(t.running, e.Span)
		for i, o := range t.order {
			if o == w {
				t.order = append(t.order[:i], t.order[i+1:]...)
				break
			}
		}
	}
	return w
}

// logLines are the lines for people that an event leaves behind, already safe to print;
// most events leave none.
func (m mode) logLines(w *work, e event.Event, c palette) []string {
	if m.Quiet {
		return nil
	}
	var lines []string
	switch e.Kind {
	case event.Note:
		lines = append(lines, c.dim("  note   ")+" "+escape(e.Text))
	case event.Warning:
		lines = append(lines, c.yellow("  warning")+" "+escape(e.Text))
	case event.Fallback:
		lines = append(lines, c.yellow("  slower ")+" "+label(e.Name, e.Subject)+": "+escape(e.Text))
	case event.Debug:
		if m.Verbose {
			lines = append(lines, c.dim("  debug  ")+" "+escape(e.Text))
		}
	case event.Output:
		if m.Verbose {
			lines = append(lines, c.dim("  |")+" "+escape(e.Text))
		}
	case event.End:
		if w == nil {
			break
		}
		if e.Err != "" && !m.Verbose {
			for _, line := range w.tail {
				lines = append(lines, c.dim("  |")+" "+escape(line))
			}
		}
		if w.depth <= stepDepth || m.Verbose || e.Err != "" && len(w.tail) > 0 {
			lines = append(lines, finished(w, e, c))
		}
	}
	return lines
}

// finished is the line of a span that has ended.
func finished(w *work, e event.Event, c palette) string {
	word := c.green("  done   ")
	if e.Err != "" {
		word = c.red("  failed ")
	}
	took := formatDuration(e.Time.Sub(w.started))
	line := word + " " + pad(label(w.name, w.subject), 32) + " "
	if e.Done == 0 {
		return line + c.dim(took)
	}
	return line + c.dim(pad(took, 7)) + " " + amount(e.Done, 0, e.Unit)
}
