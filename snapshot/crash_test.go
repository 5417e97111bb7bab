// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/internal/kernel/kerneltest"
)

// The test program runs itself with this variable to become a process that does one
// operation on a store: "BACKEND DIR LOCKS STEP OPERATION", killed before the STEPth step.
const helperVar = "MKMACHINE_SNAPSHOT_HELPER"

func TestMain(m *testing.M) {
	if job := os.Getenv(helperVar); job != "" {
		os.Exit(helper(strings.Fields(job)))
	}
	os.Exit(m.Run())
}

func helper(job []string) int {
	kill, _ := strconv.Atoi(job[3])
	count := 0
	step := func(string) {
		if count++; count == kill {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
	opts := &Options{LockDir: job[2], Step: step}
	if job[0] == Copy || job[0] == Reflink {
		opts.Backend = job[0]
	}
	err := operation(context.Background(), job[1], opts, job[4])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return fault.ClassOf(err).ExitCode()
	}
	return 0
}

// operation does what one command would do.
func operation(ctx context.Context, dir string, opts *Options, op string) error {
	s, err := Open(ctx, dir, opts)
	if err != nil {
		return err
	}
	defer s.Close()
	op, arg, _ := strings.Cut(op, "=")
	switch op {
	case "publish":
		st, err := s.NewStage(ctx, "")
		if err != nil {
			return err
		}
		defer st.Discard(ctx)
		if err := os.MkdirAll(filepath.Join(st.Dir(), "etc"), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(st.Dir(), "etc/os-release"), []byte("TEXT="+arg), 0o644); err != nil {
			return err
		}
		if err := st.SaveLayer(ctx, "layer1", LayerMeta{}); err != nil {
			return err
		}
		if err := st.SaveLayer(ctx, "final"+arg, LayerMeta{Final: true}); err != nil {
			return err
		}
		_, err = st.Publish(ctx, "debian", Meta{}, true)
		return err
	case "layer":
		_, err := s.PublishLayer(ctx, "finalold", arg, Meta{}, true)
		return err
	case "clone":
		_, err := s.Clone(ctx, "debian", arg, nil)
		return err
	case "reclone":
		_, err := s.Clone(ctx, "web", arg, &CloneOptions{ReadOnly: true})
		return err
	case "ephemeral":
		l, err := s.Ephemeral(ctx, arg, nil)
		if err != nil {
			return err
		}
		return l.Close(ctx)
	case "remove":
		return s.Remove(ctx, arg)
	case "rename":
		return s.Rename(ctx, "web", arg)
	case "clean":
		_, err := s.Clean(ctx, &CleanOptions{Layers: true})
		return err
	}
	return errors.New("unknown operation " + op)
}

func (b *bed) run(t testing.TB, step int, op string) (killed bool, err error) {
	t.Helper()
	cmd := b.command(t, step, op)
	out, err := cmd.CombinedOutput()
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("%s: %w: %s", op, err, out)
	}
	return false, nil
}

func (b *bed) command(t testing.TB, step int, op string) *exec.Cmd {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %s %d %s", helperVar, b.backend, b.dir, b.opts.LockDir, step, op))
	return cmd
}

// TestKill kills each operation before each of its steps. Afterwards every name is the old
// or the new complete tree, the next Open leaves no trace of the dead, and the operation works.
func TestKill(t *testing.T) {
	if testing.Short() {
		t.Skip("starts hundreds of processes")
	}
	backends(t, func(t *testing.T, b *bed) {
		kerneltest.Leaks(t)
		for _, op := range []string{"publish=new", "layer=copy", "layer=debian", "clone=web2", "reclone=web2", "ephemeral=debian", "ephemeral=web",
			"remove=debian", "remove=web", "rename=web2", "clean"} {
			t.Run(op, func(t *testing.T) { b.killEach(t, op) })
		}
	}, Btrfs, Overlay) // the others differ in how bytes are copied, not in steps
}

func (b *bed) killEach(t *testing.T, op string) {
	for step := 1; ; step++ {
		b.reset(t)
		killed, err := b.run(t, step, op)
		if err != nil {
			t.Fatal(err)
		}
		if killed && step%3 == 0 {
			// Recovery is killed as well, and has to be resumed.
			if _, err := b.run(t, 1+step%2, "ephemeral=web"); err != nil && !strings.Contains(err.Error(), "cannot find") {
				t.Fatal(err)
			}
		}
		s := b.open(t)
		b.check(t, s, fmt.Sprintf("%s killed at step %d", op, step))
		s.Close()
		if !killed {
			if step < 3 {
				t.Errorf("%s has only %d steps", op, step-1)
			}
			return
		}
		if _, err := b.run(t, 0, op); err != nil && !strings.Contains(err.Error(), "exists already") && !strings.Contains(err.Error(), "cannot find") {
			t.Fatalf("after a kill at step %d: %v", step, err)
		}
		if t.Failed() {
			t.Fatalf("stopped at step %d", step)
		}
	}
}

// reset brings the store to the state before an operation: a template, a layer, a machine.
func (b *bed) reset(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	s := b.open(t)
	defer s.Close()
	imgs, err := s.Images()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range imgs {
		if err := s.Remove(ctx, i.Name); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Clean(ctx, &CleanOptions{Layers: true}); err != nil {
		t.Fatal(err)
	}
	for _, op := range []string{"publish=old", "clone=web"} {
		if err := operation(ctx, b.dir, &b.opts, op); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(b.dir, "web.nspawn"), "[Exec]\n")
}

// check looks for half-done things.
func (b *bed) check(t *testing.T, s *Store, when string) {
	t.Helper()
	imgs, err := s.Images()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, i := range imgs {
		names = append(names, i.Name)
		if got := b.text(t, s, i.Name); got != "old" && (got != "new" || i.Name != "debian") {
			t.Errorf("%s: %s has %q", when, i.Name, got)
		}
		if i.Meta == nil {
			t.Errorf("%s: %s has no record", when, i.Name)
		}
	}
	layers, err := s.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range layers {
		if got := readText(t, s.treePath(l.Tree)); got != "old" && got != "new" {
			t.Errorf("%s: layer %s has %q", when, l.Key, got)
		}
	}
	// A settings file belongs to an image, and web's to whoever web is now.
	files, _ := filepath.Glob(filepath.Join(b.dir, "*.nspawn"))
	for _, f := range files {
		if !slices.Contains(names, strings.TrimSuffix(filepath.Base(f), sidecar)) {
			t.Errorf("%s: %s without its image", when, f)
		}
	}
	if slices.Contains(names, "web") && !slices.Contains(files, filepath.Join(b.dir, "web.nspawn")) {
		t.Errorf("%s: web without its settings", when)
	}
	if n, err := s.sweepRecords(); err != nil || n > 0 {
		// Harmless: a record without a tree. Written before the tree had its name.
		t.Logf("%s: %d records without an image (%v)", when, n, err)
	}
	b.wantClean(t, s, names...)
	if t.Failed() {
		t.Logf("this was %s", when)
	}
}
