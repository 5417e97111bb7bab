// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"slices"
	"testing"
)

func TestMergedUsr(t *testing.T) {
	for _, c := range []struct {
		suite, variant, arch string
		want                 []string
	}{
		{"trixie", "minbase", "amd64", []string{"bin", "sbin", "lib", "lib64"}},
		{"trixie", "buildd", "amd64", []string{"bin", "sbin", "lib", "lib64"}},
		{"trixie", "", "arm64", []string{"bin", "sbin", "lib"}},
		{"sid", "", "i386", []string{"bin", "sbin", "lib"}},
		{"sid", "", "x32", []string{"bin", "sbin", "lib", "libx32"}},
		{"bookworm", "minbase", "ppc64el", []string{"bin", "sbin", "lib", "lib64"}},
		{"bookworm", "buildd", "amd64", nil},
		{"bullseye", "buildd", "arm64", nil},
		{"buster", "buildd", "amd64", nil},
		{"buster", "minbase", "amd64", []string{"bin", "sbin", "lib", "lib64"}},
		{"stretch", "minbase", "amd64", nil},
		{"bionic", "", "amd64", nil},
		{"noble", "buildd", "amd64", []string{"bin", "sbin", "lib", "lib64"}},
	} {
		got := MergedUsr(c.suite, c.variant, c.arch)
		if !slices.Equal(got, c.want) {
			t.Errorf("%s %s %s: got %q, want %q", c.suite, c.variant, c.arch, got, c.want)
		}
		for _, dir := range got {
			if !slices.Contains(mergeable[:], dir) {
				t.Errorf("%s %s %s: the helper refuses %q", c.suite, c.variant, c.arch, dir)
			}
		}
	}
}
