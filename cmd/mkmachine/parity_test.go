// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mkmachine/mkmachine/internal/kernel"
	"github.com/mkmachine/mkmachine/internal/kernel/kerneltest"
)

// wellKnown are packages whose scripts do what packages' scripts do: users, services,
// alternatives, diversions, debconf, caches, file capabilities, byte-compiling.
var wellKnown = strings.Fields(`nginx postgresql openssh-server python3 python3-yaml curl git vim tmux rsync sudo less man-db
	gnupg apache2-utils redis-server sqlite3 cron logrotate rsyslog dbus systemd-sysv iproute2 iputils-ping strace jq unzip
	locales bash-completion perl-doc`)

// TestParity builds the same trees as mmdebstrap, with the same archive, and compares every
// path: kind, mode, owner by name, link, xattrs, content.
func TestParity(t *testing.T) {
	kerneltest.Require(t, kernel.Root, kernel.UserNS, kernel.IDMap, kernel.Cgroup)
	kerneltest.Program(t, "mmdebstrap")
	for _, c := range []struct {
		distribution, suite, variant string
		add                          []string
	}{
		{"debian", "trixie", "minbase", nil},
		{"debian", "trixie", "default", nil},
		{"debian", "trixie", "buildd", nil},
		{"debian", "trixie", "minbase", wellKnown},
		{"debian", "bookworm", "minbase", nil},
		{"debian", "bookworm", "default", nil},
		{"debian", "bookworm", "buildd", nil},
		{"debian", "bookworm", "minbase", wellKnown},
		{"debian", "sid", "minbase", nil},
		{"debian", "sid", "default", nil},
		{"debian", "sid", "buildd", nil},
		{"debian", "sid", "minbase", wellKnown},
		{"ubuntu", "noble", "minbase", nil},
		{"ubuntu", "noble", "default", nil},
		{"ubuntu", "noble", "buildd", nil},
		{"ubuntu", "noble", "minbase", wellKnown},
	} {
		name := c.suite + " " + c.variant
		if c.add != nil {
			name += " with well-known packages"
		}
		t.Run(name, func(t *testing.T) {
			mirror := kerneltest.Mirror(t, c.distribution)
			w := newWorld(t, "")
			w.cache = parityCache(t)
			w.write("t.toml", parityRecipe(t, mirror, c.distribution, c.suite, c.variant, c.add))
			w.must("--mirror", c.distribution+"="+mirror, "build", "t.toml")
			t.Cleanup(w.empty)
			ours, err := filepath.EvalSymlinks(filepath.Join(w.machines, "t"))
			if err != nil {
				t.Fatal(err)
			}
			theirs := peerTree(t, mirror, c.distribution, c.suite, c.variant, installed(t, ours))
			compareTrees(t, ours, theirs, c.suite)
			audit(t, w)
		})
	}
}

// parityCache is one download cache for all cases.
func parityCache(t *testing.T) string {
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("mkmachine-parity-%d", os.Getpid()))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// parityRecipe asks for the release pocket alone, as the peer does. A mirror that is behind
// is pinned to the date that its Release has.
func parityRecipe(t *testing.T, mirror, distribution, suite, variant string, add []string) string {
	t.Helper()
	text := fmt.Sprintf("schema = 1\nname = \"t\"\n[source]\nkind = \"deb\"\ndistribution = %q\nsuite = %q\nvariant = %q\ncomponents = [%s]\npockets = [\"release\"]\n",
		distribution, suite, variant, components(distribution))
	if date, late := releaseDate(t, mirror, suite); late {
		text += fmt.Sprintf("snapshot = %q\n", date.UTC().Format(time.RFC3339))
	}
	quoted := make([]string, len(add))
	for i, a := range add {
		quoted[i] = fmt.Sprintf("%q", a)
	}
	return text + "[packages]\nadd = [" + strings.Join(quoted, ", ") + "]\n"
}

func components(distribution string) string {
	if distribution == "ubuntu" {
		return `"main", "universe"`
	}
	return `"main"`
}

