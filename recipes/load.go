// SPDX-License-Identifier: Apache-2.0

package recipes

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// maxExtends is how many recipes may stand on one another.
const maxExtends = 16

// libraryPrefix marks the origin of an embedded recipe.
const libraryPrefix = "library:"

// Load reads a recipe and all that it extends, checks it, and fills in the defaults.
// The argument is the name of a library recipe, or a path (with a slash, or ending in
// .toml) that is relative to dir; an empty dir is the working directory. The files that
// the recipe names must lie in its own directory or below.
//
// The error of a bad recipe wraps Problems and has the class Config, or Path, Policy or
// Limit where one of the problems has it.
func Load(dir, nameOrPath string) (*Recipe, error) {
	l := newLoader()
	if !isPath(nameOrPath) {
		data, err := LibrarySource(nameOrPath)
		if err != nil {
			return nil, err
		}
		return l.load(place{l.library, nameOrPath, libraryPrefix + nameOrPath}, data)
	}
	full := nameOrPath
	if !filepath.IsAbs(full) {
		full = filepath.Join(dir, full)
	}
	// The recipe itself may be a link: what it names lies beside the file, not the link.
	full, err := filepath.EvalSymlinks(full)
	if err != nil {
		return nil, fault.New(fault.Config, "cannot open recipe %q: %w", nameOrPath, cause(err))
	}
	root, err := os.OpenRoot(filepath.Dir(full))
	if err != nil {
		return nil, fault.New(fault.Config, "cannot open recipe %q: %w", nameOrPath, cause(err))
	}
	defer root.Close()
	beside := &files{root: rootFS{root}, dir: ".", left: &l.left}
	data, err := beside.read(filepath.Base(full), maxRecipeSize)
	if err != nil {
		return nil, fault.As(fault.ClassOf(err), fmt.Errorf("cannot load recipe: %w", err))
	}
	return l.load(place{beside, filepath.Base(full), nameOrPath}, data)
}

// Parse reads a recipe from memory; origin names it in messages. It can extend library
// recipes, and there are no files that it could name. Errors are those of Load.
func Parse(origin string, data []byte) (*Recipe, error) {
	l := newLoader()
	return l.load(place{&files{root: noFiles{}, dir: ".", left: &l.left}, "recipe.toml", origin}, data)
}

// noFiles is an empty directory.
type noFiles struct{}

func (noFiles) Open(name string) (fs.File, error) {
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

// loader walks from a recipe to the ones it stands on, and lays them over one another
// from the bottom up.
type loader struct {
	library  *files
	left     int64
	chain    []place
	problems Problems
	// broken: a document could not be read, so that much may be missing that is there.
	broken bool
}

func newLoader() *loader {
	l := &loader{left: maxTotal}
	l.library = &files{root: libraryFS(), dir: ".", left: &l.left}
	return l
}

// place is where a document was found.
type place struct {
	files  *files
	name   string // relative to files.root
	origin string // for people
}

func (l *loader) load(p place, data []byte) (*Recipe, error) {
	r := &Recipe{}
	l.document(p, data, r)
	for _, c := range l.chain {
		r.Chain = append(r.Chain, c.origin)
	}
	c := &checker{decoder{files: p.files}}
	if !l.broken {
		c.recipe(r, fault.Pos{File: p.origin, Line: 1, Col: 1})
	}
	if err := append(l.problems, c.problems...).err(); err != nil {
		return nil, err
	}
	return r, nil
}

// document lays the text over r, after all that it extends.
func (l *loader) document(p place, data []byte, r *Recipe) {
	l.chain = append(l.chain, p)
	root, problems := parseTOML(p.origin, data)
	l.problems = append(l.problems, problems...)
	if root == nil || slices.ContainsFunc(problems, func(p Problem) bool { return strings.HasPrefix(p.Text, notTOML) }) {
		l.broken = true
		return
	}
	d := &decoder{files: &files{root: p.files.root, dir: path.Dir(p.name), left: p.files.left}}
	name := String{Value: strings.TrimSuffix(path.Base(p.name), ".toml")}
	var description, extends String
	d.head(root, &name, &description, &extends)
	if extends.Value != "" {
		if parent, text, ok := l.parent(d, p, extends); ok {
			l.document(parent, text, r)
		} else {
			l.broken = true
		}
	}
	d.table(root, d.body(r))
	r.Name, r.Description, r.Origin = name.Value, description.Value, p.origin
	l.problems = append(l.problems, d.problems...)
}

// head reads the keys that are not inherited.
func (d *decoder) head(root *node, name, description, extends *String) {
	if e := root.get("schema"); e == nil {
		d.problem(root.pos, "write schema = 1 on top", "missing key %q", "schema")
	} else if d.want(e.value, "schema", kindInt) && e.value.text != "1" {
		d.problem(e.value.pos, "this version reads schema = 1", "schema %s is not known", e.value.text)
	}
	for _, f := range []field{
		d.str("name", name, ruleName),
		d.str("description", description, ruleLine),
		d.str("extends", extends, nonEmptyLine),
	} {
		if e := root.get(f.key); e != nil {
			f.set(e)
		}
	}
	if root.get("name") == nil {
		if problem, hint := ruleName(name.Value); problem != "" {
			d.problem(root.pos, hint, "the recipe has no name of its own, and that of the file cannot be used: %s", problem)
		}
	}
}

// parent finds and reads what extends names.
func (l *loader) parent(d *decoder, p place, extends String) (place, []byte, bool) {
	next := place{l.library, extends.Value, libraryPrefix + extends.Value}
	if isPath(extends.Value) {
		if p.files == l.library {
			d.problem(extends.Pos, "", "a library recipe extends library recipes only")
			return place{}, nil, false
		}
		full, err := d.files.resolve(extends.Value)
		if err != nil {
			d.classed(fault.ClassOf(err), extends.Pos, "", "extends: %v", err)
			return place{}, nil, false
		}
		top := filepath.Dir(l.chain[0].origin)
		next = place{p.files, full, filepath.Join(top, filepath.FromSlash(full))}
	}
	for i, c := range l.chain {
		if c.files.root == next.files.root && c.name == next.name {
			d.problem(extends.Pos, "", "extends goes in a circle: %s", circle(l.chain[i:], next))
			return place{}, nil, false
		}
	}
	if len(l.chain) >= maxExtends {
		d.problem(extends.Pos, "", "more than %d recipes extend one another", maxExtends)
		return place{}, nil, false
	}
	if next.files == l.library {
		text, err := LibrarySource(extends.Value)
		if err != nil {
			d.problem(extends.Pos, suggest(extends.Value, libraryNames()), "there is no library recipe %q", extends.Value)
		}
		return next, text, err == nil
	}
	text, err := d.files.read(extends.Value, maxRecipeSize)
	if err != nil {
		d.classed(fault.ClassOf(err), extends.Pos, "", "extends: %v", err)
	}
	return next, text, err == nil
}

func circle(chain []place, end place) string {
	var names []string
	for _, c := range append(slices.Clone(chain), end) {
		names = append(names, quote(c.origin))
	}
	return strings.Join(names, " → ")
}
