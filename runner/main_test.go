// SPDX-License-Identifier: Apache-2.0

package runner_test

import (
	"net"
	"os"
	"testing"

	"github.com/mkmachine/mkmachine/runner"
)

func TestMain(m *testing.M) {
	runner.Dispatch(map[string]runner.Entry{"echo": echoEntry})
	os.Exit(m.Run())
}

// echoEntry writes what it is told into a file and sends back the names it sees.
func echoEntry(conn *net.UnixConn) error {
	buf := make([]byte, 100)
	n, err := conn.Read(buf)
	if err != nil {
		return err
	}
	if err := os.WriteFile("/out", buf[:n], 0o4755); err != nil {
		return err
	}
	if err := os.Chown("/out", 1000, 50); err != nil {
		return err
	}
	_, err = conn.Write([]byte("done"))
	return err
}
