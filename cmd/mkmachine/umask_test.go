// SPDX-License-Identifier: Apache-2.0

package main

import "golang.org/x/sys/unix"

// setUmask changes the process's; tests that use it do not run in parallel.
func setUmask(mask int) int { return unix.Umask(mask) }
