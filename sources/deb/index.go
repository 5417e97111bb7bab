// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"

	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/sources"
)

// field is a field of a Packages stanza that is kept.
type field uint8

const (
	fPackage field = iota
	fVersion
	fArchitecture
	fEssential
	fImportant
	fProtected
	fPriority
	fMultiArch
	fPreDepends
	fDepends
	fConflicts
	fBreaks
	fRecommends
	fSuggests
	fReplaces
	fEnhances
	fProvides
	fFilename
	fSize
	fSHA256
	fInstalledSize
	fSection
	fSource
	nFields
)

var fieldNames = [nFields]string{
	"Package", "Version", "Architecture", "Essential", "Important", "Protected", "Priority", "Multi-Arch",
	"Pre-Depends", "Depends", "Conflicts", "Breaks", "Recommends", "Suggests", "Replaces", "Enhances",
	"Provides", "Filename", "Size", "SHA256", "Installed-Size", "Section", "Source",
}

// maxIndex is the largest Packages text read, in bytes (Debian's is 65 MB).
const maxIndex = 1 << 30

// IndexSource says where a Packages text comes from and how apt's policy treats it.
type IndexSource struct {
	// Repository is sources.Repository.ID and becomes sources.Package.Repository.
	Repository string
	// Name is how messages call the index: "trixie main/binary-amd64/Packages".
	Name string
	// NotAutomatic and ButAutomaticUpgrades are the flags of the Release file. The first
	// lowers apt's pin priority from 500 to 1, both together to 100.
	NotAutomatic         bool
	ButAutomaticUpgrades bool
}

// pin is apt's default priority of versions from the source (apt_preferences(5)).
func (s IndexSource) pin() int {
	switch {
	case s.NotAutomatic && s.ButAutomaticUpgrades:
		return 100
	case s.NotAutomatic:
		return 1
	}
	return 500
}

// Index is one Packages text with the places of its fields. It does not change.
type Index struct {
	IndexSource
	text    []byte
	entries []Entry
}

// Len is the number of stanzas.
func (x *Index) Len() int { return len(x.entries) }

// Entry is one stanza of a Packages text.
type Entry struct {
	index *Index
	line  int32 // of the stanza's first line, from 1
	spans [nFields]span
}

// span is a part of the text; an absent field has from == 0.
type span struct{ from, to uint32 }

// get is the value of a field: without one leading blank and without the newline, or
// empty where the field is absent.
func (e *Entry) get(f field) string {
	s := e.spans[f]
	if s.from == 0 {
		return ""
	}
	return text(e.index.text[s.from:s.to])
}

// word is the value of a field that is a single word, without blanks around it.
func (e *Entry) word(f field) string { return strings.TrimSpace(e.get(f)) }

func (e *Entry) yes(f field) bool {
	return e.spans[f].from != 0 && strings.EqualFold(e.word(f), "yes")
}

// Name is the value of Package.
func (e *Entry) Name() string { return e.get(fPackage) }

// Version is the version as written.
func (e *Entry) Version() string { return e.get(fVersion) }

// Arch is the architecture: "all" or the name of one.
func (e *Entry) Arch() string { return e.get(fArchitecture) }

// Priority is the value of Priority.
func (e *Entry) Priority() string { return e.word(fPriority) }

// Essential says whether the stanza has "Essential: yes".
func (e *Entry) Essential() bool { return e.yes(fEssential) }

// ParseIndex finds the stanzas and fields of a Packages text, which the caller must not
// change afterwards. Values are checked only as far as the form of the text needs it;
// what a chosen package says is checked when it is chosen. Errors are fault.Format with
// the line, or fault.Limit.
func ParseIndex(src IndexSource, packages []byte) (*Index, error) {
	x := &Index{IndexSource: src, text: packages}
	if len(packages) > maxIndex {
		return nil, fault.New(fault.Limit, "cannot read %s: %d bytes, at most %d are read", src.Name, len(packages), maxIndex)
	}
	// A stanza of Debian's is 820 bytes on average; Ubuntu's are larger.
	x.entries = make([]Entry, 0, len(packages)/700+16)
	s := scanner{index: x, last: nFields}
	for off := 0; off < len(packages); {
		end := bytes.IndexByte(packages[off:], '\n')
		next := off + end + 1
		if end < 0 {
			end, next = len(packages)-off, len(packages)
		}
		s.line++
		if why := s.scan(off, off+end); why != "" {
			return nil, s.fail(why)
		}
		off = next
	}
	if why := s.finish(); why != "" {
		return nil, s.fail(why)
	}
	return x, nil
}

