// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"context"
	"fmt"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/mkmachine/mkmachine/internal/kernel/kerneltest"
)

// wellKnown are packages with interesting dependencies: alternatives, virtual names, many
// Recommends, conflicts with each other.
var wellKnown = strings.Fields(`
	nginx postgresql openssh-server python3 build-essential default-jdk-headless apache2 php mariadb-server gcc git
	curl vim emacs-nox texlive-base gnome-core kde-standard network-manager docker.io podman qemu-system-x86
	libreoffice-core exim4 postfix dovecot-imapd samba bind9 dnsmasq ruby nodejs npm golang rustc systemd-sysv dbus
	systemd-container sysvinit-core runit-init xorg xfce4 lightdm cups wget ca-certificates sudo locales
	console-setup linux-image-amd64 grub-pc cryptsetup lvm2 debhelper devscripts sbuild firefox-esr vlc mutt cron
	rsyslog php-fpm tomcat10 squid ansible wine mail-transport-agent default-mta awk java-runtime emacs octave gimp`)

// realArchive is a distribution as a peer and we see it.
type realArchive struct {
	distribution string
	pockets      []pocket
}

// hostArchive is made of the package lists that apt keeps on this host.
func hostArchive(t *testing.T) realArchive {
	t.Helper()
	out, err := exec.Command(kerneltest.Program(t, "apt-get"), "indextargets", "--format",
		"$(FILENAME) $(RELEASE) $(COMPONENT) $(ARCHITECTURE)", "Created-By: Packages").Output()
	if err != nil {
		kerneltest.Lacks(t, "apt-lists", err.Error())
	}
	a := realArchive{distribution: "debian"}
	if release, _ := os.ReadFile("/etc/os-release"); strings.Contains(string(release), "\nID=ubuntu\n") {
		a.distribution = "ubuntu"
	}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) != 4 || f[2] != "main" || f[3] != "amd64" {
			continue
		}
		if slices.ContainsFunc(a.pockets, func(p pocket) bool { return p.suite == f[1] }) {
			continue
		}
		text, err := exec.Command("/usr/lib/apt/apt-helper", "cat-file", f[0]).Output()
		if err != nil {
			continue
		}
		a.pockets = append(a.pockets, pocket{suite: f[1], indexes: map[string]string{"amd64": string(text)}})
	}
	if len(a.pockets) == 0 {
		kerneltest.Lacks(t, "apt-lists", "apt on this host has no lists of packages; run apt-get update")
	}
	// The release itself comes first, as in every list of sources.
	slices.SortStableFunc(a.pockets, func(x, y pocket) int { return len(x.suite) - len(y.suite) })
	return a
}

// mirrorArchives are the suites below $MKMACHINE_MIRRORS.
func mirrorArchives(t *testing.T) []realArchive {
	t.Helper()
	var out []realArchive
	found, _ := filepath.Glob(filepath.Join(os.Getenv("MKMACHINE_MIRRORS"), "*", "dists", "*", "main", "binary-amd64", "Packages.xz"))
	for _, path := range found {
		parts := strings.Split(path, "/")
		n := len(parts)
		text, err := exec.Command(kerneltest.Program(t, "xz"), "-dc", path).Output()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, realArchive{parts[n-6], []pocket{{suite: parts[n-4], indexes: map[string]string{"amd64": string(text)}}}})
	}
	return out
}

// TestAgainstPeers compares with debootstrap and apt on real indexes: those of this host,
// the well-known packages. With MKMACHINE_SWEEP=N also the archives below
// $MKMACHINE_MIRRORS, and N packages of each taken at random.
func TestAgainstPeers(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	sweep, _ := strconv.Atoi(os.Getenv("MKMACHINE_SWEEP"))
	archives := []realArchive{hostArchive(t)}
	variants := []Variant{VariantDefault, VariantBuildd}
	if sweep > 0 {
		archives = append(archives, mirrorArchives(t)...)
		variants = append(variants, VariantMinbase)
	}
	for _, a := range archives {
		t.Run(a.pockets[0].suite, func(t *testing.T) {
			t.Parallel()
			for _, v := range variants {
				t.Run("debootstrap-"+string(v), func(t *testing.T) {
					t.Parallel()
					a.againstDebootstrap(t, v)
				})
			}
			t.Run("apt", func(t *testing.T) {
				t.Parallel()
				a.againstApt(t, sweep)
			})
		})
	}
}

