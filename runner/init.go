// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// serve is the first process of a machine: it starts the commands that the supervisor sends,
// reaps every process, and exits when the supervisor is gone or the main command has ended,
// upon which the kernel kills whatever is left. It holds no more privileges than what it starts.
func serve(conn *net.UnixConn) error {
	s := &initServer{link: &link{conn: conn}, running: map[int]uint64{}, main: -1}
	s.idle = sync.NewCond(&s.mu)
	m, files, err := s.link.receive()
	closeAll(files)
	if err != nil {
		return fmt.Errorf("cannot receive the greeting: %w", err)
	}
	if m.Kind != "hello" || m.Hello == nil {
		return fmt.Errorf("unexpected message %q", m.Kind)
	}
	if err := m.Hello.Checks.verify(); err != nil {
		return errors.Join(err, s.link.send(&message{Kind: "failed", Error: err.Error()}))
	}
	// The kernel drops signals that processes of the machine send to their init unless it
	// has a handler, and the Go runtime has one for most. So they are taken and forgotten; not
	// ignored, because that would be inherited by what init starts.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGPIPE,
		syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU)
	if err := s.link.send(&message{Kind: "ready"}); err != nil {
		return err
	}
	go s.reap()
	for {
		m, files, err := s.link.receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch {
		case m.Kind == "start" && m.Command != nil:
			if err := s.start(m.ID, m.Command, files); err != nil {
				return err
			}
		case m.Kind == "signal":
			s.signal(m.ID, unix.Signal(m.Signal))
		default:
			closeAll(files)
			return fmt.Errorf("unexpected message %q", m.Kind)
		}
	}
}

type initServer struct {
	link    *link
	mu      sync.Mutex
	idle    *sync.Cond     // signalled when a child was started
	running map[int]uint64 // process to command
	main    int            // process of the main command, or -1
}

// start starts a command and answers at once if that fails.
func (s *initServer) start(id uint64, c *wireCommand, files []*os.File) error {
	defer closeAll(files)
	// reap must not see the process before it is in the table.
	s.mu.Lock()
	pid, err := forkExec(c, files)
	if err == nil {
		s.running[pid] = id
		if c.Main {
			s.main = pid
		}
		s.idle.Signal()
	}
	s.mu.Unlock()
	if err == nil {
		return nil
	}
	status := ExitStatus{Code: 126}
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		status.Code = 127
	}
	answer := s.link.send(&message{Kind: "exited", ID: id, Status: &status, Error: err.Error()})
	if c.Main && answer == nil {
		unix.Exit(0)
	}
	return answer
}

// reap collects every process of the machine that has ended, for ever.
func (s *initServer) reap() {
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, 0, nil)
		if err == unix.ECHILD {
			// No child, so no other process at all is left in the machine.
			s.mu.Lock()
			if len(s.running) == 0 {
				s.idle.Wait()
			}
			s.mu.Unlock()
			continue
		}
		if err != nil || pid <= 0 {
			continue
		}
		s.mu.Lock()
		id, ours := s.running[pid]
		delete(s.running, pid)
		last := pid == s.main
		s.mu.Unlock()
		if !ours {
			continue
		}
		status := statusOf(ws)
		if err := s.link.send(&message{Kind: "exited", ID: id, Status: &status}); err != nil || last {
			unix.Exit(0)
		}
	}
}

// signal signals the process group of a command; every command leads one.
func (s *initServer) signal(id uint64, sig unix.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for pid, running := range s.running {
		if running == id {
			if unix.Kill(-pid, sig) != nil {
				_ = unix.Kill(pid, sig)
			}
		}
	}
}

func forkExec(c *wireCommand, files []*os.File) (int, error) {
	if len(c.Argv) == 0 {
		return 0, unix.ENOENT
	}
	attr := &syscall.ProcAttr{Dir: c.Dir, Env: c.Env, Sys: &syscall.SysProcAttr{Setsid: true}}
	account, err := lookupUser("/", c.User)
	if err != nil {
		return 0, err
	}
	if account != nil {
		attr.Sys.Credential = &syscall.Credential{Uid: account.uid, Gid: account.gid, Groups: account.groups}
		attr.Env = account.environment(attr.Env)
		if attr.Dir == "" {
			attr.Dir = account.home
			if info, err := os.Stat(account.home); err != nil || !info.IsDir() {
				attr.Dir = "/"
			}
		}
	}
	if attr.Dir == "" {
		attr.Dir = "/"
	}
	if !filepath.IsAbs(attr.Dir) {
		return 0, fmt.Errorf("cannot enter %q: not an absolute path", attr.Dir)
	}
	if info, err := os.Stat(attr.Dir); err != nil || !info.IsDir() {
		return 0, fmt.Errorf("cannot enter %q: not a directory", attr.Dir)
	}
	switch {
	case c.Terminal && len(files) == 1:
		fd := files[0].Fd()
		attr.Files = []uintptr{fd, fd, fd}
		attr.Sys.Setctty = true
	case !c.Terminal && len(files) == 3:
		attr.Files = []uintptr{files[0].Fd(), files[1].Fd(), files[2].Fd()}
	default:
		return 0, fmt.Errorf("command came with %d descriptors", len(files))
	}
	path, err := findProgram(c.Argv[0], attr.Dir, attr.Env)
	if err != nil {
		return 0, err
	}
	// Everything is close-on-exec already; this holds even if something was forgotten (SEC-07).
	if err := unix.CloseRange(childSocket, ^uint(0)>>32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return 0, err
	}
	return syscall.ForkExec(path, c.Argv, attr)
}

