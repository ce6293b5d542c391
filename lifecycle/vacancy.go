package lifecycle

import (
	"sync"
	"time"
)

// vacancy tells whoever asks for the status whether a master is in charge that could answer. govern writes it.
type vacancy struct {
	mu      sync.Mutex
	since   time.Time     // when the charge became vacant; zero: it is not
	changed chan struct{} // closed and made anew when it becomes vacant or is taken; nil while nobody waits for it
}

// set notes whether the charge is vacant.
func (v *vacancy) set(vacant bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if vacant != v.since.IsZero() {
		return
	}
	v.since = time.Time{}
	if vacant {
		v.since = time.Now()
	}
	if v.changed != nil {
		close(v.changed)
		v.changed = nil
	}
}

// watch returns since when the charge has been vacant (zero: it is not), and what is closed when that changes.
func (v *vacancy) watch() (since time.Time, changed <-chan struct{}) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.changed == nil {
		v.changed = make(chan struct{})
	}
	return v.since, v.changed
}
