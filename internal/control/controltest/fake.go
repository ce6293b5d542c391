// Package controltest holds a stand-in for a parent, for the tests of those who speak to one.
package controltest

import (
	"context"
	"fmt"
	"reflect"
	"strings"
	"sync"

	"gapless/internal/control"
)

// Fake is a Controller whose answers are fixed. Fill it in before the first call.
type Fake struct {
	State   control.Status
	Events  []control.Event // told by each operation, and to each subscriber
	Outcome control.Result
	Err     error         // of every method, instead of an answer
	Hold    chan struct{} // operations wait until it is closed or the parent ends; nil: they do not

	mu    sync.Mutex
	calls []string
}

var _ control.Controller = (*Fake)(nil)

// Calls returns what was asked for so far, each as "upgrade {WaitDrained:true}", without the fields that say nothing.
func (f *Fake) Calls() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.calls...)
}

// TakeCalls is Calls, and forgets them.
func (f *Fake) TakeCalls() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	calls := f.calls
	f.calls = nil
	return calls
}

// Status returns State.
func (f *Fake) Status(context.Context) (control.Status, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, "status")
	return f.State, f.Err
}

// Upgrade tells Events and returns Outcome, as all operations do.
func (f *Fake) Upgrade(ctx context.Context, req control.UpgradeRequest, progress func(control.Event)) (control.Result, error) {
	return f.operate(ctx, "upgrade", req, progress)
}

// Reload is like Upgrade.
func (f *Fake) Reload(ctx context.Context, req control.ReloadRequest, progress func(control.Event)) (control.Result, error) {
	return f.operate(ctx, "reload", req, progress)
}

// Scale is like Upgrade.
func (f *Fake) Scale(ctx context.Context, req control.ScaleRequest, progress func(control.Event)) (control.Result, error) {
	return f.operate(ctx, "scale", req, progress)
}

// Shift is like Upgrade.
func (f *Fake) Shift(ctx context.Context, req control.ShiftRequest, progress func(control.Event)) (control.Result, error) {
	return f.operate(ctx, "shift", req, progress)
}

// Promote is like Upgrade.
func (f *Fake) Promote(ctx context.Context, req control.PromoteRequest, progress func(control.Event)) (control.Result, error) {
	return f.operate(ctx, "promote", req, progress)
}

// Abort is like Upgrade.
func (f *Fake) Abort(ctx context.Context, req control.AbortRequest, progress func(control.Event)) (control.Result, error) {
	return f.operate(ctx, "abort", req, progress)
}

// Rollback is like Upgrade.
func (f *Fake) Rollback(ctx context.Context, req control.RollbackRequest, progress func(control.Event)) (control.Result, error) {
	return f.operate(ctx, "rollback", req, progress)
}

// Stop is like Upgrade.
func (f *Fake) Stop(ctx context.Context, req control.StopRequest, progress func(control.Event)) (control.Result, error) {
	return f.operate(ctx, "stop", req, progress)
}

func (f *Fake) operate(ctx context.Context, verb string, req any, progress func(control.Event)) (control.Result, error) {
	f.mu.Lock()
	f.calls = append(f.calls, verb+" "+describe(req))
	f.mu.Unlock()
	for _, e := range f.Events {
		progress(e)
	}
	if f.Hold != nil {
		select {
		case <-f.Hold:
		case <-ctx.Done():
			return control.Result{}, ctx.Err()
		}
	}
	return f.Outcome, f.Err
}

// describe shows the fields of a request that say something.
func describe(req any) string {
	v := reflect.ValueOf(req)
	var fields []string
	for i := range v.NumField() {
		f := v.Field(i)
		if f.IsZero() {
			continue
		}
		if f.Kind() == reflect.Pointer {
			f = f.Elem()
		}
		fields = append(fields, fmt.Sprintf("%s:%v", v.Type().Field(i).Name, f))
	}
	return "{" + strings.Join(fields, " ") + "}"
}

// Subscribe tells Events and waits for the end of ctx.
func (f *Fake) Subscribe(ctx context.Context, handle func(control.Event)) error {
	for _, e := range f.Events {
		handle(e)
	}
	if f.Err != nil {
		return f.Err
	}
	<-ctx.Done()
	return nil
}
