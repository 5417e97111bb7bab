// SPDX-License-Identifier: Apache-2.0

package event

import (
	"bytes"
	"strings"
	"sync"
)

// Limits of what Lines keeps: longer lines are cut into several, and the error of a failed
// program shows the last few.
const (
	maxLine   = 4096
	tailLines = 20
)

// Lines is an io.Writer that makes an Output event of every line of a program's output
// and keeps the last ones for an error message. It is safe for concurrent use.
type Lines struct {
	span *Span

	mu   sync.Mutex
	part []byte
	last []string
}

// NewLines reports to span, which may be nil.
func NewLines(span *Span) *Lines { return &Lines{span: span} }

// Write never fails.
func (l *Lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(p)
	for len(p) > 0 {
		end := bytes.IndexByte(p, '\n')
		take, whole := end, true
		if end < 0 {
			take, whole = len(p), false
		}
		if room := maxLine - len(l.part); take >= room {
			take, whole, end = room, true, room-1
		}
		l.part = append(l.part, p[:take]...)
		if !whole {
			break
		}
		l.emit()
		p = p[end+1:]
	}
	return n, nil
}

func (l *Lines) emit() {
	line := string(l.part)
	l.part = l.part[:0]
	l.span.Output(line)
	if l.last = append(l.last, line); len(l.last) > tailLines {
		l.last = l.last[1:]
	}
}

// Flush reports a last line that had no newline.
func (l *Lines) Flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.part) > 0 {
		l.emit()
	}
}

// Tail is the end of the output as an addition to an error's text, or empty.
func (l *Lines) Tail() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.last) == 0 {
		return ""
	}
	return "; it said:\n\t" + strings.Join(l.last, "\n\t")
}
