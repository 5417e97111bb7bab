// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/mkmachine/mkmachine/internal/kernel"
	"github.com/mkmachine/mkmachine/internal/kernel/kerneltest"
)

// fenced lists the blocks of a language in a Markdown text.
func fenced(t *testing.T, path, language string) []string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, m := range regexp.MustCompile("(?s)```"+language+"\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
		out = append(out, m[1])
	}
	if len(out) == 0 {
		t.Fatalf("%s has no example in %s", path, language)
	}
	return out
}

// words splits a command as a shell does, as far as the README goes: blanks and single quotes.
func words(line string) []string {
	var out []string
	for _, m := range regexp.MustCompile(`'([^']*)'|(\S+)`).FindAllStringSubmatch(line, -1) {
		out = append(out, m[1]+m[2])
	}
	return out
}

// TestReadmeRecipes: the recipes of the README are valid.
func TestReadmeRecipes(t *testing.T) {
	for _, text := range fenced(t, "../../README.md", "toml") {
		w := newWorld(t, "")
		w.write("web.toml", text)
		w.must("check", "web.toml")
	}
}

// TestReadmeCommands runs the tour of the README, in its order, and looks for what it shows.
func TestReadmeCommands(t *testing.T) {
	kerneltest.Require(t, kernel.Root, kernel.UserNS, kernel.IDMap, kernel.Cgroup)
	kerneltest.Mirror(t, "debian")
	w := newWorld(t, "")
	t.Cleanup(w.empty)
	for _, block := range fenced(t, "../../README.md", "console") {
		for _, part := range strings.Split("\n"+block, "\n$ ")[1:] {
			command, shown, _ := strings.Cut(part, "\n")
			argv := words(strings.TrimPrefix(strings.TrimPrefix(command, "sudo "), "mkmachine "))
			o := w.must(argv...)
			for line := range strings.Lines(shown) {
				// Times, sizes and digests differ from run to run; the first two words do not.
				if f := strings.Fields(line); len(f) > 0 && !strings.Contains(strings.Join(strings.Fields(o.stdout), " "), strings.Join(f[:min(2, len(f))], " ")) {
					t.Errorf("$ %s\nshows %q, got\n%s%s", command, strings.TrimSpace(line), o.stdout, o.stderr)
				}
			}
		}
	}
}

// TestMakefileTargets: the two commands of the README exist.
func TestMakefileTargets(t *testing.T) {
	text, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	for _, block := range fenced(t, "../../README.md", "") {
		for _, m := range regexp.MustCompile(`make (\w+)`).FindAllStringSubmatch(block, -1) {
			if !regexp.MustCompile(`(?m)^` + m[1] + `:`).Match(text) {
				t.Errorf("the README names make %s, which the Makefile does not have", m[1])
			}
		}
	}
}
