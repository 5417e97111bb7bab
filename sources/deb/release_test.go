// SPDX-License-Identifier: Apache-2.0

package deb_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mkmachine/mkmachine/internal/cas"
	"github.com/mkmachine/mkmachine/internal/compress"
	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/sources"
	"github.com/mkmachine/mkmachine/sources/deb"
	"github.com/mkmachine/mkmachine/sources/fetch"
	"github.com/mkmachine/mkmachine/sources/pgp"
	"github.com/mkmachine/mkmachine/sources/sourcetest"
)

const (
	digestA = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	digestB = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
	head    = "Origin: Debian\nLabel: Debian\nSuite: stable\nCodename: trixie\nDate: Sat, 12 Sep 2026 07:56:00 UTC\n"
)

func TestParseRelease(t *testing.T) {
	table := "SHA256:\n " + digestA + "     12 main/binary-amd64/Packages\n"
	for _, c := range []struct {
		name, text string
		class      fault.Class
	}{
		{"good", head + table, ""},
		{"trailing newlines", head + table + "\n\n", ""},
		{"one-digit day", strings.Replace(head, "12 Sep", "2 Sep", 1) + table, ""},
		{"+0000", strings.Replace(head, "UTC", "+0000", 1) + table, ""},
		{"same line twice", head + table + " " + digestA + " 12 main/binary-amd64/Packages\n", ""},
		{"REL-01 only MD5", head + "MD5Sum:\n d41d8cd98f00b204e9800998ecf8427e 0 x\nSHA1:\n da39a3ee5e6b4b0d3255bfef95601890afd80709 0 x\n", fault.Verify},
		{"REL-03 two digests", head + table + " " + digestB + " 12 main/binary-amd64/Packages\n", fault.Format},
		{"REL-03 two sizes", head + table + " " + digestA + " 13 main/binary-amd64/Packages\n", fault.Format},
		{"field twice", head + "suite: other\n" + table, fault.Format},
		{"table twice", head + table + table, fault.Format},
		{"two paragraphs", head + table + "\nPackage: x\n", fault.Format},
		{"no date", strings.Replace(head, "Date:", "Data:", 1) + table, fault.Format},
		{"date with an offset", strings.Replace(head, "UTC", "+0200", 1) + table, fault.Format},
		{"bad date", strings.Replace(head, "Sep", "Sept", 1) + table, fault.Format},
		{"no suite", "Date: Sat, 12 Sep 2026 07:56:00 UTC\n" + table, fault.Format},
		{"upper-case digest", head + "SHA256:\n " + strings.ToUpper(digestA) + " 1 x\n", fault.Format},
		{"short digest", head + "SHA256:\n " + digestA[1:] + " 1 x\n", fault.Format},
		{"negative size", head + "SHA256:\n " + digestA + " -1 x\n", fault.Format},
		{"REL-15 huge size", head + "SHA256:\n " + digestA + " 99999999999999999999 x\n", fault.Format},
		{"size with sign", head + "SHA256:\n " + digestA + " +1 x\n", fault.Format},
		{"size in octal", head + "SHA256:\n " + digestA + " 010 x\n", fault.Format},
		{"two words", head + "SHA256:\n " + digestA + " 1\n", fault.Format},
		{"path leaves", head + "SHA256:\n " + digestA + " 1 ../x\n", fault.Path},
		{"absolute path", head + "SHA256:\n " + digestA + " 1 /x\n", fault.Path},
		{"continuation first", " x\n" + head + table, fault.Format},
		{"field with dash", head + "-Suite: x\n" + table, fault.Format},
		{"no field", head + "hello\n" + table, fault.Format},
		{"CR LF", strings.ReplaceAll(head+table, "\n", "\r\n"), fault.Format},
		{"NUL", head + "X: a\x00b\n" + table, fault.Format},
		{"empty", "", fault.Format},
		{"REL-25 web page", "<!DOCTYPE html>\n<html>\n", fault.Verify},
		{"too large", head + strings.Repeat("X", 17<<20), fault.Limit},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := deb.ParseRelease([]byte(c.text))
			if c.class != "" {
				if err == nil || fault.ClassOf(err) != c.class || !strings.HasPrefix(err.Error(), "cannot read Release: ") {
					t.Fatalf("class %s, want %s: %v", fault.ClassOf(err), c.class, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if f := r.Files["main/binary-amd64/Packages"]; f.Size != 12 || f.SHA256 != digestA {
				t.Fatalf("%+v", r)
			}
		})
	}
}

func TestReleaseFields(t *testing.T) {
	r, err := deb.ParseRelease([]byte(head + "Valid-Until: Sat, 19 Sep 2026 07:56:00 UTC\nAcquire-By-Hash: yes\nNo-Support-for-Architecture-all: Packages\n" +
		"NotAutomatic: yes\nButAutomaticUpgrades: yes\nArchitectures: all amd64 arm64\nComponents: main contrib\nDescription: two\n lines\nSHA256:\n"))
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(r.Origin, r.Label, r.Suite, r.Codename, r.Date.Unix(), r.ValidUntil.Sub(r.Date), r.AcquireByHash, r.NoAllPackages, r.NotAutomatic, r.ButAutomaticUpgrades, r.Architectures, r.Components)
	if want := "DebianDebianstabletrixie1789199760 168h0m0s true true true true [all amd64 arm64] [main contrib]"; got != want {
		t.Fatalf("%s\nwant %s", got, want)
	}
}

func TestCheckRelease(t *testing.T) {
	now := time.Date(2026, 9, 14, 0, 0, 0, 0, time.UTC)
	day := 24 * time.Hour
	date := now.Add(-2 * day)
	base := deb.Release{Origin: "Debian", Label: "Debian", Suite: "stable", Codename: "trixie", Date: date, ValidUntil: date.Add(7 * day)}
	stable := deb.ReleaseWant{Suite: "stable"}
	for _, c := range []struct {
		name  string
		edit  func(*deb.Release)
		want  deb.ReleaseWant
		clock deb.Clock
		text  string // "" means fine
	}{
		{"fresh", nil, stable, deb.Clock{Now: now}, ""},
		{"by codename", nil, deb.ReleaseWant{Suite: "trixie", Codename: "trixie", Origin: "Debian", Label: "Debian"}, deb.Clock{Now: now}, ""},
		{"old security name", nil, deb.ReleaseWant{Suite: "trixie/updates"}, deb.Clock{Now: now}, ""},
		{"REL-04 expired", nil, stable, deb.Clock{Now: now.Add(6 * day)}, "expired on 2026-09-19"},
		{"REL-04 expired, pinned", nil, stable, deb.Clock{Now: now.Add(60 * day), Snapshot: date.Add(day)}, ""},
		{"pinned before its date", nil, stable, deb.Clock{Now: now, Snapshot: date.Add(-day)}, "after the snapshot"},
		{"pinned after its end", nil, stable, deb.Clock{Now: now.Add(60 * day), Snapshot: date.Add(30 * day)}, "had expired"},
		{"no limit", func(r *deb.Release) { r.ValidUntil = time.Time{} }, stable, deb.Clock{Now: now.Add(900 * day)}, ""},
		{"REL-05 in the future", nil, stable, deb.Clock{Now: date.Add(-2 * day)}, "in the future"},
		{"a little in the future", nil, stable, deb.Clock{Now: date.Add(-5 * time.Minute)}, ""},
		{"REL-06 rollback", nil, stable, deb.Clock{Now: now, Seen: date.Add(time.Second)}, "newer one"},
		{"same as seen", nil, stable, deb.Clock{Now: now, Seen: date}, ""},
		{"older, but pinned", nil, stable, deb.Clock{Now: now, Seen: now, Snapshot: date}, ""},
		{"REL-07 suite", nil, deb.ReleaseWant{Suite: "testing"}, deb.Clock{Now: now}, "says suite"},
		{"REL-07 codename", nil, deb.ReleaseWant{Suite: "stable", Codename: "forky"}, deb.Clock{Now: now}, "says codename"},
		{"origin", nil, deb.ReleaseWant{Suite: "stable", Origin: "Ubuntu"}, deb.Clock{Now: now}, "says origin"},
		{"label", nil, deb.ReleaseWant{Suite: "stable", Label: "Debian-Security"}, deb.Clock{Now: now}, "says label"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := base
			if c.edit != nil {
				c.edit(&r)
			}
			err := deb.CheckRelease(&r, c.want, c.clock)
			if c.text == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if fault.ClassOf(err) != fault.Verify || !strings.Contains(err.Error(), c.text) {
				t.Fatal(err)
			}
			if strings.HasPrefix(c.name, "REL-0") && !strings.HasPrefix(c.name, "REL-07") && len(fault.Hints(err)) == 0 {
				t.Fatal("no hint")
			}
		})
	}
}

