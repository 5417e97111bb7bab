// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/mkmachine/mkmachine/internal/event"
	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/sources"
)

const searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

const policyPath = "/usr/sbin/policy-rc.d"

// environment is what every program that we start in the tree sees.
func (in *Installer) environment(extra ...string) []string {
	return append([]string{
		"PATH=" + searchPath,
		"HOME=/root",
		"LC_ALL=C.UTF-8",
		"DEBIAN_FRONTEND=noninteractive",
		"DEBCONF_NONINTERACTIVE_SEEN=true",
		"SOURCE_DATE_EPOCH=" + strconv.FormatInt(in.opt.Date, 10),
	}, extra...)
}

// Configure makes the unpacked packages installed: wave by wave (see plan) it writes
// dpkg's database, runs the preinsts and has dpkg run the rest.
//
// A package whose preinst fails is taken back and, with what depends on it, installed by
// dpkg itself and after it the fast way again, once the others are configured; that is a
// Fallback event. Essential packages have no such second chance.
func (in *Installer) Configure(ctx context.Context) error {
	slices.SortFunc(in.facts, func(a, b *Facts) int { return cmp.Compare(a.Order, b.Order) })
	waves := plan(in.facts)
	policy := treeFile{Path: policyPath, Mode: 0o755, Data: []byte("#!/bin/sh\nexit 101\n")}
	for i := 0; i < len(waves); i++ {
		failed, err := in.wave(ctx, i, waves[i], policy)
		if err != nil {
			return err
		}
		if len(failed) == 0 {
			continue
		}
		if err := in.slowly(ctx, failed); err != nil {
			return err
		}
		if rest := without(dependents(waves[i], failed), failed); len(rest) > 0 {
			waves = slices.Insert(waves, i+1, rest)
		}
	}
	last := []treeFile{{Path: policyPath, Remove: true}}
	if auto := autoInstalled(slices.Collect(maps.Values(in.items)), in.opt.Arch); len(auto) > 0 {
		last = append(last, treeFile{Path: "/var/lib/apt/extended_states", Mode: 0o644, Data: auto})
	}
	_, err := in.call(ctx, request{Op: "files", Files: last})
	return err
}

// wave installs packages together and returns those whose preinst failed; they and their
// dependents are not in the database.
func (in *Installer) wave(ctx context.Context, number int, list []*Facts, policy treeFile) (failed []*Facts, err error) {
	if err := in.release(ctx, list); err != nil {
		return nil, err
	}
	if _, err := in.call(ctx, request{Op: "settle"}); err != nil {
		return nil, err
	}
	c := commitRequest{Packages: orders(list), Triggers: number > 0}
	if _, err := in.call(ctx, request{Op: "commit", Commit: &c}); err != nil {
		return nil, err
	}
	if number == 0 {
		if _, err := in.call(ctx, request{Op: "files", Files: []treeFile{policy}}); err != nil {
			return nil, err
		}
	}
	if err := in.run(ctx, "ldconfig", []string{"/sbin/ldconfig"}); err != nil {
		return nil, err
	}
	for _, f := range preinstOrder(list) {
		err := in.preinst(ctx, f)
		if err == nil {
			continue
		}
		if ctx.Err() != nil || f.Essential || f.Phase == sources.PhaseRequired {
			return nil, err
		}
		in.opt.Span.Fallback(fmt.Sprintf("%s is installed by dpkg alone, because its preinst failed before it was unpacked: %v", f.Name, err))
		failed = append(failed, f)
	}
	if len(failed) > 0 {
		back := commitRequest{Packages: orders(dependents(list, failed))}
		if _, err := in.call(ctx, request{Op: "withdraw", Commit: &back}); err != nil {
			return nil, err
		}
	}
	if _, err := in.call(ctx, request{Op: "divert"}); err != nil {
		return nil, err
	}
	return failed, in.run(ctx, "configure", []string{"dpkg", "--force-unsafe-io", "--configure", "-a"})
}

// slowDir is where packages lie that dpkg installs itself.
const slowDir = "/var/lib/dpkg/mkmachine"

