// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/sources"
)

// The parent (Installer) and the confined helper (Serve) talk over one stream socket:
//
//	parent                               helper
//	  request {ID, Op, …} + descriptors →
//	                                     ← reply {ID, …} or {ID, Error, Class}
//
// A message is a 32-bit little-endian length and that many bytes of JSON; descriptors
// travel with the length. Replies come in any order. End of file ends the helper.

// messageLimit bounds one message. The largest is the commit of a big set of packages.
const messageLimit = 64 << 20

type request struct {
	ID uint64 `json:"id"`
	Op string `json:"op"`

	Begin  *beginRequest  `json:"begin,omitempty"`
	Unpack *unpackRequest `json:"unpack,omitempty"`
	Commit *commitRequest `json:"commit,omitempty"`
	Files  []treeFile     `json:"files,omitempty"`

	files []*os.File
}

// beginRequest prepares the tree.
type beginRequest struct {
	Arch    string   `json:"arch"`
	Foreign []string `json:"foreign,omitempty"`
	// Merged are the top directories that are links into /usr.
	Merged []string `json:"merged,omitempty"`
	Date   int64    `json:"date"`
}

// unpackRequest comes with the descriptor of the .deb, or of its pack when Pack is set;
// when Keep is set, the last descriptor receives a new pack.
type unpackRequest struct {
	Package sources.Package `json:"package"`
	Order   int             `json:"order"`
	Pack    bool            `json:"pack,omitempty"`
	Keep    bool            `json:"keep,omitempty"`
	// Hold: read the control member only, keep the descriptor for a later "release".
	Hold bool `json:"hold,omitempty"`
}

// commitRequest writes the database entries of packages; Order numbers, ascending.
type commitRequest struct {
	Packages []int `json:"packages"`
	// Triggers: activate the triggers of packages that are configured already.
	Triggers bool `json:"triggers,omitempty"`
}

// treeFile is a small file that the parent wants in the tree; Remove deletes instead.
type treeFile struct {
	Path   string `json:"path"`
	Mode   uint32 `json:"mode,omitempty"`
	Data   []byte `json:"data,omitempty"`
	Remove bool   `json:"remove,omitempty"`
}

type reply struct {
	ID    uint64      `json:"id"`
	Error string      `json:"error,omitempty"`
	Class fault.Class `json:"class,omitempty"`
	// Errno is the kernel's answer behind Error, 0 where there is none.
	Errno unix.Errno `json:"errno,omitempty"`
	Hints []string   `json:"hints,omitempty"`

	Facts *Facts `json:"facts,omitempty"`
	// Notes are reasons for which the fast way was left, one line each.
	Notes []string `json:"notes,omitempty"`
}

// cause is the error that the reply tells of, for errors.Is as well.
func (r *reply) cause() error {
	if r.Errno == 0 {
		return errors.New(r.Error)
	}
	return &remoteError{r.Error, r.Errno}
}

type remoteError struct {
	text  string
	errno unix.Errno
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.errno }

// channel is one end of the socket; writes are serialised.
type channel struct {
	conn *net.UnixConn
	wr   sync.Mutex
}

func (c *channel) send(v any, files []*os.File) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fault.New(fault.Internal, "cannot encode a message: %w", err)
	}
	if len(body) > messageLimit {
		return fault.New(fault.Limit, "cannot send a message of %d bytes", len(body))
	}
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		rights = unix.UnixRights(fds...)
	}
	head := binary.LittleEndian.AppendUint32(make([]byte, 0, 4+len(body)), uint32(len(body)))
	c.wr.Lock()
	defer c.wr.Unlock()
	n, _, err := c.conn.WriteMsgUnix(append(head, body...), rights, nil)
	if err == nil && n < 4+len(body) {
		_, err = c.conn.Write(append(head, body...)[n:])
	}
	runtime.KeepAlive(files)
	return err
}

// receive reads one message into v; io.EOF when the other end is gone between messages.
func (c *channel) receive(v any) ([]*os.File, error) {
	head := make([]byte, 4)
	rights := make([]byte, unix.CmsgSpace(8*4))
	n, oobn, flags, _, err := c.conn.ReadMsgUnix(head, rights)
	files, ferr := openRights(rights[:oobn])
	fail := func(err error) ([]*os.File, error) {
		closeAll(files)
		return nil, err
	}
	switch {
	case ferr != nil:
		return fail(ferr)
	case err != nil:
		return fail(err)
	case n == 0:
		return fail(io.EOF)
	case flags&unix.MSG_CTRUNC != 0:
		return fail(fault.New(fault.Internal, "cannot receive a message: too many descriptors"))
	}
	if _, err := io.ReadFull(c.conn, head[n:]); err != nil {
		return fail(err)
	}
	size := binary.LittleEndian.Uint32(head)
	if size > messageLimit {
		return fail(fault.New(fault.Limit, "cannot receive a message of %d bytes", size))
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(c.conn, body); err != nil {
		return fail(err)
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fail(fault.New(fault.Internal, "cannot decode a message: %w", err))
	}
	return files, nil
}

func openRights(oob []byte) ([]*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fault.New(fault.Internal, "cannot receive descriptors: %w", err)
	}
	var files []*os.File
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue
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
		f.Close()
	}
}

// isClosed: the peer is gone, orderly or not.
func isClosed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
}
