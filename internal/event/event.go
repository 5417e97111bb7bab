// SPDX-License-Identifier: Apache-2.0

// Package event is the one stream in which the libraries report what they do.
//
// A span is a piece of work with a start, progress and an end; notes belong to a span.
// Libraries name things and count; they never format text for people. The renderers in
// cmd/mkmachine turn the same stream into live bars, plain lines, JSON lines or a trace.
// A nil Sink is silence: every function here accepts it.
package event

import (
	"context"
	"sync/atomic"
	"time"
)

// Kind says what an Event reports.
type Kind string

// The kinds of event.
const (
	Start    Kind = "start"    // a span begins
	Progress Kind = "progress" // Done of Total
	End      Kind = "end"      // a span ends; Err is set when it failed
	Note     Kind = "note"     // a fact worth a line
	Warning  Kind = "warning"  // something is off, the work goes on
	Fallback Kind = "fallback" // the fast or strict way was not taken; Text is the reason
	Output   Kind = "output"   // one line that a script printed, raw
	Debug    Kind = "debug"    // shown with -v
)

// Event is one report. Which fields are set depends on Kind.
type Event struct {
	Time    time.Time `json:"time"`
	Kind    Kind      `json:"kind"`
	Span    uint64    `json:"span,omitempty"`
	Parent  uint64    `json:"parent,omitempty"`
	Name    string    `json:"name,omitempty"`    // the work: "download", "unpack", "configure", …
	Subject string    `json:"subject,omitempty"` // what it works on: a package, a file, a machine
	Done    int64     `json:"done,omitempty"`
	Total   int64     `json:"total,omitempty"` // 0 where unknown
	Unit    string    `json:"unit,omitempty"`  // "bytes" or a plural noun ("packages")
	Text    string    `json:"text,omitempty"`
	Err     string    `json:"error,omitempty"`
}

// Sink receives events. It must be safe for concurrent use and must not block for long.
type Sink func(Event)

func (s Sink) send(e Event) {
	if s != nil {
		e.Time = time.Now()
		s(e)
	}
}

var lastSpan atomic.Uint64

// Span is work in progress. The zero of *Span (nil) is usable and silent.
type Span struct {
	sink          Sink
	id            uint64
	parent        uint64
	name, subject string
	unit          string
	total         atomic.Int64
	done          atomic.Int64
	lastSent      atomic.Int64
}

// Start begins a span at top level.
func (s Sink) Start(name, subject string) *Span {
	return start(s, 0, name, subject)
}

func start(s Sink, parent uint64, name, subject string) *Span {
	sp := &Span{sink: s, id: lastSpan.Add(1), parent: parent, name: name, subject: subject}
	sp.emit(Event{Kind: Start})
	return sp
}

// Start begins a span inside sp.
func (sp *Span) Start(name, subject string) *Span {
	if sp == nil {
		return nil
	}
	return start(sp.sink, sp.id, name, subject)
}

func (sp *Span) emit(e Event) {
	if sp == nil {
		return
	}
	e.Span, e.Parent, e.Name, e.Subject = sp.id, sp.parent, sp.name, sp.subject
	if e.Kind == Progress || e.Kind == End {
		e.Done, e.Total, e.Unit = sp.done.Load(), sp.total.Load(), sp.unit
	}
	sp.sink.send(e)
}

// Expect sets the total and its unit; call it before the first Add.
func (sp *Span) Expect(total int64, unit string) {
	if sp != nil {
		sp.unit = unit
		sp.total.Store(total)
		sp.emit(Event{Kind: Progress})
	}
}

// progressEvery bounds how often Add sends, in nanoseconds.
const progressEvery = int64(33 * time.Millisecond)

// Add counts n more units done. It is cheap: at most 30 events a second leave a span.
func (sp *Span) Add(n int64) {
	if sp == nil {
		return
	}
	sp.done.Add(n)
	now, last := time.Now().UnixNano(), sp.lastSent.Load()
	if now-last >= progressEvery && sp.lastSent.CompareAndSwap(last, now) {
		sp.emit(Event{Kind: Progress})
	}
}

// End closes the span; err may be nil.
func (sp *Span) End(err error) {
	e := Event{Kind: End}
	if err != nil {
		e.Err = err.Error()
	}
	sp.emit(e)
}

// Sink is a sink whose top-level spans stand inside sp, for libraries that take a Sink.
func (sp *Span) Sink() Sink {
	if sp == nil || sp.sink == nil {
		return nil
	}
	return func(e Event) {
		if e.Parent == 0 {
			e.Parent = sp.id
		}
		sp.sink(e)
	}
}

type spanKey struct{}

// With carries sp in a context, for work that is shared by many spans: a fetcher opens its
// spans inside the one whose work asked for the file.
func With(ctx context.Context, sp *Span) context.Context {
	return context.WithValue(ctx, spanKey{}, sp)
}

// From is the span that With put into the context, or nil.
func From(ctx context.Context) *Span {
	sp, _ := ctx.Value(spanKey{}).(*Span)
	return sp
}

// Note reports a fact.
func (sp *Span) Note(text string) { sp.emit(Event{Kind: Note, Text: text}) }

// Warn reports something that is off.
func (sp *Span) Warn(text string) { sp.emit(Event{Kind: Warning, Text: text}) }

// Fallback reports that a slower or plainer way is taken, and why.
func (sp *Span) Fallback(reason string) { sp.emit(Event{Kind: Fallback, Text: reason}) }

// Output reports one line printed by a script.
func (sp *Span) Output(line string) { sp.emit(Event{Kind: Output, Text: line}) }

// Debug reports a detail.
func (sp *Span) Debug(text string) { sp.emit(Event{Kind: Debug, Text: text}) }
