// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/internal/kernel"
	"github.com/mkmachine/mkmachine/internal/kernel/kerneltest"
	"github.com/mkmachine/mkmachine/sources/fetch"
	"github.com/mkmachine/mkmachine/sources/sourcetest"
)

// impatient shortens the waiting for mirrors that do not answer.
func impatient(e *env) {
	e.Timeouts = fetch.Timeouts{
		Dial: 2 * time.Second, Header: 400 * time.Millisecond, Idle: 400 * time.Millisecond,
		RateWindow: 500 * time.Millisecond, Backoff: time.Millisecond, RetryAfter: 10 * time.Millisecond,
	}
}

// fakeRecipe takes the smallest tree from a fake archive whose key is archive.pgp.
const fakeRecipe = `schema = 1
name = "t"
[source]
kind = "deb"
distribution = "debian"
suite = "trixie"
arch = "amd64"
variant = "essential"
pockets = ["release"]
keys = [%q]
key_file = "archive.pgp"
`

// newArchive serves a small signed archive, and writes the recipe t.toml that pins its key.
func newArchive(t *testing.T, spec sourcetest.Spec) (*world, *sourcetest.Repo) {
	t.Helper()
	spec.Suite = "trixie"
	if spec.Packages == nil {
		spec.Packages = []sourcetest.Package{
			{Name: "base-files", Essential: true, Priority: "required", Files: []sourcetest.File{{Path: "/usr/lib/os-release", Body: "ID=test\n"}}},
			{Name: "hello", Depends: "base-files"},
		}
	}
	r := sourcetest.NewRepo(t, spec)
	w := newWorld(t, "")
	w.adjust = impatient
	w.write("archive.pgp", string(r.Keyring))
	w.write("t.toml", fmt.Sprintf(fakeRecipe, r.Fingerprint))
	w.vars["MKMACHINE_MIRROR_DEBIAN"] = r.URL
	return w, r
}

// refused runs a command that must fail with a class, as people and as programs see it, and
// checks that each of the words is in the message and that nothing came of it.
func (w *world) refused(class fault.Class, words []string, args ...string) {
	w.t.Helper()
	o := w.run(append([]string{"--json"}, args...)...)
	e := o.failure(w.t)
	if e.Class != class || e.Exit != class.ExitCode() || o.code != class.ExitCode() {
		w.t.Errorf("%q: exit %d, class %s, want %s: %s", args, o.code, e.Class, class, e.Message)
	}
	o = w.run(args...)
	if o.code != class.ExitCode() || o.stdout != "" {
		w.t.Errorf("%q: exit %d, stdout %q, want %d and nothing", args, o.code, o.stdout, class.ExitCode())
	}
	for _, m := range words {
		if !strings.Contains(e.Message, m) || !strings.Contains(o.stderr, m) {
			w.t.Errorf("%q: the message lacks %q: %s\n%s", args, m, e.Message, o.stderr)
		}
	}
	w.tidyError(o)
	w.nothingCame()
}

// failure decodes the error line of a command that was run with --json.
func (o outcome) failure(t testing.TB) errorLine {
	t.Helper()
	var e errorLine
	if err := json.Unmarshal([]byte(o.stdout), &e); err != nil || e.Type != "error" {
		t.Fatalf("exit %d, no error line: %v\n%s%s", o.code, err, o.stdout, o.stderr)
	}
	return e
}

// tidyError: one line that says what could not be done, hints behind it, and nothing that
// only a programmer reads or a terminal acts upon.
func (w *world) tidyError(o outcome) {
	w.t.Helper()
	if n := strings.Count(o.stderr, "mkmachine: error: "); n != 1 {
		w.t.Errorf("%d error lines:\n%s", n, o.stderr)
	}
	for _, bad := range []string{"goroutine ", "panic", ".go:", "%!", "\x1b", "\r", "\x00"} {
		if strings.Contains(o.stderr, bad) {
			w.t.Errorf("%q in the messages:\n%s", bad, o.stderr)
		}
	}
	behind := false
	for line := range strings.Lines(o.stderr) {
		if behind && !strings.HasPrefix(line, "mkmachine: hint: ") && !strings.HasPrefix(line, "  ") {
			w.t.Errorf("%q behind the error:\n%s", line, o.stderr)
		}
		behind = behind || strings.HasPrefix(line, "mkmachine: error: ")
	}
}

