// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// drainGrace is how long output is awaited from descendants that outlive a command and have
// kept its output open.
const drainGrace = 200 * time.Millisecond

// relay copies between the streams of the caller and the fresh pipes, or the fresh terminal,
// of one command. The command never holds a descriptor of the caller (SEC-08).
type relay struct {
	terminal *terminalRelay
	inputs   []func()
	outputs  []func() error
	ends     []*os.File // ours
	done     sync.WaitGroup
	mu       sync.Mutex
	errs     []error
}

// newRelay makes the descriptors for a command, in the order in which init expects them.
func (i *Instance) newRelay(cmd *Command) (*relay, []*os.File, error) {
	r := &relay{}
	if cmd.Terminal != nil {
		t, slave, err := i.newTerminal(cmd.Terminal)
		if err != nil {
			return nil, nil, err
		}
		r.terminal = t
		return r, []*os.File{slave}, nil
	}
	files := []*os.File{i.starter.null, i.starter.null, i.starter.null}
	fail := func(err error) (*relay, []*os.File, error) {
		closeOwned(files, i.starter.null)
		closeAll(r.ends)
		return nil, nil, fault.New(fault.Failed, "cannot make a pipe: %w", err)
	}
	if cmd.Stdin != nil {
		read, write, err := i.pipe(true)
		if err != nil {
			return fail(err)
		}
		files[0] = read
		r.ends = append(r.ends, write)
		source := cmd.Stdin
		r.inputs = append(r.inputs, func() {
			_, _ = io.Copy(write, source) // the command need not read to the end
			write.Close()
		})
	}
	for n, sink := range []io.Writer{cmd.Stdout, cmd.Stderr} {
		if sink == nil {
			continue
		}
		if n == 1 && cmd.Stdout != nil && sameWriter(cmd.Stdout, sink) {
			files[2] = files[1] // one pipe keeps the order
			continue
		}
		read, write, err := i.pipe(false)
		if err != nil {
			return fail(err)
		}
		files[n+1] = write
		r.ends = append(r.ends, read)
		r.outputs = append(r.outputs, func() error { return drain(sink, read) })
	}
	return r, files, nil
}

// sameWriter reports whether two writers are the same, where that can be told.
func sameWriter(a, b io.Writer) (same bool) {
	defer func() {
		if recover() != nil { // not comparable
			same = false
		}
	}()
	return a == b
}

// pipe makes a pipe that belongs to the machine's root, so that /dev/stdout can be opened.
func (i *Instance) pipe(input bool) (read, write *os.File, err error) {
	read, write, err = os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	theirs := write
	if input {
		theirs = read
	}
	base := int(i.starter.builder.base)
	if err := unix.Fchown(int(theirs.Fd()), base, base); err != nil {
		return nil, nil, errors.Join(err, read.Close(), write.Close())
	}
	return read, write, nil
}

// drain copies until the end of the pipe. After the deadline that wait sets it takes what is in
// there and does not wait for more.
func drain(sink io.Writer, pipe *os.File) error {
	buffer := make([]byte, 32<<10)
	var failed error
	pass := func(n int) {
		if n > 0 && failed == nil {
			_, failed = sink.Write(buffer[:n]) // on failure, go on reading: the command must not hang
		}
	}
	for {
		n, err := pipe.Read(buffer)
		pass(n)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			for n := readNow(pipe, buffer); n > 0; n = readNow(pipe, buffer) {
				pass(n)
			}
		}
		if err != nil {
			return failed
		}
	}
}

// readNow reads what can be read without waiting.
func readNow(file *os.File, buffer []byte) int {
	n := 0
	raw, err := file.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { n, _ = unix.Read(int(fd), buffer) })
	}
	if err != nil {
		return 0
	}
	return n
}

func (r *relay) start() {
	if r.terminal != nil {
		r.terminal.start()
		return
	}
	for _, in := range r.inputs {
		go in()
	}
	for _, out := range r.outputs {
		r.done.Go(func() {
			if err := out(); err != nil {
				r.mu.Lock()
				r.errs = append(r.errs, fault.New(fault.Failed, "cannot pass on output: %w", err))
				r.mu.Unlock()
			}
		})
	}
}

// wait is called when the command has ended: it waits until its output has been passed on.
func (r *relay) wait() error {
	if r.terminal != nil {
		return r.terminal.wait()
	}
	finished := make(chan struct{})
	go func() { r.done.Wait(); close(finished) }()
	select {
	case <-finished:
	case <-time.After(drainGrace):
		for _, f := range r.ends {
			_ = f.SetReadDeadline(time.Now())
		}
		<-finished
	}
	closeAll(r.ends)
	return errors.Join(r.errs...)
}

// stop gives up on the rest.
func (r *relay) stop() {
	if r.terminal != nil {
		r.terminal.stop()
		return
	}
	closeAll(r.ends)
	r.done.Wait()
}
