// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/event"
	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/internal/kernel"
	"github.com/mkmachine/mkmachine/internal/undo"
	"github.com/mkmachine/mkmachine/runner/cgroup"
	"github.com/mkmachine/mkmachine/runner/seccomp"
	"github.com/mkmachine/mkmachine/runner/spawn"
)

// Options say how Start does its work.
type Options struct {
	Sink    event.Sink
	Runtime string // directory of leases, private to root; default DefaultRuntime
}

const defaultPids = 4096

// leaves numbers the machines of this process, for unique names of control groups.
var leaves atomic.Uint64

// Start makes the machine and, where it has one, starts its main command. The instance lives
// until Close, the end of the main command, the end of ctx or the end of this process,
// whichever comes first; Close must be called in every case.
func Start(ctx context.Context, m *Machine, opts *Options) (*Instance, error) {
	if opts == nil {
		opts = &Options{}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	plan, err := m.Plan()
	if err != nil {
		return nil, err
	}
	if err := kernel.Check(kernel.Root); err != nil {
		return nil, err
	}
	span := opts.Sink.Start("start", plan.Machine.Name)
	s := &starter{plan: plan, span: span, runtime: opts.Runtime}
	if s.runtime == "" {
		s.runtime = DefaultRuntime
	}
	i, err := s.start(ctx)
	span.End(err)
	if err != nil {
		return nil, fault.As(fault.ClassOf(err), fmt.Errorf("cannot start machine %q: %w", plan.Machine.Name, err))
	}
	return i, nil
}

// Run starts the machine, waits for the end of its main command and leaves nothing behind.
func Run(ctx context.Context, m *Machine, opts *Options) (ExitStatus, error) {
	if len(m.Argv) == 0 {
		return ExitStatus{Code: childFailed}, fault.New(fault.Config, "cannot run a machine without a command")
	}
	i, err := Start(ctx, m, opts)
	if err != nil {
		return ExitStatus{Code: childFailed}, err
	}
	status, err := i.Wait()
	return status, errors.Join(err, i.Close())
}

// starter holds what Start needs between its steps.
type starter struct {
	plan    *Plan
	span    *event.Span
	runtime string
	undo    undo.Stack

	lease   *lease
	ids     *idLease
	group   *cgroup.Group
	fds     *childEnds
	program *spawn.Program
	child   *spawn.Process
	builder *builder
	null    *os.File // the machine's own
	ptmx    int      // of the machine's own terminals
}

func (s *starter) start(ctx context.Context) (*Instance, error) {
	i := &Instance{machine: s.plan.Machine, exited: make(chan struct{}), gone: make(chan struct{}), commands: map[uint64]*command{}}
	started := make(chan error)
	onOwnThread(func() {
		// Undoing is for another thread: this one may see the machine's root by then.
		err := s.build()
		if err == nil {
			i.adopt(s)
		}
		if err != nil {
			if s.builder != nil && s.builder.placed != nil {
				err = errors.Join(err, s.builder.placed.remove())
			}
			started <- err
			return
		}
		started <- nil
		// The thread is the parent whose death the machine follows, so it waits here.
		ws, err := reap(s.child.Pid)
		if s.builder.placed != nil {
			err = errors.Join(err, s.builder.placed.remove())
		}
		i.finish(ws, err)
	})
	if err := <-started; err != nil {
		s.undo.Run(&err)
		return nil, err
	}
	s.undo.Keep()
	if err := i.greet(s.plan.checks(s.builder.base)); err != nil {
		return nil, errors.Join(err, i.Close())
	}
	i.stop = context.AfterFunc(ctx, func() { i.cancel(context.Cause(ctx)) })
	return i, nil
}

// build makes everything on the calling thread. Where it fails, undo must be run.
func (s *starter) build() (err error) {
	u := &s.undo
	image, err := selfImage()
	if err != nil {
		return err
	}
	if err := s.reserve(u); err != nil {
		return err
	}
	if s.fds, err = childFiles(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.fds.closeChildEnds()) }()
	u.Add(s.fds.closeParentEnds)
	if err := enterMountNamespace(); err != nil {
		return err
	}
	if err := s.clone(image, u); err != nil {
		return err
	}
	b := &builder{plan: s.plan, child: s.child, userNS: -1, scratch: -1, sysfs: -1, hear: s.fds.hear}
	s.builder = b
	defer func() { err = errors.Join(err, b.close()) }()
	if err := s.mapIDs(); err != nil {
		return err
	}
	for _, op := range s.plan.Ops {
		switch op.Kind {
		case "cgroup", "clone", "exec", "main":
			continue // done before, or by the child
		case "pivot":
			if err := s.openInside(u); err != nil {
				return err
			}
		}
		if err := b.apply(op); err != nil {
			return errors.Join(err, s.program.Failure())
		}
	}
	if err := s.limitChild(); err != nil {
		return err
	}
	if err := s.fds.release(); err != nil {
		return errors.Join(err, s.program.Failure())
	}
	return nil
}

