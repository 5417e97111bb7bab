// SPDX-License-Identifier: Apache-2.0

package rootfs

import (
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

var direntPool = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}

// readNames lists an open directory from where it stands, sorted by bytes.
func readNames(fd int) ([]string, error) {
	buf := direntPool.Get().(*[]byte)
	defer direntPool.Put(buf)
	var names []string
	for {
		n, err := unix.ReadDirent(fd, *buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n <= 0 {
			slices.Sort(names)
			return names, nil
		}
		for b := (*buf)[:n]; len(b) > 0; {
			used, _, more := unix.ParseDirent(b, -1, names)
			names, b = more, b[used:]
		}
	}
}
