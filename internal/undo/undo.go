// SPDX-License-Identifier: Apache-2.0

// Package undo runs clean-up steps in reverse order unless the work succeeded.
//
//	var u undo.Stack
//	defer u.Run(&err)
//	…
//	u.Add(func() error { return unmount(x) })
//	…
//	u.Keep()
//
// It never hides the first error: clean-up errors are joined behind it.
package undo

import "errors"

// Stack holds the steps. The zero value is ready; it is not safe for concurrent use.
type Stack struct {
	steps []func() error
}

// Add puts a step on top.
func (s *Stack) Add(step func() error) { s.steps = append(s.steps, step) }

// Keep forgets all steps: the work is done and stays.
func (s *Stack) Keep() { s.steps = nil }

// Run runs all steps, newest first, and joins their errors to *err.
func (s *Stack) Run(err *error) {
	for i := len(s.steps) - 1; i >= 0; i-- {
		if e := s.steps[i](); e != nil {
			*err = errors.Join(*err, e)
		}
	}
	s.steps = nil
}