type scanner struct {
	index *Index
	entry Entry
	open  bool  // inside a stanza
	last  field // that a continuation line belongs to; nFields: one not kept
	line  int32
}

func (s *scanner) fail(why string) error {
	return fault.New(fault.Format, "cannot read %s:%d: %s", s.index.Name, s.line, why)
}

// scan takes one line. The result says what is wrong with it.
func (s *scanner) scan(from, to int) string {
	line := s.index.text[from:to]
	if len(line) == 0 {
		return s.finish()
	}
	c := line[0]
	if c == ' ' || c == '\t' {
		if !s.open {
			return "a continuation line outside a stanza"
		}
		if s.last != nFields {
			s.entry.spans[s.last].to = uint32(to)
		}
		return ""
	}
	if !s.open {
		s.open = true
		s.entry = Entry{index: s.index, line: s.line}
	}
	colon := 0
	for colon < len(line) && line[colon] != ':' {
		if line[colon] <= ' ' || line[colon] >= 0x7f {
			return "not a field (NAME: VALUE)"
		}
		colon++
	}
	if colon == 0 || colon == len(line) {
		return "not a field (NAME: VALUE)"
	}
	s.last = lookup(line[:colon])
	if s.last == nFields {
		return ""
	}
	if s.entry.spans[s.last].from != 0 {
		return "the field " + fieldNames[s.last] + " occurs twice in a stanza"
	}
	value := from + colon + 1
	if value < to && (s.index.text[value] == ' ' || s.index.text[value] == '\t') {
		value++
	}
	s.entry.spans[s.last] = span{uint32(value), uint32(to)}
	return ""
}

// finish closes the open stanza.
func (s *scanner) finish() string {
	if !s.open {
		return ""
	}
	s.open = false
	s.last = nFields
	for _, f := range [...]field{fPackage, fVersion, fArchitecture} {
		if sp := s.entry.spans[f]; sp.from == sp.to {
			s.line = s.entry.line
			return "the stanza has no " + fieldNames[f]
		}
	}
	s.index.entries = append(s.index.entries, s.entry)
	return ""
}

// lookup finds a field by its name, upper and lower case being the same. The length and
// the first letter leave one or two to compare.
func lookup(name []byte) field {
	try := func(fields ...field) field {
		for _, f := range fields {
			if strings.EqualFold(fieldNames[f], text(name)) {
				return f
			}
		}
		return nFields
	}
	switch c := name[0] | 0x20; len(name) {
	case 4:
		if c == 's' {
			return try(fSize)
		}
	case 6:
		if c == 's' {
			return try(fSHA256, fSource)
		}
		if c == 'b' {
			return try(fBreaks)
		}
	case 7:
		switch c {
		case 'p':
			return try(fPackage)
		case 'v':
			return try(fVersion)
		case 'd':
			return try(fDepends)
		case 's':
			return try(fSection)
		}
	case 8:
		switch c {
		case 'f':
			return try(fFilename)
		case 'p':
			return try(fPriority, fProvides)
		case 'r':
			return try(fReplaces)
		case 's':
			return try(fSuggests)
		case 'e':
			return try(fEnhances)
		}
	case 9:
		switch c {
		case 'e':
			return try(fEssential)
		case 'i':
			return try(fImportant)
		case 'p':
			return try(fProtected)
		case 'c':
			return try(fConflicts)
		}
	case 10:
		switch c {
		case 'm':
			return try(fMultiArch)
		case 'r':
			return try(fRecommends)
		}
	case 11:
		if c == 'p' {
			return try(fPreDepends)
		}
	case 12:
		if c == 'a' {
			return try(fArchitecture)
		}
	case 14:
		if c == 'i' {
			return try(fInstalledSize)
		}
	}
	return nFields
}

// Limits of the values of a chosen package.
const (
	maxName     = 128
	maxFilename = 1024
	maxDebSize  = 1 << 40 // bytes
)

