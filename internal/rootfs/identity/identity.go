// SPDX-License-Identifier: Apache-2.0

// Package identity makes a copy of a tree into a machine of its own.
//
// It owns what must differ between two machines made from one template: machine-id, host
// name, SSH host keys, the self-signed certificate of Debian's ssl-cert. It gives a tree only
// what the tree has a use for, never replaces keys that are there, runs nothing, and reads
// nothing of the host.
package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"path"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/mkmachine/mkmachine/internal/rootfs"
)

// Options say who the machine is.
type Options struct {
	// Hostname is written where the tree has /etc/hostname; "" leaves the tree's.
	Hostname string
	// Rand is the source of the machine-id; nil is the system's. Keys are always made
	// from the system's.
	Rand io.Reader
	// Now dates the certificate; zero is the present.
	Now time.Time
}

// Reset gives the tree an identity.
//
// The machine-id is new even where there was one, when the tree has /etc/machine-id or
// systemd; where /etc/machine-id is a link, the tree keeps it elsewhere on purpose and it
// stays. SSH host keys (ed25519 and ecdsa) are made when the tree has sshd and no host
// key, the snakeoil certificate when the tree has the package and the files are missing.
func Reset(root *rootfs.Root, o *Options) error {
	if o == nil {
		o = &Options{}
	}
	if err := machineID(root, o.Rand); err != nil {
		return err
	}
	old := oldHostname(root)
	name := old
	if o.Hostname != "" && old != "" {
		name = o.Hostname
		if err := rename(root, old, name); err != nil {
			return err
		}
	}
	if name == "" {
		name = "localhost"
	}
	if err := hostKeys(root, name); err != nil {
		return err
	}
	return certificate(root, name, o.Now)
}

func exists(root *rootfs.Root, path string) bool {
	_, err := root.Stat(path)
	return err == nil
}

func machineID(root *rootfs.Root, random io.Reader) error {
	st, err := root.Lstat("etc/machine-id")
	if err == nil && st.Type == rootfs.Symlink {
		return nil
	}
	if rootfs.IsNotExist(err) && !exists(root, "usr/lib/systemd/systemd") && !exists(root, "lib/systemd/systemd") {
		return nil
	}
	if random == nil {
		random = rand.Reader
	}
	var id [16]byte
	if _, err := io.ReadFull(random, id[:]); err != nil {
		return fmt.Errorf("cannot make machine-id: %w", err)
	}
	// A random UUID of variant 1, as systemd makes them (machine-id(5)).
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	text := []byte(hex.EncodeToString(id[:]) + "\n")
	if err := root.Put("etc/machine-id", 0o444, 0, 0, text); err != nil {
		return err
	}
	const dbus = "var/lib/dbus/machine-id"
	if st, err := root.Lstat(dbus); err == nil && st.Type == rootfs.File {
		return root.Put(dbus, 0o444, 0, 0, text)
	}
	return nil
}

// oldHostname is the name in /etc/hostname, or "" where there is no such file.
func oldHostname(root *rootfs.Root) string {
	data, err := root.ReadFile("etc/hostname", 4096)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(data)) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			return line
		}
	}
	return "localhost"
}

// rename writes the host name and gives its own line of /etc/hosts the new one.
func rename(root *rootfs.Root, old, name string) error {
	if strings.ContainsFunc(name, func(c rune) bool { return c <= ' ' || c > '~' }) {
		return fmt.Errorf("cannot set host name %q: not a name", name)
	}
	if err := root.Put("etc/hostname", 0o644, 0, 0, []byte(name+"\n")); err != nil {
		return err
	}
	st, err := root.Lstat("etc/hosts")
	if err != nil || st.Type != rootfs.File {
		return nil
	}
	data, err := root.ReadFile("etc/hosts", 1<<20)
	if err != nil {
		return err
	}
	var text strings.Builder
	changed := false
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "127.0.1.1" {
			names := name
			if short, _, dotted := strings.Cut(name, "."); dotted {
				names += " " + short
			}
			line = "127.0.1.1\t" + names + "\n"
			changed = true
		}
		text.WriteString(line)
	}
	if !changed {
		return nil
	}
	return root.Put("etc/hosts", st.Mode, st.UID, st.GID, []byte(text.String()))
}

func hostKeys(root *rootfs.Root, hostname string) error {
	if !exists(root, "usr/sbin/sshd") && !exists(root, "usr/bin/sshd") {
		return nil
	}
	names, err := root.Readdir("etc/ssh")
	if rootfs.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, n := range names {
		if ok, _ := path.Match("ssh_host_*_key", n); ok {
			return nil
		}
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return fmt.Errorf("cannot make host key: %w", err)
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("cannot make host key: %w", err)
	}
	if err := hostKey(root, "ed25519", ed, "root@"+hostname); err != nil {
		return err
	}
	return hostKey(root, "ecdsa", ec, "root@"+hostname)
}

func hostKey(root *rootfs.Root, kind string, key crypto.Signer, comment string) error {
	block, err := ssh.MarshalPrivateKey(key, comment)
	if err != nil {
		return fmt.Errorf("cannot make host key: %w", err)
	}
	pub, err := ssh.NewPublicKey(key.Public())
	if err != nil {
		return fmt.Errorf("cannot make host key: %w", err)
	}
	file := "etc/ssh/ssh_host_" + kind + "_key"
	if err := root.Put(file, 0o600, 0, 0, pem.EncodeToMemory(block)); err != nil {
		return err
	}
	line := strings.TrimSuffix(string(ssh.MarshalAuthorizedKey(pub)), "\n") + " " + comment + "\n"
	return root.Put(file+".pub", 0o644, 0, 0, []byte(line))
}

// certificate makes what make-ssl-cert(8) would, with an elliptic key.
func certificate(root *rootfs.Root, hostname string, now time.Time) error {
	const certFile, keyFile = "etc/ssl/certs/ssl-cert-snakeoil.pem", "etc/ssl/private/ssl-cert-snakeoil.key"
	if !exists(root, "usr/sbin/make-ssl-cert") || exists(root, certFile) || exists(root, keyFile) ||
		!exists(root, path.Dir(certFile)) || !exists(root, path.Dir(keyFile)) {
		return nil
	}
	// The group may read the key, and owns the directory as the package made it.
	dir, err := root.Stat(path.Dir(keyFile))
	if err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("cannot make certificate: %w", err)
	}
	if now.IsZero() {
		now = time.Now()
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return fmt.Errorf("cannot make certificate: %w", err)
	}
	subject := hostname
	if len(subject) > 64 { // the upper bound of a common name, RFC 5280
		subject = subject[:64]
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: subject}, DNSNames: []string{hostname},
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(10, 0, 0), BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return fmt.Errorf("cannot make certificate: %w", err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("cannot make certificate: %w", err)
	}
	if err := root.Put(keyFile, 0o640, 0, dir.GID, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})); err != nil {
		return err
	}
	return root.Put(certFile, 0o644, 0, 0, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}