// nothingCame: no lock, no image, no stage, and no blob in the cache under a wrong name.
func (w *world) nothingCame() {
	w.t.Helper()
	var images []struct {
		Name string `json:"name"`
	}
	w.must("--json", "list").result(w.t, &images)
	if len(images) != 0 {
		w.t.Errorf("images: %+v", images)
	}
	for _, dir := range []string{w.machines, filepath.Join(w.machines, ".mkmachine", "trees"), filepath.Join(w.machines, ".mkmachine", "journal")} {
		entries, err := os.ReadDir(dir)
		if err != nil && !os.IsNotExist(err) {
			w.t.Fatal(err)
		}
		for _, e := range entries {
			if e.Name() != ".mkmachine" {
				w.t.Errorf("left in %s: %s", dir, e.Name())
			}
		}
	}
	w.cacheIsSound()
}

func (w *world) cacheIsSound() {
	w.t.Helper()
	for _, cache := range []string{w.cache, filepath.Join(w.machines, ".mkmachine", "packs")} {
		err := filepath.WalkDir(filepath.Join(cache, "blobs"), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != d.Name() {
				w.t.Errorf("cached under a wrong name: %s", path)
			}
			return nil
		})
		if err != nil && !os.IsNotExist(err) {
			w.t.Fatal(err)
		}
	}
}

func (w *world) noLock() {
	w.t.Helper()
	if _, err := os.Stat(filepath.Join(w.dir, "t.lock.json")); !os.IsNotExist(err) {
		w.t.Errorf("a lock was written: %v", err)
	}
}

const inRelease = "dists/trixie/InRelease"

