// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"bufio"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// Ranges of ids for machines lie between these, on multiples of idRange: the interval that
// systemd sets aside for containers.
const (
	idLow   = 0x00080000
	idHigh  = 0x6fff0000
	idRange = 0x10000
	idTries = 200
)

// idLease is a range of ids that nobody else uses as long as the file is locked.
type idLease struct {
	base uint32
	file *os.File
	path string
}

// leaseIDs picks and locks a range. The first candidate follows from the name, so that the
// same machine tends to have the same ids; the others are random.
func leaseIDs(dir, name string) (*idLease, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fault.New(fault.Failed, "cannot make the directory of id leases: %w", err)
	}
	taken, err := readTaken("/etc")
	if err != nil {
		return nil, err
	}
	h := fnv.New32a()
	h.Write([]byte(name))
	candidate := h.Sum32()
	for range idTries {
		base := candidate%((idHigh-idLow)/idRange)*idRange + idLow
		candidate = rand.Uint32()
		if taken.overlaps(base) || nspawnHolds(base) {
			continue
		}
		lease, err := lockID(dir, base)
		if err != nil {
			return nil, err
		}
		if lease != nil {
			return lease, nil
		}
	}
	return nil, fault.New(fault.State, "cannot find a free range of %d user ids in %d tries", idRange, idTries)
}

// leaseGivenIDs locks a range that the caller chose; nothing else may use it at the same time
// through this directory.
func leaseGivenIDs(dir string, base uint32) (*idLease, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fault.New(fault.Failed, "cannot make the directory of id leases: %w", err)
	}
	lease, err := lockID(dir, base)
	if err == nil && lease == nil {
		err = fault.New(fault.State, "cannot use the user ids from %d: another machine has them", base)
	}
	return lease, err
}

// lockID gives nil where the range is in use.
func lockID(dir string, base uint32) (*idLease, error) {
	path := filepath.Join(dir, strconv.FormatUint(uint64(base), 10))
	file, err := lockFile(path)
	if err != nil || file == nil {
		return nil, err
	}
	return &idLease{base: base, file: file, path: path}, nil
}

func (l *idLease) release() error { return releaseFile(l.file, l.path) }

// lockFile creates a file and locks it for itself; nil where somebody else has it.
func lockFile(path string) (*os.File, error) {
	for {
		file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return nil, fault.New(fault.Failed, "cannot open a lease: %w", err)
		}
		if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			file.Close()
			if err == unix.EWOULDBLOCK {
				return nil, nil
			}
			return nil, fault.New(fault.Failed, "cannot lock %s: %w", path, err)
		}
		// Its last owner may have removed it between our open and our lock.
		var ours, now unix.Stat_t
		if err := unix.Fstat(int(file.Fd()), &ours); err == nil && unix.Lstat(path, &now) == nil && ours.Ino == now.Ino {
			return file, nil
		}
		file.Close()
	}
}

// releaseFile removes a locked file, then lets go of it.
func releaseFile(file *os.File, path string) error {
	err := os.Remove(path)
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	return err
}

// nspawnHolds reports whether systemd-nspawn uses the range.
func nspawnHolds(base uint32) bool {
	fd, err := unix.Open("/run/systemd/nspawn-uid/"+strconv.FormatUint(uint64(base), 10), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	lock := unix.Flock_t{Type: unix.F_RDLCK}
	return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &lock) != nil || unix.Flock(fd, unix.LOCK_SH|unix.LOCK_NB) != nil
}

// takenIDs are ids that belong to users, groups or delegated ranges of the host.
type takenIDs []struct{ first, last uint64 }

func (t takenIDs) overlaps(base uint32) bool {
	first, last := uint64(base), uint64(base)+idRange-1
	for _, r := range t {
		if r.first <= last && first <= r.last {
			return true
		}
	}
	return false
}

func readTaken(etc string) (takenIDs, error) {
	var taken takenIDs
	for _, name := range []string{"subuid", "subgid", "passwd", "group"} {
		file, err := os.Open(filepath.Join(etc, name))
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return nil, fault.New(fault.Failed, "cannot read which ids are in use: %w", err)
		}
		lines := bufio.NewScanner(file)
		for lines.Scan() {
			f := strings.Split(lines.Text(), ":")
			if len(f) < 3 {
				continue
			}
			switch name {
			case "subuid", "subgid":
				first, err1 := strconv.ParseUint(f[1], 10, 32)
				count, err2 := strconv.ParseUint(f[2], 10, 32)
				if err1 == nil && err2 == nil && count > 0 {
					taken = append(taken, struct{ first, last uint64 }{first, first + count - 1})
				}
			default:
				if id, err := strconv.ParseUint(f[2], 10, 32); err == nil {
					taken = append(taken, struct{ first, last uint64 }{id, id})
				}
			}
		}
		err = lines.Err()
		file.Close()
		if err != nil {
			return nil, fault.New(fault.Failed, "cannot read which ids are in use: %s: %w", name, err)
		}
	}
	return taken, nil
}
