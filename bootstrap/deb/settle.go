// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"strings"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// diversion is an entry of dpkg's diversions file.
type diversion struct{ From, To, Package string }

func (s *server) settle() ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p, c := range s.claims {
		if c.contested {
			return nil, fault.New(fault.Failed, "contested %s", p)
		}
	}
	return nil, nil
}

// parseDiversions reads dpkg's diversions: three lines each, the package ":" for a local one.
func parseDiversions(data []byte) ([]diversion, error) {
	if len(data) == 0 {
		return nil, nil
	}
	lines := strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
	if len(lines)%3 != 0 {
		return nil, fault.New(fault.State, "cannot read diversions: %d lines are not a multiple of three", len(lines))
	}
	var out []diversion
	for i := 0; i < len(lines); i += 3 {
		d := diversion{lines[i], lines[i+1], lines[i+2]}
		if !cleanPath(d.From) || !cleanPath(d.To) {
			return nil, fault.New(fault.State, "cannot read diversions: bad path near line %d", i+1)
		}
		out = append(out, d)
	}
	return out, nil
}

func (s *server) divert() ([]string, error) { return nil, nil }
