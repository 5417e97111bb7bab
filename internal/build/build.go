// SPDX-License-Identifier: Apache-2.0

// Package build is the one pipeline: Recipe → Lock → blobs → stage → template.
//
// It is the only package that knows all the others; it decides the order of the steps,
// the keys of the layers, and what is done again. It never prints and never touches a tree
// itself. Invariant: what it publishes was made from the lock alone, so that the same lock
// gives the same tree whichever layers, packs or downloads were at hand.
//
// To add a family of distributions: a package below sources/ (index, resolver, package
// reader), one below bootstrap/ (unpack, database, configuration), recipes and keys in
// recipes/library/, and a line in families.
package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/mkmachine/mkmachine/bootstrap"
	"github.com/mkmachine/mkmachine/internal/cas"
	"github.com/mkmachine/mkmachine/internal/event"
	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/internal/rootfs"
	"github.com/mkmachine/mkmachine/recipes"
	"github.com/mkmachine/mkmachine/snapshot"
	"github.com/mkmachine/mkmachine/sources"
)

// UnpackEntry names the function that runs confined in the stage; main registers it.
const UnpackEntry = "unpack"

// Engine is what every build needs from its host. All fields but Sink are required for
// Build; Lock needs Cache, Fetch and Now.
type Engine struct {
	Store   *snapshot.Store
	Cache   *cas.Cache // downloads
	Packs   *cas.Cache // unpacked packages, on the file system of the store; nil: none are kept
	Fetch   sources.Fetcher
	Sink    event.Sink
	Now     func() time.Time
	Runtime string // directory for what lives no longer than the host is up
}

// Job is one template to be made.
type Job struct {
	Recipe *recipes.Recipe
	Name   string // of the template; "" is the recipe's
	Arch   string // the distribution's name; "" is the recipe's, else the host's
	// LockFile is where the lock is kept.
	LockFile string
	Locked   bool // the lock must exist and fit; it is never written
	Update   bool // resolve anew, whatever the lock says
	// Check builds a second time without any layer and compares.
	Check bool
	// Rebuild ignores the layers and the published template.
	Rebuild bool
}

// Result says what was made.
type Result struct {
	Name     string     `json:"name"`
	ID       string     `json:"id"`
	Digest   string     `json:"digest"` // of the tree's manifest
	Lock     string     `json:"lock"`   // file
	Packages int        `json:"packages"`
	UpToDate bool       `json:"up_to_date"` // the template was there already, made from the same inputs
	Steps    []StepPlan `json:"steps"`
	Seconds  float64    `json:"seconds"`
}

// Build makes the template of a job, or finds that it is there already.
func (e *Engine) Build(ctx context.Context, job *Job) (_ *Result, err error) {
	began := e.Now()
	if job.Name == "" {
		job.Name = job.Recipe.Name
	}
	if err := snapshot.CheckName(job.Name); err != nil {
		return nil, err
	}
	span := e.Sink.Start("build", job.Name)
	defer func() { span.End(err) }()

	// One build of a name at a time: the others wait, and then find the work done.
	release, err := e.acquire(ctx, "build-"+job.Name, span)
	if err != nil {
		return nil, err
	}
	defer release()

	lock, err := e.lockOf(ctx, job, span)
	if err != nil {
		return nil, err
	}
	plan, err := e.plan(job, lock)
	if err != nil {
		return nil, err
	}
	result := &Result{Name: job.Name, Lock: job.LockFile, Packages: len(lock.Packages), Steps: plan}
	final := plan[len(plan)-1].Key
	if img := e.published(job.Name); img != nil && finalKey(img) == final && !job.Rebuild && !job.Check {
		result.ID, result.Digest, result.UpToDate = img.Meta.ID, img.Meta.Manifest, true
		result.Seconds = e.Now().Sub(began).Seconds()
		return result, nil
	}
	img, err := e.make(ctx, job, lock, plan, span)
	if err != nil {
		return nil, err
	}
	result.ID, result.Digest = img.Meta.ID, img.Meta.Manifest
	result.Seconds = e.Now().Sub(began).Seconds()
	return result, nil
}

// make runs the steps that no layer answers, and publishes.
func (e *Engine) make(ctx context.Context, job *Job, lock *sources.Lock, plan []StepPlan, span *event.Span) (*snapshot.Image, error) {
	base, from := "", 0
	for i, s := range plan {
		if s.Hit && !job.Rebuild && !job.Check {
			base, from = s.Key, i+1
		}
	}
	stage, err := e.Store.NewStage(ctx, base)
	if err != nil {
		return nil, err
	}
	keep := false
	defer func() {
		if !keep {
			stage.Discard(context.WithoutCancel(ctx))
		}
	}()
	manifest, err := e.steps(ctx, job, lock, plan, from, stage, span)
	if err != nil {
		return nil, e.Store.ExplainFull(err)
	}
	digest := ""
	switch {
	case manifest != nil:
		digest = manifest.Digest()
	default: // nothing was left to do
		layer, err := e.Store.Layer(base)
		if err != nil {
			return nil, err
		}
		digest = layer.Manifest
	}
	if job.Check {
		if err := e.checkAgain(ctx, job, lock, plan, manifest, span); err != nil {
			return nil, err
		}
	}
	pub := span.Start("publish", job.Name)
	img, err := stage.Publish(ctx, job.Name, e.meta(job, lock, plan, digest), true)
	pub.End(err)
	keep = err == nil
	return img, err
}

