// SPDX-License-Identifier: Apache-2.0

package deb

import "strings"

// idle says whether a preinst or postinst does nothing when a package is installed for the
// first time: a shell script that consists of calls of dpkg-maintscript-helper. All of its
// actions are about what an older version left, and check for that (see its manual): without
// an old version they end without an effect. Debhelper writes such scripts; half of the
// preinsts of a small system are like this, and each costs a dozen processes.
//
// Anything that is not understood is not idle.
func idle(script []byte) bool {
	lines := strings.Split(string(script), "\n")
	switch strings.TrimRight(lines[0], " \t") {
	case "#!/bin/sh", "#!/bin/sh -e", "#! /bin/sh", "#!/bin/bash", "#!/bin/bash -e":
	default:
		return false
	}
	for _, line := range lines[1:] {
		line = strings.Trim(line, " \t")
		switch {
		case line == "" || line[0] == '#' || line == "set -e" || line == "exit 0":
		case !idleCall(line):
			return false
		}
	}
	return true
}

// idleCall: one action with plain words, and the script's own arguments after them.
func idleCall(line string) bool {
	words := strings.Fields(line)
	if len(words) < 5 || words[0] != "dpkg-maintscript-helper" {
		return false
	}
	n := len(words) - 2
	if words[n] != "--" || words[n+1] != `"$@"` {
		return false
	}
	paths := 1
	switch words[1] {
	case "rm_conffile":
	case "mv_conffile", "symlink_to_dir", "dir_to_symlink":
		paths = 2
	default:
		return false
	}
	args := words[2:n]
	// PATH [PATH] [VERSION [PACKAGE]]
	if len(args) < paths || len(args) > paths+2 || args[0][0] != '/' {
		return false
	}
	for _, a := range args {
		if strings.Trim(a, `abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/.:+-_~\`) != "" || strings.HasPrefix(a, "-") || strings.HasSuffix(a, `\`) {
			return false
		}
	}
	return len(args) == paths || args[paths][0] >= '0' && args[paths][0] <= '9'
}

// runs says whether the package has the script and it has to be run.
func (u *unpacked) runs(script string) bool {
	m, ok := u.members[script]
	return ok && !idle(m.Data)
}
