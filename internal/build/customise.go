// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"fmt"

	"github.com/mkmachine/mkmachine/bootstrap"
	"github.com/mkmachine/mkmachine/internal/event"
	"github.com/mkmachine/mkmachine/internal/rootfs"
	"github.com/mkmachine/mkmachine/recipes"
	"github.com/mkmachine/mkmachine/snapshot"
	"github.com/mkmachine/mkmachine/sources"
)

// customise applies the recipe's files, users and system settings to the stage.
func customise(ctx context.Context, e *Engine, job *Job, lock *sources.Lock, stage *snapshot.Stage, span *event.Span) (err error) {
	root, err := rootfs.Open(stage.Dir())
	if err != nil {
		return err
	}
	defer root.Close()
	commands, err := bootstrap.Customise(ctx, root, customConfig(job.Recipe, lock))
	if err != nil || len(commands) == 0 {
		return err
	}
	machine := e.buildMachine(job.Name, stage.Dir(), false, span)
	defer machine.close(&err)
	for _, argv := range commands {
		out := event.NewLines(span)
		err := machine.script(ctx, argv, []string{"LC_ALL=C.UTF-8"}, out)
		out.Flush()
		if err != nil {
			return fmt.Errorf("cannot run %q in the tree: %w%s", argv, err, out.Tail())
		}
	}
	return nil
}

// customConfig says the recipe's sections in the words of bootstrap.
func customConfig(r *recipes.Recipe, lock *sources.Lock) *bootstrap.Config {
	c := &bootstrap.Config{Clock: lock.Date}
	text := func(s recipes.String) bootstrap.Text { return bootstrap.Text{Value: s.Value, Pos: s.Pos} }
	list := func(all []recipes.String) []bootstrap.Text {
		var out []bootstrap.Text
		for _, s := range all {
			out = append(out, text(s))
		}
		return out
	}
	for _, f := range r.Files {
		c.Files = append(c.Files, bootstrap.File{Path: f.Path.Value, Data: f.Data, Mode: f.Mode, Owner: f.Owner.Value, Pos: f.Pos})
	}
	for _, u := range r.Users {
		c.Users = append(c.Users, bootstrap.User{
			Name: text(u.Name), UID: u.UID, Groups: list(u.Groups), Shell: text(u.Shell), Home: text(u.Home),
			PasswordHash: text(u.PasswordHash), EmptyPassword: u.EmptyPassword,
			SSHAuthorizedKeys: list(u.SSHAuthorizedKeys), Sudo: u.Sudo, System: u.System, Pos: u.Pos,
		})
	}
	s := &r.System
	c.System = bootstrap.System{
		Hostname: text(s.Hostname), Timezone: text(s.Timezone), Locale: text(s.Locale), Autologin: text(s.Autologin),
		Enable: list(s.Services.Enable), Disable: list(s.Services.Disable), Mask: list(s.Services.Mask),
	}
	return c
}