func hello() []sourcetest.Package {
	return []sourcetest.Package{{Name: "hello", Files: []sourcetest.File{{Path: "/usr/bin/hello", Mode: 0o755, Body: "#!/bin/sh\necho hi\n"}}}}
}

func fetcher(t *testing.T, r *sourcetest.Repo) *fetch.Fetcher {
	t.Helper()
	cache, err := cas.Open(filepath.Join(t.TempDir(), "cache"))
	if err != nil {
		t.Fatal(err)
	}
	f, err := fetch.New(fetch.Options{
		Cache: cache, Mirrors: map[string][]fetch.Mirror{r.Spec.Family: fetch.Mirrors(r.URL)},
		Timeouts: fetch.Timeouts{Idle: 100 * time.Millisecond, Backoff: time.Millisecond, Header: time.Second},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	return f
}

// load does what a resolver does with a repository.
func load(t *testing.T, f sources.Fetcher, r *sourcetest.Repo, clock deb.Clock) (*deb.PackagesText, error) {
	t.Helper()
	ring, err := pgp.LoadKeyring(r.Keyring)
	if err != nil {
		t.Fatal(err)
	}
	rel, err := deb.FetchRelease(t.Context(), f, r.Spec.Family, r.Spec.Suite, ring, pgp.Policy{Now: clock.Now, KeysAt: clock.Snapshot})
	if err != nil {
		return nil, err
	}
	if err := deb.CheckRelease(rel, deb.ReleaseWant{Suite: r.Spec.Suite}, clock); err != nil {
		return nil, err
	}
	return deb.FetchIndex(t.Context(), f, rel, r.Spec.Family, r.Spec.Suite, "main", "amd64", nil)
}

func TestFaultyRepository(t *testing.T) {
	now := time.Now()
	fail := func(pattern string, f sourcetest.Fault) func(*testing.T, *sourcetest.Repo) {
		return func(_ *testing.T, r *sourcetest.Repo) { r.Fail(pattern, f, 0) }
	}
	for _, c := range []struct {
		name  string
		spec  sourcetest.Spec
		edit  func(*testing.T, *sourcetest.Repo)
		clock deb.Clock
		class fault.Class
		text  string
	}{
		{"good", sourcetest.Spec{}, nil, deb.Clock{Now: now}, "", ""},
		{"no by-hash", sourcetest.Spec{NoByHash: true}, nil, deb.Clock{Now: now}, "", ""},
		{"only xz", sourcetest.Spec{Indexes: []string{".xz"}}, nil, deb.Clock{Now: now}, "", ""},
		{"only zst", sourcetest.Spec{Indexes: []string{".zst"}}, nil, deb.Clock{Now: now}, "", ""},
		{"only plain", sourcetest.Spec{Indexes: []string{""}}, nil, deb.Clock{Now: now}, "", ""},
		{"Release and Release.gpg", sourcetest.Spec{NoInline: true}, nil, deb.Clock{Now: now}, "", ""},
		{"gz missing, xz there", sourcetest.Spec{}, func(_ *testing.T, r *sourcetest.Repo) {
			gz := r.Blob("dists/stable/main/binary-amd64/Packages.gz")
			r.SetFile("dists/stable/main/binary-amd64/by-hash/SHA256/"+gz.SHA256, nil)
			r.SetFile(gz.Path, nil)
		}, deb.Clock{Now: now}, "", ""},
		{"by-hash missing", sourcetest.Spec{}, fail("dists/stable/main/binary-amd64/by-hash/SHA256/*", sourcetest.Missing), deb.Clock{Now: now}, "", ""},
		{"flipped InRelease", sourcetest.Spec{}, fail("InRelease", sourcetest.FlipBit), deb.Clock{Now: now}, fault.Verify, "InRelease"},
		{"truncated InRelease", sourcetest.Spec{}, fail("InRelease", sourcetest.Truncate), deb.Clock{Now: now}, fault.Verify, "InRelease"},
		{"junk after InRelease", sourcetest.Spec{}, fail("InRelease", sourcetest.Append), deb.Clock{Now: now}, fault.Verify, "after the signature"},
		{"stalled InRelease", sourcetest.Spec{}, fail("InRelease", sourcetest.Stall), deb.Clock{Now: now}, fault.Net, "stalled"},
		{"cut off InRelease", sourcetest.Spec{}, fail("InRelease", sourcetest.CutOff), deb.Clock{Now: now}, fault.Net, "closed"},
		{"REL-25 portal", sourcetest.Spec{}, fail("*", sourcetest.HTML), deb.Clock{Now: now}, fault.Verify, "web page"},
		{"other key", sourcetest.Spec{}, func(t *testing.T, r *sourcetest.Repo) {
			if _, err := r.SignByStranger(); err != nil {
				t.Fatal(err)
			}
		}, deb.Clock{Now: now}, fault.Verify, "unknown key"},
		{"REL-22 no signature", sourcetest.Spec{NoInline: true}, fail("Release.gpg", sourcetest.Missing), deb.Clock{Now: now}, fault.Verify, "without a signature"},
		{"flipped Release", sourcetest.Spec{NoInline: true}, fail("Release", sourcetest.FlipBit), deb.Clock{Now: now}, fault.Verify, "bad signature"},
		{"REL-23 bad InRelease is not replaced", sourcetest.Spec{}, fail("InRelease", sourcetest.FlipBit), deb.Clock{Now: now}, fault.Verify, ""},
		{"no such suite", sourcetest.Spec{}, fail("*Release", sourcetest.Missing), deb.Clock{Now: now}, fault.Net, "not found"},
		{"REL-04 expired", sourcetest.Spec{Date: now.Add(-10 * 24 * time.Hour)}, nil, deb.Clock{Now: now}, fault.Verify, "expired"},
		{"expired but pinned", sourcetest.Spec{Date: now.Add(-10 * 24 * time.Hour)}, nil, deb.Clock{Now: now, Snapshot: now.Add(-9 * 24 * time.Hour)}, "", ""},
		{"REL-05 future", sourcetest.Spec{Date: now.Add(48 * time.Hour)}, nil, deb.Clock{Now: now}, fault.Verify, "future"},
		{"REL-06 older", sourcetest.Spec{Date: now.Add(-2 * time.Hour)}, nil, deb.Clock{Now: now, Seen: now.Add(-time.Hour)}, fault.Verify, "newer one"},
		{"REL-09 flipped index", sourcetest.Spec{}, fail("dists/stable/main/binary-amd64/by-hash/SHA256/*", sourcetest.FlipBit), deb.Clock{Now: now}, fault.Verify, "SHA-256"},
		{"REL-02 truncated index", sourcetest.Spec{}, fail("dists/stable/main/binary-amd64/by-hash/SHA256/*", sourcetest.Truncate), deb.Clock{Now: now}, fault.Verify, "promised"},
		{"REL-10 decoded index differs", sourcetest.Spec{}, func(t *testing.T, r *sourcetest.Repo) {
			text := r.ReleaseText()
			i := strings.Index(text, "main/binary-amd64/Packages\n")
			line := text[strings.LastIndex(text[:i], "\n"):i]
			text = strings.Replace(text, line, "\n "+digestA+line[66:], 1)
			if err := r.Sign(text); err != nil {
				t.Fatal(err)
			}
		}, deb.Clock{Now: now}, fault.Verify, "decoded"},
		{"REL-01 weak digests", sourcetest.Spec{}, func(t *testing.T, r *sourcetest.Repo) {
			if err := r.Sign(strings.Replace(r.ReleaseText(), "SHA256:", "SHA1:", 1)); err != nil {
				t.Fatal(err)
			}
		}, deb.Clock{Now: now}, fault.Verify, "no SHA256"},
		{"REL-26 architecture", sourcetest.Spec{Arch: "arm64"}, nil, deb.Clock{Now: now}, fault.Dep, "no architecture amd64"},
		{"REL-26 component", sourcetest.Spec{Components: []string{"universe"}}, nil, deb.Clock{Now: now}, fault.Dep, "no component main"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.spec.Packages = hello()
			r := sourcetest.NewRepo(t, c.spec)
			if c.edit != nil {
				c.edit(t, r)
			}
			f := fetcher(t, r)
			index, err := load(t, f, r, c.clock)
			if c.class == "" {
				if err != nil {
					t.Fatal(err)
				}
				if !strings.Contains(string(index.Text), "Package: hello\n") || !strings.HasPrefix(index.File.Path, "main/binary-amd64/Packages") {
					t.Fatalf("%+v", index)
				}
				return
			}
			if err == nil || fault.ClassOf(err) != c.class || !strings.Contains(err.Error(), c.text) {
				t.Fatalf("class %s, want %s: %v", fault.ClassOf(err), c.class, err)
			}
			if strings.HasPrefix(c.name, "REL-23") && r.Hits("dists/stable/Release") != 0 {
				t.Fatal("took the other way after a bad InRelease")
			}
		})
	}
}

func TestGoodMirrorAfterwards(t *testing.T) {
	r := sourcetest.NewRepo(t, sourcetest.Spec{Packages: hello()})
	f := fetcher(t, r)
	clock := deb.Clock{Now: time.Now()}
	for _, bad := range []sourcetest.Fault{sourcetest.FlipBit, sourcetest.Truncate, sourcetest.HTML, sourcetest.Append, sourcetest.CutOff} {
		r.Fail("*", bad, 0)
		if _, err := load(t, f, r, clock); err == nil {
			t.Fatalf("%s: accepted", bad)
		}
		r.Heal()
	}
	if _, err := load(t, f, r, clock); err != nil {
		t.Fatal(err)
	}
	if _, err := load(t, r.MapFetcher(), r, clock); err != nil {
		t.Fatal(err)
	}
}

func TestNoKeyring(t *testing.T) {
	r := sourcetest.NewRepo(t, sourcetest.Spec{Packages: hello()})
	if _, err := deb.FetchRelease(t.Context(), r.MapFetcher(), "debian", "stable", nil, pgp.Policy{Now: time.Now()}); fault.ClassOf(err) != fault.Verify {
		t.Fatal(err)
	}
	if r.Hits("dists/stable/InRelease") != 0 {
		t.Fatal("fetched before asking for keys")
	}
}

func TestIndexChoice(t *testing.T) {
	file := func(size int64) deb.ReleaseFile { return deb.ReleaseFile{Size: size, SHA256: digestA} }
	r := &deb.Release{AcquireByHash: true, Files: map[string]deb.ReleaseFile{
		"main/binary-amd64/Packages": file(50_000_000), "main/binary-amd64/Packages.xz": file(8_900_000), "main/binary-amd64/Packages.gz": file(11_800_000),
	}}
	for _, c := range []struct {
		link  int64
		kinds string
	}{{0, "[gzip xz plain]"}, {1_000_000_000, "[gzip xz plain]"}, {1_000_000, "[xz gzip plain]"}} {
		files, err := deb.IndexFiles(r, "debian", "trixie", "main", "amd64", c.link)
		if err != nil {
			t.Fatal(err)
		}
		var kinds []compress.Kind
		for _, f := range files {
			kinds = append(kinds, f.Kind)
		}
		if got := fmt.Sprint(kinds); got != c.kinds {
			t.Errorf("link %d: %s, want %s", c.link, got, c.kinds)
		}
		first := files[0].Blobs
		if first[0].Path != "dists/trixie/main/binary-amd64/by-hash/SHA256/"+digestA || !strings.HasPrefix(first[1].Path, "dists/trixie/main/binary-amd64/Packages.") {
			t.Fatalf("%+v", first)
		}
	}
}

func TestOfflineIndex(t *testing.T) {
	r := sourcetest.NewRepo(t, sourcetest.Spec{Packages: hello(), Indexes: []string{".xz", ".gz"}})
	f := fetcher(t, r)
	ring, _ := pgp.LoadKeyring(r.Keyring)
	rel, err := deb.FetchRelease(t.Context(), f, "debian", "stable", ring, pgp.Policy{Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	cache, err := cas.Open(filepath.Join(t.TempDir(), "c"))
	if err != nil {
		t.Fatal(err)
	}
	on, _ := fetch.New(fetch.Options{Cache: cache, Mirrors: map[string][]fetch.Mirror{"debian": fetch.Mirrors(r.URL)}})
	off, _ := fetch.New(fetch.Options{Cache: cache, Offline: true})
	if _, err := deb.FetchIndex(t.Context(), off, rel, "debian", "stable", "main", "amd64", nil); !errors.Is(err, sources.ErrOffline) {
		t.Fatal(err)
	}
	xz, err := on.Fetch(t.Context(), r.Blob("dists/stable/main/binary-amd64/Packages.xz"))
	if err != nil {
		t.Fatal(err)
	}
	xz.Close()
	if _, err := deb.FetchIndex(t.Context(), off, rel, "debian", "stable", "main", "amd64", nil); err != nil {
		t.Fatal(err)
	}
}

func TestRealReleases(t *testing.T) {
	dir := os.Getenv("MKMACHINE_MIRRORS")
	if dir == "" {
		t.Skip("needs mirrors of real archives, named by MKMACHINE_MIRRORS")
	}
	found, _ := filepath.Glob(filepath.Join(dir, "*", "dists", "*", "Release"))
	if len(found) == 0 {
		t.Fatal("no Release below", dir)
	}
	for _, path := range found {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		r, err := deb.ParseRelease(text)
		if err != nil {
			t.Fatal(path, err)
		}
		if _, err := deb.IndexFiles(r, "x", filepath.Base(filepath.Dir(path)), "main", "amd64", 0); err != nil {
			t.Fatal(path, err)
		}
		err = deb.CheckRelease(r, deb.ReleaseWant{Suite: filepath.Base(filepath.Dir(path))}, deb.Clock{Now: r.Date.Add(time.Hour)})
		if err != nil {
			t.Fatal(path, err)
		}
	}
}

func FuzzRelease(f *testing.F) {
	f.Add([]byte(head + "SHA256:\n " + digestA + " 12 main/binary-amd64/Packages\n"))
	f.Add([]byte(head + "Valid-Until: Sat, 19 Sep 2026 07:56:00 UTC\nAcquire-By-Hash: yes\nSHA256:\n " + digestA + " 0 x\n\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := deb.ParseRelease(text)
		if err != nil {
			return
		}
		for path, file := range r.Files {
			if strings.HasPrefix(path, "/") || strings.Contains("/"+path+"/", "/../") || file.Size < 0 || len(file.SHA256) != 64 {
				t.Fatalf("%q: %+v", path, file)
			}
		}
		deb.IndexFiles(r, "debian", "x", "main", "amd64", 0)
		deb.CheckRelease(r, deb.ReleaseWant{Suite: "x"}, deb.Clock{Now: time.Unix(1e9, 0)})
	})
}
