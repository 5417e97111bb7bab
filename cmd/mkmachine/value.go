// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strconv"
	"strings"
)

// sizeValue is a flag of bytes with an optional unit: K, M, G, T, powers of 1024.
type sizeValue struct{ bytes *int64 }

func (v *sizeValue) String() string {
	if v.bytes == nil || *v.bytes == 0 {
		return ""
	}
	return formatBytes(*v.bytes)
}

func (v *sizeValue) Type() string { return "BYTES" }

// minSize keeps typing mistakes such as --memory 1 from starting a machine that cannot work.
const minSize = 1 << 20

func (v *sizeValue) Set(text string) error {
	n, err := parseSize(text)
	if err == nil && n < minSize {
		err = fmt.Errorf("%s is less than 1M", text)
	}
	if err != nil {
		return err
	}
	*v.bytes = n
	return nil
}

// parseSize reads a positive number of bytes.
func parseSize(text string) (int64, error) {
	digits := strings.TrimRight(text, "KMGT")
	shift := uint(0)
	switch text[len(digits):] {
	case "":
	case "K":
		shift = 10
	case "M":
		shift = 20
	case "G":
		shift = 30
	case "T":
		shift = 40
	default:
		return 0, fmt.Errorf("%q is not a size", text)
	}
	n, err := strconv.ParseUint(digits, 10, 62-int(shift))
	if err != nil || n == 0 || strings.HasPrefix(digits, "0") {
		return 0, fmt.Errorf("%q is not a size; for example 512M or 10G", text)
	}
	return int64(n) << shift, nil
}
