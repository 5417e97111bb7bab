// SPDX-License-Identifier: Apache-2.0

package sources

import (
	"errors"
	"time"
)

// ErrNotFound is returned (wrapped) by a Fetcher when every mirror says that the file does not exist.
var ErrNotFound = errors.New("not found")

// ErrOffline is returned (wrapped) by a Fetcher that may not use the network and does not
// have the file in its cache.
var ErrOffline = errors.New("not in the cache, and offline")

// LockSchema is the version of the lock format that this program writes.
const LockSchema = 1

// Lock pins everything that a build takes from outside. docs/lock.md specifies its file form.
type Lock struct {
	Schema int    `json:"schema"`
	Recipe string `json:"recipe"` // name of the recipe
	// Request is the digest of the parts of the recipe that the lock answers: the source,
	// the packages and the repositories, after inheritance.
	Request string `json:"request"`
	// Asked is the readable form of the same, so that a stale lock can say which line changed.
	Asked        []string     `json:"asked"`
	Arch         string       `json:"arch"` // the distribution's own name: amd64
	Date         time.Time    `json:"date"` // newest Date of the repositories; the tree's clock
	Keys         []Key        `json:"keys"`
	Repositories []Repository `json:"repositories"`
	Packages     []Package    `json:"packages"` // in install order
}

// Key is a signing key that proved something in this lock.
type Key struct {
	Fingerprint string `json:"fingerprint"` // 40 upper-case hex digits, of the primary key
	UserID      string `json:"user_id"`
}

// Repository is one signed index of packages as it was at the lock's time.
type Repository struct {
	ID         string    `json:"id"`     // "debian trixie", unique in the lock
	Family     string    `json:"family"` // mirror family
	Suite      string    `json:"suite"`  // as asked for: the directory below dists/
	Codename   string    `json:"codename"`
	Components []string  `json:"components"`
	Date       time.Time `json:"date"`
	// SHA256 of the signed text (InRelease or Release) and of each index used, by path.
	Release  string           `json:"release"`
	Indexes  []RepositoryFile `json:"indexes"`
	SignedBy []string         `json:"signed_by"` // fingerprints
}

// RepositoryFile is an index file of a repository.
type RepositoryFile struct {
	Path   string `json:"path"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// Phase says in which step of the bootstrap a package is installed.
type Phase string

// Phases in their order.
const (
	PhaseRequired Phase = "required" // debootstrap's first set
	PhaseBase     Phase = "base"     // the rest of the variant
	PhaseAdded    Phase = "added"    // packages.add and what it pulls in
)

// Package is one resolved package.
type Package struct {
	Name       string `json:"name"`
	Version    string `json:"version"`
	Arch       string `json:"arch"`
	Repository string `json:"repository"` // Repository.ID
	Path       string `json:"path"`       // below the mirror family's root
	Size       int64  `json:"size"`
	SHA256     string `json:"sha256"`
	Phase      Phase  `json:"phase"`
	// Auto: pulled in as a dependency, not asked for (apt's auto-installed mark).
	Auto bool `json:"auto,omitempty"`
}
