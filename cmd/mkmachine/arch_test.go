// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"

	"github.com/mkmachine/mkmachine/internal/kernel"
	"github.com/mkmachine/mkmachine/internal/kernel/kerneltest"
)

const armRecipe = `schema = 1
name = "arm"
[source]
kind = "deb"
distribution = "debian"
suite = "trixie"
variant = "essential"
arch = "arm64"
pockets = ["release"]
`

// TestForeignArchitecture builds and runs a tree for arm64 where the host can run its
// programs, and says what to do where it cannot.
func TestForeignArchitecture(t *testing.T) {
	kerneltest.Require(t, kernel.Root, kernel.UserNS, kernel.IDMap, kernel.Cgroup)
	mirror := kerneltest.Mirror(t, "debian")
	w := newWorld(t, "")
	t.Cleanup(w.empty)
	w.write("arm.toml", armRecipe)
	if err := kernel.Runs("arm64"); err != nil {
		o := w.run("--mirror", "debian="+mirror, "build", "arm.toml")
		if o.code != 5 || !strings.Contains(o.stderr, "arm64") || !strings.Contains(o.stderr, "hint: ") {
			t.Errorf("exit %d, want 5 with the architecture and a hint\n%s", o.code, o.stderr)
		}
		kerneltest.Lacks(t, "arm64", err.Error())
	}
	w.must("--mirror", "debian="+mirror, "build", "arm.toml")
	if o := w.must("run", "-x", "arm", "--", "uname", "-m"); strings.TrimSpace(o.stdout) != "aarch64" {
		t.Errorf("uname -m in the tree says %q", o.stdout)
	}
}
