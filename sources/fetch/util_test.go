// SPDX-License-Identifier: Apache-2.0

package fetch_test

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
)

func sum(data []byte) string {
	s := sha256.Sum256(data)
	return hex.EncodeToString(s[:])
}

// flip changes one bit of a file.
func flip(path string, at int64) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		panic(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		panic(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b, at); err != nil {
		panic(err)
	}
}
