// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/event"
	"github.com/mkmachine/mkmachine/internal/fault"
)

// cpuEvery is how often the trace samples the processor time of this process and of the
// children it has waited for.
const cpuEvery = 50 * time.Millisecond

// traceRenderer writes the spans as Chrome trace events, for chrome://tracing or
// ui.perfetto.dev, and passes every event on.
type traceRenderer struct {
	next renderer
	warn func(string)
	cpu  func() time.Duration

	mu      sync.Mutex
	file    *os.File
	out     *bufio.Writer
	err     error // of the first write that failed
	began   time.Time
	first   bool
	lanes   [][]uint64 // spans that run, innermost last, by lane
	running map[uint64]traced
	cpuAt   time.Time
	cpuUsed time.Duration
}

type traced struct {
	start event.Event
	lane  int
}

// traceEvent is one event of the trace format, times in microseconds.
type traceEvent struct {
	Name string         `json:"name"`
	Cat  string         `json:"cat,omitempty"`
	Ph   string         `json:"ph"`
	Ts   int64          `json:"ts"`
	Dur  int64          `json:"dur,omitempty"`
	Pid  int            `json:"pid"`
	Tid  int            `json:"tid"`
	S    string         `json:"s,omitempty"`
	Args map[string]any `json:"args,omitempty"`
}

func newTraceRenderer(e *env, path string, next renderer) (renderer, error) {
	if !filepath.IsAbs(path) {
		path = filepath.Join(e.Dir, path)
	}
	f, err := os.Create(path)
	if err != nil {
		next.Close(nil, nil)
		return nil, fault.New(fault.Config, "cannot write the trace: %w", err)
	}
	return &traceRenderer{
		next: next, file: f, out: bufio.NewWriter(f), first: true, running: map[uint64]traced{}, cpu: processorTime,
		warn: func(text string) { fmt.Fprintln(e.Stderr, "mkmachine: warning: "+escape(text)) },
	}, nil
}

func processorTime() time.Duration {
	var sum int64
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if unix.Getrusage(who, &u) == nil {
			sum += u.Utime.Nano() + u.Stime.Nano()
		}
	}
	return time.Duration(sum)
}

func (r *traceRenderer) Sink(e event.Event) {
	r.next.Sink(e)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.out == nil {
		return
	}
	if r.began.IsZero() {
		r.began, r.cpuAt, r.cpuUsed = e.Time, e.Time, r.cpu()
	}
	r.sampleCPU(e.Time)
	switch e.Kind {
	case event.Start:
		r.running[e.Span] = traced{e, r.enter(e)}
	case event.End:
		t, ok := r.running[e.Span]
		if !ok {
			return
		}
		delete(r.running, e.Span)
		r.lanes[t.lane] = slices.DeleteFunc(r.lanes[t.lane], func(id uint64) bool { return id == e.Span })
		r.span(t, e)
	case event.Note, event.Warning, event.Fallback:
		r.write(traceEvent{Name: e.Text, Cat: string(e.Kind), Ph: "i", S: "t", Ts: r.micro(e.Time), Pid: 1, Tid: r.running[e.Span].lane})
	}
}

// enter finds the lane of a span: its parent's while nothing else runs there, so that it
// is drawn below it, else the first free one. Spans of one lane are always nested.
func (r *traceRenderer) enter(e event.Event) int {
	lane := -1
	if p, ok := r.running[e.Parent]; ok {
		if stack := r.lanes[p.lane]; stack[len(stack)-1] == e.Parent {
			lane = p.lane
		}
	}
	if lane < 0 {
		lane = slices.IndexFunc(r.lanes, func(stack []uint64) bool { return len(stack) == 0 })
	}
	if lane < 0 {
		r.lanes = append(r.lanes, nil)
		lane = len(r.lanes) - 1
	}
	r.lanes[lane] = append(r.lanes[lane], e.Span)
	return lane
}

func (r *traceRenderer) span(t traced, end event.Event) {
	args := map[string]any{}
	if end.Done > 0 {
		args["done"], args["unit"] = end.Done, end.Unit
	}
	if end.Err != "" {
		args["error"] = end.Err
	}
	name := t.start.Name
	if t.start.Subject != "" {
		name += " " + t.start.Subject
	}
	r.write(traceEvent{
		Name: name, Cat: t.start.Name, Ph: "X", Ts: r.micro(t.start.Time),
		Dur: max(1, end.Time.Sub(t.start.Time).Microseconds()), Pid: 1, Tid: t.lane, Args: args,
	})
}

// sampleCPU writes how many processors were busy since the last sample.
func (r *traceRenderer) sampleCPU(now time.Time) {
	wall := now.Sub(r.cpuAt)
	if wall < cpuEvery {
		return
	}
	used := r.cpu()
	busy := float64(used-r.cpuUsed) / float64(wall)
	r.write(traceEvent{Name: "processors", Ph: "C", Ts: r.micro(r.cpuAt), Pid: 1, Args: map[string]any{"busy": busy}})
	r.cpuAt, r.cpuUsed = now, used
}

func (r *traceRenderer) micro(t time.Time) int64 { return t.Sub(r.began).Microseconds() }

func (r *traceRenderer) write(e traceEvent) {
	data, err := json.Marshal(e)
	if err == nil {
		separator := ",\n"
		if r.first {
			separator, r.first = "[\n", false
		}
		_, err = r.out.WriteString(separator + string(data))
	}
	if r.err == nil {
		r.err = err
	}
}

func (r *traceRenderer) Pause() { r.next.Pause() }

func (r *traceRenderer) Close(result any, err error) {
	r.finish()
	r.next.Close(result, err)
	if r.err != nil {
		r.warn("cannot write the trace: " + r.err.Error())
	}
}

// finish ends the file; spans that still run are left out, they have no end.
func (r *traceRenderer) finish() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.out == nil {
		return
	}
	end := "\n]\n"
	if r.first {
		end = "[]\n"
	}
	_, err := r.out.WriteString(end)
	for _, e := range []error{err, r.out.Flush(), r.file.Close()} {
		if r.err == nil {
			r.err = e
		}
	}
	r.out = nil
}
