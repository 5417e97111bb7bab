// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/mkmachine/mkmachine/internal/event"
	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/recipes"
)

var update = flag.Bool("update", false, "rewrite golden files")

// golden compares a text with a file of testdata/render.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", "render", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != got {
		t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
	}
}

// recorded is a build as events, one second after the other where nothing else is said.
func recorded() []event.Event {
	at := time.Date(2026, 11, 23, 9, 0, 0, 0, time.UTC)
	var out []event.Event
	add := func(after time.Duration, e event.Event) {
		at = at.Add(after)
		e.Time = at
		out = append(out, e)
	}
	start := func(id, parent uint64, name, subject string) {
		add(10*time.Millisecond, event.Event{Kind: event.Start, Span: id, Parent: parent, Name: name, Subject: subject})
	}
	count := func(after time.Duration, kind event.Kind, id, parent uint64, name, subject string, done, total int64, unit, err string) {
		add(after, event.Event{Kind: kind, Span: id, Parent: parent, Name: name, Subject: subject, Done: done, Total: total, Unit: unit, Err: err})
	}
	start(1, 0, "build", "debian-stable")
	start(2, 1, "resolve", "debian-stable")
	start(3, 2, "download", "debian:dists/trixie/InRelease")
	count(time.Second, event.Progress, 3, 2, "download", "debian:dists/trixie/InRelease", 70_000, 140_421, "bytes", "")
	count(time.Second, event.End, 3, 2, "download", "debian:dists/trixie/InRelease", 140_421, 140_421, "bytes", "")
	add(0, event.Event{Kind: event.Debug, Span: 2, Parent: 1, Name: "resolve", Text: "mirror answered in 12 ms"})
	count(time.Second, event.End, 2, 1, "resolve", "debian-stable", 143, 0, "packages", "")
	start(4, 1, "fetch", "packages")
	count(0, event.Progress, 4, 1, "fetch", "packages", 0, 44_000_000, "bytes", "")
	for i := range uint64(12) {
		subject := fmt.Sprintf("debian:pool/main/l/lib%d/lib%d_1.0-1_amd64.deb", i, i)
		start(10+i, 4, "download", subject)
		count(0, event.Progress, 10+i, 4, "download", subject, int64(i)*100_000, 2_000_000, "bytes", "")
	}
	count(time.Second, event.Progress, 4, 1, "fetch", "packages", 11_000_000, 44_000_000, "bytes", "")
	for i := range uint64(12) {
		count(0, event.End, 10+i, 4, "download", "x", 2_000_000, 2_000_000, "bytes", "")
	}
	count(2*time.Second, event.Progress, 4, 1, "fetch", "packages", 33_000_000, 44_000_000, "bytes", "")
	add(0, event.Event{Kind: event.Warning, Span: 4, Parent: 1, Name: "fetch", Text: "mirror two is slow \x1b[31mred"})
	count(time.Second, event.End, 4, 1, "fetch", "packages", 44_000_000, 44_000_000, "bytes", "")
	start(30, 1, "unpack", "packages")
	add(0, event.Event{Kind: event.Fallback, Span: 30, Parent: 1, Name: "unpack", Subject: "packages", Text: "no reflink on ext4: copying"})
	count(20*time.Second, event.Progress, 30, 1, "unpack", "packages", 100, 143, "packages", "")
	count(time.Second, event.End, 30, 1, "unpack", "packages", 143, 143, "packages", "")
	start(31, 1, "script", "finish")
	for i := range 25 {
		add(time.Millisecond, event.Event{Kind: event.Output, Span: 31, Parent: 1, Name: "script", Text: fmt.Sprintf("line %d", i)})
	}
	add(time.Millisecond, event.Event{Kind: event.Output, Span: 31, Parent: 1, Name: "script", Text: "::error file=x::injected"})
	count(time.Second, event.End, 31, 1, "script", "finish", 0, 0, "", "exit status 3")
	count(0, event.End, 1, 0, "build", "debian-stable", 0, 0, "", "cannot run script: exit status 3")
	return out
}

