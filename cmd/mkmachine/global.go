// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/internal/kernel"
)

// global holds the options that every verb has. Each is also an environment variable,
// read in setDefaults and nowhere else.
type global struct {
	machines string   // MKMACHINE_MACHINES
	cache    string   // MKMACHINE_CACHE
	runtime  string   // MKMACHINE_RUNTIME
	mirrors  []string // MKMACHINE_MIRROR_FAMILY, dashes as underscores
	offline  bool     // MKMACHINE_OFFLINE
	json     bool     // MKMACHINE_JSON
	quiet    bool     // MKMACHINE_QUIET
	verbose  bool     // MKMACHINE_VERBOSE
	noColor  bool     // MKMACHINE_NO_COLOR, NO_COLOR
	trace    string   // MKMACHINE_TRACE
	backend  string   // MKMACHINE_BACKEND
}

// families that have a variable of their own for their mirror.
var families = []string{"debian", "debian-security", "ubuntu", "ubuntu-ports"}

// setDefaults fills in the defaults and what the environment says.
func (a *app) setDefaults() {
	state := func(root, variable, home string) string {
		if a.UID == 0 {
			return root
		}
		base := a.Getenv(variable)
		if base == "" {
			base = filepath.Join(a.Getenv("HOME"), home)
		}
		return filepath.Join(base, "mkmachine")
	}
	text := func(name, fallback string) string {
		if v := a.Getenv("MKMACHINE_" + name); v != "" {
			return v
		}
		return fallback
	}
	truth := func(name string) bool {
		v := strings.ToLower(a.Getenv("MKMACHINE_" + name))
		return v != "" && v != "0" && v != "no" && v != "false"
	}
	a.machines = text("MACHINES", "/var/lib/machines")
	a.cache = text("CACHE", state("/var/cache/mkmachine", "XDG_CACHE_HOME", ".cache"))
	a.runtime = text("RUNTIME", state("/run/mkmachine", "XDG_RUNTIME_DIR", ".cache/run"))
	for _, f := range families {
		if url := text("MIRROR_"+strings.ToUpper(strings.ReplaceAll(f, "-", "_")), ""); url != "" {
			a.mirrors = append(a.mirrors, f+"="+url)
		}
	}
	a.offline, a.json, a.quiet, a.verbose = truth("OFFLINE"), truth("JSON"), truth("QUIET"), truth("VERBOSE")
	a.noColor = truth("NO_COLOR") || a.Getenv("NO_COLOR") != ""
	a.trace = text("TRACE", "")
	a.backend = text("BACKEND", "")
}

func (a *app) addGlobalFlags(f *pflag.FlagSet) {
	f.StringVar(&a.machines, "machines", a.machines, "`DIR`ectory of templates and machines")
	f.StringVar(&a.cache, "cache", a.cache, "`DIR`ectory of downloads and unpacked packages")
	f.StringVar(&a.runtime, "runtime", a.runtime, "`DIR`ectory for the state of running machines")
	f.StringArrayVar(&a.mirrors, "mirror", a.mirrors, "take packages of a family from a mirror: `FAMILY=URL`; repeatable, tried in turn")
	f.BoolVar(&a.offline, "offline", a.offline, "use the cache alone")
	f.BoolVar(&a.json, "json", a.json, "print JSON: results on stdout, events as lines on stderr")
	f.BoolVarP(&a.quiet, "quiet", "q", a.quiet, "print errors only")
	f.BoolVarP(&a.verbose, "verbose", "v", a.verbose, "print details")
	f.BoolVar(&a.noColor, "no-color", a.noColor, "no colours on a terminal")
	f.StringVar(&a.trace, "trace", a.trace, "write a Chrome trace of the work to `FILE`")
	f.StringVar(&a.backend, "backend", a.backend, "store `NAME`: btrfs, overlay, reflink or copy; the best one by default")
}

// start runs before every verb, when the flags are known.
func (a *app) start(c *cobra.Command) error {
	for _, p := range []*string{&a.machines, &a.cache, &a.runtime} {
		if *p == "" {
			return fault.New(fault.Config, "--machines, --cache and --runtime take a directory, not an empty string")
		}
		if !filepath.IsAbs(*p) {
			*p = filepath.Join(a.Dir, *p)
		}
	}
	if _, err := a.mirrorOptions(); err != nil {
		return err
	}
	return a.openRenderer()
}

// mirrorOptions is --mirror by family, in order.
func (a *app) mirrorOptions() (map[string][]string, error) {
	out := map[string][]string{}
	for _, m := range a.mirrors {
		family, url, ok := strings.Cut(m, "=")
		if !ok || family == "" || url == "" {
			return nil, fault.Hint(fault.New(fault.Config, "--mirror %q is not FAMILY=URL", m),
				"for example: --mirror debian=http://mirror.example.org/debian")
		}
		out[family] = append(out[family], strings.TrimRight(url, "/"))
	}
	return out, nil
}

// needRoot is the error for verbs that change trees. Root of a container's user namespace
// has the number alone: it can own no files of others and map no ids.
func (a *app) needRoot(verb string) error {
	if a.UID == 0 {
		if err := kernel.Check(kernel.Root); err != nil {
			return fault.New(fault.Host, "cannot %s: it needs root of the host: %w", verb, err)
		}
		return nil
	}
	return fault.Hint(fault.New(fault.Host, "cannot %s: it needs root, and this is user %d", verb, a.UID),
		"sudo mkmachine %s …; check, lock, recipes and list work without", verb)
}

// mkdirs makes the state directories of this invocation.
func mkdirs(dirs ...string) error {
	for _, d := range dirs {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fault.As(fault.Host, err)
		}
	}
	return nil
}
