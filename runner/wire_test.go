// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func pair(t testing.TB) (*link, *link) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var links [2]*link
	for i, fd := range fds {
		file := os.NewFile(uintptr(fd), "pair")
		conn, err := net.FileConn(file)
		file.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		links[i] = &link{conn: conn.(*net.UnixConn)}
	}
	return links[0], links[1]
}

func TestWire(t *testing.T) {
	a, b := pair(t)
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	long := strings.Repeat("x", 1<<20)
	go func() {
		_ = a.send(&message{Kind: "start", ID: 1, Command: &wireCommand{Argv: []string{long}}}, write, write, write)
		_ = a.send(&message{Kind: "signal", ID: 2, Signal: 9})
		write.Close()
		a.conn.Close()
	}()
	m, files, err := b.receive()
	if err != nil || m.Command.Argv[0] != long || len(files) != 3 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	if _, err := files[2].WriteString("through"); err != nil {
		t.Error(err)
	}
	closeAll(files)
	if m, files, err = b.receive(); err != nil || m.Signal != 9 || len(files) != 0 {
		t.Errorf("%+v %d %v", m, len(files), err)
	}
	if _, _, err = b.receive(); !errors.Is(err, io.EOF) {
		t.Errorf("end: %v", err)
	}
	if data, _ := io.ReadAll(read); string(data) != "through" {
		t.Errorf("%q", data)
	}
}

// Whatever comes from inside a machine must neither crash nor block the supervisor.
func FuzzWire(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x10{\"kind\":\"ready\"}"))
	f.Add([]byte("\xff\xff\xff\xff"))
	f.Add([]byte("\x00\x00\x00\x02{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		a, b := pair(t)
		go func() {
			_, _ = a.conn.Write(data)
			a.conn.Close()
		}()
		_ = b.conn.SetDeadline(time.Now().Add(5 * time.Second))
		for {
			if _, _, err := b.receive(); err != nil {
				if os.IsTimeout(err) {
					t.Error("blocked")
				}
				return
			}
		}
	})
}

func TestIDsAreNeverShared(t *testing.T) {
	dir := t.TempDir()
	var mu sync.Mutex
	held := map[uint32]bool{}
	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() {
			for range 40 {
				l, err := leaseIDs(dir, "same name")
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if held[l.base] || l.base%idRange != 0 || l.base < idLow || l.base > idHigh-idRange {
					t.Errorf("range %d", l.base)
				}
				held[l.base] = true
				mu.Unlock()
				time.Sleep(time.Millisecond)
				mu.Lock()
				delete(held, l.base)
				mu.Unlock()
				if err := l.release(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wait.Wait()
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestTakenIDs(t *testing.T) {
	etc := t.TempDir()
	for name, text := range map[string]string{
		"subuid": "me:100000:65536\nbroken\nyou:nonsense:3\n", "subgid": "me:589824:1\n",
		"passwd": "svc:x:1879000000:0::/:/\n", "group": "g:x:655360:\n"} {
		if err := os.WriteFile(filepath.Join(etc, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	taken, err := readTaken(etc)
	if err != nil {
		t.Fatal(err)
	}
	for base, want := range map[uint32]bool{65536: true, 131072: true, 196608: false, 589824: true, 655360: true, 720896: false,
		1879000000 &^ 0xffff: true} {
		if got := taken.overlaps(base); got != want {
			t.Errorf("%d: %v", base, got)
		}
	}
}
