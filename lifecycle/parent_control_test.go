package lifecycle

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"gapless/internal/control"

	"go.uber.org/zap"
)

// The status is told by the parent itself while there is no master, but not in the moment between two.
func TestController_AnswersWithoutAMaster(t *testing.T) {
	const (
		vacant = "vacant"
		taken  = "taken"
		answer = "answer"
	)
	type event struct {
		at   time.Duration // from the question on; negative: before it
		what string
	}
	for _, tt := range []struct {
		name   string
		events []event
		want   string
		after  time.Duration
	}{
		{"a master answers", []event{{time.Millisecond, answer}}, control.StateServing, time.Millisecond},
		{"there has been none for long", []event{{-time.Minute, vacant}}, control.StateNoMaster, 0},
		{"there has been none for a moment", []event{{-100 * time.Millisecond, vacant}}, control.StateNoMaster, vacancyPatience - 100*time.Millisecond},
		{"it dies while it is asked", []event{{300 * time.Millisecond, vacant}}, control.StateNoMaster, 300*time.Millisecond + vacancyPatience},
		{"between two", []event{{-10 * time.Millisecond, vacant}, {20 * time.Millisecond, taken}, {30 * time.Millisecond, answer}},
			control.StateServing, 30 * time.Millisecond},
		{"one after the other dies", []event{{-10 * time.Millisecond, vacant}, {100 * time.Millisecond, taken}, {200 * time.Millisecond, vacant}},
			control.StateNoMaster, 200*time.Millisecond + vacancyPatience},
		{"it says nothing", nil, control.StateNoMaster, statusPatience},
		{"none of them says anything", []event{{1900 * time.Millisecond, vacant}}, control.StateNoMaster, statusPatience},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &parent{commands: make(chan linkMessage), over: make(chan struct{})}
				c := newController(p, "1", zap.NewNop())
				happen := func(e event) {
					switch e.what {
					case answer:
						c.mu.Lock()
						defer c.mu.Unlock()
						for _, cl := range c.calls {
							cl.status <- control.Status{State: control.StateServing}
						}
					default:
						c.vacancy.set(e.what == vacant)
					}
				}
				go func() { // govern
					for {
						select {
						case <-p.commands:
						case <-p.over:
							return
						}
					}
				}()
				if len(tt.events) > 0 && tt.events[0].at < 0 {
					happen(tt.events[0])
					<-time.After(-tt.events[0].at)
				}
				began := time.Now()
				for _, e := range tt.events {
					if e.at >= 0 {
						time.AfterFunc(e.at, func() { happen(e) })
					}
				}
				s, err := c.Status(t.Context())
				if took := time.Since(began); err != nil || s.State != tt.want || took != tt.after {
					t.Errorf("%s, %v after %v; want %s after %v", s.State, err, took, tt.want, tt.after)
				}
				close(p.over)
			})
		})
	}
}

func TestController_StatusEndsWithItsClientAndWithGapless(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &parent{commands: make(chan linkMessage, 2), over: make(chan struct{})}
		c := newController(p, "1", zap.NewNop())
		ctx, cancel := context.WithCancelCause(t.Context())
		gone := errors.New("the client has gone")
		cancel(gone)
		if _, err := c.Status(ctx); !errors.Is(err, gone) {
			t.Errorf("got %v", err)
		}
		close(p.over)
		if _, err := c.Status(t.Context()); !errors.Is(err, control.ErrNotRunning) {
			t.Errorf("got %v", err)
		}
	})
}
