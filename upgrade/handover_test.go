package upgrade

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// errExit is how a fake Handover tells that the new master has ended, as tableflip does.
var errExit = errors.New("child exited: exit status 1")

// slowToKnow is a Handover that learns late that its predecessor has exited.
type slowToKnow struct {
	Handover
	refuses int   // so often
	then    error // what it says from then on
	asked   int
}

func (h *slowToKnow) Upgrade() error {
	if h.asked++; h.asked <= h.refuses {
		return errors.New(predecessorLives)
	}
	return h.then
}

// An upgrade that is asked for at once after another does not fail because tableflip learns late of the predecessor's exit.
func TestStartNext_WaitsUntilThePredecessorIsKnownToHaveExited(t *testing.T) {
	for _, tt := range []struct {
		name    string
		refuses int
		then    error
		asked   int // 0: until the limit
	}{
		{name: "at once", asked: 1},
		{name: "late", refuses: 3, asked: 4},
		{name: "late, and then it fails", refuses: 3, then: errExit, asked: 4},
		{name: "another failure", then: errExit, asked: 1},
		{name: "never", refuses: 1 << 30},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := &slowToKnow{refuses: tt.refuses, then: tt.then}
				began := time.Now()
				err := startNext(h)
				switch {
				case tt.asked > 0 && (!errors.Is(err, tt.then) || h.asked != tt.asked):
					t.Errorf("got %v after %d requests, want %v after %d", err, h.asked, tt.then, tt.asked)
				case tt.asked == 0 && (err == nil || err.Error() != predecessorLives):
					t.Errorf("got %v", err)
				}
				if took := time.Since(began); took > predecessorLimit+predecessorPause {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}