// reserve writes down and makes what is outside of the machine: ids and control group.
func (s *starter) reserve(u *undo.Stack) (err error) {
	m := s.plan.Machine
	leaf := fmt.Sprintf("%s-%d.%d", m.Name, os.Getpid(), leaves.Add(1))
	if s.lease, err = newLease(s.runtime, leaf); err != nil {
		return err
	}
	u.Add(s.lease.release)
	if !m.Trusted {
		if m.IDs.Size == 0 {
			s.ids, err = leaseIDs(idDir(s.runtime), m.Name)
		} else {
			s.ids, err = leaseGivenIDs(idDir(s.runtime), m.IDs.Base)
		}
		if err != nil {
			return err
		}
		u.Add(s.ids.release)
		if m.IDs.Size == 0 {
			m.IDs.Size = idRange
		}
		s.lease.IDBase = s.ids.base
	}
	limits := m.Limits.group()
	hierarchies, err := kernel.Hierarchies()
	if err == nil {
		s.lease.Cgroups, err = cgroup.Plan(hierarchies, leaf, limits)
	}
	if err == nil {
		err = s.lease.write()
	}
	if err == nil {
		s.group, err = cgroup.Create(hierarchies, s.lease.Cgroups, limits, allowedDevices())
	}
	if err != nil {
		if m.Trusted {
			s.span.Fallback("the machine runs without a control group: " + err.Error())
			s.group = nil
			return nil
		}
		return err
	}
	u.Add(s.group.Remove)
	// Now with inodes, so that the directories can be told from later ones of the same name.
	s.lease.Cgroups = s.group.Dirs
	return s.lease.write()
}

// group turns the limits of a machine into those of a control group.
func (l Limits) group() cgroup.Limits {
	out := cgroup.Limits{Pids: l.Pids, Memory: l.Memory, CPUs: l.CPUs}
	if l.Pids == 0 {
		out.Pids = defaultPids
	}
	if l.Memory == 0 {
		var info unix.Sysinfo_t
		if unix.Sysinfo(&info) == nil {
			out.Memory = int64(info.Totalram) * int64(info.Unit) / 2
		}
	}
	return out
}

func allowedDevices() []cgroup.Device {
	devices := []cgroup.Device{{Major: 5, Minor: 2}}
	for _, node := range deviceNodes {
		devices = append(devices, cgroup.Device{Major: node.major, Minor: node.minor})
	}
	// Slaves of pseudo-terminals.
	for major := uint32(136); major <= 143; major++ {
		devices = append(devices, cgroup.Device{Major: major, Any: true})
	}
	return devices
}

// clone starts the child, which waits after its first calls.
func (s *starter) clone(image *os.File, u *undo.Stack) (err error) {
	m := s.plan.Machine
	if s.program, err = spawn.New(); err != nil {
		return err
	}
	u.Add(s.program.Close)
	s.prepare(image)
	flags := uint64(unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS)
	if !m.Trusted {
		flags |= unix.CLONE_NEWUSER
	}
	if m.Network == Loopback {
		flags |= unix.CLONE_NEWNET
	}
	cgroupFD := -1
	leave := func() error { return nil }
	if s.group != nil {
		cgroupFD = s.group.FD()
		if leave, err = s.group.Enter(); err != nil {
			return err
		}
	}
	s.child, err = s.program.Start(flags, cgroupFD)
	if err != nil {
		return errors.Join(hostLacksNamespaces(err), leave())
	}
	u.Add(func() error {
		_ = unix.PidfdSendSignal(s.child.PidFD, unix.SIGKILL, nil, 0)
		_, waitErr := reap(s.child.Pid)
		return errors.Join(waitErr, unix.Close(s.child.PidFD))
	})
	return leave()
}

