// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// The supervisor and the first process of a machine talk over one stream socket. A message is
// a length (4 bytes, big-endian), a JSON object of that many bytes, and the descriptors that
// arrive with its first byte.
//
//	supervisor                         init
//	    │  one byte: go                  │  (before it executes, see childEnds)
//	    │ ── hello{checks, main} ──────► │  checks itself, starts the main command
//	    │ ◄── ready{} or failed{error} ──│
//	    │ ── start{id, command} + fds ─► │
//	    │ ◄── exited{id, status} ────────│
//	    │ ── signal{id, signal} ───────► │
//	    ╳  end of stream: init exits, and the kernel kills the rest
const maxMessage = 8 << 20

type message struct {
	Kind    string       `json:"kind"`
	ID      uint64       `json:"id,omitempty"`
	Hello   *hello       `json:"hello,omitempty"`
	Command *wireCommand `json:"command,omitempty"`
	Signal  int          `json:"signal,omitempty"`
	Status  *ExitStatus  `json:"status,omitempty"`
	Error   string       `json:"error,omitempty"`
}

// hello tells init what it must find before anything else may run.
type hello struct {
	Checks selfCheck `json:"checks"`
}

// wireCommand is a command whose descriptors come with the message: input, output, errors, or
// one terminal for all three.
type wireCommand struct {
	Argv     []string `json:"argv"`
	Env      []string `json:"env"`
	Dir      string   `json:"dir,omitempty"`
	User     string   `json:"user,omitempty"`
	Terminal bool     `json:"terminal,omitempty"`
	Main     bool     `json:"main,omitempty"`
}

// link is one end of the connection. Sending is safe for concurrent use, receiving is not.
type link struct {
	conn *net.UnixConn
	mu   sync.Mutex
}

func (l *link) send(m *message, files ...*os.File) error {
	body, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(body) > maxMessage {
		return fmt.Errorf("message of %d bytes is too long", len(body))
	}
	data := append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(body)), uint32(len(body))), body...)
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		rights = unix.UnixRights(fds...)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	n, _, err := l.conn.WriteMsgUnix(data, rights, nil)
	if err != nil || n == len(data) {
		return err
	}
	_, err = l.conn.Write(data[n:])
	return err
}

// receive gives the next message. The caller owns the files. The error is io.EOF where the
// other end is gone.
func (l *link) receive() (*message, []*os.File, error) {
	var head [4]byte
	rights := make([]byte, unix.CmsgSpace(4*4))
	n, oobn, _, _, err := l.conn.ReadMsgUnix(head[:], rights)
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err != nil {
		return nil, nil, err
	}
	files, err := filesOf(rights[:oobn])
	if err != nil {
		return nil, nil, err
	}
	fail := func(err error) (*message, []*os.File, error) {
		closeAll(files)
		return nil, nil, err
	}
	if _, err := io.ReadFull(l.conn, head[n:]); err != nil {
		return fail(err)
	}
	size := binary.BigEndian.Uint32(head[:])
	if size > maxMessage {
		return fail(fmt.Errorf("message of %d bytes is too long", size))
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(l.conn, body); err != nil {
		return fail(err)
	}
	m := new(message)
	if err := json.Unmarshal(body, m); err != nil {
		return fail(err)
	}
	return m, files, nil
}

// filesOf takes received descriptors. The kernel made them close-on-exec: net.UnixConn asks for that.
func filesOf(control []byte) ([]*os.File, error) {
	if len(control) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			closeAll(files)
			return nil, err
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}