// findProgram looks a command up along the PATH of its own environment.
func findProgram(name, dir string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		if !filepath.IsAbs(name) {
			name = filepath.Join(dir, name)
		}
		return name, nil
	}
	path := defaultPath
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			path = v
		}
	}
	failure := error(unix.ENOENT)
	for _, d := range filepath.SplitList(path) {
		if !filepath.IsAbs(d) {
			continue
		}
		candidate := filepath.Join(d, name)
		info, err := os.Stat(candidate)
		switch {
		case err != nil || info.IsDir():
		case info.Mode()&0o111 == 0:
			failure = unix.EACCES
		default:
			return candidate, nil
		}
	}
	return "", failure
}

// account is what a user name means inside of the machine.
type account struct {
	name, home, shell string
	uid, gid          uint32
	groups            []uint32
}

// environment adds what login would set, unless it is set already.
func (a *account) environment(env []string) []string {
	env = slices.Clone(env)
	for _, e := range []string{"HOME=" + a.home, "USER=" + a.name, "LOGNAME=" + a.name} {
		key, _, _ := strings.Cut(e, "=")
		env = slices.DeleteFunc(env, func(old string) bool { return strings.HasPrefix(old, key+"=") })
		env = append(env, e)
	}
	return env
}

// maxAccounts bounds how much of the machine's own account files is read, in bytes.
const maxAccounts = 4 << 20

// lookupUser resolves NAME, UID, NAME:GROUP or UID:GID by the files below root. It is nil for
// the empty name and for root. Numbers need no entry.
func lookupUser(root, spec string) (*account, error) {
	user, group, hasGroup := strings.Cut(spec, ":")
	if (user == "" || user == "root" || user == "0") && !hasGroup {
		return nil, nil
	}
	a := &account{name: user, home: "/"}
	found := false
	field := 0
	if _, err := strconv.ParseUint(user, 10, 32); err == nil {
		field = 2 // an account that is called like a number is not that number
	}
	err := eachLine(filepath.Join(root, "etc/passwd"), func(f []string) {
		if found || len(f) < 7 || f[field] != user {
			return
		}
		uid, err1 := strconv.ParseUint(f[2], 10, 32)
		gid, err2 := strconv.ParseUint(f[3], 10, 32)
		if err1 == nil && err2 == nil {
			found = true
			a.name, a.uid, a.gid, a.home, a.shell = f[0], uint32(uid), uint32(gid), f[5], f[6]
		}
	})
	if !found {
		uid, numErr := strconv.ParseUint(user, 10, 32)
		if numErr != nil {
			return nil, errors.Join(fmt.Errorf("cannot find user %q in the machine", user), err)
		}
		a.uid, a.gid = uint32(uid), uint32(uid)
	}
	a.groups = []uint32{a.gid}
	err = eachLine(filepath.Join(root, "etc/group"), func(f []string) {
		if len(f) < 4 {
			return
		}
		gid, numErr := strconv.ParseUint(f[2], 10, 32)
		if numErr != nil {
			return
		}
		if hasGroup && f[0] == group {
			a.gid, hasGroup = uint32(gid), false
		}
		if slices.Contains(strings.Split(f[3], ","), a.name) && !slices.Contains(a.groups, uint32(gid)) {
			a.groups = append(a.groups, uint32(gid))
		}
	})
	if hasGroup {
		gid, numErr := strconv.ParseUint(group, 10, 32)
		if numErr != nil {
			return nil, errors.Join(fmt.Errorf("cannot find group %q in the machine", group), err)
		}
		a.gid = uint32(gid)
	}
	return a, nil
}

// eachLine reads a colon-separated file. Whatever the machine put there, it does not block
// and is not read beyond maxAccounts.
func eachLine(path string, visit func(fields []string)) error {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		return errors.Join(fmt.Errorf("%s is not a regular file", path), err)
	}
	lines := bufio.NewScanner(io.LimitReader(file, maxAccounts))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		visit(strings.Split(lines.Text(), ":"))
	}
	return lines.Err()
}
