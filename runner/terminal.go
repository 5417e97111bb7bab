// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"errors"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// Typing escapeKey escapeTimes within escapeWindow ends the command, as in systemd-nspawn.
const (
	escapeKey    = 0x1d // ^]
	escapeTimes  = 3
	escapeWindow = time.Second
)

// terminalRelay copies between the caller's terminal, in raw mode, and a fresh pseudo-terminal
// of the machine.
type terminalRelay struct {
	user   *Terminal
	master *os.File
	fd     int    // of master; asking master for it would make it block
	wake   [2]int // a pipe whose end stops the reading of the caller's terminal
	state  *term.State
	resize chan os.Signal
	kill   func() // ends the command
	output chan struct{}
	input  sync.WaitGroup
	once   sync.Once
	err    error
}

// newTerminal allocates a pair in the machine's own devpts. Its location was opened before
// anything of the machine ran, and the slave comes from the master, not from a path (SEC-10).
func (i *Instance) newTerminal(user *Terminal) (*terminalRelay, *os.File, error) {
	wrap := func(err error) error {
		return fault.New(fault.Failed, "cannot make a terminal in the machine: %w", err)
	}
	if user.File == nil {
		return nil, nil, fault.New(fault.Internal, "internal error: a terminal without a file")
	}
	path := "/proc/self/fd/" + strconv.Itoa(i.starter.ptmx)
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, wrap(err)
	}
	t := &terminalRelay{user: user, master: os.NewFile(uintptr(fd), "terminal"), fd: fd, output: make(chan struct{})}
	fail := func(err error) (*terminalRelay, *os.File, error) {
		return nil, nil, errors.Join(wrap(err), t.master.Close())
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return fail(err)
	}
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return fail(errno)
	}
	slave := os.NewFile(peer, "terminal")
	const ttyGroup = 5
	base := int(i.starter.builder.base)
	if err := errors.Join(unix.Fchown(int(peer), base, base+ttyGroup), unix.Fchmod(int(peer), 0o620)); err != nil {
		slave.Close()
		return fail(err)
	}
	t.follow()
	if err := unix.Pipe2(t.wake[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		slave.Close()
		return fail(err)
	}
	return t, slave, nil
}

// follow gives the machine's terminal the size of the caller's.
func (t *terminalRelay) follow() {
	size, err := unix.IoctlGetWinsize(int(t.user.File.Fd()), unix.TIOCGWINSZ)
	if err == nil {
		_ = unix.IoctlSetWinsize(t.fd, unix.TIOCSWINSZ, size)
	}
}

func (t *terminalRelay) start() {
	if fd := int(t.user.File.Fd()); term.IsTerminal(fd) {
		t.state, t.err = term.MakeRaw(fd)
	}
	t.resize = make(chan os.Signal, 1)
	signal.Notify(t.resize, syscall.SIGWINCH)
	go func() {
		for range t.resize {
			t.follow()
		}
	}()
	t.input.Go(t.readUser)
	go func() {
		defer close(t.output)
		// A terminal whose last user is gone fails with EIO: that is its end.
		if err := drain(t.user.File, t.master); err != nil {
			t.err = fault.New(fault.Failed, "cannot pass on output: %w", err)
		}
	}()
}

// readUser copies what is typed until it is woken, or the caller's end is closed.
func (t *terminalRelay) readUser() {
	fd := int(t.user.File.Fd())
	buffer := make([]byte, 4096)
	escape := escapeWatch{}
	for {
		polled := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(t.wake[0]), Events: unix.POLLIN}}
		if _, err := unix.Poll(polled, -1); err != nil {
			if err == unix.EINTR {
				continue
			}
			return
		}
		if polled[1].Revents != 0 {
			return
		}
		n, err := unix.Read(fd, buffer)
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		if err != nil || n == 0 {
			_, _ = t.master.Write([]byte{4}) // ^D: the end of input, as a terminal says it
			return
		}
		if t.user.Escape && escape.typed(buffer[:n], time.Now()) {
			t.kill()
			return
		}
		if _, err := t.master.Write(buffer[:n]); err != nil {
			return
		}
	}
}

// escapeWatch recognises the escape sequence across reads.
type escapeWatch struct {
	count int
	first time.Time
}

func (e *escapeWatch) typed(data []byte, now time.Time) bool {
	for _, c := range data {
		switch {
		case c != escapeKey:
			e.count = 0
		case e.count == 0 || now.Sub(e.first) > escapeWindow:
			e.count, e.first = 1, now
		default:
			if e.count++; e.count == escapeTimes {
				return true
			}
		}
	}
	return false
}

// wait passes on the last output, then gives the caller's terminal back.
func (t *terminalRelay) wait() error {
	select {
	case <-t.output:
	case <-time.After(drainGrace):
		_ = t.master.SetReadDeadline(time.Now())
		<-t.output
	}
	t.finish()
	return t.err
}

func (t *terminalRelay) stop() {
	_ = t.master.SetReadDeadline(time.Now())
	if t.resize != nil { // it was started
		<-t.output
	}
	t.finish()
}

func (t *terminalRelay) finish() {
	t.once.Do(func() {
		unix.Close(t.wake[1])
		t.input.Wait()
		unix.Close(t.wake[0])
		if t.resize != nil {
			signal.Stop(t.resize)
			close(t.resize)
		}
		t.master.Close()
		if t.state != nil {
			if err := term.Restore(int(t.user.File.Fd()), t.state); err != nil && t.err == nil {
				t.err = fault.New(fault.Failed, "cannot restore the terminal: %w", err)
			}
		}
	})
}
