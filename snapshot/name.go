// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"regexp"
	"strings"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// maxName is the longest name of an image; a host name may not be longer (HOST_NAME_MAX).
const maxName = 64

// newName is what a name that we give may look like: a lower-case host name.
const newName = `^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$`

// oldName is what we answer to: whatever systemd-nspawn would run, without shell or path syntax.
const oldName = `^[A-Za-z0-9_][A-Za-z0-9_.-]*$`

// sidecar is the suffix of the settings file that belongs to an image of the same name.
const sidecar = ".nspawn"

// reservedSuffix lists the endings that mean another kind of file in a machines directory.
func reservedSuffix() []string {
	return []string{".raw", sidecar, ".service", ".mount", stackSuffix, ".v", ".lck", ".tar", ".oci-config"}
}

// CheckName says whether an image may be called name, as fault.Config. It is the rule for
// names that are given to new images; images made by other tools answer to a wider one.
func CheckName(name string) error {
	ok, _ := regexp.MatchString(newName, name) // the pattern is a constant
	switch {
	case name == "":
		return fault.New(fault.Config, "cannot use an empty name for an image")
	case len(name) > maxName:
		return fault.New(fault.Config, "cannot name an image %q: longer than %d characters", name, maxName)
	case !ok:
		return fault.Hint(fault.New(fault.Config, "cannot name an image %q: not a host name", name),
			"use a-z, 0-9, \"-\" and \".\", beginning and ending with a letter or a digit")
	case name == "locks" || name == "propagate":
		// systemd-nspawn keeps machines' run-time directories beside directories of these names.
		return fault.New(fault.Config, "cannot name an image %q: the name is reserved by systemd-nspawn", name)
	}
	for _, s := range reservedSuffix() {
		if strings.HasSuffix(name, s) {
			return fault.New(fault.Config, "cannot name an image %q: names ending in %q are reserved", name, s)
		}
	}
	return nil
}

// checkOldName says whether name can be the name of an existing image.
func checkOldName(name string) error {
	ok, _ := regexp.MatchString(oldName, name)
	if !ok || len(name) > maxName {
		return fault.New(fault.Config, "cannot use %q as the name of an image: not a machine name", name)
	}
	return nil
}