// choose checks what a chosen stanza says about its package and writes it as it goes into
// a lock. Errors carry the class of the defect.
func (e *Entry) choose(phase sources.Phase, auto bool) (sources.Package, error) {
	p := sources.Package{
		Name: e.Name(), Version: e.Version(), Arch: e.Arch(), Repository: e.index.Repository,
		SHA256: strings.ToLower(e.get(fSHA256)), Phase: phase, Auto: auto,
	}
	fail := func(c fault.Class, format string, args ...any) (sources.Package, error) {
		name := p.Name
		if len(name) > 60 {
			name = name[:60] + "…"
		}
		cause := fmt.Errorf(format, args...)
		return sources.Package{}, fault.New(c, "cannot use package %q of %s:%d: %w", name, e.index.Name, e.line, cause)
	}
	if !validName(p.Name) {
		return fail(fault.Format, "the name is not valid")
	}
	if _, err := ParseVersion(p.Version); err != nil {
		return fail(fault.Format, "%w", err)
	}
	if !validArch(p.Arch) {
		return fail(fault.Format, "the architecture %q is not valid", p.Arch)
	}
	var err error
	if p.Path, err = checkFilename(e.get(fFilename)); err != nil {
		return fail(fault.ClassOf(err), "%w", err)
	}
	if p.Size, err = number(e.get(fSize), maxDebSize); err != nil || p.Size == 0 {
		return fail(fault.Format, "the size %q is not valid", e.get(fSize))
	}
	if s := e.get(fInstalledSize); s != "" {
		if _, err = number(s, maxDebSize); err != nil {
			return fail(fault.Format, "the installed size %q is not valid", s)
		}
	}
	if len(p.SHA256) != 64 || strings.Trim(p.SHA256, "0123456789abcdef") != "" {
		return fail(fault.Verify, "it has no valid SHA256")
	}
	return p, nil
}

// number reads decimal digits up to a limit, nothing else.
func number(s string, limit int64) (int64, error) {
	if s == "" || len(s) > 20 || strings.Trim(s, "0123456789") != "" {
		return 0, strconv.ErrSyntax
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err == nil && n > limit {
		err = strconv.ErrRange
	}
	return n, err
}

// validName follows Debian Policy §5.6.1.
func validName(s string) bool {
	if len(s) < 2 || len(s) > maxName || !(digit(s[0]) || 'a' <= s[0] && s[0] <= 'z') {
		return false
	}
	return strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789+-.") == ""
}

func validArch(s string) bool {
	return len(s) > 0 && len(s) <= 32 && s[0] != '-' && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// checkFilename returns the path of a package below the archive's root. It becomes part of
// a URL and of names in the cache, so it has to be plain: relative, clean, nothing that a
// URL would decode. One leading "./" is dropped, which flat repositories write.
func checkFilename(s string) (string, error) {
	if s == "" || len(s) > maxFilename {
		return "", fault.New(fault.Format, "the file name is empty or too long")
	}
	lower := strings.ToLower(s)
	for i := 0; i < len(s); i++ {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return "", fault.New(fault.Format, "the file name %q has a character that is not allowed", s)
		}
	}
	for _, enc := range [...]string{"%0", "%1", "%7f"} {
		if strings.Contains(lower, enc) {
			return "", fault.New(fault.Format, "the file name %q has an encoded control character", s)
		}
	}
	clean := strings.TrimPrefix(s, "./")
	for _, part := range strings.Split(clean, "/") {
		if part == "" || part == "." || part == ".." {
			return "", fault.New(fault.Path, "the file name %q is not a clean relative path", s)
		}
	}
	if strings.ContainsAny(clean, `%\?#`) {
		return "", fault.New(fault.Path, "the file name %q has a character that a URL or a path would interpret", s)
	}
	return clean, nil
}

// relations reads a relation field. Errors name the stanza.
func (e *Entry) relations(f field) ([]Alternative, error) {
	s := e.get(f)
	if s == "" {
		return nil, nil
	}
	out, err := ParseRelations(s)
	if err != nil {
		return nil, fault.New(fault.Format, "cannot read %s of package %q of %s:%d: %w", fieldNames[f], e.Name(), e.index.Name, e.line, err)
	}
	return out, nil
}
