// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"debug/elf"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// selfImage is a copy of this program that nobody can write to, made on first use and kept
// for the life of the process (SEC-06): what runs inside a machine is this copy, so that
// /proc/PID/exe in there never leads to a file of the host. It is the one thing that this
// package remembers between calls.
var selfImage = sync.OnceValues(sealSelf)

func sealSelf() (*os.File, error) {
	wrap := func(err error) error {
		return fault.New(fault.Failed, "cannot make a sealed copy of this program: %w", err)
	}
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return nil, wrap(err)
	}
	defer self.Close()
	if err := static(self); err != nil {
		return nil, err
	}
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate("mkmachine", flags|unix.MFD_EXEC)
	if err == unix.EINVAL { // before Linux 6.3 all memory files are executable
		fd, err = unix.MemfdCreate("mkmachine", flags)
	}
	if err != nil {
		return nil, wrap(err)
	}
	image := os.NewFile(uintptr(fd), "mkmachine")
	if _, err := io.Copy(image, self); err != nil {
		image.Close()
		return nil, wrap(err)
	}
	if err := unix.Fchmod(fd, 0o555); err != nil {
		image.Close()
		return nil, wrap(err)
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		image.Close()
		return nil, wrap(err)
	}
	return image, nil
}

// static refuses a program that needs a loader: there is none where the copy is executed.
func static(file *os.File) error {
	program, err := elf.NewFile(file)
	if err != nil {
		return fault.New(fault.Internal, "internal error: cannot read this program: %w", err)
	}
	for _, p := range program.Progs {
		if p.Type == elf.PT_INTERP {
			return fault.Hint(fault.New(fault.Host, "cannot start a child: this program is linked dynamically"),
				"build it with CGO_ENABLED=0")
		}
	}
	return nil
}
