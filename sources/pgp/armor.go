// SPDX-License-Identifier: Apache-2.0

package pgp

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"strings"
)

const (
	armorPublicKey  = "PGP PUBLIC KEY BLOCK"
	armorPrivateKey = "PGP PRIVATE KEY BLOCK"
	armorSignature  = "PGP SIGNATURE"
)

// maxLine is the longest line accepted in armored or clearsigned text, in bytes. GnuPG cuts
// lines near 20 000 bytes before it hashes them; staying below keeps both readings equal.
const maxLine = 16 << 10

// splitLine takes one line off data. The line comes without its LF or CRLF. A carriage
// return anywhere else stays in the line, where the callers refuse it.
func splitLine(data []byte) (line, rest []byte, complete bool) {
	i := bytes.IndexByte(data, '\n')
	if i < 0 {
		return data, nil, false
	}
	return bytes.TrimSuffix(data[:i], []byte("\r")), data[i+1:], true
}

// readArmor decodes one block of the given kind at the very start of data and returns what
// follows its end line. Nothing but header lines, base64 and the optional CRC-24 is accepted.
func readArmor(data []byte, kind string) (body, rest []byte, err error) {
	line, rest, ok := splitLine(data)
	if !ok || string(line) != "-----BEGIN "+kind+"-----" {
		return nil, nil, fmt.Errorf("want the line -----BEGIN %s-----", kind)
	}
	for {
		if line, rest, ok = splitLine(rest); !ok {
			return nil, nil, fmt.Errorf("armor ends within its headers")
		}
		if len(line) == 0 {
			break
		}
		if !armorHeader(line) {
			return nil, nil, fmt.Errorf("%q is no armor header", clip(line))
		}
	}
	var b64 []byte
	var crc []byte
	for {
		line, rest, ok = splitLine(rest)
		if string(line) == "-----END "+kind+"-----" {
			break
		}
		if !ok {
			return nil, nil, fmt.Errorf("armor has no end line")
		}
		if crc != nil || len(line) == 0 || len(line) > 96 {
			return nil, nil, fmt.Errorf("%q is no line of armored data", clip(line))
		}
		if line[0] == '=' && len(line) == 5 {
			crc = line[1:]
			continue
		}
		b64 = append(b64, line...)
	}
	enc := base64.StdEncoding.Strict()
	body = make([]byte, enc.DecodedLen(len(b64)))
	// The decoder skips CR and LF by itself; none must be there.
	if bytes.ContainsAny(b64, "\r\n") {
		return nil, nil, fmt.Errorf("stray carriage return in armored data")
	}
	n, err := enc.Decode(body, b64)
	if err != nil {
		return nil, nil, fmt.Errorf("bad base64 in armored data: %w", err)
	}
	body = body[:n]
	if crc != nil {
		want, err := enc.DecodeString(string(crc))
		if err != nil || len(want) != 3 || uint32(want[0])<<16|uint32(want[1])<<8|uint32(want[2]) != crc24(body) {
			return nil, nil, fmt.Errorf("armor checksum does not match")
		}
	}
	return body, rest, nil
}

func armorHeader(line []byte) bool {
	key, _, ok := strings.Cut(string(line), ": ")
	if !ok {
		return false
	}
	switch key {
	case "Version", "Comment", "Hash", "Charset", "MessageID":
		return printable(line)
	}
	return false
}

func printable(line []byte) bool {
	for _, c := range line {
		if c < 0x20 || c == 0x7f {
			return false
		}
	}
	return true
}

// crc24 is the armor checksum of RFC 4880 section 6.1.
func crc24(data []byte) uint32 {
	crc := uint32(0xb704ce)
	for _, b := range data {
		crc ^= uint32(b) << 16
		for range 8 {
			crc <<= 1
			if crc&0x1000000 != 0 {
				crc ^= 0x1864cfb
			}
		}
	}
	return crc & 0xffffff
}

// clip shortens foreign bytes for a message.
func clip(b []byte) []byte {
	if len(b) > 60 {
		return append(b[:57:57], "..."...)
	}
	return b
}

// rawPacket is one OpenPGP packet as it was framed.
type rawPacket struct {
	tag  int
	body []byte
	raw  []byte // header and body
}

// OpenPGP packet tags used here (RFC 4880 section 4.3).
const (
	tagSignature = 2
	tagSecretKey = 5
	tagPublicKey = 6
	tagMarker    = 10
	tagTrust     = 12
	tagUserID    = 13
	tagSubkey    = 14
)

// nextPacket frames one packet. Partial and indeterminate lengths are refused: keys and
// signatures never need them, and verifiers differ on them.
func nextPacket(data []byte) (p rawPacket, rest []byte, err error) {
	truncated := fmt.Errorf("truncated packet")
	if data[0]&0x80 == 0 {
		return p, nil, fmt.Errorf("0x%02x is no packet header", data[0])
	}
	var length, header int
	if data[0]&0x40 != 0 {
		p.tag = int(data[0] & 0x3f)
		switch {
		case len(data) < 2:
			return p, nil, truncated
		case data[1] < 192:
			length, header = int(data[1]), 2
		case data[1] < 224:
			if len(data) < 3 {
				return p, nil, truncated
			}
			length, header = (int(data[1])-192)<<8+int(data[2])+192, 3
		case data[1] == 255:
			if len(data) < 6 {
				return p, nil, truncated
			}
			length, header = bigEndian(data[2:6]), 6
		default:
			return p, nil, fmt.Errorf("partial packet length")
		}
	} else {
		p.tag = int(data[0]>>2) & 0xf
		switch n := data[0] & 3; n {
		case 3:
			return p, nil, fmt.Errorf("indeterminate packet length")
		default:
			header = 1 + 1<<n
			if len(data) < header {
				return p, nil, truncated
			}
			length = bigEndian(data[1:header])
		}
	}
	if length > len(data)-header {
		return p, nil, truncated
	}
	p.raw, p.body = data[:header+length:header+length], data[header:header+length]
	return p, data[header+length:], nil
}

func bigEndian(b []byte) int {
	n := 0
	for _, c := range b {
		n = n<<8 | int(c)
	}
	return n
}
