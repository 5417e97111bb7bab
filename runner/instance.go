// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// Command is something to execute in a running machine.
type Command struct {
	Argv           []string
	Env            []string // all of it; PATH, HOME, USER, LOGNAME and container are added where missing
	Dir            string   // absolute; default the user's home, or /
	User           string   // NAME, UID, NAME:GROUP, UID:GID; default root
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Terminal       *Terminal // instead of the three
}

// Instance is a machine that was started.
type Instance struct {
	machine *Machine
	starter *starter
	link    *link
	stop    func() bool
	ready   chan error
	main    *command

	exited chan struct{} // init is gone
	status unix.WaitStatus
	err    error
	gone   chan struct{} // the connection is gone

	mu       sync.Mutex
	commands map[uint64]*command
	last     uint64
	cause    error // why the machine was stopped from outside

	closing  sync.Once
	closeErr error
}

// Pid is the host's number of the machine's first process.
func (i *Instance) Pid() int { return i.starter.child.Pid }

// adopt takes over what start has made; it runs on the machine's thread.
func (i *Instance) adopt(s *starter) {
	i.starter = s
	i.link = &link{conn: s.fds.conn}
	i.ready = make(chan error, 1)
}

// finish runs on the machine's thread when init is gone.
func (i *Instance) finish(ws unix.WaitStatus, err error) {
	i.status, i.err = ws, err
	close(i.exited)
}

// greet sends what init must check and the main command, and waits for init's consent.
func (i *Instance) greet(checks selfCheck) error {
	go i.receive()
	if err := i.link.send(&message{Kind: "hello", Hello: &hello{Checks: checks}}); err != nil {
		return i.whyNot(err)
	}
	if m := i.machine; len(m.Argv) > 0 {
		c, err := i.begin(Command{Argv: m.Argv, Env: m.Env, Dir: m.Dir, User: m.User, Stdin: m.Stdin, Stdout: m.Stdout,
			Stderr: m.Stderr, Terminal: m.Terminal}, true)
		if err != nil {
			return i.whyNot(err)
		}
		i.main = c
		if m.Timeout > 0 {
			timer := time.AfterFunc(m.Timeout, func() {
				i.cancel(fault.New(fault.Failed, "cannot wait longer for the command: it timed out after %s", m.Timeout))
			})
			go func() { <-i.exited; timer.Stop() }()
		}
	}
	if err := <-i.ready; err != nil {
		return i.whyNot(err)
	}
	return nil
}

// whyNot explains an early end of init.
func (i *Instance) whyNot(err error) error {
	select {
	case <-i.exited:
	case <-time.After(time.Second):
		return fault.As(fault.Failed, err)
	}
	if failure := i.starter.program.Failure(); failure != nil {
		return fault.As(fault.Host, failure)
	}
	if text := readTail(i.starter.fds.stderrRead); text != "" {
		return fault.New(fault.Host, "%s", text[2:])
	}
	return fault.As(fault.Failed, fmt.Errorf("%w (init: %v)", err, statusOf(i.status)))
}

// receive hands out init's messages until the connection ends.
func (i *Instance) receive() {
	ready := false
	for {
		m, files, err := i.link.receive()
		closeAll(files)
		if err != nil {
			break
		}
		switch m.Kind {
		case "ready":
			ready = true
			i.ready <- nil
		case "failed":
			i.ready <- fault.New(fault.Host, "%s", m.Error)
		case "exited":
			i.mu.Lock()
			c := i.commands[m.ID]
			delete(i.commands, m.ID)
			i.mu.Unlock()
			if c != nil && m.Status != nil {
				c.end(*m.Status, m.Error)
			}
		}
	}
	if !ready {
		select {
		case i.ready <- errors.New("the machine's init ended before it was ready"):
		default:
		}
	}
	close(i.gone)
}

// command is one running command.
type command struct {
	id     uint64
	name   string
	done   chan struct{} // the status is known
	status ExitStatus
	err    error
	relay  *relay
}

func (c *command) end(status ExitStatus, text string) {
	c.status = status
	if text != "" {
		c.err = fault.New(fault.Failed, "cannot execute %q: %s", c.name, text)
	}
	close(c.done)
}

// begin sends a command to init.
func (i *Instance) begin(cmd Command, main bool) (*command, error) {
	if len(cmd.Argv) == 0 {
		return nil, fault.New(fault.Config, "cannot execute an empty command")
	}
	r, files, err := i.newRelay(&cmd)
	if err != nil {
		return nil, err
	}
	defer closeOwned(files, i.starter.null)
	i.mu.Lock()
	i.last++
	c := &command{id: i.last, name: cmd.Argv[0], done: make(chan struct{}), relay: r}
	i.commands[c.id] = c
	i.mu.Unlock()
	if r.terminal != nil {
		r.terminal.kill = func() {
			_ = i.link.send(&message{Kind: "signal", ID: c.id, Signal: int(unix.SIGKILL)})
		}
	}
	wire := &wireCommand{Argv: cmd.Argv, Env: environment(cmd.Env), Dir: cmd.Dir, User: cmd.User, Terminal: cmd.Terminal != nil, Main: main}
	if err := i.link.send(&message{Kind: "start", ID: c.id, Command: wire}, files...); err != nil {
		i.mu.Lock()
		delete(i.commands, c.id)
		i.mu.Unlock()
		r.stop()
		return nil, fault.New(fault.Failed, "cannot reach the machine's init: %w", err)
	}
	r.start()
	return c, nil
}

