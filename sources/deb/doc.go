// SPDX-License-Identifier: Apache-2.0

// Package deb reads what Debian-like archives publish: Release files, Packages indexes,
// versions, relations, and package files; and it chooses the packages of a tree.
//
// It owns the formats and the rules: which Release is fresh and the one asked for, which
// of two versions is newer (deb-version(7)), which packages debootstrap's variants consist
// of, and what apt-get install adds to them. Bytes reach it through a sources.Fetcher; it
// opens no socket and writes no file.
//
// Invariant: no index is parsed before its digest was found in a Release whose signature
// was checked, and no field of a chosen package is passed on before it was checked.
package deb
