// SPDX-License-Identifier: Apache-2.0

package sources

// Mirrors is the built-in list: for each mirror family the roots to try, in order. A mirror
// is only transport, everything that comes from it is verified.
func Mirrors() map[string][]string {
	return map[string][]string{
		"debian": {
			"http://ftp.debian.org/debian",
			"https://mirrors.edge.kernel.org/debian",
			"https://mirror.csclub.uwaterloo.ca/debian",
		},
		"debian-security": {
			"https://mirror.csclub.uwaterloo.ca/debian-security",
			"https://mirrors.edge.kernel.org/debian-security",
			"http://security.debian.org/debian-security",
		},
		"ubuntu": {
			"https://mirrors.edge.kernel.org/ubuntu",
			"https://mirror.csclub.uwaterloo.ca/ubuntu",
			"http://archive.ubuntu.com/ubuntu",
		},
		"ubuntu-ports": {
			"http://ports.ubuntu.com/ubuntu-ports",
			"https://mirror.csclub.uwaterloo.ca/ubuntu-ports",
		},
	}
}
