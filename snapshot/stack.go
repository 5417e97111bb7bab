// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// A stack is a machine on overlayfs, in the layout that systemd 260 runs as well:
//
//	NAME.mstack/layer@0     link to ../.mkmachine/trees/ID, the template's tree
//	NAME.mstack/layer@N     directory, changes that were made read-only
//	NAME.mstack/rw/data     the changes; absent in a read-only machine
//	NAME.mstack/rw/work     overlayfs's own
//
// The link keeps the tree from being collected, whatever happens to the template's name.

const (
	stackUpper  = "rw/data"
	stackWork   = "rw/work"
	layerPrefix = "layer@"
)

// stackLayers lists the layer entries of a stack, the bottom first.
func stackLayers(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", dir, err)
	}
	var out []string
	for _, e := range entries {
		name := e.Name()
		switch {
		case strings.HasPrefix(name, layerPrefix) && !strings.HasSuffix(name, rawSuffix):
			out = append(out, name)
		case name == "rw":
		default:
			return nil, fault.New(fault.Host, "cannot use %s: mkmachine does not mount %q of a stack", dir, name)
		}
	}
	if len(out) == 0 {
		return nil, fault.New(fault.State, "cannot use %s: it has no layer", dir)
	}
	slices.SortFunc(out, compareLayers)
	return out, nil
}

// compareLayers orders layer@2 before layer@10; other ids by text, after the numbers.
func compareLayers(a, b string) int {
	x, errX := strconv.Atoi(strings.TrimPrefix(a, layerPrefix))
	y, errY := strconv.Atoi(strings.TrimPrefix(b, layerPrefix))
	switch {
	case errX == nil && errY == nil:
		return cmp.Or(cmp.Compare(x, y), strings.Compare(a, b))
	case errX == nil:
		return -1
	case errY == nil:
		return 1
	}
	return strings.Compare(a, b)
}

// stackTree describes the overlay of a stack.
func stackTree(dir string) (Tree, error) {
	layers, err := stackLayers(dir)
	if err != nil {
		return Tree{}, err
	}
	var t Tree
	for _, l := range layers {
		real, err := filepath.EvalSymlinks(filepath.Join(dir, l))
		if err != nil {
			return Tree{}, fault.New(fault.State, "cannot use %s: %w", dir, err)
		}
		t.Lower = append([]string{real}, t.Lower...)
	}
	upper := filepath.Join(dir, stackUpper)
	if _, err := os.Lstat(upper); err == nil {
		t.Upper, t.Work = upper, filepath.Join(dir, stackWork)
	}
	return t, nil
}

// stackTrees lists the ids of the trees that a stack stands on.
func stackTrees(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil // gone: stands on nothing
	}
	var ids []string
	for _, e := range entries {
		if target, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
			if id, ok := strings.CutPrefix(target, "../"+treesDir+"/"); ok && treeID(id) {
				ids = append(ids, id)
			}
		}
	}
	return ids
}

// createStack makes dst a stack over the tree with this id.
func createStack(dst, id string) error {
	if err := os.Mkdir(dst, 0o755); err != nil {
		return err
	}
	link := filepath.Join(dst, layerPrefix+"0")
	if err := os.Symlink(filepath.Join("..", treesDir, id), link); err != nil {
		return err
	}
	return createUpper(filepath.Join(dst, "rw"), link)
}

// createUpper makes dir/data and dir/work for changes over the tree lower. The top of an
// overlay has the metadata of the upper directory, so that is a copy of the lower one's.
func createUpper(dir, lower string) error {
	data := filepath.Join(dir, "data")
	for _, d := range []string{dir, data, filepath.Join(dir, "work")} {
		if err := os.Mkdir(d, 0o700); err != nil && !(d == dir && errors.Is(err, os.ErrExist)) {
			return err
		}
	}
	real, err := filepath.EvalSymlinks(lower)
	if err != nil {
		return err
	}
	from, err := openDir(real)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := openDir(data)
	if err != nil {
		return err
	}
	defer to.Close()
	return copyTop(from, to)
}

// copyStack makes dst a copy of the stack src: the same trees, its changes copied.
func copyStack(ctx context.Context, src, dst string) error {
	layers, err := stackLayers(src)
	if err != nil {
		return err
	}
	if err := os.Mkdir(dst, 0o755); err != nil {
		return err
	}
	for _, l := range layers {
		if target, err := os.Readlink(filepath.Join(src, l)); err == nil {
			if err := os.Symlink(target, filepath.Join(dst, l)); err != nil {
				return err
			}
			continue
		}
		if err := copyPart(ctx, filepath.Join(src, l), filepath.Join(dst, l)); err != nil {
			return err
		}
	}
	if err := os.Mkdir(filepath.Join(dst, "rw"), 0o700); err != nil {
		return err
	}
	if _, err := os.Lstat(filepath.Join(src, stackUpper)); err != nil {
		return createUpper(filepath.Join(dst, "rw"), filepath.Join(src, layers[len(layers)-1]))
	}
	if err := os.Mkdir(filepath.Join(dst, stackWork), 0o700); err != nil {
		return err
	}
	return copyPart(ctx, filepath.Join(src, stackUpper), filepath.Join(dst, stackUpper))
}

func copyPart(ctx context.Context, src, dst string) error {
	if err := os.Mkdir(dst, 0o700); err != nil {
		return err
	}
	return copyDir(ctx, src, dst, nil)
}

// setStackReadOnly turns the changes of a stack into its topmost layer, or back. Killed in
// between it is read-only with nothing lost, and the same call completes it.
func setStackReadOnly(ctx context.Context, dir string, readOnly bool) error {
	layers, err := stackLayers(dir)
	if err != nil {
		return err
	}
	top := layers[len(layers)-1]
	upper := filepath.Join(dir, stackUpper)
	_, err = os.Lstat(upper)
	switch {
	case readOnly && err == nil:
		n, err := strconv.Atoi(strings.TrimPrefix(top, layerPrefix))
		if err != nil {
			return fault.New(fault.State, "cannot make %s read-only: its layers are not numbered", dir)
		}
		if err := os.Rename(upper, filepath.Join(dir, layerPrefix+strconv.Itoa(n+1))); err != nil {
			return err
		}
		return removeTree(context.WithoutCancel(ctx), filepath.Join(dir, "rw"))
	case !readOnly && err != nil:
		if err := os.MkdirAll(filepath.Join(dir, stackWork), 0o700); err != nil {
			return err
		}
		if _, err := os.Readlink(filepath.Join(dir, top)); err == nil {
			return createUpper(filepath.Join(dir, "rw"), filepath.Join(dir, top)) // no changes yet
		}
		return os.Rename(filepath.Join(dir, top), upper)
	}
	return nil
}