func theError() error {
	pos := fault.Pos{File: "web.toml", Line: 14, Col: 7, Text: "run = \"false\t\x1b]52;c;x\x07\""}
	err := fault.At(fault.New(fault.Failed, "cannot run script %q: exit status 3", "finish"), pos)
	return fault.Hint(err, "mkmachine build -v web.toml shows what it prints")
}

func TestPlainGolden(t *testing.T) {
	for name, m := range map[string]mode{"plain.txt": {}, "plain-verbose.txt": {Verbose: true}, "plain-quiet.txt": {Quiet: true}} {
		var out bytes.Buffer
		r := newPlainRenderer(&out, m, false)
		for _, e := range recorded() {
			r.Sink(e)
		}
		r.Close(nil, theError())
		golden(t, name, out.String())
	}
}

func TestJSONGolden(t *testing.T) {
	var out, events bytes.Buffer
	r := newJSONRenderer(&out, &events, false, false)
	for _, e := range recorded() {
		r.Sink(e)
	}
	r.Close(nil, theError())
	golden(t, "events.jsonl", events.String())
	golden(t, "error.json", out.String())
	for l := range strings.Lines(events.String() + out.String()) {
		var v map[string]any
		if err := json.Unmarshal([]byte(l), &v); err != nil || v["type"] == nil {
			t.Errorf("%v: %s", err, l)
		}
	}
	out.Reset()
	newJSONRenderer(&out, &events, false, false).Close(map[string]int{"a": 1}, nil)
	newJSONRenderer(&out, &events, false, false).Close(nil, nil)
	if out.String() != `{"type":"result","result":{"a":1}}`+"\n" {
		t.Errorf("result %q", out.String())
	}
}

// terminal understands what the live renderer writes: text, newlines, cursor up, erase to
// the end of the screen, colours. A line wider than the terminal takes several rows.
type terminal struct {
	t      *testing.T
	width  int
	lines  []string // complete ones; the cursor is at the start of the next
	below  []string // lines under the cursor after it went up
	frames []string
}

func (x *terminal) Write(p []byte) (int, error) {
	rest := string(p)
	line := ""
	for rest != "" {
		switch {
		case strings.HasPrefix(rest, "\x1b["):
			end := strings.IndexFunc(rest[2:], func(r rune) bool { return r >= '@' && r <= '~' })
			arg, command := rest[2:2+end], rest[2+end]
			rest = rest[3+end:]
			switch command {
			case 'A':
				rows := 0
				fmt.Sscan(arg, &rows)
				x.up(rows)
			case 'J':
				x.below = nil
			case 'm':
			default:
				x.t.Errorf("escape sequence %q", command)
			}
		case rest[0] == '\r':
			rest = rest[1:]
		case rest[0] == '\n':
			if len(x.below) > 0 {
				x.t.Error("a line was written over another")
			}
			x.lines, line, rest = append(x.lines, line), "", rest[1:]
		default:
			r, size := utf8.DecodeRuneInString(rest)
			if unsafeRune(r) {
				x.t.Errorf("raw %q", r)
			}
			line, rest = line+string(r), rest[size:]
		}
	}
	if line != "" {
		x.t.Errorf("a frame ends inside a line: %q", line)
	}
	x.frames = append(x.frames, strings.Join(x.lines, "\n"))
	return len(p), nil
}

func (x *terminal) up(rows int) {
	for rows > 0 {
		last := len(x.lines) - 1
		if last < 0 {
			x.t.Fatal("up past the top")
		}
		rows -= max(1, (columns(x.lines[last])+x.width-1)/x.width)
		x.below = append([]string{x.lines[last]}, x.below...)
		x.lines = x.lines[:last]
	}
	if rows < 0 {
		x.t.Error("up into the middle of a line")
	}
}

