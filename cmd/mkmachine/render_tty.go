// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/mkmachine/mkmachine/internal/event"
)

const (
	frameEvery = 50 * time.Millisecond // 20 frames a second
	maxLive    = 8                     // live lines at a time
	maxPending = 5000                  // log lines that wait for a frame
)

// ttyRenderer draws live lines at the bottom of a terminal and everything that lasts
// above them. Events only change the state; one goroutine draws, so that a terminal
// that is stopped never holds up the work.
type ttyRenderer struct {
	out     io.Writer
	width   func() int
	now     func() time.Time
	mode    mode
	palette palette

	mu      sync.Mutex
	spans   *tracker
	pending []string // log lines for the next frame
	lost    int
	dirty   bool
	paused  bool

	drawn []int // columns of the live lines that are on the screen; the drawer's own
	stop  chan struct{}
	ended chan struct{}
}

func newTTYRenderer(e *env, m mode) *ttyRenderer {
	r := &ttyRenderer{
		out: e.Stderr, width: e.Terminal, now: e.Now, mode: m, palette: palette{!m.NoColor},
		spans: newTracker(), stop: make(chan struct{}), ended: make(chan struct{}),
	}
	go r.draw()
	return r
}

func (r *ttyRenderer) draw() {
	defer close(r.ended)
	tick := time.NewTicker(frameEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			r.frame()
		case <-r.stop:
			return
		}
	}
}

func (r *ttyRenderer) Sink(e event.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	w := r.spans.apply(e)
	for _, line := range r.mode.logLines(w, e, r.palette) {
		if len(r.pending) == maxPending {
			r.lost++
			continue
		}
		r.pending = append(r.pending, line)
	}
	r.dirty = true
}

// frame brings the screen up to date with one write.
func (r *ttyRenderer) frame() {
	now, width := r.now(), r.width()
	if width <= 0 {
		width = 80 // the terminal has gone; what is written goes nowhere
	}
	r.mu.Lock()
	if r.paused || !r.dirty && len(r.spans.order) == 0 {
		r.mu.Unlock()
		return
	}
	logs, lost := r.pending, r.lost
	r.pending, r.lost, r.dirty = nil, 0, false
	live := r.live(now, width)
	r.mu.Unlock()

	var b strings.Builder
	b.WriteString(r.erase(width))
	for _, line := range logs {
		b.WriteString(line + "\n")
	}
	if lost > 0 {
		fmt.Fprintf(&b, "  … %d lines left out\n", lost)
	}
	for _, line := range live {
		b.WriteString(line + "\n")
		r.drawn = append(r.drawn, columns(line))
	}
	if b.Len() > 0 {
		_, _ = io.WriteString(r.out, b.String()) // nobody to tell
	}
}

// erase takes the live lines off the screen. A terminal that has become narrower has
// wrapped them: each takes as many rows as it needs now.
func (r *ttyRenderer) erase(width int) string {
	rows := 0
	for _, c := range r.drawn {
		rows += max(1, (c+width-1)/width)
	}
	r.drawn = r.drawn[:0]
	if rows == 0 {
		return ""
	}
	return fmt.Sprintf("\x1b[%dA\r\x1b[J", rows)
}

// live is the lines of the spans that run: steps first, then what is below them, and a
// count of those for which there is no room. Verbs themselves have a line only while
// nothing below them runs.
func (r *ttyRenderer) live(now time.Time, width int) []string {
	parents := map[uint64]bool{}
	for _, w := range r.spans.order {
		parents[w.parent] = true
	}
	var show []*work
	for _, w := range r.spans.order {
		if w.depth <= stepDepth && (!parents[w.id] || w.depth > 0) {
			show = append(show, w)
		}
	}
	for _, w := range r.spans.order {
		if w.depth > stepDepth && !parents[w.id] {
			show = append(show, w)
		}
	}
	more := max(0, len(show)-maxLive)
	lines := make([]string, 0, maxLive+1)
	for _, w := range show[:len(show)-more] {
		lines = append(lines, progressLine(w, now, width))
	}
	if more > 0 {
		lines = append(lines, cut(fmt.Sprintf("    … and %d more", more), width-1))
	}
	return lines
}

// progressLine is one live line, shorter than width: the last column stays free, because
// some terminals wrap when it is written.
func progressLine(w *work, now time.Time, width int) string {
	room := width - 1
	indent, subject := "  ", w.subject
	if w.depth > stepDepth {
		// Of a path in an archive the end tells which one it is.
		indent, subject = "    ", subject[strings.LastIndexByte(subject, '/')+1:]
	}
	elapsed := coarse(now.Sub(w.started))
	name := indent + label(w.name, subject)
	if w.total <= 0 {
		tail := elapsed
		if w.done > 0 {
			tail = amount(w.done, 0, w.unit) + "  " + elapsed
		}
		return fit(name, tail, room)
	}
	part := min(1, float64(w.done)/float64(w.total))
	percent := fmt.Sprintf("%3d%%", int(part*100))
	if width < 50 {
		return fit(name, percent, room)
	}
	barWidth := 10
	if width >= 80 {
		barWidth = 20
	}
	tail := bar(part, barWidth) + " " + percent + "  " + amount(w.done, w.total, w.unit)
	if width >= 80 && w.speed.rate > 0 {
		if w.unit == "bytes" {
			tail += "  " + formatBytes(int64(w.speed.rate)) + "/s"
		}
		if left := float64(w.total-w.done) / w.speed.rate; left >= 1 && left < 100*3600 {
			tail += "  " + coarse(time.Duration(left)*time.Second) + " left"
		}
	}
	return fit(name, tail, room)
}

// fit puts name and tail into room columns. The tail is worth more than the end of the
// name, down to twelve columns of it.
func fit(name, tail string, room int) string {
	forName := max(min(12, room), room-columns(tail)-2)
	name = cut(name, forName)
	if width := min(34, forName); columns(name) < width {
		name = pad(name, width)
	}
	return trimRight(cut(name+"  "+tail, room))
}

// coarse is a duration in whole seconds, which does not flicker.
func coarse(d time.Duration) string {
	if d < time.Minute {
		return fmt.Sprintf("%ds", max(0, d/time.Second))
	}
	return formatDuration(d)
}

func bar(part float64, width int) string {
	full := int(part * float64(width))
	return "[" + strings.Repeat("#", full) + strings.Repeat("-", width-full) + "]"
}

func (r *ttyRenderer) Pause() {
	r.mu.Lock()
	already := r.paused
	r.mu.Unlock()
	if already {
		return
	}
	close(r.stop)
	<-r.ended
	r.clear()
	r.mu.Lock()
	r.paused = true
	r.mu.Unlock()
}

// clear shows what has been logged and leaves nothing live. The drawer must have ended.
func (r *ttyRenderer) clear() {
	r.mu.Lock()
	r.spans = newTracker()
	r.dirty = true
	r.mu.Unlock()
	r.frame()
}

func (r *ttyRenderer) Close(_ any, err error) {
	r.Pause()
	r.mu.Lock()
	r.paused = false
	r.mu.Unlock()
	r.clear()
	printError(r.out, err, r.palette)
}
