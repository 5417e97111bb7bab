// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"bytes"
	"io"
	"os"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/kernel"
	"github.com/mkmachine/mkmachine/internal/kernel/kerneltest"
)

// Both forms of this program hold its bytes and cannot be written through any descriptor.
func TestSealedImage(t *testing.T) {
	kerneltest.Require(t, kernel.Root, kernel.Overlay, kernel.Memfd)
	want, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	for name, form := range map[string]func(*os.File) (*os.File, error){"view": viewOf, "copy": copyOf} {
		t.Run(name, func(t *testing.T) {
			self, err := os.Open("/proc/self/exe")
			if err != nil {
				t.Fatal(err)
			}
			defer self.Close()
			image, err := form(self)
			if err != nil {
				t.Fatal(err)
			}
			defer image.Close()
			got, err := io.ReadAll(io.NewSectionReader(image, 0, 1<<40))
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes of %d, %v", len(got), len(want), err)
			}
			path := "/proc/self/fd/" + strconv.Itoa(int(image.Fd()))
			for _, flags := range []int{unix.O_WRONLY, unix.O_RDWR, unix.O_WRONLY | unix.O_TRUNC, unix.O_WRONLY | unix.O_APPEND} {
				fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
				if err != nil {
					continue
				}
				if _, err := unix.Write(fd, []byte("x")); err == nil {
					t.Errorf("flags %#x: the program was written to", flags)
				}
				if err := unix.Ftruncate(fd, 0); err == nil {
					t.Errorf("flags %#x: the program was truncated", flags)
				}
				unix.Close(fd)
			}
		})
	}
	if after, err := os.ReadFile("/proc/self/exe"); err != nil || !bytes.Equal(after, want) {
		t.Errorf("this program has changed: %v", err)
	}
}
