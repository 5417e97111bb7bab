// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/x509"
	"io"
	"os"
	"time"

	"golang.org/x/term"

	"github.com/mkmachine/mkmachine/sources/fetch"
)

// env is the world as the program sees it; tests make their own. Nothing else in the
// program touches the standard streams, the environment or the clock for people.
type env struct {
	Stdin  io.Reader
	Stdout io.Writer // results only
	Stderr io.Writer // everything else
	Getenv func(string) string
	Now    func() time.Time
	// Terminal says whether Stderr is a terminal, and its width in columns (0: not a terminal).
	Terminal func() (width int)
	// UID is the effective user id.
	UID int
	// Dir is the working directory; relative arguments start there.
	Dir string
	// Timeouts of requests; zero fields take the fetcher's defaults.
	Timeouts fetch.Timeouts
	// RootCAs are the certificate authorities; nil means the system's.
	RootCAs *x509.CertPool
}

func osEnv() *env {
	dir, err := os.Getwd()
	if err != nil {
		dir = "/"
	}
	return &env{
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Getenv: os.Getenv, Now: time.Now, UID: os.Geteuid(), Dir: dir,
		Terminal: func() int {
			width, _, err := term.GetSize(int(os.Stderr.Fd()))
			if err != nil {
				return 0
			}
			return max(width, 20)
		},
	}
}