// releaseDate is the Date of a suite, and whether its Valid-Until is over.
func releaseDate(t *testing.T, mirror, suite string) (time.Time, bool) {
	t.Helper()
	resp, err := http.Get(mirror + "/dists/" + suite + "/Release")
	if err != nil {
		kerneltest.Lacks(t, "mirror", err.Error())
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(resp.Body); err != nil {
		t.Fatal(err)
	}
	field := func(name string) time.Time {
		m := regexp.MustCompile(`(?m)^` + name + `: (.*)$`).FindStringSubmatch(b.String())
		if m == nil {
			return time.Time{}
		}
		at, err := time.Parse("Mon, _2 Jan 2006 15:04:05 MST", m[1])
		if err != nil {
			t.Fatal(err)
		}
		return at
	}
	until := field("Valid-Until")
	return field("Date"), !until.IsZero() && until.Before(time.Now())
}

// installed lists NAME or NAME:ARCH=VERSION of a tree.
func installed(t *testing.T, root string) []string {
	t.Helper()
	out, err := exec.Command("dpkg-query", "--admindir", root+"/var/lib/dpkg", "-W", "-f", "${Package}=${Version}\n").Output()
	if err != nil {
		t.Fatalf("dpkg-query: %v", err)
	}
	return strings.Fields(string(out))
}

// peerTree is made by mmdebstrap in memory with exactly the given packages: that the sets
// are debootstrap's and apt's is tested in sources/deb.
func peerTree(t *testing.T, mirror, distribution, suite, variant string, packages []string) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "mkmachine-peer-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	ring := "/usr/share/keyrings/" + distribution + "-archive-keyring.gpg"
	if distribution == "ubuntu" {
		ring = ubuntuKeyring(t)
	}
	comps := strings.ReplaceAll(strings.ReplaceAll(components(distribution), `"`, ""), ", ", " ")
	line := fmt.Sprintf("deb [signed-by=%s] %s %s %s", ring, mirror, suite, comps)
	argv := []string{"--mode=root", "--variant=essential", "--format=directory", "--quiet",
		"--aptopt=Acquire::Check-Valid-Until \"false\"", "--aptopt=APT::Install-Recommends \"false\"",
		"--include=" + strings.Join(packages, ",")}
	if suite == "bookworm" {
		// debootstrap makes the layout of /usr itself and takes usr-is-merged for the empty
		// proof of it; apt would take usrmerge, which converts a tree and pulls in perl.
		hooks := "merged-usr"
		if variant == "buildd" {
			hooks = "no-merged-usr"
		}
		argv = append(argv, "--hook-dir=/usr/share/mmdebstrap/hooks/"+hooks)
	}
	// An archive that is being updated may fail the peer once.
	for attempt := 0; ; attempt++ {
		cmd := exec.Command("mmdebstrap", append(argv, suite, dir, line)...)
		cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1700000000")
		out, err := cmd.CombinedOutput()
		if err == nil {
			return dir
		}
		if attempt == 1 {
			t.Fatalf("mmdebstrap: %v\n%s", err, tail(out))
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
	}
}

func tail(b []byte) []byte {
	if len(b) > 4000 {
		return b[len(b)-4000:]
	}
	return b
}

// ubuntuKeyring writes our pinned keys for gpgv.
func ubuntuKeyring(t *testing.T) string {
	t.Helper()
	return writeKeyring(t, "ubuntu")
}

// node is what is compared of a path.
type node struct {
	kind, mode, owner, link, content string
	xattrs                           map[string]string
}

// notCompared are paths that differ by decision; each with its reason.
var notCompared = []struct{ pattern, reason string }{
	{"dev/**", "the runner brings its own device nodes; mmdebstrap makes static ones"},
	{"proc/**", "mount point"}, {"sys/**", "mount point"}, {"run/**", "volatile: emptied here, partly kept there"},
	{"tmp/**", "volatile"}, {"var/tmp/**", "volatile"},
	{"var/cache/**", "caches are emptied or made anew: apt, ldconfig, man-db, debconf backups"},
	{"var/lib/apt/**", "lists and auto-installed marks: mmdebstrap was asked for each package by name"},
	{"var/log/**", "logs hold the moment of the build"},
	{"etc/apt/sources.list", "the peer writes one line per archive, we write deb822"},
	{"etc/apt/sources.list.d/**", "the peer writes one line per archive, we write deb822"},
	{"etc/apt/apt.conf.d/99mmdebstrap", "the peer's own settings"},
	{"etc/fstab", "a comment that says it is to be replaced by an installer; machines mount nothing"},
	{"etc/apt/apt.conf.d/01autoremove-kernels", "written by apt when it runs"},
	{"etc/hostname", "the peer copies the host's"}, {"etc/resolv.conf", "the peer copies the host's"},
	{"etc/machine-id", "emptied there, emptied or absent here"}, {"var/lib/dbus/machine-id", "identity"},
	{"etc/*-", "backup files of the last change"},
	{"var/lib/dpkg/*-old", "backup files of the last change"},
	{"var/lib/dpkg/available", "apt writes it, dpkg does not need it"},
	{"var/lib/dpkg/lock*", "lock files"}, {"var/lib/dpkg/triggers/Lock", "lock file"}, {"var/lib/dpkg/arch", "the peer lists the only architecture"},
	{"var/lib/systemd/catalog/database", "made anew at boot"},
	{"etc/ssh/ssh_host_*", "identity: templates carry no host keys"},
	{"etc/ssl/private/ssl-cert-snakeoil.key", "identity"}, {"etc/ssl/certs/ssl-cert-snakeoil.pem", "identity"}, {"etc/ssl/certs/*.0", "links named by the hash of the snakeoil certificate"},
	{"usr/share/python3/debpython/__pycache__/*", "written by python when it imports them; the bytes depend on what was imported before"},
	{"var/lib/ucf/*.[0-9]", "backups of the state before the last change"},
	{"etc/.resolv.conf.systemd-resolved.bak", "the peer copies the host's resolv.conf"},
	{"var/lib/postgresql/**", "a database cluster has a random identifier"},
	{"var/lib/dpkg/info/format", "the same text; kept by some versions of dpkg only"},
}

// notCompareds reports whether a path is on the list.
func excluded(p string) bool {
	for _, n := range notCompared {
		if dir, ok := strings.CutSuffix(n.pattern, "/**"); ok {
			if strings.HasPrefix(p, dir+"/") {
				return true
			}
			continue
		}
		if ok, _ := path.Match(n.pattern, p); ok {
			return true
		}
	}
	return false
}

// compareTrees reports every difference.
func compareTrees(t *testing.T, ours, theirs, suite string) {
	t.Helper()
	a, b := readTree(t, ours), readTree(t, theirs)
	var all []string
	for p := range a {
		all = append(all, p)
	}
	for p := range b {
		if _, both := a[p]; !both {
			all = append(all, p)
		}
	}
	slices.Sort(all)
	differences := 0
	for _, p := range all {
		x, inA := a[p]
		y, inB := b[p]
		what := ""
		switch {
		case !inB:
			what = "only in ours: " + x.kind
		case !inA:
			what = "only in theirs: " + y.kind
		case x.kind != y.kind:
			what = "kind " + x.kind + ", theirs " + y.kind
		case x.mode != y.mode:
			what = "mode " + x.mode + ", theirs " + y.mode
		case x.owner != y.owner:
			what = "owner " + x.owner + ", theirs " + y.owner
		case x.link != y.link:
			what = "link " + x.link + ", theirs " + y.link
		case !maps.Equal(x.xattrs, y.xattrs):
			what = fmt.Sprintf("xattrs %q, theirs %q", x.xattrs, y.xattrs)
		case x.content != y.content:
			what = "content" + contentDifference(ours, theirs, p)
		}
		if what == "" || suite == "sid" && sidTimer(p) {
			continue
		}
		if differences++; differences <= 40 {
			t.Errorf("/%s: %s", p, what)
		}
	}
	if differences > 40 {
		t.Errorf("%d differences in %d paths", differences, len(all))
	}
	if len(all) < 3000 {
		t.Errorf("only %d paths were compared", len(all))
	}
}

// sidTimer: in sid init-system-helpers is no part of minbase any more. Packages of minbase
// enable their timers only where it is there already: in the peer's one run of apt it is,
// here as in debootstrap minbase is configured before anything is added.
func sidTimer(p string) bool {
	for _, timer := range []string{"apt-daily", "apt-daily-upgrade", "dpkg-db-backup", "fstrim"} {
		for _, dir := range []string{"etc/systemd/system/timers.target.wants", "var/lib/systemd/deb-systemd-helper-enabled", "var/lib/systemd/deb-systemd-helper-enabled/timers.target.wants"} {
			if strings.TrimSuffix(p, ".dsh-also") == dir+"/"+timer+".timer" {
				return true
			}
		}
	}
	return false
}

func contentDifference(ours, theirs, p string) string {
	out, _ := exec.Command("diff", "-u", filepath.Join(theirs, p), filepath.Join(ours, p)).Output()
	if len(out) > 1500 {
		out = out[:1500]
	}
	return "\n" + string(out)
}

// readTree reads a tree with nothing but the standard library, not with what is tested.
func readTree(t *testing.T, root string) map[string]node {
	t.Helper()
	users, groups := names(t, root, "passwd"), names(t, root, "group")
	out := map[string]node{}
	err := filepath.WalkDir(root, func(full string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		p, _ := filepath.Rel(root, full)
		if excluded(p) {
			if d.IsDir() && excluded(p+"/x") {
				return fs.SkipDir
			}
			return nil
		}
		var st unix.Stat_t
		if err := unix.Lstat(full, &st); err != nil {
			return err
		}
		n := node{kind: kindOf(st.Mode), mode: fmt.Sprintf("%04o", st.Mode&0o7777), xattrs: xattrsOf(full)}
		n.owner = nameOf(users, st.Uid) + ":" + nameOf(groups, st.Gid)
		switch n.kind {
		case "link":
			n.mode = ""
			n.link, err = os.Readlink(full)
			// The same file by another name: the peer configures some packages before /lib is a link.
			if after, ok := strings.CutPrefix(n.link, "/lib/"); ok && strings.HasPrefix(p, "etc/systemd/") {
				n.link = "/usr/lib/" + after
			}
		case "file":
			var text []byte
			if text, err = os.ReadFile(full); err == nil {
				n.content = fmt.Sprintf("%x", sha256.Sum256(normalise(p, text)))
			}
		}
		out[p] = n
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func kindOf(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFLNK:
		return "link"
	case unix.S_IFREG:
		return "file"
	}
	return fmt.Sprintf("special %o", mode&unix.S_IFMT)
}

func xattrsOf(p string) map[string]string {
	out := map[string]string{}
	list := make([]byte, 4096)
	n, err := unix.Llistxattr(p, list)
	if err != nil {
		return out
	}
	for name := range strings.SplitSeq(strings.TrimRight(string(list[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 4096)
		if n, err := unix.Lgetxattr(p, name, value); err == nil {
			out[name] = string(value[:n])
		}
	}
	return out
}

// names maps ids to names: which number a new account gets depends on the order in which
// packages are configured, and only the name means something.
func names(t *testing.T, root, file string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "etc", file))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if f := strings.Split(line, ":"); len(f) > 2 {
			out[f[2]] = f[0]
		}
	}
	return out
}

func nameOf(names map[string]string, id uint32) string {
	key := fmt.Sprint(id)
	if n, ok := names[key]; ok {
		return n
	}
	return key
}

// normalise takes out of a file what depends on order or time alone.
func normalise(p string, text []byte) []byte {
	switch p {
	case "etc/passwd", "etc/group":
		return sortedLines(dropFields(text, 2, 3))
	case "etc/shadow", "etc/gshadow":
		return sortedLines(dropFields(text, 2))
	case "etc/subuid", "etc/subgid", "etc/shells", "var/lib/dpkg/triggers/File", "etc/ld.so.cache", "var/lib/ucf/hashfile", "var/lib/ucf/registry":
		return sortedLines(text)
	case "var/lib/dpkg/status":
		parts := strings.Split(strings.TrimSpace(string(text)), "\n\n")
		slices.Sort(parts)
		return []byte(strings.Join(parts, "\n\n"))
	}
	return text
}

func dropFields(text []byte, fields ...int) []byte {
	var b bytes.Buffer
	for line := range bytes.Lines(text) {
		f := strings.Split(strings.TrimSuffix(string(line), "\n"), ":")
		for _, n := range fields {
			if n < len(f) {
				f[n] = ""
			}
		}
		b.WriteString(strings.Join(f, ":") + "\n")
	}
	return b.Bytes()
}

func sortedLines(text []byte) []byte {
	lines := strings.Split(string(text), "\n")
	slices.Sort(lines)
	return []byte(strings.Join(lines, "\n"))
}

// audit asks dpkg and apt in the tree whether all is well.
func audit(t *testing.T, w *world) {
	t.Helper()
	for _, c := range []struct {
		argv  []string
		quiet bool
	}{
		{[]string{"dpkg", "--audit"}, true},
		{[]string{"dpkg", "-V"}, true},
		{[]string{"apt-get", "check"}, false},
	} {
		o := w.run(append([]string{"run", "-x", "t", "--"}, c.argv...)...)
		if o.code != 0 || c.quiet && strings.TrimSpace(o.stdout) != "" {
			t.Errorf("%s: exit %d\n%s%s", strings.Join(c.argv, " "), o.code, o.stdout, o.stderr)
		}
	}
}
