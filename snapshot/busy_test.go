// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/internal/kernel"
	"github.com/mkmachine/mkmachine/internal/kernel/kerneltest"
)

// TestAtOnce has eight processes do the same to one store.
func TestAtOnce(t *testing.T) {
	backends(t, func(t *testing.T, b *bed) {
		b.reset(t)
		for op, want := range map[string]int{"publish=new": 8, "clone=web2": 1, "ephemeral=debian": 8, "rename=web3": 1} {
			var cmds []*exec.Cmd
			var outs [8]strings.Builder
			for i := range 8 {
				cmd := b.command(t, 0, op)
				cmd.Stderr = &outs[i]
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				cmds = append(cmds, cmd)
			}
			ok := 0
			for i, cmd := range cmds {
				err := cmd.Wait()
				switch {
				case err == nil:
					ok++
				case want == 8 || cmd.ProcessState.ExitCode() != fault.State.ExitCode():
					t.Errorf("%s: %v: %s", op, err, outs[i].String())
				}
			}
			if ok != want {
				t.Errorf("%s: %d of 8 succeeded, want %d", op, ok, want)
			}
			if strings.HasPrefix(op, "rename") {
				continue
			}
			if op == "clone=web2" && !t.Failed() {
				if err := b.open(t).Remove(t.Context(), "web2"); err != nil {
					t.Error(err)
				}
			}
		}
		s := b.open(t)
		b.wantClean(t, s, "debian", "web3")
		if got := b.text(t, s, "debian"); got != "new" {
			t.Errorf("text %q", got)
		}
	})
}

// TestFull fills a small file system: what was there stays whole, and room helps.
func TestFull(t *testing.T) {
	for _, c := range []struct {
		backend, kind string
		size          int64
	}{{Btrfs, "btrfs", 256 << 20}, {Overlay, "ext4", 64 << 20}} {
		t.Run(c.backend, func(t *testing.T) {
			kerneltest.Require(t, kernel.Root)
			base := kerneltest.LoopFS(t, c.kind, c.size)
			b := &bed{backend: c.backend, dir: filepath.Join(base, "machines"), events: &recorder{}}
			b.opts = Options{LockDir: filepath.Join(t.TempDir(), "locks")}
			s := b.open(t)
			b.publish(t, s, "debian", "one", false)
			for i := range 40 {
				st, err := s.NewStage(t.Context(), "")
				if err == nil {
					err = os.WriteFile(filepath.Join(st.Dir(), "big"), make([]byte, 10<<20), 0o600)
					if err == nil {
						_, err = st.Publish(t.Context(), fmt.Sprintf("big%d", i), Meta{}, false)
					}
					if derr := st.Discard(t.Context()); derr != nil {
						t.Errorf("discard: %v", derr)
					}
				}
				if err == nil {
					continue
				}
				if !errors.Is(err, unix.ENOSPC) {
					t.Fatalf("when full: %v", err)
				}
				break
			}
			// Full to the last block, removing still works.
			ballast := filepath.Join(base, "ballast")
			f, err := os.Create(ballast)
			if err != nil {
				t.Fatal(err)
			}
			for block := 1 << 20; block >= 512; {
				if _, err := f.Write(make([]byte, block)); err != nil {
					block /= 2
				}
			}
			f.Close()
			if _, err := s.Clone(t.Context(), "debian", "web", nil); err != nil && !errors.Is(err, unix.ENOSPC) {
				t.Errorf("clone when full: %v", err)
			}
			if got := b.text(t, s, "debian"); got != "one" {
				t.Errorf("text %q", got)
			}
			imgs, err := s.Images()
			if err != nil {
				t.Fatal(err)
			}
			for _, i := range imgs {
				if i.Name != "debian" {
					if err := s.Remove(t.Context(), i.Name); err != nil {
						t.Errorf("remove when full: %v", err)
					}
				}
			}
			if err := os.Remove(ballast); err != nil {
				t.Fatal(err)
			}
			// btrfs frees the space of what was deleted in the background.
			for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
				_, err := s.Clean(t.Context(), nil)
				if err == nil {
					_, err = s.Clone(t.Context(), "debian", "web", nil)
				}
				if err == nil {
					break
				}
				if !errors.Is(err, unix.ENOSPC) || time.Now().After(end) {
					t.Fatalf("clone after there was room again: %v", err)
				}
			}
			b.wantClean(t, s, "debian", "web")
		})
	}
}

// TestNotOurs: recovery removes what the journal says and nothing else.
func TestNotOurs(t *testing.T) {
	backends(t, func(t *testing.T, b *bed) {
		ctx := t.Context()
		s := b.open(t)
		b.publish(t, s, "debian", "one", false)
		other := filepath.Join(b.dir, hiddenPrefix+"00000000000000aa")
		if err := s.createTree(other); err != nil {
			t.Fatal(err)
		}
		journal := func(id string, lines ...journalLine) {
			t.Helper()
			var text []byte
			for _, l := range lines {
				j, err := json.Marshal(l)
				if err != nil {
					t.Fatal(err)
				}
				text = append(append(text, j...), '\n')
			}
			write(t, s.state("journal", id), string(text))
		}
		head := journalLine{Schema: journalSchema, Op: opClone, Pid: 1, Time: time.Now()}
		journal("00000000000000aa", head, journalLine{Made: filepath.Base(other), ID: "inode-1-1.000000000"})
		journal("00000000000000ab", head, journalLine{Intend: "debian"}, journalLine{Made: "../machines/debian"},
			journalLine{Made: treesDir + "/../../debian"}, journalLine{Move: "debian", To: "x", ID: "y"})
		journal("00000000000000ac", journalLine{Schema: 99, Op: opClone}, journalLine{Intend: "debian"})
		write(t, s.state("journal", "00000000000000ad"), "\x00\x00\x00")
		lost := filepath.Join(b.dir, hiddenPrefix+"00000000000000ad.3")
		if err := s.createTree(lost); err != nil {
			t.Fatal(err)
		}
		s = b.open(t)
		if _, err := os.Lstat(other); err != nil {
			t.Errorf("a tree with another identity was removed: %v", err)
		}
		if _, err := os.Lstat(lost); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the object of a damaged entry is still there: %v", err)
		}
		if got := b.text(t, s, "debian"); got != "one" {
			t.Errorf("text %q", got)
		}
		left, err := entryNames(s.state("journal"))
		if err != nil || len(left) != 1 || left[0] != "00000000000000ac" {
			t.Errorf("journal %q, %v; only the newer version's entry should be left", left, err)
		}
		os.Remove(s.state("journal", left[0]))
		if err := removeTree(ctx, other); err != nil {
			t.Fatal(err)
		}
		b.wantClean(t, s, "debian")
	})
}

