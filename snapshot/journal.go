// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The journal has one file per operation under way: DIR/.mkmachine/journal/ID, lines of JSON.
// Its owner holds an exclusive flock on it; the kernel drops that when the owner dies, however
// it dies, and without the doubt that a recorded pid leaves. The first line is a header, each
// further line one step:
//
//	{"schema":1,"op":"clone","name":"web","pid":71,"start":8112,"boot":"…","time":"…"}
//	{"intend":".#mkmachine-5f…"}                    before the object is made
//	{"made":".#mkmachine-5f…","id":"subvolume-…"}   after; a tree with another id is not ours
//	{"move":"a.nspawn","to":"b","id":"subvolume-…"} once image b has this id, a.nspawn is b.nspawn
//
// Every object carries the entry's ID in its name, so an object whose entry is gone is
// garbage, too. A half-written last line is ignored. After a power cut the file may be lost;
// then the names alone tell (see Clean).

const journalSchema = 1

// Kinds of operation, for people; recovery treats all the same.
const (
	opStage     = "stage"
	opClone     = "clone"
	opEphemeral = "ephemeral"
	opUse       = "use"
	opRename    = "rename"
	opRemove    = "remove"
	opProbe     = "probe"
	opClean     = "clean"
)

type journalLine struct {
	Schema int       `json:"schema,omitempty"`
	Op     string    `json:"op,omitempty"`
	Name   string    `json:"name,omitempty"`
	Pid    int       `json:"pid,omitempty"`
	Start  uint64    `json:"start,omitempty"` // clock ticks after boot
	Boot   string    `json:"boot,omitempty"`
	Time   time.Time `json:"time,omitzero"`

	Intend string `json:"intend,omitempty"` // path relative to the machines directory
	Made   string `json:"made,omitempty"`
	ID     string `json:"id,omitempty"`

	// Move is the settings file of the image To, once that image has the identity ID.
	Move string `json:"move,omitempty"`
	To   string `json:"to,omitempty"`
}

// entry is an operation of this process.
type entry struct {
	s    *Store
	id   string
	file *os.File
	made int
}

// begin opens an entry in the journal.
func (s *Store) begin(op, name string) (*entry, error) {
	raw := make([]byte, 8)
	rand.Read(raw) // never fails
	e := &entry{s: s, id: hex.EncodeToString(raw)}
	dir := s.state("journal")
	tmp := filepath.Join(dir, ".new-"+e.id)
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, s.full(fmt.Errorf("cannot begin a journal entry: %w", err))
	}
	e.file = f
	fail := func(err error) (*entry, error) {
		os.Remove(tmp)
		f.Close()
		return nil, s.full(fmt.Errorf("cannot begin a journal entry: %w", err))
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fail(err)
	}
	pid, start, boot := s.owner()
	err = e.write(journalLine{Schema: journalSchema, Op: op, Name: name, Pid: pid, Start: start, Boot: boot, Time: time.Now().UTC()})
	if err != nil {
		return fail(err)
	}
	// Under its final name only once it is locked and has a header: nobody collects it early.
	if err := os.Rename(tmp, filepath.Join(dir, e.id)); err != nil {
		return fail(err)
	}
	s.step("journal " + op)
	return e, nil
}

func (e *entry) write(l journalLine) error {
	line, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("internal error: journal line: %w", err)
	}
	if _, err := e.file.Write(append(line, '\n')); err != nil {
		return e.s.full(fmt.Errorf("cannot write the journal: %w", err))
	}
	return nil
}

// intend announces a new hidden object beside the images and gives its name.
func (e *entry) intend() (name string, err error) { return e.intendIn(hiddenPrefix) }

// intendTree announces a tree that layers and images may refer to and gives its id.
func (e *entry) intendTree() (id string, err error) {
	rel, err := e.intendIn(treesDir + "/")
	return filepath.Base(rel), err
}

