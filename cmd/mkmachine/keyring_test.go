// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/mkmachine/mkmachine/recipes"
)

// writeKeyring writes the pinned keys of a distribution to a file.
func writeKeyring(t *testing.T, distribution string) string {
	t.Helper()
	keys := slices.DeleteFunc(recipes.Keys(), func(k recipes.Key) bool { return k.Distribution != distribution })
	path := filepath.Join(t.TempDir(), distribution+".gpg")
	if err := os.WriteFile(path, recipes.Keyring(keys), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}