// TestHostileArchive: what a mirror can do to the files that a lock is made from. Each time
// the same command succeeds when the mirror is well again.
func TestHostileArchive(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		spec  sourcetest.Spec
		do    func(*testing.T, *sourcetest.Repo)
		class fault.Class
		words []string
	}{
		{name: "bit in InRelease", do: failing("InRelease", sourcetest.FlipBit), class: fault.Verify, words: []string{"InRelease", "signature"}},
		{name: "InRelease cut short", do: failing("InRelease", sourcetest.Truncate), class: fault.Verify, words: []string{"InRelease"}},
		{name: "InRelease cut off", do: failing("InRelease", sourcetest.CutOff), class: fault.Net, words: []string{"InRelease", "closed"}},
		{name: "InRelease stalled", do: failing("InRelease", sourcetest.Stall), class: fault.Net, words: []string{"InRelease", "stalled"}},
		{name: "InRelease in drops", do: failing("InRelease", sourcetest.Trickle), class: fault.Net, words: []string{"InRelease", "slower"}},
		{name: "InRelease without an end", do: failing("InRelease", sourcetest.Endless), class: fault.Limit, words: []string{"InRelease", "larger"}},
		{name: "CS-02 InRelease with an appendix", do: failing("InRelease", sourcetest.Append), class: fault.Verify, words: []string{"InRelease"}},
		{name: "NET-08 InRelease redirects for ever", do: failing("InRelease", sourcetest.Loop), class: fault.Net, words: []string{"InRelease", "redirects"}},
		{name: "REL-25 InRelease is a web page", do: failing("InRelease", sourcetest.HTML), class: fault.Verify, words: []string{"InRelease", "web page"}},
		{name: "NET-23 everything is a web page", do: failing("*", sourcetest.HTML), class: fault.Verify, words: []string{"InRelease", "web page"}},
		{name: "server errors", do: failing("*", sourcetest.Broken), class: fault.Net, words: []string{"InRelease", "503"}},
		{name: "InRelease of another key", do: stranger, class: fault.Verify, words: []string{"InRelease", "key"}},
		{name: "REL-22 no InRelease, Release unsigned", do: func(_ *testing.T, r *sourcetest.Repo) {
			r.Fail("InRelease", sourcetest.Missing, 0)
			r.Fail("Release.gpg", sourcetest.Missing, 0)
		}, class: fault.Verify, words: []string{"Release", "without a signature"}},
		{name: "no InRelease, Release of another key", do: func(t *testing.T, r *sourcetest.Repo) {
			stranger(t, r)
			r.Fail("InRelease", sourcetest.Missing, 0)
		}, class: fault.Verify, words: []string{"Release", "key"}},
		{name: "no InRelease, Release changed", do: func(_ *testing.T, r *sourcetest.Repo) {
			r.Fail("InRelease", sourcetest.Missing, 0)
			r.Fail("Release", sourcetest.FlipBit, 0)
		}, class: fault.Verify, words: []string{"Release", "signature"}},
		{name: "no Release at all", do: failing("*", sourcetest.Missing), class: fault.Net, words: []string{"trixie", "not found"}},

		{name: "REL-09 bit in an index", do: failing("*/*/*/*/by-hash/*/*", sourcetest.FlipBit), class: fault.Verify, words: []string{"main/binary-amd64", "SHA-256"}},
		{name: "index cut short", do: failing("dists/trixie/main/*/by-hash/*/*", sourcetest.Truncate), class: fault.Verify, words: []string{"binary-amd64", "promised"}},
		{name: "index cut off", do: failing("dists/trixie/main/*/by-hash/*/*", sourcetest.CutOff), class: fault.Net, words: []string{"binary-amd64", "closed"}},
		{name: "index stalled", do: failing("dists/trixie/main/*/by-hash/*/*", sourcetest.Stall), class: fault.Net, words: []string{"binary-amd64", "stalled"}},
		{name: "index with an appendix", do: failing("dists/trixie/main/*/by-hash/*/*", sourcetest.Append), class: fault.Verify, words: []string{"binary-amd64", "promised"}},
		{name: "index without an end", do: failing("dists/trixie/main/*/by-hash/*/*", sourcetest.Endless), class: fault.Verify, words: []string{"binary-amd64", "promised"}},
		{name: "index is a web page", do: failing("dists/trixie/main/*/by-hash/*/*", sourcetest.HTML), class: fault.Verify, words: []string{"binary-amd64", "web page"}},
		{name: "REL-24 indexes gone", do: func(_ *testing.T, r *sourcetest.Repo) {
			r.Fail("dists/trixie/main/*/*", sourcetest.Missing, 0)
			r.Fail("dists/trixie/main/*/by-hash/*/*", sourcetest.Missing, 0)
		}, class: fault.Net, words: []string{"Packages", "out of sync"}},
		{name: "REL-24 old indexes, no by-hash", spec: sourcetest.Spec{NoByHash: true}, do: failing("Packages*", sourcetest.FlipBit), class: fault.Verify, words: []string{"Packages", "SHA-256"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w, r := newArchive(t, c.spec)
			good := r.ReleaseText()
			c.do(t, r)
			w.refused(c.class, c.words, "lock", "t.toml")
			w.noLock()
			r.Heal()
			if err := r.Sign(good); err != nil {
				t.Fatal(err)
			}
			w.must("lock", "t.toml")
			w.cacheIsSound()
		})
	}
}

func failing(pattern string, f sourcetest.Fault) func(*testing.T, *sourcetest.Repo) {
	return func(_ *testing.T, r *sourcetest.Repo) { r.Fail(pattern, f, 0) }
}

func stranger(t *testing.T, r *sourcetest.Repo) {
	if _, err := r.SignByStranger(); err != nil {
		t.Fatal(err)
	}
}