func TestParseJournal(t *testing.T) {
	const head = `{"schema":1,"op":"clone","name":"web","pid":7}` + "\n"
	const hidden = hiddenPrefix + "0123456789abcdef"
	for _, c := range []struct {
		name, text string
		objects    int
		ids        int
		err        bool
	}{
		{"empty", "", 0, 0, true},
		{"no header", "nonsense\n", 0, 0, true},
		{"newer", `{"schema":2}` + "\n", 0, 0, true},
		{"header only", head, 0, 0, false},
		{"announced", head + `{"intend":"` + hidden + `"}` + "\n", 1, 0, false},
		{"made", head + `{"intend":"` + hidden + `"}` + "\n" + `{"made":"` + hidden + `","id":"inode-1-2.0"}` + "\n", 1, 1, false},
		{"cut", head + `{"intend":"` + hidden + `"}` + "\n" + `{"made":".#mkm`, 1, 0, false},
		{"outside", head + `{"intend":"../x"}` + "\n" + `{"intend":"/etc"}` + "\n" + `{"intend":"debian"}` + "\n", 0, 0, false},
	} {
		r, err := parseJournal([]byte(c.text))
		if (err != nil) != c.err {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		ids := 0
		for _, o := range r.objects {
			ids += len(o.ids)
		}
		if len(r.objects) != c.objects || ids != c.ids {
			t.Errorf("%s: %+v", c.name, r.objects)
		}
	}
}

// FuzzParseJournal: whatever is read, only paths of our own shape come out.
func FuzzParseJournal(f *testing.F) {
	f.Add([]byte(`{"schema":1,"op":"clone"}` + "\n" + `{"intend":".#mkmachine-0123456789abcdef"}` + "\n"))
	f.Add([]byte(`{"schema":1}` + "\n" + `{"made":".mkmachine/trees/0123456789abcdef.1","id":"x"}` + "\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parseJournal(data)
		if err != nil {
			return
		}
		for _, o := range r.objects {
			name := strings.TrimPrefix(strings.TrimPrefix(o.rel, hiddenPrefix), treesDir+"/")
			if !treeID(name) || strings.Contains(name, "/") {
				t.Errorf("path %q came out", o.rel)
			}
		}
	})
}

// BenchmarkClone is what a clone command does, and its removal.
func BenchmarkClone(b *testing.B) {
	benchmark(b, func(b *testing.B, bed *bed) {
		for b.Loop() {
			s := bed.open(b)
			if _, err := s.Clone(b.Context(), "debian", "web", nil); err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			if err := s.Remove(b.Context(), "web"); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	})
}

// BenchmarkEphemeral is what a throw-away run does to the store: open, copy, remove.
func BenchmarkEphemeral(b *testing.B) {
	benchmark(b, func(b *testing.B, bed *bed) {
		for b.Loop() {
			s := bed.open(b)
			l, err := s.Ephemeral(b.Context(), "debian", nil)
			if err == nil {
				err = l.Close(b.Context())
			}
			if err != nil {
				b.Fatal(err)
			}
		}
	})
}

func benchmark(b *testing.B, f func(*testing.B, *bed)) {
	for _, backend := range []string{Btrfs, Overlay, Reflink} {
		b.Run(backend, func(b *testing.B) {
			bed := newBed(b, backend)
			benchTree(b, bed)
			f(b, bed)
		})
	}
}

// benchTree publishes a tree of about the number of files that a minimal distribution has.
func benchTree(b *testing.B, bed *bed) {
	b.Helper()
	s := bed.open(b)
	st, err := s.NewStage(b.Context(), "")
	if err != nil {
		b.Fatal(err)
	}
	fill(b, st.Dir(), "bench")
	for d := range 75 {
		dir := filepath.Join(st.Dir(), fmt.Sprintf("usr/%d", d))
		if err := os.Mkdir(dir, 0o755); err != nil {
			b.Fatal(err)
		}
		for i := range 100 {
			write(b, filepath.Join(dir, fmt.Sprint(i)), strings.Repeat("x", 4000))
		}
	}
	if _, err := st.Publish(b.Context(), "debian", Meta{}, false); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkProgram is what a btrfs user does by hand, to compare with.
func BenchmarkProgram(b *testing.B) {
	btrfs := kerneltest.Program(b, "btrfs")
	bed := newBed(b, Btrfs)
	benchTree(b, bed)
	dst := filepath.Join(bed.dir, "copy")
	for b.Loop() {
		for _, args := range [][]string{{"subvolume", "snapshot", filepath.Join(bed.dir, "debian"), dst}, {"subvolume", "delete", dst}} {
			if out, err := exec.Command(btrfs, args...).CombinedOutput(); err != nil {
				b.Fatalf("%v: %s", err, out)
			}
		}
	}
}