func (a realArchive) againstApt(t *testing.T, sweep int) {
	archs := []string{"amd64"}
	u := universeOf(t, a.pockets, archs)
	req := Request{Arch: "amd64", Distribution: a.distribution, Suite: a.pockets[0].suite, Variant: VariantMinbase}
	base, err := Resolve(context.Background(), u, req)
	if err != nil {
		t.Fatal(err)
	}
	peer := newApt(t, repository(t, a.pockets), a.pockets, archs, u, base)
	rnd := rand.New(rand.NewSource(1))
	if sweep == 0 {
		// One run of apt takes a second; some packages together, some with Recommends.
		for i := 0; i < len(wellKnown); i += 4 {
			peer.compare(t, u, req, i%8 == 0, wellKnown[i:min(i+1+i/4%2, len(wellKnown))]...)
		}
		return
	}
	requests := [][]string{}
	for _, name := range wellKnown {
		requests = append(requests, []string{name})
	}
	for _, n := range []int{2, 3, 5, 8, 13, 21} {
		rnd.Shuffle(len(wellKnown), func(i, j int) { wellKnown[i], wellKnown[j] = wellKnown[j], wellKnown[i] })
		requests = append(requests, slices.Clone(wellKnown[:n]))
	}
	for range sweep {
		requests = append(requests, []string{u.all[rnd.Intn(len(u.all))].Name()})
	}
	for _, names := range requests {
		peer.compare(t, u, req, false, names...)
		peer.compare(t, u, req, true, names...)
	}
}

// debootstrapScript is a suite script of the host's debootstrap with the rules of 1.0.145:
// for buildd of trixie and later the required set is what is essential, and mawk. It keeps
// Ubuntu's from naming usrmerge, which is printed but never installed.
func debootstrapScript(t *testing.T, distribution, suite string) string {
	t.Helper()
	const dir = "/usr/share/debootstrap/scripts/"
	name := map[string]string{"debian": "sid", "ubuntu": "gutsy"}[distribution]
	text, err := os.ReadFile(dir + name)
	if err != nil {
		kerneltest.Lacks(t, "debootstrap", err.Error())
	}
	if before, _, ok := strings.Cut(string(text), "# include common settings"); ok {
		common, err := os.ReadFile(dir + "debian-common")
		if err != nil {
			t.Fatal(err)
		}
		text = append([]byte(before), common...)
	}
	script := strings.Replace(string(text), "work_out_debs ()", "its_own_work_out_debs ()", 1)
	script += "\nwork_out_debs () {\n\tWHAT_TO_DO=find its_own_work_out_debs\n"
	if distribution == "debian" && !slices.Contains(append(slices.Clone(beforeBookworm), "bookworm"), suite) {
		script += `	if doing_variant buildd; then
		required="mawk $(awk '/^Package:/{p=$2} /^Essential: yes/{print p}' $TARGET/var/lib/apt/lists/*_Packages)"
	fi
`
	}
	path := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(path, []byte(script+"}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func (a realArchive) againstDebootstrap(t *testing.T, v Variant) {
	program := kerneltest.Program(t, "debootstrap")
	only := a.pockets[:1] // debootstrap reads one
	suite := only[0].suite
	u := universeOf(t, only, []string{"amd64"})
	list, err := Resolve(context.Background(), u, Request{Arch: "amd64", Distribution: a.distribution, Suite: suite, Variant: v})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range list {
		got = append(got, p.Name)
	}
	slices.Sort(got)
	name := string(v)
	if v == VariantDefault {
		name = "-"
	}
	cmd := exec.Command(program, "--print-debs", "--no-check-gpg", "--arch=amd64", "--variant="+name, suite,
		filepath.Join(t.TempDir(), "target"), "file://"+repository(t, only), debootstrapScript(t, a.distribution, suite))
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("debootstrap: %v\n%s", err, said.String())
	}
	want := strings.Fields(string(out))
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%s", fmt.Sprintf("got  %v\nwant %v", got, want))
	}
}
