// SPDX-License-Identifier: Apache-2.0

package pgp

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/mkmachine/mkmachine/internal/fault"
)

const (
	beginMessage   = "-----BEGIN PGP SIGNED MESSAGE-----"
	beginSignature = "-----BEGIN PGP SIGNATURE-----"
)

// maxClearsigned bounds a clearsigned file in bytes.
const maxClearsigned = 64 << 20

// VerifyClearsigned checks a file that is exactly one clearsigned message and returns the
// text that was signed, each line ended by LF. Anything before, between or after is an
// error: fault.Format where the framing is malformed, fault.Verify where trust fails.
func VerifyClearsigned(data []byte, ring *Keyring, p Policy) (text []byte, signers []Signer, err error) {
	m, err := parseClearsigned(data)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot verify clearsigned text: %w", err)
	}
	v := &verifier{ring: ring, policy: p, data: m.signed, hashes: m.hashes}
	if signers, err = v.run(m.packets); err != nil {
		return nil, nil, err
	}
	return m.text, signers, nil
}

// clearsigned is one framed message.
type clearsigned struct {
	hashes  []string
	signed  []byte // lines joined by CRLF, what is hashed
	text    []byte // the same lines, each ended by LF
	packets []byte
}

func parseClearsigned(data []byte) (*clearsigned, error) {
	if len(data) > maxClearsigned {
		return nil, fault.New(fault.Limit, "file is larger than %d MiB", maxClearsigned>>20)
	}
	line, rest, ok := splitLine(data)
	if !ok || string(line) != beginMessage {
		return nil, notClearsigned(data)
	}
	m := &clearsigned{hashes: []string{}}
	rest, err := m.header(rest)
	if err != nil {
		return nil, err
	}
	if rest, err = m.body(rest); err != nil {
		return nil, err
	}
	packets, after, err := readArmor(rest, armorSignature)
	if err != nil {
		return nil, fault.New(fault.Verify, "bad signature block: %w", err)
	}
	if len(bytes.Trim(after, "\r\n")) != 0 {
		return nil, fault.New(fault.Verify, "there is more after the signature")
	}
	m.packets = packets
	return m, nil
}

func notClearsigned(data []byte) error {
	if LooksLikeHTML(data) {
		return fault.Hint(fault.New(fault.Verify, "it is an HTML page, not a signed file"),
			"a captive portal or proxy may be answering instead of the mirror; open a web page to log in, or try another mirror with --mirror")
	}
	if bytes.Contains(data, []byte(beginMessage)) {
		return fault.New(fault.Verify, "there is text before the signed message")
	}
	return fault.Hint(fault.New(fault.Verify, "it does not begin with a signed message"), "it is not a signed Release file; try another mirror with --mirror")
}

// LooksLikeHTML says whether a file begins like a web page, which is what captive portals
// send for every address.
func LooksLikeHTML(data []byte) bool {
	head := bytes.ToLower(bytes.TrimLeft(data[:min(len(data), 512)], " \t\r\n\ufeff"))
	for _, prefix := range []string{"<!doctype", "<html", "<head", "<body", "<script", "<meta"} {
		if bytes.HasPrefix(head, []byte(prefix)) {
			return true
		}
	}
	return false
}

// header reads the Hash lines up to the empty line. Only an empty line ends them: other
// blanks are not blank for every verifier.
func (m *clearsigned) header(data []byte) (rest []byte, err error) {
	for {
		line, after, ok := splitLine(data)
		if !ok {
			return nil, fault.New(fault.Verify, "message ends within its headers")
		}
		data = after
		if len(line) == 0 {
			return data, nil
		}
		key, value, ok := strings.Cut(string(line), ": ")
		if !ok {
			return nil, fault.New(fault.Verify, "%q is no message header", clip(line))
		}
		if key != "Hash" {
			return nil, fault.New(fault.Format, "message header %q is not allowed", clip([]byte(key)))
		}
		for h := range strings.SplitSeq(value, ",") {
			h = strings.TrimSpace(h)
			if !slices.Contains([]string{"MD5", "SHA1", "RIPEMD160", "SHA224", "SHA256", "SHA384", "SHA512"}, h) {
				return nil, fault.New(fault.Format, "hash %q in the message header is not known", clip([]byte(h)))
			}
			m.hashes = append(m.hashes, h)
		}
	}
}

// body collects the signed lines up to the signature block, which rest begins with.
func (m *clearsigned) body(data []byte) (rest []byte, err error) {
	m.signed = make([]byte, 0, len(data))
	m.text = make([]byte, 0, len(data))
	for first := true; ; first = false {
		line, after, ok := splitLine(data)
		if !ok {
			return nil, fault.New(fault.Verify, "message has no signature")
		}
		if string(line) == beginSignature {
			return data, nil
		}
		if err := checkLine(line); err != nil {
			return nil, err
		}
		if len(line) > 0 && line[0] == '-' {
			if !bytes.HasPrefix(line, []byte("- ")) {
				return nil, fault.New(fault.Verify, "line %q is not dash-escaped", clip(line))
			}
			line = line[2:]
		}
		line = bytes.TrimRight(line, " \t")
		if !first {
			m.signed = append(m.signed, '\r', '\n')
		}
		m.signed = append(m.signed, line...)
		m.text = append(append(m.text, line...), '\n')
		data = after
	}
}

// checkLine refuses bytes that verifiers or readers treat differently: NUL ends text in C,
// VT and FF are blanks for some, a lone CR is a line end for some.
func checkLine(line []byte) error {
	if len(line) > maxLine {
		return fault.New(fault.Limit, "line is longer than %d bytes", maxLine)
	}
	for _, c := range line {
		if (c < 0x20 && c != '\t') || c == 0x7f {
			return fault.New(fault.Verify, "control character 0x%02x in the signed text", c)
		}
	}
	if !utf8.Valid(line) {
		return fault.As(fault.Verify, errors.New("signed text is not UTF-8"))
	}
	return nil
}
