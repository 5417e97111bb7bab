// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"bytes"
	"cmp"
	"context"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/mkmachine/mkmachine/internal/event"
	"github.com/mkmachine/mkmachine/internal/fault"
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

// Configure makes the unpacked packages installed: it writes the database, runs the
// preinsts and has dpkg run the rest, wave by wave.
func (in *Installer) Configure(ctx context.Context) error {
	slices.SortFunc(in.facts, func(a, b *Facts) int { return cmp.Compare(a.Order, b.Order) })
	waves := [][]*Facts{in.facts}
	for i, wave := range waves {
		if err := in.wave(ctx, i, wave); err != nil {
			return err
		}
	}
	_, err := in.call(ctx, request{Op: "files", Files: []treeFile{{Path: policyPath, Remove: true}}})
	return err
}

func (in *Installer) wave(ctx context.Context, number int, list []*Facts) error {
	if _, err := in.call(ctx, request{Op: "settle"}); err != nil {
		return err
	}
	c := commitRequest{Triggers: number > 0}
	for _, f := range list {
		c.Packages = append(c.Packages, f.Order)
	}
	if _, err := in.call(ctx, request{Op: "commit", Commit: &c}); err != nil {
		return err
	}
	if number == 0 {
		policy := treeFile{Path: policyPath, Mode: 0o755, Data: []byte("#!/bin/sh\nexit 101\n")}
		if _, err := in.call(ctx, request{Op: "files", Files: []treeFile{policy}}); err != nil {
			return err
		}
	}
	if err := in.run(ctx, "ldconfig", []string{"/sbin/ldconfig"}); err != nil {
		return err
	}
	for _, f := range preinstOrder(list) {
		if err := in.preinst(ctx, f); err != nil {
			return err
		}
	}
	if _, err := in.call(ctx, request{Op: "divert"}); err != nil {
		return err
	}
	return in.run(ctx, "configure", []string{"dpkg", "--force-unsafe-io", "--configure", "-a"})
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

var _ io.Writer = (*lines)(nil)
