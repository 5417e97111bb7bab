// SPDX-License-Identifier: Apache-2.0

package deb

import "slices"

// mergeable are the top directories that a merged /usr turns into links, where they are.
var mergeable = [...]string{"bin", "lib", "lib32", "lib64", "libo32", "libx32", "sbin"}

// loaderDirs are the directories besides lib that a dynamic loader of an architecture has
// its fixed name in, and that libc6 of the architecture therefore ships.
var loaderDirs = map[string]string{
	"amd64": "lib64", "ppc64": "lib64", "ppc64el": "lib64", "sparc64": "lib64", "loong64": "lib64",
	"mips64el": "lib64", "x32": "libx32",
}

// MergedUsr lists the top directories of a suite's tree that are links into /usr, as
// debootstrap makes them: none in suites that were split when they were new (Debian up to
// stretch, Ubuntu up to bionic) and in buildd trees of Debian's buster, bullseye and
// bookworm; else bin, sbin, lib and the loader's directory.
func MergedUsr(suite, variant, arch string) []string {
	split := []string{"jessie", "stretch", "trusty", "xenial", "bionic"}
	splitBuildd := []string{"buster", "bullseye", "bookworm"}
	if slices.Contains(split, suite) || variant == "buildd" && slices.Contains(splitBuildd, suite) {
		return nil
	}
	merged := []string{"bin", "sbin", "lib"}
	if dir := loaderDirs[arch]; dir != "" {
		merged = append(merged, dir)
	}
	return merged
}
