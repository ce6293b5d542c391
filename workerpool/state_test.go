package workerpool

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

var allStates = []State{Starting, Ready, Draining, Killing, Exited}

func TestState_MovesOnlyForward(t *testing.T) {
	allowed := map[State]map[State]bool{
		Starting: {Ready: true, Draining: true, Killing: true, Exited: true},
		Ready:    {Draining: true, Killing: true, Exited: true},
		Draining: {Killing: true, Exited: true},
		Killing:  {Exited: true},
		Exited:   {},
	}
	for _, from := range allStates {
		for _, to := range allStates {
			t.Run(from.String()+" to "+to.String(), func(t *testing.T) {
				core, logs := observer.New(zapcore.DPanicLevel)
				var seen []Event
				p := New(Config{Log: zap.New(core), Observe: func(e Event) { seen = append(seen, e) }})
				w := newWorker(p, Info{ID: ID{Slot: 2, PID: 77}, State: from, Since: time.Now()}, nil)
				w.to(to, "because")

				if !allowed[from][to] {
					if got := w.snapshot(); got.State != from || got.Reason != "" || len(seen) != 0 {
						t.Errorf("an impossible move left %+v, observed %v", got, seen)
					}
					entries := logs.All()
					if len(entries) != 1 {
						t.Fatalf("%d log lines about an impossible move, want 1", len(entries))
					}
					want := "worker 2 (pid 77) cannot go from " + from.String() + " to " + to.String()
					if got := entries[0].ContextMap()["error"]; got != want {
						t.Errorf("logged %q, want %q", got, want)
					}
					return
				}
				if got := w.snapshot(); got.State != to || got.Reason != "because" {
					t.Errorf("the worker is %s (%q)", got.State, got.Reason)
				}
				if len(seen) != 1 || seen[0].From != from || seen[0].State != to || seen[0].Took < 0 {
					t.Errorf("observed %+v", seen)
				}
				if logs.Len() != 0 {
					t.Errorf("logged %v", logs.All())
				}
			})
		}
	}
}

func TestState_TravelsByName(t *testing.T) {
	for _, s := range allStates {
		t.Run(s.String(), func(t *testing.T) {
			data, err := json.Marshal(Info{State: s})
			if err != nil {
				t.Fatal(err)
			}
			var back Info
			if err := json.Unmarshal(data, &back); err != nil || back.State != s {
				t.Errorf("%s came back as %s, %v", s, back.State, err)
			}
		})
	}
	var s State
	if err := s.UnmarshalText([]byte("asleep")); err == nil || err.Error() != `no worker state is called "asleep"` {
		t.Errorf("an unknown name gave %v", err)
	}
	for _, s := range []State{-1, State(len(stateNames))} {
		if got := s.String(); got == "" || got == "starting" {
			t.Errorf("State(%d) is called %q", int(s), got)
		}
	}
}

func TestTransitionError_IsFoundByType(t *testing.T) {
	var err error = &TransitionError{ID{1, 3, 9}, Exited, Ready}
	var te *TransitionError
	if !errors.As(err, &te) || te.From != Exited {
		t.Fatal(err)
	}
}
