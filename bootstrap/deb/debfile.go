// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"archive/tar"
	"bufio"
	"bytes"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// member is a file of the control archive.
type member struct {
	Name  string `json:"name"`
	Mode  uint32 `json:"mode"`
	MTime int64  `json:"mtime"`
	Data  []byte `json:"data"`
}

func decompress(name string, r io.Reader) (io.Reader, error) {
	r = bufio.NewReaderSize(r, 1<<16)
	switch {
	case strings.HasSuffix(name, ".tar"):
		return r, nil
	case strings.HasSuffix(name, ".tar.xz"):
		return xz.NewReader(r)
	case strings.HasSuffix(name, ".tar.gz"):
		return gzip.NewReader(r)
	case strings.HasSuffix(name, ".tar.zst"):
		return zstd.NewReader(r)
	}
	return nil, fault.New(fault.Format, "cannot read %s: unknown compression", name)
}

func readDeb(f *os.File) ([]member, io.Reader, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	sr := io.NewSectionReader(f, 8, st.Size()-8)
	head := make([]byte, 60)
	off := int64(8)
	var control []member
	for {
		if _, err := f.ReadAt(head, off); err != nil {
			return nil, nil, err
		}
		name := strings.TrimSuffix(strings.TrimRight(string(head[:16]), " "), "/")
		size, err := strconv.ParseInt(strings.TrimRight(string(head[48:58]), " "), 10, 64)
		if err != nil {
			return nil, nil, err
		}
		sr = io.NewSectionReader(f, off+60, size)
		off += 60 + size + size&1
		switch {
		case strings.HasPrefix(name, "control.tar"):
			r, err := decompress(name, sr)
			if err != nil {
				return nil, nil, err
			}
			tr := tar.NewReader(r)
			for {
				h, err := tr.Next()
				if err == io.EOF {
					break
				}
				if err != nil {
					return nil, nil, err
				}
				if h.Typeflag != tar.TypeReg {
					continue
				}
				var b bytes.Buffer
				if _, err := io.Copy(&b, tr); err != nil {
					return nil, nil, err
				}
				control = append(control, member{strings.TrimPrefix(h.Name, "./"), uint32(h.Mode), h.ModTime.UnixNano(), b.Bytes()})
			}
		case strings.HasPrefix(name, "data.tar"):
			r, err := decompress(name, sr)
			return control, r, err
		}
	}
}

var _ = time.Now