func (e *entry) intendIn(prefix string) (rel string, err error) {
	rel = prefix + e.id
	if e.made > 0 {
		rel += "." + strconv.Itoa(e.made)
	}
	e.made++
	return rel, e.write(journalLine{Intend: rel})
}

// own records that the tree with this identity, now or later at rel, is ours to remove.
func (e *entry) own(rel, id string) error { return e.write(journalLine{Made: rel, ID: id}) }

// end closes the entry: nothing is left to collect.
func (e *entry) end() error {
	err := os.Remove(e.s.state("journal", e.id))
	return errors.Join(err, e.file.Close())
}

// hiddenPrefix begins the name of every unfinished object beside the images. The names are
// hidden from systemd-machined by their first two characters.
const hiddenPrefix = ".#mkmachine-"

// objectOwner is the id of the journal entry that the object at rel belongs to: a hidden
// object beside the images, or a tree.
func objectOwner(rel string) (id string, ok bool) {
	name, ok := strings.CutPrefix(rel, hiddenPrefix)
	if !ok {
		name, ok = strings.CutPrefix(rel, treesDir+"/")
	}
	if !ok || !treeID(name) {
		return "", false
	}
	return name[:16], true
}

// treeID says whether name has the shape of an object's id: that of its entry and a number.
func treeID(name string) bool {
	ok, _ := regexp.MatchString(`^[0-9a-f]{16}(\.[0-9]{1,9})?$`, name) // the pattern is a constant
	return ok
}

// record is what a journal file says.
type record struct {
	header journalLine
	// objects lists relative paths in the order of their making, with the identities that
	// the object there may have. None: it was announced and perhaps never made.
	objects []object
	moves   []journalLine
}

type object struct {
	rel string
	ids []string
}

// errSchema: written by a newer version.
var errSchema = errors.New("journal entry of an unknown version")

// parseJournal reads a journal file. A damaged tail is dropped, a damaged header is an error.
func parseJournal(data []byte) (record, error) {
	var r record
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, 1<<20)
	for first := true; lines.Scan(); first = false {
		var l journalLine
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			if first {
				return r, fmt.Errorf("cannot parse journal entry: %w", err)
			}
			return r, nil
		}
		switch {
		case first && l.Schema != journalSchema:
			return r, errSchema
		case first:
			r.header = l
		case l.Intend != "":
			r.add(l.Intend, "")
		case l.Made != "":
			r.add(l.Made, l.ID)
		case l.Move != "":
			r.moves = append(r.moves, l)
		}
	}
	if r.header.Schema == 0 {
		return r, errors.New("cannot parse journal entry: it is empty")
	}
	return r, nil
}

func (r *record) add(rel, id string) {
	if _, ok := objectOwner(rel); !ok {
		return // not a path that we ever write: never follow it
	}
	i := slices.IndexFunc(r.objects, func(o object) bool { return o.rel == rel })
	if i < 0 {
		i = len(r.objects)
		r.objects = append(r.objects, object{rel: rel})
	}
	if id != "" {
		r.objects[i].ids = append(r.objects[i].ids, id)
	}
}

// owner identifies this process: a pid alone may be somebody else's tomorrow.
func (s *Store) owner() (pid int, start uint64, boot string) {
	pid = os.Getpid()
	if stat, err := os.ReadFile("/proc/self/stat"); err == nil {
		// The command name may hold blanks and parentheses; fields are counted behind it.
		if i := bytes.LastIndexByte(stat, ')'); i >= 0 {
			if f := strings.Fields(string(stat[i+1:])); len(f) > 19 {
				start, _ = strconv.ParseUint(f[19], 10, 64) // field 22 of proc(5); 0 is only less telling
			}
		}
	}
	return pid, start, s.boot
}

// bootID names this boot of the host; empty where /proc is not to be read.
func bootID() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id") // an unknown boot is always a new one
	return strings.TrimSpace(string(b))
}
