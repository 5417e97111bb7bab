// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
	"strings"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/internal/rootfs"
)

// machines maps the architecture names of distributions to ELF.
var machines = map[string]struct {
	machine elf.Machine
	class   elf.Class
	order   elf.Data
}{
	"amd64": {elf.EM_X86_64, elf.ELFCLASS64, elf.ELFDATA2LSB}, "x86_64": {elf.EM_X86_64, elf.ELFCLASS64, elf.ELFDATA2LSB},
	"arm64": {elf.EM_AARCH64, elf.ELFCLASS64, elf.ELFDATA2LSB}, "aarch64": {elf.EM_AARCH64, elf.ELFCLASS64, elf.ELFDATA2LSB},
	"i386": {elf.EM_386, elf.ELFCLASS32, elf.ELFDATA2LSB}, "i686": {elf.EM_386, elf.ELFCLASS32, elf.ELFDATA2LSB},
	"armhf": {elf.EM_ARM, elf.ELFCLASS32, elf.ELFDATA2LSB}, "armel": {elf.EM_ARM, elf.ELFCLASS32, elf.ELFDATA2LSB},
	"armv7h":  {elf.EM_ARM, elf.ELFCLASS32, elf.ELFDATA2LSB},
	"riscv64": {elf.EM_RISCV, elf.ELFCLASS64, elf.ELFDATA2LSB},
	"ppc64el": {elf.EM_PPC64, elf.ELFCLASS64, elf.ELFDATA2LSB}, "ppc64le": {elf.EM_PPC64, elf.ELFCLASS64, elf.ELFDATA2LSB},
	"s390x":   {elf.EM_S390, elf.ELFCLASS64, elf.ELFDATA2MSB},
	"loong64": {elf.EM_LOONGARCH, elf.ELFCLASS64, elf.ELFDATA2LSB}, "loongarch64": {elf.EM_LOONGARCH, elf.ELFCLASS64, elf.ELFDATA2LSB},
	"mips64el": {elf.EM_MIPS, elf.ELFCLASS64, elf.ELFDATA2LSB},
}

// Sanity checks that scripts left a system behind: os-release, a shell of the right
// architecture, the package manager and the init that packages brought. Anything missing
// is E_STATE. arch is the distribution's own name; one that is not known is not compared.
func Sanity(root *rootfs.Root, arch string) error {
	if !isFile(root, "etc/os-release") && !isFile(root, "usr/lib/os-release") {
		return insane("it has neither /etc/os-release nor /usr/lib/os-release")
	}
	if err := checkProgram(root, "bin/sh", arch); err != nil {
		return err
	}
	if isFile(root, "var/lib/dpkg/status") {
		if err := checkProgram(root, "usr/bin/dpkg", arch); err != nil {
			return err
		}
	}
	for _, pkg := range []string{"systemd-sysv", "sysvinit-core", "runit-init", "openrc-init"} {
		list, err := root.ReadFile("var/lib/dpkg/info/"+pkg+".list", maxConfig)
		if err != nil || !hasLine(string(list), "/sbin/init") && !hasLine(string(list), "/usr/sbin/init") {
			continue
		}
		return checkProgram(root, "sbin/init", arch)
	}
	return nil
}

func insane(format string, args ...any) error {
	return fault.Hint(fault.New(fault.State, "cannot use the tree: "+format, args...),
		"a script or a package removed it: look at the last script's output")
}

func isFile(root *rootfs.Root, path string) bool {
	st, err := root.Stat(path)
	return err == nil && st.Type == rootfs.File && st.Size > 0
}

func checkProgram(root *rootfs.Root, path, arch string) error {
	st, err := root.Stat(path)
	if err != nil || st.Type != rootfs.File || st.Mode&0o111 == 0 {
		return insane("/%s is missing or is no program", path)
	}
	f, err := root.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	var head [20]byte
	if _, err := io.ReadFull(f, head[:]); err != nil || !bytes.HasPrefix(head[:], []byte(elf.ELFMAG)) {
		if bytes.HasPrefix(head[:], []byte("#!")) {
			return nil
		}
		return insane("/%s is no program", path)
	}
	want, known := machines[strings.ToLower(arch)]
	if !known {
		return nil
	}
	var order binary.ByteOrder = binary.LittleEndian
	if elf.Data(head[5]) == elf.ELFDATA2MSB {
		order = binary.BigEndian
	}
	machine := elf.Machine(order.Uint16(head[18:]))
	if machine != want.machine || elf.Class(head[4]) != want.class || elf.Data(head[5]) != want.order {
		return insane("/%s is for %s, not for %s", path, fmt.Sprint(machine), arch)
	}
	return nil
}