// prepare writes down what the child does before it executes.
func (s *starter) prepare(image *os.File) {
	p, m := s.program, s.plan.Machine
	die := func() {
		p.Call("follow the parent's death", spawn.Must, unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL))
	}
	die()
	// The control group of birth becomes the root of what the machine sees.
	p.Call("create a cgroup namespace", spawn.Must, unix.SYS_UNSHARE, unix.CLONE_NEWCGROUP)
	s.fds.take(p, image)
	s.fds.tell(p)
	s.fds.await(p)
	p.Call("become group 0", spawn.Must, unix.SYS_SETRESGID, 0, 0, 0)
	p.Call("drop groups", spawn.Must, unix.SYS_SETGROUPS, 0, 0)
	p.Call("become user 0", spawn.Must, unix.SYS_SETRESUID, 0, 0, 0)
	die() // the change of user has cleared it
	p.Call("become a session leader", spawn.Must, unix.SYS_SETSID)
	p.Call("set the file mode mask", spawn.Must, unix.SYS_UMASK, 0o022)
	p.Call("enter the root directory", spawn.Must, unix.SYS_CHDIR, p.Text("/"))
	p.Call("get a keyring", spawn.Maybe, unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, 0)
	caps := m.Profile.caps()
	dropCaps(p, caps)
	if m.Profile == App {
		p.Call("give up new privileges", spawn.Must, unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	}
	filter := seccomp.Machine(seccomp.Options{NoSync: m.NoSync})
	program := p.Words(uintptr(filter.Count()), p.Bytes(filter))
	p.Call("install the system call filter", spawn.Must, unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, program)
	setCaps(p, caps)
	s.fds.exec(p, initEntry)
}

// mapIDs gives the child's user namespace its ids and opens it for id-mapped mounts.
func (s *starter) mapIDs() error {
	if s.plan.Machine.Trusted {
		return nil
	}
	size := s.plan.Machine.IDs.Size
	if err := writeIDMaps(s.child.Pid, fmt.Sprintf("0 %d %d\n", s.ids.base, size)); err != nil {
		return err
	}
	fd, err := unix.Open("/proc/"+strconv.Itoa(s.child.Pid)+"/ns/user", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fault.New(fault.Failed, "cannot open the user namespace: %w", err)
	}
	s.builder.base, s.builder.userNS = s.ids.base, s.builder.keep(fd)
	return nil
}

// openInside opens what the supervisor needs of the machine later, as long as it can be found
// from outside without trusting anything in it.
func (s *starter) openInside(u *undo.Stack) error {
	null, err := openBelow(s.builder.root, "/dev/null", unix.O_RDWR|unix.O_NOFOLLOW, unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return fault.New(fault.Failed, "cannot open the machine's /dev/null: %w", err)
	}
	s.null = os.NewFile(uintptr(null), "/dev/null")
	u.Add(s.null.Close)
	s.ptmx, err = openBelow(s.builder.root, "/dev/pts/ptmx", unix.O_PATH|unix.O_NOFOLLOW, unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return fault.New(fault.Failed, "cannot open the machine's terminals: %w", err)
	}
	u.Add(func() error { return unix.Close(s.ptmx) })
	return nil
}

// limitChild sets resource limits, some of which the child could not raise for itself.
func (s *starter) limitChild() error {
	for _, l := range []struct {
		name       string
		resource   int
		soft, hard uint64
	}{
		{"open files", unix.RLIMIT_NOFILE, 1024, 65536},
		{"core dumps", unix.RLIMIT_CORE, 0, 0},
		{"locked memory", unix.RLIMIT_MEMLOCK, 8 << 20, 8 << 20},
		{"stack", unix.RLIMIT_STACK, 8 << 20, unix.RLIM_INFINITY},
		{"file size", unix.RLIMIT_FSIZE, unix.RLIM_INFINITY, unix.RLIM_INFINITY},
		{"priority", unix.RLIMIT_NICE, 0, 0},
		{"real-time priority", unix.RLIMIT_RTPRIO, 0, 0},
	} {
		limit := unix.Rlimit{Cur: l.soft, Max: l.hard}
		err := unix.Prlimit(s.child.Pid, l.resource, &limit, nil)
		if err == unix.EPERM {
			// Without CAP_SYS_RESOURCE the hard limit of this process is the most there is.
			var own unix.Rlimit
			if err = unix.Getrlimit(l.resource, &own); err == nil {
				limit = unix.Rlimit{Cur: min(l.soft, own.Max), Max: min(l.hard, own.Max)}
				err = unix.Prlimit(s.child.Pid, l.resource, &limit, nil)
			}
		}
		if err != nil {
			return fault.New(fault.Failed, "cannot limit %s: %w", l.name, err)
		}
	}
	return nil
}