func closeOwned(files []*os.File, shared *os.File) {
	for _, f := range files {
		if f != shared {
			f.Close()
		}
	}
}

// Exec runs a command in the machine and waits for its end. The status is the command's own;
// an error says that it could not be executed, was not found, or that ctx or the machine ended
// first. When ctx ends, the command is killed; its descendants live on until Close.
func (i *Instance) Exec(ctx context.Context, cmd Command) (ExitStatus, error) {
	if err := ctx.Err(); err != nil {
		return ExitStatus{Code: childFailed}, err
	}
	c, err := i.begin(cmd, false)
	if err != nil {
		return ExitStatus{Code: childFailed}, err
	}
	select {
	case <-c.done:
	case <-i.gone:
		return i.lost(c)
	case <-ctx.Done():
		_ = i.link.send(&message{Kind: "signal", ID: c.id, Signal: int(unix.SIGKILL)})
		select {
		case <-c.done:
		case <-i.gone:
		}
		c.relay.stop()
		return ExitStatus{Code: childFailed}, context.Cause(ctx)
	}
	return c.status, errors.Join(c.err, c.relay.wait())
}

// lost is the end of a command whose machine ended under it.
func (i *Instance) lost(c *command) (ExitStatus, error) {
	select {
	case <-c.done: // both came at once
		return c.status, errors.Join(c.err, c.relay.wait())
	default:
	}
	c.relay.stop()
	i.mu.Lock()
	cause := i.cause
	i.mu.Unlock()
	if cause == nil {
		cause = fault.New(fault.Failed, "cannot finish %q: the machine has ended", c.name)
	}
	return ExitStatus{Code: 128 + int(unix.SIGKILL), Signal: unix.SIGKILL}, cause
}

// Wait waits for the end of the main command, or of the machine where it has none.
func (i *Instance) Wait() (ExitStatus, error) {
	if i.main == nil {
		<-i.exited
		i.mu.Lock()
		defer i.mu.Unlock()
		return statusOf(i.status), i.cause
	}
	select {
	case <-i.main.done:
	case <-i.gone:
		return i.lost(i.main)
	}
	return i.main.status, errors.Join(i.main.err, i.main.relay.wait())
}

// Signal sends a signal to the main command's process group.
func (i *Instance) Signal(sig unix.Signal) error {
	if i.main == nil {
		return fault.New(fault.State, "cannot signal a machine that has no main command")
	}
	if err := i.link.send(&message{Kind: "signal", ID: i.main.id, Signal: int(sig)}); err != nil {
		return fault.New(fault.State, "cannot signal the machine: %w", err)
	}
	return nil
}

// cancel ends the machine at once and says why.
func (i *Instance) cancel(cause error) {
	i.mu.Lock()
	if i.cause == nil {
		i.cause = cause
	}
	i.mu.Unlock()
	i.kill()
}

// kill kills init, and with it every process of its pid namespace.
func (i *Instance) kill() {
	select {
	case <-i.exited:
	default:
		_ = unix.PidfdSendSignal(i.starter.child.PidFD, unix.SIGKILL, nil, 0)
	}
}

// Close kills whatever runs in the machine, waits until it is gone, removes what was made for
// it outside and verifies that. It may be called more than once.
func (i *Instance) Close() error {
	i.closing.Do(func() { i.closeErr = i.shut() })
	return i.closeErr
}

func (i *Instance) shut() error {
	s := i.starter
	if i.stop != nil {
		i.stop()
	}
	i.kill()
	<-i.exited
	<-i.gone // init's end of the connection closed with it
	errs := []error{i.err}
	i.mu.Lock()
	for _, c := range i.commands {
		c.relay.stop()
	}
	i.mu.Unlock()
	errs = append(errs, s.fds.closeParentEnds(), s.program.Close(), unix.Close(s.child.PidFD), s.null.Close(), unix.Close(s.ptmx))
	if s.group != nil {
		errs = append(errs, s.group.Remove())
	}
	if s.ids != nil {
		errs = append(errs, s.ids.release())
	}
	if err := errors.Join(errs...); err != nil {
		// The lease stays, unlocked, so that Clean can finish the work.
		s.lease.file.Close()
		return fault.New(fault.Failed, "cannot clean up after machine %q: %w", i.machine.Name, err)
	}
	return s.lease.release()
}
