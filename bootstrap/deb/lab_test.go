// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/event"
	"github.com/mkmachine/mkmachine/internal/rootfs"
	"github.com/mkmachine/mkmachine/sources"
)

func inProcess(root string) Spawn {
	return func(ctx context.Context) (*net.UnixConn, func() error, error) {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, nil, err
		}
		conn := func(fd int) *net.UnixConn {
			f := os.NewFile(uintptr(fd), "socket")
			defer f.Close()
			c, err := net.FileConn(f)
			if err != nil {
				panic(err)
			}
			return c.(*net.UnixConn)
		}
		dir, err := rootfs.Open(root)
		if err != nil {
			return nil, nil, err
		}
		a, b := conn(fds[0]), conn(fds[1])
		done := make(chan error, 1)
		go func() {
			err := serve(b, dir)
			b.Close()
			dir.Close()
			done <- err
		}()
		return a, func() error { return <-done }, nil
	}
}

func chroot(root string) Script {
	return func(ctx context.Context, argv, env []string, output io.Writer) error {
		if os.Getenv("LAB_STOP") != "" && argv[0] == "dpkg" {
			return fmt.Errorf("stop %q", env)
		}
		cmd := exec.CommandContext(ctx, "unshare", append([]string{"--mount", "--pid", "--fork", "--mount-proc=" + root + "/proc", "chroot", root}, argv...)...)
		cmd.Env, cmd.Stdout, cmd.Stderr, cmd.Dir = env, output, output, "/"
		return cmd.Run()
	}
}

func TestLab(t *testing.T) {
	list, root := os.Getenv("LAB_LIST"), os.Getenv("LAB_ROOT")
	if list == "" {
		t.Skip("no LAB_LIST")
	}
	f, err := os.Open(list)
	if err != nil {
		t.Fatal(err)
	}
	type item struct {
		p    sources.Package
		path string
	}
	var items []item
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		w := strings.Fields(sc.Text())
		items = append(items, item{sources.Package{Name: w[0], Version: w[1], Arch: w[2], SHA256: digest(w[3]), Phase: sources.Phase(append(w, "required")[4])}, w[3]})
	}
	if err := os.MkdirAll(root, 0o755); err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	start := time.Now()
	cpu0 := cpu()
	began := map[uint64]time.Time{}
	var mu sync.Mutex
	sink := event.Sink(func(e event.Event) {
		mu.Lock()
		defer mu.Unlock()
		switch e.Kind {
		case event.Start:
			began[e.Span] = e.Time
		case event.End:
			if e.Name == "unpack" {
				return
			}
			fmt.Println(e.Name, e.Subject, e.Time.Sub(began[e.Span]).Round(time.Millisecond), e.Err)
		case event.Output:
			if os.Getenv("LAB_V") != "" {
				fmt.Println("  |", e.Text)
			}
		case event.Progress:
		default:
			fmt.Println(e.Kind, e.Name, e.Text)
		}
	})
	span := sink.Start("install", "")
	var packs Packs
	if d := os.Getenv("LAB_PACKS"); d != "" {
		os.MkdirAll(d, 0o755)
		packs = dirPacks(d)
	}
	in, err := Start(ctx, inProcess(root), Options{Packs: packs, Arch: "amd64", Merged: []string{"bin", "sbin", "lib", "lib64"}, Date: 1790000000, Script: chroot(root), Span: span})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	sem := make(chan bool, 2*runtime.GOMAXPROCS(0))
	for i, it := range items {
		sem <- true
		wg.Go(func() {
			defer func() { <-sem }()
			open := func(context.Context) (*os.File, error) { return os.Open(it.path) }
			if err := in.Unpack(ctx, Item{Package: it.p, Order: i, Open: open}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	fmt.Println("unpack", time.Since(start), cpu()-cpu0)
	if t.Failed() {
		return
	}
	dev(t, root)
	err = in.Configure(ctx)
	span.End(err)
	if err != nil {
		t.Fatal(err)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	fmt.Println("all", time.Since(start), cpu()-cpu0)
}

func dev(t *testing.T, root string) {
	os.MkdirAll(root+"/dev", 0o755)
	for name, n := range map[string][2]uint32{"null": {1, 3}, "zero": {1, 5}, "full": {1, 7}, "random": {1, 8}, "urandom": {1, 9}, "tty": {5, 0}} {
		p := filepath.Join(root, "dev", name)
		if err := unix.Mknod(p, unix.S_IFCHR|0o666, int(unix.Mkdev(n[0], n[1]))); err != nil {
			t.Error(err)
		}
		os.Chmod(p, 0o666)
	}
	os.Symlink("/proc/self/fd", root+"/dev/fd")
	_ = strconv.Itoa
}

func digest(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		panic(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(b))
}

type dirPacks string

func (d dirPacks) Open(key string) (*os.File, error) { return os.Open(filepath.Join(string(d), key)) }
func (d dirPacks) Remove(key string) error           { return os.Remove(filepath.Join(string(d), key)) }
func (d dirPacks) Create(_ context.Context, key string) (PackFile, error) {
	f, err := os.CreateTemp(string(d), "tmp")
	return &dirPack{f, filepath.Join(string(d), key)}, err
}

type dirPack struct {
	f     *os.File
	final string
}

func (p *dirPack) File() *os.File { return p.f }
func (p *dirPack) Commit() (*os.File, error) {
	err := os.Rename(p.f.Name(), p.final)
	if err != nil {
		return nil, err
	}
	return os.Open(p.final)
}
func (p *dirPack) Close() error {
	os.Remove(p.f.Name())
	return p.f.Close()
}

func cpu() time.Duration {
	var d time.Duration
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		unix.Getrusage(who, &u)
		d += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return d.Round(time.Millisecond)
}