func newTestTTY(t *testing.T, width int, m mode) (*ttyRenderer, *terminal, *time.Time) {
	term := &terminal{t: t, width: width}
	now := new(time.Time)
	r := &ttyRenderer{
		out: term, width: func() int { return term.width }, now: func() time.Time { return *now }, mode: m, palette: palette{!m.NoColor},
		spans: newTracker(), stop: make(chan struct{}), ended: make(chan struct{}),
	}
	close(r.ended) // no drawer: the test asks for frames
	return r, term, now
}

func TestTTYGolden(t *testing.T) {
	for _, width := range []int{100, 60, 30, 20} {
		r, term, now := newTestTTY(t, width, mode{})
		var frames []string
		last := time.Time{}
		for _, e := range recorded() {
			*now = e.Time
			r.Sink(e)
			if e.Time.Sub(last) >= 500*time.Millisecond || e.Kind == event.Progress && e.Span == 21 {
				last = e.Time
				r.frame()
				frames = append(frames, strings.Join(term.lines, "\n"))
			}
			for _, l := range term.lines[max(0, len(term.lines)-len(r.drawn)):] {
				if columns(l) >= width {
					t.Errorf("width %d: live line of %d columns: %q", width, columns(l), l)
				}
			}
		}
		r.Close(nil, theError())
		if len(r.drawn) != 0 {
			t.Error("live lines are left")
		}
		frames = append(frames, strings.Join(term.lines, "\n"))
		golden(t, fmt.Sprintf("tty-%d.txt", width), strings.Join(frames, "\n"+strings.Repeat("=", width)+"\n")+"\n")
	}
}

func TestTTYResize(t *testing.T) {
	r, term, now := newTestTTY(t, 120, mode{NoColor: true})
	widths := []int{120, 40, 25, 90, 20, 200}
	for i, e := range recorded() {
		*now = e.Time
		r.Sink(e)
		r.frame()
		term.width = widths[i%len(widths)]
		r.frame()
	}
	r.Close(nil, nil)
	text := strings.Join(term.lines, "\n")
	if n := strings.Count(text, "done    fetch packages"); n != 1 {
		t.Errorf("%d final lines of fetch:\n%s", n, text)
	}
	if strings.Contains(text, "[#") || strings.Contains(text, "download") {
		t.Errorf("live lines are left:\n%s", text)
	}
}

