// SPDX-License-Identifier: Apache-2.0

package deb

import "github.com/mkmachine/mkmachine/sources"

// Facts are what the parent learns about a package from its control archive: enough to
// plan the order of scripts, nothing more.
type Facts struct {
	Order     int           `json:"order"`
	Name      string        `json:"name"`
	Key       string        `json:"key"`
	Version   string        `json:"version"`
	Arch      string        `json:"arch"`
	Phase     sources.Phase `json:"phase,omitempty"`
	Essential bool          `json:"essential,omitempty"`
	// Library: a shared library that several architectures can have at the same time.
	Library    bool   `json:"library,omitempty"`
	Depends    string `json:"depends,omitempty"`
	PreDepends string `json:"pre_depends,omitempty"`
	Provides   string `json:"provides,omitempty"`
	// Which scripts there are that have to be run, and whether the package ships conffiles.
	Preinst   bool `json:"preinst,omitempty"`
	Postinst  bool `json:"postinst,omitempty"`
	Config    bool `json:"config,omitempty"`
	Conffiles bool `json:"conffiles,omitempty"`
	// Held: only the control archive was read; the data waits for its wave.
	Held bool `json:"held,omitempty"`
	// Packed: the pack that was asked for is complete; PackError says why it is not.
	Packed    bool   `json:"packed,omitempty"`
	PackError string `json:"pack_error,omitempty"`
}

func (u *unpacked) facts() *Facts {
	return &Facts{
		Order: u.Order, Name: u.Package.Name, Key: u.Key, Version: u.Package.Version, Arch: u.Package.Arch,
		Phase:     u.Package.Phase,
		Library:   u.has("shlibs") && u.control.Value("Multi-Arch") == "same",
		Essential: u.control.Value("Essential") == "yes",
		Depends:   u.control.Value("Depends"), PreDepends: u.control.Value("Pre-Depends"), Provides: u.control.Value("Provides"),
		Preinst: u.runs("preinst"), Postinst: u.runs("postinst"), Config: u.has("config"), Conffiles: len(u.conffiles) > 0, Held: u.held,
	}
}
