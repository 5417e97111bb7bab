// SPDX-License-Identifier: Apache-2.0

package compress

import (
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/mkmachine/mkmachine/internal/fault"
)

// NewWriter compresses to w in a kind that can be written: Plain, Zstd (by far the fastest),
// Gzip or XZ (slow). The same input gives the same output. Closing ends the stream and does
// not close w.
func NewWriter(w io.Writer, k Kind) (io.WriteCloser, error) {
	switch k {
	case Plain:
		return nopCloser{w}, nil
	case Zstd:
		return zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedDefault))
	case Gzip:
		return gzip.NewWriter(w), nil
	case XZ:
		return xz.WriterConfig{CheckSum: xz.CRC64}.NewWriter(w)
	}
	return nil, fault.New(fault.Config, "cannot write compression %q: only plain, zstd, gzip and xz can be written", string(k))
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }
