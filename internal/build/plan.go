// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"slices"
	"strings"

	"github.com/mkmachine/mkmachine/internal/event"
	"github.com/mkmachine/mkmachine/recipes"
	"github.com/mkmachine/mkmachine/snapshot"
	"github.com/mkmachine/mkmachine/sources"
)

// treeVersion changes whenever the same inputs give other bytes than before.
const treeVersion = "1"

// StepPlan is one step of a build with the key of the layer behind it. Deciding what to
// run never runs anything.
type StepPlan struct {
	Name    string `json:"name"`    // bootstrap, customise, script
	Subject string `json:"subject"` // what of the recipe it is made of, for people
	Key     string `json:"key"`     // SHA-256 over every input and the key of the step before
	Hit     bool   `json:"hit"`     // a layer of that key exists
	// Inputs are the digests that the key hashes, by name, so that --explain can say which
	// of them differs from the last build.
	Inputs map[string]string `json:"inputs"`

	run func(context.Context, *Engine, *Job, *sources.Lock, *snapshot.Stage, *event.Span) error
}

// input is one named value that a step's result depends on.
type input struct {
	name  string
	value any
}

func newStep(name, subject, parent string, inputs ...input) StepPlan {
	s := StepPlan{Name: name, Subject: subject, Inputs: map[string]string{}}
	h := sha256.New()
	h.Write(recipes.Canonical([]string{"mkmachine layer", treeVersion, name, parent}))
	for _, in := range inputs {
		sum := sha256.Sum256(recipes.Canonical(in.value))
		s.Inputs[in.name] = hex.EncodeToString(sum[:])
		h.Write(recipes.Canonical([]string{in.name, s.Inputs[in.name]}))
	}
	s.Key = hex.EncodeToString(h.Sum(nil))
	return s
}

// plan lists the steps of a job and looks which layers are there.
func (e *Engine) plan(job *Job, lock *sources.Lock) ([]StepPlan, error) {
	r := job.Recipe
	fam, err := familyOf(r)
	if err != nil {
		return nil, err
	}
	base := newStep("bootstrap", fam.describe(r, lock), "", fam.inputs(r, lock)...)
	base.run = fam.bootstrap
	plan := []StepPlan{base}
	if len(r.Files)+len(r.Users) > 0 || hasSystem(r) {
		s := newStep("customise", "files, users, system", base.Key,
			input{"files", r.Files}, input{"users", r.Users}, input{"system", r.System}, input{"clock", lock.Date.Unix()})
		s.run = customise
		plan = append(plan, s)
	}
	for i := range r.Scripts {
		sc := r.Scripts[i]
		s := newStep("script", scriptName(&sc, i), plan[len(plan)-1].Key, input{"script", sc}, input{"clock", lock.Date.Unix()})
		s.run = func(ctx context.Context, e *Engine, job *Job, lock *sources.Lock, stage *snapshot.Stage, span *event.Span) error {
			return e.script(ctx, lock, &sc, stage, span)
		}
		plan = append(plan, s)
	}
	for i := range plan {
		plan[i].Hit = e.Store.HasLayer(plan[i].Key)
	}
	return plan, nil
}

// Explain says for each step of a job whether its layer exists, without doing anything.
func (e *Engine) Explain(ctx context.Context, job *Job) ([]StepPlan, error) {
	span := e.Sink.Start("explain", job.Recipe.Name)
	lock, err := e.lockOf(ctx, job, span)
	span.End(err)
	if err != nil {
		return nil, err
	}
	return e.plan(job, lock)
}

func hasSystem(r *recipes.Recipe) bool {
	s := &r.System
	return s.Hostname.Value+s.Timezone.Value+s.Locale.Value+s.Autologin.Value != "" ||
		len(s.Services.Enable)+len(s.Services.Disable)+len(s.Services.Mask) > 0
}

// InputSummary is the inputs of a step in one line: names with the head of their digests.
func (s *StepPlan) InputSummary() string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(s.Inputs)) {
		parts = append(parts, name+" "+s.Inputs[name][:8])
	}
	return strings.Join(parts, ", ")
}
