// SPDX-License-Identifier: Apache-2.0

package event

import (
	"errors"
	"strings"
	"sync"
	"testing"
)

// record collects events.
func record() (*[]Event, Sink) {
	var mu sync.Mutex
	var all []Event
	return &all, func(e Event) {
		mu.Lock()
		defer mu.Unlock()
		all = append(all, e)
	}
}

func TestSpansNest(t *testing.T) {
	all, sink := record()
	outer := sink.Start("build", "web")
	inner := outer.Start("unpack", "packages")
	inner.Expect(10, "bytes")
	inner.Add(10)
	inner.Fallback("no reflink")
	inner.End(errors.New("disk full"))
	outer.End(nil)
	last := (*all)[len(*all)-2]
	if last.Kind != End || last.Parent != (*all)[0].Span || last.Err != "disk full" || last.Done != 10 || last.Total != 10 || last.Unit != "bytes" {
		t.Errorf("end of the inner span is %+v", last)
	}
}

func TestSinkAndContextNest(t *testing.T) {
	all, sink := record()
	outer := sink.Start("build", "web")
	outer.Sink().Start("start", "machine").Start("mount", "").End(nil)
	From(With(t.Context(), outer)).Start("download", "x").End(nil)
	want := []uint64{0, outer.id, (*all)[1].Span, (*all)[1].Span, outer.id, outer.id}
	for i, e := range *all {
		if e.Parent != want[i] {
			t.Errorf("event %d %s %s has parent %d, want %d", i, e.Kind, e.Name, e.Parent, want[i])
		}
	}
	if From(t.Context()) != nil {
		t.Error("a bare context has a span")
	}
}

func TestNilIsSilent(t *testing.T) {
	var sink Sink
	sp := sink.Start("a", "b").Start("c", "d")
	sp.Expect(1, "bytes")
	sp.Add(1)
	sp.Note("x")
	sp.End(nil)
	var none *Span
	none.Start("a", "b").End(nil)
	none.Add(1)
	none.Output("x")
}

func TestProgressIsBounded(t *testing.T) {
	all, sink := record()
	sp := sink.Start("copy", "")
	for range 100000 {
		sp.Add(1)
	}
	sp.End(nil)
	if n := len(*all); n > 100 {
		t.Errorf("%d events for 100000 additions", n)
	}
	if e := (*all)[len(*all)-1]; e.Done != 100000 {
		t.Errorf("the end says %d done", e.Done)
	}
}

func TestLines(t *testing.T) {
	all, sink := record()
	l := NewLines(sink.Start("script", "x"))
	for _, part := range []string{"one\ntw", "o\n", "\n", strings.Repeat("x", 2*maxLine+5) + "\nend"} {
		if n, err := l.Write([]byte(part)); n != len(part) || err != nil {
			t.Fatalf("Write(%d bytes) = %d, %v", len(part), n, err)
		}
	}
	l.Flush()
	var got []string
	for _, e := range *all {
		if e.Kind == Output {
			got = append(got, e.Text)
		}
	}
	if strings.Join(got[:3], "|") != "one|two|" || got[len(got)-1] != "end" {
		t.Errorf("lines are %.80q", got)
	}
	total := 0
	for _, g := range got[3 : len(got)-1] {
		if len(g) > maxLine {
			t.Errorf("a line of %d bytes", len(g))
		}
		total += len(g)
	}
	if total != 2*maxLine+5 {
		t.Errorf("a long line came out as %d bytes, want %d", total, 2*maxLine+5)
	}
	if !strings.Contains(l.Tail(), "\n\tone\n\ttwo\n") {
		t.Errorf("tail is %q", l.Tail())
	}
}
