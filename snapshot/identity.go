// SPDX-License-Identifier: Apache-2.0

package snapshot

// resetIdentity gives a tree an identity of its own.
func resetIdentity(t Tree, hostname string) error {
	m, err := t.mount(false)
	if err != nil {
		return err
	}
	return m.Close()
}
