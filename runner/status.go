// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// ExitStatus says how a command ended.
type ExitStatus struct {
	// Code is the command's own exit status; 126 where it could not be executed, 127 where it
	// was not found, 128+Signal where a signal killed it.
	Code   int         `json:"code"`
	Signal unix.Signal `json:"signal,omitempty"`
}

// Ok reports success.
func (s ExitStatus) Ok() bool { return s.Code == 0 }

// String is "exit status N" or "killed by SIGNAL".
func (s ExitStatus) String() string {
	if s.Signal != 0 {
		return fmt.Sprintf("killed by %s", unix.SignalName(s.Signal))
	}
	return fmt.Sprintf("exit status %d", s.Code)
}

func statusOf(ws unix.WaitStatus) ExitStatus {
	if ws.Signaled() {
		return ExitStatus{Code: 128 + int(ws.Signal()), Signal: ws.Signal()}
	}
	return ExitStatus{Code: ws.ExitStatus()}
}

func errorf(format string, args ...any) error { return fmt.Errorf(format, args...) }