// slowly installs packages with dpkg inside the tree, one after the other.
func (in *Installer) slowly(ctx context.Context, list []*Facts) error {
	for _, f := range list {
		blob, err := in.items[f.Order].Open(ctx)
		if err != nil {
			return err
		}
		at := slowDir + "/" + f.Name + ".deb"
		_, err = in.call(ctx, request{Op: "place", Files: []treeFile{{Path: at, Mode: 0o644}}, files: []*os.File{blob}})
		blob.Close()
		if err == nil {
			err = in.run(ctx, f.Name, []string{"dpkg", "--force-unsafe-io", "--install", at})
		}
		if err != nil {
			return err
		}
	}
	_, err := in.call(ctx, request{Op: "files", Files: []treeFile{{Path: slowDir, Remove: true}}})
	return err
}

func orders(list []*Facts) []int {
	var out []int
	for _, f := range list {
		out = append(out, f.Order)
	}
	return out
}

func without(list, drop []*Facts) []*Facts {
	return slices.DeleteFunc(slices.Clone(list), func(f *Facts) bool { return slices.Contains(drop, f) })
}

// preinstOrder: base-passwd makes the accounts and base-files the layout that all others
// take for granted; then install order, in which Pre-Depends come first.
func preinstOrder(list []*Facts) []*Facts {
	rank := func(f *Facts) int {
		switch f.Name {
		case "base-passwd":
			return 0
		case "base-files":
			return 1
		}
		return 2
	}
	var out []*Facts
	for _, f := range list {
		if f.Preinst {
			out = append(out, f)
		}
	}
	slices.SortStableFunc(out, func(a, b *Facts) int { return cmp.Compare(rank(a), rank(b)) })
	return out
}

func (in *Installer) preinst(ctx context.Context, f *Facts) error {
	return in.run(ctx, f.Name, []string{admin + "/info/" + f.Key + ".preinst", "install"},
		"DPKG_MAINTSCRIPT_PACKAGE="+f.Name,
		"DPKG_MAINTSCRIPT_PACKAGE_REFCOUNT=1",
		"DPKG_MAINTSCRIPT_ARCH="+f.Arch,
		"DPKG_MAINTSCRIPT_NAME=preinst",
		"DPKG_MAINTSCRIPT_DEBUG=0",
		"DPKG_RUNNING_VERSION="+in.dpkgVersion(),
		"DPKG_ADMINDIR="+admin,
		"DPKG_ROOT=",
	)
}

// dpkgVersion is the upstream version of the dpkg in the tree, as it calls itself.
func (in *Installer) dpkgVersion() string {
	for _, f := range in.facts {
		if f.Name == "dpkg" {
			v := f.Version
			if i := strings.IndexFunc(v, func(r rune) bool { return r != '.' && (r < '0' || r > '9') }); i >= 0 {
				v = v[:i]
			}
			return v
		}
	}
	return ""
}

// run runs one program in the tree as a span of its own; its output becomes events, and
// the end of it the error's text when it fails.
func (in *Installer) run(ctx context.Context, name string, argv []string, env ...string) error {
	span := in.opt.Span.Start("script", name)
	out := &lines{span: span}
	err := in.opt.Script(ctx, argv, in.environment(env...), out)
	out.flush()
	span.End(err)
	if err == nil {
		return nil
	}
	return fault.As(fault.ClassOf(err), fault.New(fault.Failed, "cannot run %s: %w%s", strings.Join(argv, " "), err, out.tail()))
}

// lines turns output into one event per line and keeps the last ones for the error.
type lines struct {
	span *event.Span
	part []byte
	last []string
}

const tailLines, lineLimit = 20, 4096

func (l *lines) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n')
		if i < 0 && len(l.part)+len(p) < lineLimit {
			l.part = append(l.part, p...)
			break
		}
		if i < 0 {
			i = min(len(p), lineLimit-len(l.part))
			l.part = append(l.part, p[:i]...)
			p = p[i:]
		} else {
			l.part = append(l.part, p[:i]...)
			p = p[i+1:]
		}
		l.emit()
	}
	return n, nil
}

func (l *lines) flush() {
	if len(l.part) > 0 {
		l.emit()
	}
}

func (l *lines) emit() {
	line := string(l.part)
	l.part = l.part[:0]
	l.span.Output(line)
	if l.last = append(l.last, line); len(l.last) > tailLines {
		l.last = l.last[1:]
	}
}

func (l *lines) tail() string {
	if len(l.last) == 0 {
		return ""
	}
	return "; it said:\n\t" + strings.Join(l.last, "\n\t")
}
