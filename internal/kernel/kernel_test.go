// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"errors"
	"runtime"
	"testing"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/internal/kernel"
	"github.com/mkmachine/mkmachine/internal/kernel/kerneltest"
)

// Whatever the host can do, an answer is nil or complete: a class, a cause and a fix.
func TestEveryAnswerIsComplete(t *testing.T) {
	kerneltest.Leaks(t)
	for _, f := range kernel.Features() {
		err := kernel.Check(f)
		t.Logf("%-9s %v", f, err)
		if err == nil {
			continue
		}
		if fault.ClassOf(err) != fault.Host || !errors.Is(err, kernel.ErrMissing) || len(fault.Hints(err)) == 0 {
			t.Errorf("%s: class %s, hints %q: %v", f, fault.ClassOf(err), fault.Hints(err), err)
		}
	}
	if err := kernel.Check("nonsense"); fault.ClassOf(err) != fault.Internal {
		t.Errorf("unknown feature: %v", err)
	}
}

func TestRuns(t *testing.T) {
	if err := kernel.Runs(runtime.GOARCH); err != nil {
		t.Errorf("native: %v", err)
	}
	err := kernel.Runs("s390x")
	if err != nil && (fault.ClassOf(err) != fault.Host || len(fault.Hints(err)) == 0) {
		t.Errorf("foreign: %v", err)
	}
}

func TestIDMapped(t *testing.T) {
	kerneltest.Require(t, kernel.Root)
	if err := kernel.IDMapped("/proc"); err == nil {
		t.Error("procfs takes id maps, which it should not")
	}
	for _, kind := range []string{"ext4", "btrfs"} {
		t.Run(kind, func(t *testing.T) {
			if err := kernel.IDMapped(kerneltest.LoopFS(t, kind, 1<<28)); err != nil {
				t.Error(err)
			}
		})
	}
}