// TestStaleRelease: releases that were good once, or are not yet.
func TestStaleRelease(t *testing.T) {
	t.Parallel()
	day := 24 * time.Hour
	now := time.Now()
	t.Run("REL-04 expired", func(t *testing.T) {
		w, _ := newArchive(t, sourcetest.Spec{Date: now.Add(-30 * day)})
		w.refused(fault.Verify, []string{"trixie", "expired on"}, "lock", "t.toml")
		w.noLock()
		// A pinned date is the one way to take it.
		text, err := os.ReadFile(filepath.Join(w.dir, "t.toml"))
		if err != nil {
			t.Fatal(err)
		}
		w.write("t.toml", string(text)+fmt.Sprintf("snapshot = %q\n", now.Add(-29*day).UTC().Format(time.RFC3339)))
		w.must("lock", "t.toml")
	})
	t.Run("REL-05 from the future", func(t *testing.T) {
		w, _ := newArchive(t, sourcetest.Spec{Date: now.Add(2 * day)})
		w.refused(fault.Verify, []string{"trixie", "future"}, "lock", "t.toml")
	})
	t.Run("REL-06 older than seen", func(t *testing.T) {
		w, r := newArchive(t, sourcetest.Spec{})
		text := r.ReleaseText()
		w.must("lock", "t.toml")
		date := r.Spec.Date.Format(time.RFC1123)
		older := strings.Replace(text, strings.Replace(date, "GMT", "UTC", 1), r.Spec.Date.Add(-day).Format("Mon, 02 Jan 2006 15:04:05 UTC"), 1)
		if older == text {
			t.Fatal("the date was not replaced")
		}
		if err := r.Sign(older); err != nil {
			t.Fatal(err)
		}
		before, err := os.ReadFile(filepath.Join(w.dir, "t.lock.json"))
		if err != nil {
			t.Fatal(err)
		}
		w.refused(fault.Verify, []string{"trixie", "newer one"}, "lock", "--update", "t.toml")
		if after, err := os.ReadFile(filepath.Join(w.dir, "t.lock.json")); err != nil || !bytes.Equal(before, after) {
			t.Fatal("the lock was changed", err)
		}
		if err := r.Sign(text); err != nil {
			t.Fatal(err)
		}
		w.must("lock", "--update", "t.toml")
	})
	t.Run("REL-07 codename", func(t *testing.T) {
		w, _ := newArchive(t, sourcetest.Spec{Codename: "forky"})
		w.refused(fault.Verify, []string{"trixie", "says codename", "forky"}, "lock", "t.toml")
	})
}

// TestHTTPSMirror: NET-09 and NET-19.
func TestHTTPSMirror(t *testing.T) {
	t.Parallel()
	w, r := newArchive(t, sourcetest.Spec{})
	var plain bool
	var mu sync.Mutex
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(out http.ResponseWriter, req *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if plain {
			http.Redirect(out, req, r.URL+req.URL.Path, http.StatusFound)
			return
		}
		r.ServeHTTP(out, req)
	}))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0) // it hears of the refused certificate
	srv.StartTLS()
	t.Cleanup(srv.Close)
	w.vars["MKMACHINE_MIRROR_DEBIAN"] = srv.URL
	w.refused(fault.Net, []string{"InRelease", "certificate"}, "lock", "t.toml")

	pool := x509.NewCertPool()
	pool.AddCert(srv.Certificate())
	w.adjust = func(e *env) { impatient(e); e.RootCAs = pool }
	plain = true
	w.refused(fault.Policy, []string{"InRelease", "redirect from https"}, "lock", "t.toml")
	w.noLock()
	mu.Lock()
	plain = false
	mu.Unlock()
	w.must("lock", "t.toml")
}

// TestHostilePackage: what a mirror can do to a package that the lock pins.
func TestHostilePackage(t *testing.T) {
	kerneltest.Require(t, kernel.Root, kernel.UserNS, kernel.IDMap)
	for _, c := range []struct {
		fault sourcetest.Fault
		class fault.Class
		word  string
	}{
		{sourcetest.FlipBit, fault.Verify, "SHA-256"},
		{sourcetest.Truncate, fault.Verify, "promised"},
		{sourcetest.CutOff, fault.Net, "closed"},
		{sourcetest.Stall, fault.Net, "stalled"},
		{sourcetest.Append, fault.Verify, "promised"},
		{sourcetest.Endless, fault.Verify, "promised"},
		{sourcetest.HTML, fault.Verify, "web page"},
		{sourcetest.Missing, fault.Net, "not found"},
		{sourcetest.Broken, fault.Net, "503"},
		{sourcetest.Loop, fault.Net, "redirects"},
		{sourcetest.BadRange, fault.Net, "206"},
	} {
		t.Run(string(c.fault), func(t *testing.T) {
			w, r := newArchive(t, sourcetest.Spec{})
			t.Cleanup(w.empty)
			r.Fail("base-files_*.deb", c.fault, 0)
			w.refused(c.class, []string{"base-files_1.0_amd64.deb", c.word}, "build", "t.toml")
		})
	}
}

