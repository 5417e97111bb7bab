// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
)

// table is rows of cells for people; cells may hold foreign text.
type table struct {
	header []string
	rows   [][]string
}

// head names the columns.
func (t *table) head(cells ...string) { t.header = cells }

func (t *table) row(cells ...string) { t.rows = append(t.rows, cells) }

// result keeps what a verb found or made for the end: value is printed with --json, the
// rows without. The last one counts.
func (a *app) result(value any, rows func(*table)) error {
	a.value, a.table = value, nil
	if rows != nil {
		a.table = &table{}
		rows(a.table)
	}
	return nil
}

// openRenderer makes the renderer that the options ask for.
func (a *app) openRenderer() (err error) {
	a.render, err = newRenderer(a.env, mode{JSON: a.json, Quiet: a.quiet, Verbose: a.verbose, NoColor: a.noColor, Trace: a.trace})
	if err == nil {
		a.shown.Store(&a.render)
	}
	return err
}

// conclude ends the rendering: the error, and the result on stdout.
func (a *app) conclude(_ context.Context, err error) error {
	if a.render == nil {
		// The command line was not understood; the options may not be known.
		if e := a.openRenderer(); e != nil {
			printError(a.Stderr, e, palette{})
			return e
		}
	}
	a.render.Close(a.value, err)
	if a.table != nil && !a.json {
		if e := printTable(a.Stdout, a.table.header, a.table.rows); err == nil {
			err = e
		}
	}
	return err
}
