// SPDX-License-Identifier: Apache-2.0

package runner_test

import (
	"os"
	"syscall"
	"testing"

	"github.com/mkmachine/mkmachine/internal/kernel"
	"github.com/mkmachine/mkmachine/internal/kernel/kerneltest"
	"github.com/mkmachine/mkmachine/runner"
)

func TestConfine(t *testing.T) {
	kerneltest.Require(t, kernel.Root, kernel.UserNS)
	dir := t.TempDir()
	c, err := runner.Confine(t.Context(), "echo", dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Conn.Write([]byte("hello"))
	buf := make([]byte, 100)
	n, err := c.Conn.Read(buf)
	t.Logf("%q %v", buf[:n], err)
	if err := c.Wait(); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(dir + "/out")
	if err != nil {
		t.Fatal(err)
	}
	t.Log(info.Mode(), info.Sys().(*syscall.Stat_t).Uid)
}