// badMirror stands in front of a real archive, keeps what it brought, and spoils answers.
type badMirror struct {
	upstream string
	mu       sync.Mutex
	files    map[string][]byte // nil: not there
	spoil    func(path string, data []byte) []byte
}

func newBadMirror(t *testing.T, upstream string) (*badMirror, string) {
	m := &badMirror{upstream: upstream, files: map[string][]byte{}}
	srv := httptest.NewServer(m)
	t.Cleanup(srv.Close)
	return m, srv.URL
}

func (m *badMirror) get(path string) ([]byte, error) {
	m.mu.Lock()
	data, ok := m.files[path]
	m.mu.Unlock()
	if ok {
		return data, nil
	}
	resp, err := http.Get(m.upstream + path)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusNotFound:
	case http.StatusOK:
		if data, err = io.ReadAll(resp.Body); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("upstream answers %s", resp.Status)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.files[path] = data
	return data, nil
}

func (m *badMirror) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	data, err := m.get(req.URL.Path)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	m.mu.Lock()
	spoil := m.spoil
	m.mu.Unlock()
	if spoil != nil {
		data = spoil(req.URL.Path, data)
	}
	if data == nil {
		http.NotFound(w, req)
		return
	}
	w.Header().Set("Content-Length", fmt.Sprint(len(data)))
	w.Write(data)
}

func (m *badMirror) set(spoil func(path string, data []byte) []byte) {
	m.mu.Lock()
	m.spoil = spoil
	m.mu.Unlock()
}

