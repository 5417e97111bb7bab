// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"runtime"

	"github.com/mkmachine/mkmachine/internal/event"
	"github.com/mkmachine/mkmachine/internal/fault"
	"github.com/mkmachine/mkmachine/recipes"
	"github.com/mkmachine/mkmachine/snapshot"
	"github.com/mkmachine/mkmachine/sources"
)

// family is what the pipeline asks of a kind of source.
type family interface {
	// resolve answers a recipe from the archive as it is now.
	resolve(ctx context.Context, e *Engine, r *recipes.Recipe, arch string, span *event.Span) (*sources.Lock, error)
	// inputs are all that bootstrap's result depends on; describe says it for people.
	inputs(r *recipes.Recipe, lock *sources.Lock) []input
	describe(r *recipes.Recipe, lock *sources.Lock) string
	// bootstrap turns an empty stage into a configured tree, from the lock alone.
	bootstrap(ctx context.Context, e *Engine, job *Job, lock *sources.Lock, stage *snapshot.Stage, span *event.Span) error
	compareVersions(a, b string) int
	// arch is the family's name of a Go architecture.
	arch(goarch string) string
}

// familyOf is the table of families.
func familyOf(r *recipes.Recipe) (family, error) {
	switch kind := r.Source.Kind; kind.Value {
	case "deb":
		return debFamily{}, nil
	default:
		return nil, fault.At(fault.New(fault.Config, "source kind %q is not supported", kind.Value), kind.Pos)
	}
}

// jobArch is the architecture of the tree in the family's words.
func jobArch(job *Job) (string, error) {
	if job.Arch != "" {
		return job.Arch, nil
	}
	if a := job.Recipe.Source.Arch.Value; a != "" {
		return a, nil
	}
	fam, err := familyOf(job.Recipe)
	if err != nil {
		return "", err
	}
	return fam.arch(runtime.GOARCH), nil
}
