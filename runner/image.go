// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// selfImage is this program in a form that nobody can write to, made on first use and kept for
// the life of the process (SEC-06): what runs inside a machine is this, so that /proc/PID/exe
// in there never leads to a file of the host. It is the one thing that this package remembers
// between calls.
var selfImage = sync.OnceValues(sealSelf)

func sealSelf() (*os.File, error) {
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return nil, fault.New(fault.Failed, "cannot open this program: %w", err)
	}
	defer self.Close()
	if err := static(self); err != nil {
		return nil, err
	}
	// A view costs a tenth of a copy, but not every file system can be seen through.
	image, err := viewOf(self)
	if err == nil {
		return image, nil
	}
	image, copyErr := copyOf(self)
	if copyErr != nil {
		return nil, fault.New(fault.Failed, "cannot make a sealed copy of this program: %w", errors.Join(copyErr, err))
	}
	return image, nil
}

// viewOf opens the program through an overlay that is mounted nowhere and has no writable
// layer: whoever opens it for writing, by whatever way, gets EROFS.
func viewOf(self *os.File) (*os.File, error) {
	path, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	dir, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	name := filepath.Base(path)
	var running, named unix.Stat_t
	if err := errors.Join(unix.Fstat(int(self.Fd()), &running), unix.Fstatat(dir, name, &named, unix.AT_SYMLINK_NOFOLLOW)); err != nil {
		return nil, err
	}
	if running.Ino != named.Ino || running.Dev != named.Dev {
		return nil, fmt.Errorf("%s is another program by now", path)
	}
	if named.Mode&0o005 != 0o005 {
		return nil, fmt.Errorf("%s cannot be executed by everybody", path)
	}
	none, err := newMount("tmpfs", [2]string{"size", "4k"})
	if err != nil {
		return nil, err
	}
	defer unix.Close(none)
	// An overlay without an upper layer needs two lower ones.
	layers := "/proc/self/fd/" + strconv.Itoa(none) + ":/proc/self/fd/" + strconv.Itoa(dir)
	view, err := newMount("overlay", [2]string{"lowerdir", layers})
	if err != nil {
		return nil, err
	}
	defer unix.Close(view) // the open file keeps what it needs
	fd, err := unix.Openat(view, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "mkmachine"), nil
}

// newMount makes a read-only mount that is attached nowhere.
func newMount(kind string, options ...[2]string) (int, error) {
	fs, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs)
	for _, o := range options {
		if err := unix.FsconfigSetString(fs, o[0], o[1]); err != nil {
			return -1, fmt.Errorf("%w%s", err, kernelLog(fs))
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("%w%s", err, kernelLog(fs))
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
}

// copyOf copies the program into a memory file and seals it.
func copyOf(self *os.File) (*os.File, error) {
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate("mkmachine", flags|unix.MFD_EXEC)
	if err == unix.EINVAL { // before Linux 6.3 all memory files are executable
		fd, err = unix.MemfdCreate("mkmachine", flags)
	}
	if err != nil {
		return nil, err
	}
	image := os.NewFile(uintptr(fd), "mkmachine")
	_, err = io.Copy(image, self)
	if err == nil {
		err = unix.Fchmod(fd, 0o555)
	}
	if err == nil {
		const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals)
	}
	if err != nil {
		image.Close()
		return nil, err
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
