// SPDX-License-Identifier: Apache-2.0

package deb

import "testing"

func TestIdle(t *testing.T) {
	const helper = "dpkg-maintscript-helper "
	for _, c := range []struct {
		script string
		want   bool
	}{
		{"#!/bin/sh\nset -e\n# Automatically added\n" + helper + `rm_conffile /etc/x 1.2\~ -- "$@"` + "\n# End\n\nexit 0\n", true},
		{"#!/bin/sh\nset -e\n", true},
		{"#!/bin/sh\n" + helper + `mv_conffile /etc/a /etc/b 1:2.0-1\~ name -- "$@"` + "\n", true},
		{"#!/bin/sh\n" + helper + `dir_to_symlink /usr/share/doc/x ../y 3 x -- "$@"` + "\n", true},
		{"#!/bin/sh\n" + helper + `symlink_to_dir /usr/share/doc/x y -- "$@"` + "\n", true},
		{"", false},
		{"set -e\n", false},
		{"#!/usr/bin/perl\n", false},
		{"#!/bin/sh\necho hello\n", false},
		{"#!/bin/sh\nset -e; rm -rf /\n", false},
		{"#!/bin/sh\n" + helper + `rm_conffile /etc/x 1.2 -- "$@"; reboot` + "\n", false},
		{"#!/bin/sh\n" + helper + "rm_conffile /etc/$(reboot) 1.2 -- \"$@\"\n", false},
		{"#!/bin/sh\n" + helper + "rm_conffile /etc/`reboot` 1.2 -- \"$@\"\n", false},
		{"#!/bin/sh\n" + helper + "rm_conffile /etc/x 1.2 -- \"$@\" > /etc/y\n", false},
		{"#!/bin/sh\n" + helper + "rm_conffile /etc/x >/etc/y -- \"$@\"\n", false},
		{"#!/bin/sh\n" + helper + "rm_conffile /etc/x 1.2 -- upgrade 1\n", false},
		{"#!/bin/sh\n" + helper + "rm_conffile etc/x 1.2 -- \"$@\"\n", false},
		{"#!/bin/sh\n" + helper + "rm_conffile /etc/x 1.2 \\\n\t-- \"$@\"\n", false},
		{"#!/bin/sh\n" + helper + "rm_conffile /etc/x 1.2\\\n", false},
		{"#!/bin/sh\n" + helper + "rm_conffile /etc/x 1 a b -- \"$@\"\n", false},
		{"#!/bin/sh\n" + helper + "rm_conffile /etc/x newest -- \"$@\"\n", false},
		{"#!/bin/sh\n" + helper + "supports rm_conffile -- \"$@\"\n", false},
		{"#!/bin/sh\nif [ \"$1\" = install ]; then\n" + helper + "rm_conffile /etc/x 1 -- \"$@\"\nfi\n", false},
	} {
		if got := idle([]byte(c.script)); got != c.want {
			t.Errorf("%q: %v", c.script, got)
		}
	}
}