// steps runs plan[from:] in the stage and returns the manifest's digest of the finished tree.
// The last layer remembers it: whoever starts from there need not read the tree again.
func (e *Engine) steps(ctx context.Context, job *Job, lock *sources.Lock, plan []StepPlan, from int, stage *snapshot.Stage, span *event.Span) (*rootfs.Manifest, error) {
	var manifest *rootfs.Manifest
	for i := from; i < len(plan); i++ {
		sp := span.Start(plan[i].Name, plan[i].Subject)
		err := e.step(ctx, job, lock, &plan[i], stage, sp)
		sp.End(err)
		if err != nil {
			return nil, err
		}
		meta := snapshot.LayerMeta{Text: plan[i].Name + " " + plan[i].Subject, Recipe: job.Recipe.Name}
		if i > 0 {
			meta.Parent = plan[i-1].Key
		}
		if i == len(plan)-1 {
			if manifest, err = e.manifest(ctx, stage, span); err != nil {
				return nil, err
			}
			meta.Final, meta.Manifest = true, manifest.Digest()
		}
		if !job.Check {
			if err := stage.SaveLayer(ctx, plan[i].Key, meta); err != nil {
				return nil, err
			}
		}
	}
	return manifest, nil
}

// step runs one step and seals the tree behind it: a layer holds no more of the moment it
// was made in than a template does.
func (e *Engine) step(ctx context.Context, job *Job, lock *sources.Lock, s *StepPlan, stage *snapshot.Stage, span *event.Span) error {
	if err := s.run(ctx, e, job, lock, stage, span); err != nil {
		return err
	}
	root, err := rootfs.Open(stage.Dir())
	if err != nil {
		return err
	}
	defer root.Close()
	if err := bootstrap.Sanity(root, lock.Arch); err != nil {
		return err
	}
	seal := span.Start("seal", "")
	err = bootstrap.Seal(ctx, root, lock.Date)
	seal.End(err)
	return err
}

func (e *Engine) manifest(ctx context.Context, stage *snapshot.Stage, span *event.Span) (_ *rootfs.Manifest, err error) {
	sp := span.Start("digest", "")
	defer func() { sp.End(err) }()
	root, err := rootfs.Open(stage.Dir())
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return root.Manifest(ctx)
}

// checkAgain builds the tree once more from nothing and compares it with the first.
func (e *Engine) checkAgain(ctx context.Context, job *Job, lock *sources.Lock, plan []StepPlan, first *rootfs.Manifest, span *event.Span) (err error) {
	sp := span.Start("check", "a second build")
	defer func() { sp.End(err) }()
	stage, err := e.Store.NewStage(ctx, "")
	if err != nil {
		return err
	}
	defer stage.Discard(context.WithoutCancel(ctx))
	second, err := e.steps(ctx, job, lock, plan, 0, stage, sp)
	if err != nil {
		return err
	}
	if first.Digest() == second.Digest() {
		return nil
	}
	return fault.New(fault.Verify, "cannot confirm %q: two builds of one lock differ:\n%s", job.Name, rootfs.DiffManifests(first, second, 20))
}

// published is the template of that name that we made, or nil.
func (e *Engine) published(name string) *snapshot.Image {
	img, err := e.Store.Image(name)
	if err != nil || img.Meta == nil || img.Role != snapshot.Template {
		return nil
	}
	return img
}

// finalKey is the key of the last layer of an image, which hashes everything it was made from.
func finalKey(img *snapshot.Image) string {
	if n := len(img.Meta.Layers); n > 0 {
		return img.Meta.Layers[n-1]
	}
	return ""
}

func (e *Engine) meta(job *Job, lock *sources.Lock, plan []StepPlan, digest string) snapshot.Meta {
	meta := snapshot.Meta{
		Role:     snapshot.Template,
		Recipe:   job.Recipe.Name,
		Manifest: digest,
		Verified: string(job.Recipe.Source.Grade()),
		Arch:     lock.Arch,
		Date:     lock.Date,
		Packages: len(lock.Packages),
	}
	if text, err := sources.FormatLock(lock); err == nil {
		sum := sha256.Sum256(text)
		meta.Lock = hex.EncodeToString(sum[:])
	}
	for _, k := range lock.Keys {
		meta.SignedBy = append(meta.SignedBy, k.Fingerprint)
	}
	for _, s := range plan {
		meta.Layers = append(meta.Layers, s.Key)
	}
	if r := job.Recipe.Source.Insecure.Value; r != "" {
		meta.Taints = append(meta.Taints, "insecure: "+r)
	}
	for _, s := range job.Recipe.Scripts {
		if s.Network {
			meta.Taints = append(meta.Taints, "network: a script had network access")
			break
		}
	}
	return meta
}

// acquire takes an exclusive lock of that name among all processes; it is freed when the
// process ends, however that happens.
func (e *Engine) acquire(ctx context.Context, name string, span *event.Span) (func(), error) {
	dir := filepath.Join(e.Runtime, "locks")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fault.As(fault.Host, fmt.Errorf("cannot make directory for locks: %w", err))
	}
	return flock(ctx, filepath.Join(dir, name+".lock"), func() {
		span.Note("waiting for another build of the same name")
	})
}
