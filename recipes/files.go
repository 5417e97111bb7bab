// SPDX-License-Identifier: Apache-2.0

package recipes

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// Limits of what a recipe may bring, in bytes.
const (
	maxFile    = 64 << 20
	maxScript  = 1 << 20
	maxKeyFile = 1 << 20
	maxTotal   = 256 << 20
)

// files reads what lies beside a recipe. All files of one Load share the root, the
// directory of the recipe that was asked for; no name and no link leads out of it.
type files struct {
	root fs.FS
	dir  string // of the document, slash-separated, relative to root
	// left counts down the bytes that all documents of a Load may still bring.
	left *int64
}

// rootFS opens without following a link out of the root and without waiting for the
// writer of a FIFO.
type rootFS struct{ root *os.Root }

func (r rootFS) Open(name string) (fs.File, error) {
	return r.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
}

// resolve makes a name of a document relative to the root.
func (f *files) resolve(name string) (string, error) {
	switch {
	case name == "":
		return "", fault.New(fault.Config, "file name is empty")
	case strings.ContainsRune(name, 0) || strings.ContainsAny(name, "\n\r"):
		return "", fault.New(fault.Config, "file name %q has a control character", name)
	case strings.HasPrefix(name, "/"):
		return "", fault.New(fault.Path, "path %q is absolute: name a file beside the recipe", name)
	}
	full := path.Join(f.dir, name)
	if !fs.ValidPath(full) || full == "." {
		return "", fault.New(fault.Path, "path %q leaves the recipe's directory", name)
	}
	return full, nil
}

// read returns the bytes of a regular file, at most limit.
func (f *files) read(name string, limit int64) ([]byte, error) {
	full, err := f.resolve(name)
	if err != nil {
		return nil, err
	}
	file, err := f.root.Open(full)
	if err != nil {
		return nil, openFault(name, err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, fault.New(fault.Config, "cannot read %q: %w", name, cause(err))
	}
	if !info.Mode().IsRegular() {
		return nil, fault.New(fault.Path, "%q is not a regular file", name)
	}
	data, err := io.ReadAll(io.LimitReader(file, limit+1))
	if err != nil {
		return nil, fault.New(fault.Config, "cannot read %q: %w", name, cause(err))
	}
	if int64(len(data)) > limit {
		return nil, fault.New(fault.Limit, "%q is larger than %d bytes", name, limit)
	}
	if *f.left -= int64(len(data)); *f.left < 0 {
		return nil, fault.New(fault.Limit, "the files of the recipe are together larger than %d bytes", int64(maxTotal))
	}
	return data, nil
}

// openFault tells a link that leads out of the root, and a special file, from a file that
// is missing or not readable.
func openFault(name string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
		return fault.New(fault.Config, "cannot open %q: %w", name, cause(err))
	case errors.Is(err, syscall.ENXIO), errors.Is(err, syscall.ENODEV):
		return fault.New(fault.Path, "%q is not a regular file", name)
	case strings.Contains(err.Error(), "escapes"): // os.Root has no exported error for it
		return fault.New(fault.Path, "%q leads out of the recipe's directory", name)
	}
	return fault.New(fault.Config, "cannot open %q: %w", name, cause(err))
}

// cause drops the operation and path of a file error; the message has them already.
func cause(err error) error {
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		return pathErr.Err
	}
	return err
}

// reference is a key that names a file; its bytes go to data.
func (d *decoder) reference(key string, dst *String, data *[]byte, limit int64) field {
	return field{key, func(e *entry) {
		s, ok := d.text(e.value, key, nil)
		if !ok {
			return
		}
		bytes, err := d.files.read(s.Value, limit)
		if err != nil {
			d.classed(fault.ClassOf(err), s.Pos, "", "%s: %v", key, err)
			return
		}
		*dst, *data = s, bytes
	}}
}

// isPath tells a path from the name of a library recipe.
func isPath(text string) bool {
	return strings.Contains(text, "/") || strings.HasSuffix(text, ".toml")
}
