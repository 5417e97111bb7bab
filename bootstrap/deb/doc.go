// SPDX-License-Identifier: Apache-2.0

// Package deb makes a tree out of Debian packages in one pass: every package is decoded
// and written once, dpkg's database is written as dpkg leaves it after unpacking, the few
// preinsts that do something are run, and one dpkg --configure -a in the tree does the rest.
//
// It has two sides. Serve runs in a confined process whose root is the tree; it alone reads
// the bytes of packages and writes files. Installer is the trusted side; it hands over
// verified files, decides the order, and has programs of the tree run by the Script that
// it is given. The package never opens a socket and starts no process itself.
//
// Invariant: the tree does not depend on which package was ready first. Paths that several
// packages ship are settled in install order, by dpkg's rules; a package outside of the
// shape for which the method is proved is left to the tree's own dpkg, with the reason as
// an event.
package deb
