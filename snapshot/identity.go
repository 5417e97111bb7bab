// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"fmt"

	"github.com/mkmachine/mkmachine/internal/rootfs"
	"github.com/mkmachine/mkmachine/internal/rootfs/identity"
)

// resetIdentity gives a tree an identity of its own.
func resetIdentity(t Tree, hostname string) (err error) {
	m, err := t.mount(false)
	if err != nil {
		return err
	}
	defer m.Close()
	root, err := rootfs.FromFile(m)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := identity.Reset(root, &identity.Options{Hostname: hostname}); err != nil {
		return fmt.Errorf("cannot give the machine an identity: %w", err)
	}
	return nil
}
