// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// Entry is a function that runs in a confined process of its own, talking to its parent
// over conn. It sees one directory, as /, and nothing else: no /proc, no network, no devices.
// Its error goes to the parent's Confined.Wait.
type Entry func(conn *net.UnixConn) error

// How a re-executed child knows what it is: argv is childName, then the entry. The connection
// to the parent is descriptor childSocket; the first two are /dev/null, the third a pipe to
// the parent.
const (
	childName   = "mkmachine: child"
	initEntry   = "init"
	childSocket = 3
)

// Dispatch must be the first thing that main does, and TestMain: where this process is a
// re-executed child, it runs the child's code and does not return. Otherwise it returns at once.
func Dispatch(entries map[string]Entry) {
	if len(os.Args) < 2 || os.Args[0] != childName {
		return
	}
	name := os.Args[1]
	err := dispatch(name, entries)
	if err == nil {
		unix.Exit(0)
	}
	fmt.Fprintf(os.Stderr, "%s", err)
	unix.Exit(childFailed)
}

func dispatch(name string, entries map[string]Entry) error {
	if unix.Getpid() != 1 {
		return fault.New(fault.Internal, "internal error: %s is not the first process of its namespace", name)
	}
	// Ptrace and /proc/1 are closed to everything else in the machine from here on (SEC-20).
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fault.New(fault.Failed, "cannot become undumpable: %w", err)
	}
	unix.CloseOnExec(childSocket)
	file := os.NewFile(childSocket, "parent")
	conn, err := net.FileConn(file)
	if err != nil {
		return fault.New(fault.Failed, "cannot use the connection to the parent: %w", err)
	}
	file.Close()
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		return fault.New(fault.Internal, "internal error: the connection to the parent is no socket")
	}
	if name == initEntry {
		return serve(unixConn)
	}
	entry := entries[name]
	if entry == nil {
		return fault.New(fault.Internal, "internal error: no entry %q is registered", name)
	}
	if err := sealEntry(); err != nil {
		return err
	}
	return entry(unixConn)
}