// TestHostileMirror stands between the program and the real archive; at the end the same
// command builds a tree that runs.
func TestHostileMirror(t *testing.T) {
	kerneltest.Require(t, kernel.Root, kernel.UserNS, kernel.IDMap, kernel.Cgroup)
	upstream := kerneltest.Mirror(t, "debian")
	mirror, url := newBadMirror(t, upstream)
	genuine, err := mirror.get("/" + inRelease)
	if err != nil || genuine == nil {
		kerneltest.Lacks(t, "mirror", fmt.Sprintf("%s has no trixie: %v", upstream, err))
	}
	w := newWorld(t, "")
	w.vars["MKMACHINE_MIRROR_DEBIAN"] = url
	w.adjust = func(e *env) { e.Timeouts = fetch.Timeouts{Backoff: time.Millisecond} }
	w.write("t.toml", "schema = 1\nname = \"t\"\n[source]\nkind = \"deb\"\ndistribution = \"debian\"\nsuite = \"trixie\"\nvariant = \"essential\"\npockets = [\"release\"]\n")

	forger := sourcetest.NewRepo(t, sourcetest.Spec{Suite: "trixie"})
	if err := forger.Sign(signedText(string(genuine))); err != nil {
		t.Fatal(err)
	}
	flip := func(data []byte) []byte {
		out := bytes.Clone(data)
		out[len(out)/2] ^= 1
		return out
	}
	page := []byte("<html><body>log in</body></html>\n")
	for _, c := range []struct {
		name  string
		match func(path string) bool
		to    func([]byte) []byte
		class fault.Class
		words []string
	}{
		{"bit in InRelease", contains("InRelease"), flip, fault.Verify, []string{"InRelease"}},
		{"another key", contains("InRelease"), func([]byte) []byte { return forger.File(inRelease) }, fault.Verify, []string{"InRelease", "key"}},
		{"truncated InRelease", contains("InRelease"), func(d []byte) []byte { return d[:len(d)-200] }, fault.Verify, []string{"InRelease"}},
		{"bit in an index", func(p string) bool { return strings.Contains(p, "binary-") }, flip, fault.Verify, []string{"binary-", "SHA-256"}},
		{"web page for everything", contains(""), func([]byte) []byte { return page }, fault.Verify, []string{"InRelease", "web page"}},
		{"bit in a package", contains("/libc6_"), flip, fault.Verify, []string{"libc6_", "SHA-256"}},
		{"truncated package", contains("/perl-base_"), func(d []byte) []byte { return d[:len(d)/2] }, fault.Verify, []string{"perl-base_", "promised"}},
		{"web page for one package", contains("/bash_"), func([]byte) []byte { return page }, fault.Verify, []string{"bash_", "web page"}},
		{"missing package", contains("/dash_"), func([]byte) []byte { return nil }, fault.Net, []string{"dash_", "not found"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w.t = t
			// What earlier cases brought would not be asked for again.
			for _, dir := range []string{w.cache, filepath.Join(w.machines, ".mkmachine", "packs")} {
				if err := os.RemoveAll(dir); err != nil {
					t.Fatal(err)
				}
			}
			mirror.set(func(path string, data []byte) []byte {
				if data != nil && c.match(path) {
					return c.to(data)
				}
				return data
			})
			w.refused(c.class, c.words, "build", "t.toml")
		})
	}
	w.t = t
	mirror.set(nil)
	t.Cleanup(w.empty)
	w.must("build", "t.toml")
	w.cacheIsSound()
	if o := w.must("run", "-x", "t", "--", "/bin/sh", "-c", ". /etc/os-release; echo $VERSION_CODENAME"); strings.TrimSpace(o.stdout) != "trixie" {
		t.Errorf("%q %q", o.stdout, o.stderr)
	}
	w.must("verify", "t")

	// The layer of the packages is there now; what a script does to it is quick to try.
	recipe, err := os.ReadFile(filepath.Join(w.dir, "t.toml"))
	if err != nil {
		t.Fatal(err)
	}
	script := func(name, text string) {
		w.write(name+".toml", strings.Replace(string(recipe), `"t"`, fmt.Sprintf("%q", name), 1)+fmt.Sprintf("[[script]]\nrun = %q\n", text))
	}
	t.Run("DEB-19 a script that leaves a daemon", func(t *testing.T) {
		w.t = t
		script("daemon", "trap '' TERM HUP\nsetsid sh -c 'trap \"\" TERM HUP; sleep 600' >/dev/null 2>&1 &\nsleep 600 &\nexit 0\n")
		began := time.Now()
		w.must("build", "daemon.toml")
		if took := time.Since(began); took > 60*time.Second {
			t.Errorf("took %v", took)
		}
	})
	for name, text := range map[string]string{
		"no-os-release": "rm -f /usr/lib/os-release /etc/os-release",
		"no-shell":      "rm -f /usr/bin/sh /usr/bin/dash",
	} {
		t.Run("DEB-21 "+name, func(t *testing.T) {
			w.t = t
			script(name, text)
			o := w.run("build", name+".toml")
			if o.code != fault.State.ExitCode() {
				t.Errorf("exit %d\n%s", o.code, o.stderr)
			}
			w.tidyError(o)
			if o := w.run("inspect", name); o.code != fault.State.ExitCode() {
				t.Errorf("it was published: %s", o.stdout)
			}
		})
	}
}

func contains(part string) func(string) bool {
	return func(path string) bool { return strings.Contains(path, part) }
}

// signedText is the text of a clearsigned message.
func signedText(message string) string {
	_, body, _ := strings.Cut(message, "\n\n")
	body, _, _ = strings.Cut(body, "-----BEGIN PGP SIGNATURE-----")
	lines := slices.Collect(strings.Lines(body))
	for i, l := range lines {
		lines[i] = strings.TrimPrefix(l, "- ")
	}
	return strings.Join(lines, "")
}