func TestTTYPauseAndRace(t *testing.T) {
	var out lockedBuffer
	e := &env{Stderr: &out, Getenv: func(string) string { return "" }, Now: time.Now, Terminal: func() int { return 80 }}
	r, err := newRenderer(e, mode{})
	if err != nil {
		t.Fatal(err)
	}
	sink := event.Sink(r.Sink)
	root := sink.Start("build", "x")
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			sp := root.Start("download", fmt.Sprint(i))
			sp.Expect(1000, "bytes")
			for range 100 {
				sp.Add(10)
			}
			time.Sleep(70 * time.Millisecond)
			sp.End(nil)
		})
	}
	wg.Wait()
	r.Pause()
	r.Pause()
	before := out.String()
	root.Warn("late")
	time.Sleep(2 * frameEvery)
	if out.String() != before {
		t.Error("wrote during the pause")
	}
	root.End(nil)
	r.Close(nil, errors.New("cannot x: y"))
	after := strings.TrimPrefix(out.String(), before)
	if !strings.Contains(after, "late") || !strings.HasSuffix(after, "mkmachine: error:\x1b[0m cannot x: y\n") {
		t.Errorf("after the pause: %q", after)
	}
	if n := strings.Count(before, "done"); n != 20 {
		t.Errorf("%d finished downloads", n)
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestNewRendererChoice(t *testing.T) {
	for _, c := range []struct {
		m     mode
		width int
		term  string
		want  string
	}{
		{mode{JSON: true}, 80, "xterm", "*main.jsonRenderer"},
		{mode{}, 80, "xterm", "*main.ttyRenderer"},
		{mode{}, 80, "dumb", "*main.plainRenderer"},
		{mode{}, 0, "xterm", "*main.plainRenderer"},
		{mode{Quiet: true}, 80, "xterm", "*main.plainRenderer"},
		{mode{Trace: "t.json"}, 0, "", "*main.traceRenderer"},
	} {
		var out bytes.Buffer
		e := &env{Stdout: &out, Stderr: &out, Getenv: func(string) string { return c.term }, Now: time.Now, Terminal: func() int { return c.width }, Dir: t.TempDir()}
		r, err := newRenderer(e, c.m)
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintf("%T", r); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
		r.Close(nil, nil)
		if out.Len() > 0 {
			t.Errorf("%+v: wrote %q", c, out.String())
		}
	}
}

func TestTrace(t *testing.T) {
	dir := t.TempDir()
	var out bytes.Buffer
	e := &env{Stderr: &out, Dir: dir}
	r, err := newTraceRenderer(e, "t.json", newPlainRenderer(&out, mode{Quiet: true}, false))
	if err != nil {
		t.Fatal(err)
	}
	r.(*traceRenderer).cpu = func() time.Duration { return time.Second }
	for _, e := range recorded() {
		r.Sink(e)
	}
	r.Close(nil, nil)
	data, err := os.ReadFile(filepath.Join(dir, "t.json"))
	if err != nil {
		t.Fatal(err)
	}
	var events []traceEvent
	if err := json.Unmarshal(data, &events); err != nil {
		t.Fatal(err)
	}
	spans := 0
	type window struct{ from, to int64 }
	lanes := map[int][]window{}
	for _, e := range events {
		if e.Ph != "X" {
			continue
		}
		spans++
		for _, w := range lanes[e.Tid] {
			inside := e.Ts >= w.from && e.Ts+e.Dur <= w.to || w.from >= e.Ts && w.to <= e.Ts+e.Dur
			if !inside && e.Ts < w.to && w.from < e.Ts+e.Dur {
				t.Errorf("%s overlaps another span in lane %d", e.Name, e.Tid)
			}
		}
		lanes[e.Tid] = append(lanes[e.Tid], window{e.Ts, e.Ts + e.Dur})
	}
	if spans != 18 || len(lanes) != 12 {
		t.Errorf("%d spans in %d lanes", spans, len(lanes))
	}
	if _, err := newTraceRenderer(e, "no/such/dir", newPlainRenderer(&out, mode{}, false)); fault.ClassOf(err) != fault.Config {
		t.Errorf("%v", err)
	}
}

func TestPrintErrorGolden(t *testing.T) {
	_, problems := recipes.Parse("web.toml", []byte("schema = 1\nextends = \"debian-stable\"\n[source]\nsutie = \"sid\"\n\tmirror = \"http://me:secret@h/?x\"\n[packages]\nadd = [\"curl\", \"-y\"]\n"))
	_, syntax := recipes.Parse("bad.toml", []byte("schema = 1\nname = \n"))
	for name, err := range map[string]error{
		"error-problems.txt":  fmt.Errorf("cannot check recipe: %w", problems),
		"error-syntax.txt":    syntax,
		"error-joined.txt":    fault.Hint(fault.As(fault.Config, errors.Join(problems, fault.New(fault.Net, "cannot get x: refused"), syntax)), "h"),
		"error-position.txt":  theError(),
		"error-class.txt":     fault.Hint(fault.Hint(fault.New(fault.Verify, "cannot verify %q: bad digest", "InRelease"), "a"), "b"),
		"error-lines.txt":     errors.New("cannot run: exit status 1\nE: no\x1b[2J\n::error::x\n##[error]y"),
		"error-far-right.txt": fault.At(errors.New("cannot x: y"), fault.Pos{File: "f", Line: 1000, Col: 301, Text: strings.Repeat("x", 300) + "HERE" + strings.Repeat("y", 200)}),
		"error-no-text.txt":   fault.At(errors.New("cannot x: y"), fault.Pos{File: "f\x1b"}),
	} {
		var out bytes.Buffer
		printError(&out, err, palette{})
		golden(t, name, out.String())
		if strings.Contains(out.String(), "secret") {
			t.Errorf("%s: a secret is printed", name)
		}
	}
	var out bytes.Buffer
	printError(&out, nil, palette{})
	if out.Len() != 0 {
		t.Error("no error, and printed")
	}
}

// hostile are sequences that terminals and CI systems act upon.
func hostile() []string {
	out := []string{
		"\x1b[2J", "\x1b[31m", "\x1b]0;title\x07", "\x1b]52;c;ZXZpbA==\x07", "\x1b]8;;http://x\x1b\\", "\x1bP+q\x1b\\", "\x1b[6n", "\x1b[?1049h", "\x1b[5i", "\x1b#8",
		"\x9b2J", "\u009b2J", "\u0090", "\u0085", "\x1bc", "\x1b[1;1H", "\x1b[999A", "\rover", "a\bb", "\x07", "\x0e\x0f", "\x7f", "a\nb", "a\x00b",
		"\u202eevil", "\u2066x\u2069", "\u200b", "\u200d", "\u2060", "\ufeff", "\u2028", "\u2029", "\u00ad", "\U000e0041", "\ufe0f", "\u3164", "\u180e",
		"::error::x", "  ::set-output name=a::b", "##[error]x", "x ##[group]y", "##vso[task.setvariable]", "##teamcity[x]", "\xff\xfe", "\xc0\x80", "\xed\xa0\x80", "\ue000",
	}
	for b := range 256 {
		out = append(out, "a"+string([]byte{byte(b)})+"z", "a"+string(rune(b))+"z")
	}
	return out
}

// checkHarmless looks at printed bytes: nothing but printable text, newlines, and at most
// the colours and cursor movements that the renderers make themselves.
func checkHarmless(t *testing.T, where, input, printed string) {
	t.Helper()
	for _, own := range []string{"\x1b[0m", "\x1b[2m", "\x1b[31;1m", "\x1b[32m", "\x1b[33m"} {
		printed = strings.ReplaceAll(printed, own, "")
	}
	if !utf8.ValidString(printed) {
		t.Errorf("%s: %q prints invalid bytes: %q", where, input, printed)
	}
	for _, r := range printed {
		if unsafeRune(r) && r != '\n' {
			t.Errorf("%s: %q prints %q: %q", where, input, r, printed)
		}
	}
	if ciCommand.MatchString(printed) {
		t.Errorf("%s: %q prints a CI command: %q", where, input, printed)
	}
	for line := range strings.Lines(printed) {
		if strings.HasPrefix(strings.TrimSpace(line), "::") {
			t.Errorf("%s: %q prints a CI command: %q", where, input, line)
		}
	}
}

// TestEscaping sends every byte and the hostile sequences through each way out (SEC-21).
func TestEscaping(t *testing.T) {
	at := time.Unix(1e9, 0)
	for _, text := range hostile() {
		events := []event.Event{
			{Time: at, Kind: event.Start, Span: 1, Name: text, Subject: text},
			{Time: at, Kind: event.Progress, Span: 1, Name: text, Subject: text, Done: 1, Total: 2, Unit: text},
			{Time: at, Kind: event.Note, Span: 1, Text: text}, {Time: at, Kind: event.Warning, Span: 1, Text: text},
			{Time: at, Kind: event.Fallback, Span: 1, Name: text, Subject: text, Text: text},
			{Time: at, Kind: event.Output, Span: 1, Text: text}, {Time: at, Kind: event.Debug, Span: 1, Text: text},
		}
		end := event.Event{Time: at, Kind: event.End, Span: 1, Name: text, Done: 1, Unit: text, Err: text}
		err := fault.Hint(fault.At(errors.New(text+"\n"+text), fault.Pos{File: text, Line: 3, Col: 2, Text: text}), "%s", text)

		var plain bytes.Buffer
		p := newPlainRenderer(&plain, mode{Verbose: true}, true)
		var stdout, stderr bytes.Buffer
		j := newJSONRenderer(&stdout, &stderr, true, false)
		tty, term, _ := newTestTTY(t, 60, mode{Verbose: true})
		for _, r := range []renderer{p, j, tty} {
			for _, e := range events {
				r.Sink(e)
			}
		}
		tty.frame()
		checkHarmless(t, "live", text, strings.Join(term.lines, "\n"))
		for _, r := range []renderer{p, j, tty} {
			r.Sink(end)
			r.Close(nil, err)
		}
		checkHarmless(t, "plain", text, plain.String())
		checkHarmless(t, "json events", text, stderr.String())
		checkHarmless(t, "json error", text, stdout.String())
		checkHarmless(t, "tty", text, strings.Join(term.lines, "\n"))
		var back errorLine
		if jsonErr := json.Unmarshal(stdout.Bytes(), &back); jsonErr != nil {
			t.Errorf("%q: %v", text, jsonErr)
		} else if utf8.ValidString(text) && back.Message != text+"\n"+text {
			t.Errorf("JSON of %q reads back as %q", text, back.Message)
		}
		var table bytes.Buffer
		if err := printTable(&table, []string{"NAME", "B"}, [][]string{{text, text}}); err != nil {
			t.Fatal(err)
		}
		checkHarmless(t, "table", text, table.String())
		if n := strings.Count(table.String(), "\n"); n != 2 {
			t.Errorf("table of %q has %d lines", text, n)
		}
		problems := fault.As(fault.Config, recipes.Problems{{Pos: fault.Pos{File: text, Line: 1, Col: 1, Text: text}, Text: text, Hint: text}})
		var out bytes.Buffer
		printError(&out, problems, palette{})
		checkHarmless(t, "problems", text, out.String())
	}
}

func TestFormats(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 99_999: "97.7 KiB", 104_857_600: "100 MiB", 1 << 40: "1.0 TiB", 1<<63 - 1: "8.0 EiB"} {
		if got := formatBytes(n); got != want {
			t.Errorf("%d: %s", n, got)
		}
	}
	for d, want := range map[time.Duration]string{-1: "0ms", 0: "0ms", 999 * time.Millisecond: "999ms", 1500 * time.Millisecond: "1.50s", 61 * time.Second: "1m01s", 3*time.Hour + 5*time.Minute: "3h05m"} {
		if got := formatDuration(d); got != want {
			t.Errorf("%d: %s", d, got)
		}
	}
	if got := amount(1<<20, 33<<20, "bytes"); got != "1.0 of 33.0 MiB" {
		t.Error(got)
	}
	if got := amount(1<<10, 33<<20, "bytes"); got != "1.0 KiB of 33.0 MiB" {
		t.Error(got)
	}
	if got := cut("日本語テキスト", 7); columns(got) > 7 || !strings.HasSuffix(got, "…") {
		t.Error(got)
	}
	var table bytes.Buffer
	if err := printTable(&table, []string{"NAME", "SIZE"}, [][]string{{"web", "1 B"}, {"längerer-name", ""}}); err != nil {
		t.Fatal(err)
	}
	var bare bytes.Buffer
	if err := printTable(&bare, nil, [][]string{{"name:", "x"}}); err != nil || bare.String() != "name:  x\n" {
		t.Errorf("%q, %v", bare.String(), err)
	}
	if want := "NAME           SIZE\nweb            1 B\nlängerer-name  -\n"; table.String() != want {
		t.Errorf("%q", table.String())
	}
}
