package workerpool

import (
	"testing"
	"time"

	"gapless/internal/channel"
)

func TestProgress_More(t *testing.T) {
	const extra = 10 * time.Second
	due := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, tc := range []struct {
		name  string
		moved time.Duration // when bytes moved last, from due
		extra time.Duration
		now   time.Duration // from due
		want  time.Duration
	}{
		{"moves", -time.Second, extra, 0, 1500 * time.Millisecond},
		{"moves after its time", 4 * time.Second, extra, 5 * time.Second, 1500 * time.Millisecond},
		{"moves until the end", 9900 * time.Millisecond, extra, 9900 * time.Millisecond, 100 * time.Millisecond},
		{"moves, but has had it all", 9900 * time.Millisecond, extra, extra, 0},
		{"moves, but gets no more", 0, 0, 0, 0},
		{"stands still", -stillMoves, extra, 0, 0},
		{"stood still long ago", -time.Hour, extra, 0, stillMoves - time.Hour},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := progress{Extra: tc.extra, Moved: due.Add(tc.moved)}
			if got := g.more(due, due.Add(tc.now)); got != tc.want {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}

func TestProgress_OnlyGrowthIsMovement(t *testing.T) {
	begin := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	g := progress{Moved: begin}
	for i, step := range []struct {
		bytes int64
		moved time.Duration // when bytes moved last, as is known then
	}{{0, 0}, {10, time.Second}, {10, time.Second}, {5, time.Second}, {11, 4 * time.Second}} {
		g.heard(step.bytes, begin.Add(time.Duration(i)*time.Second))
		if got := g.Moved.Sub(begin); got != step.moved {
			t.Errorf("after report %d: moved at %v, want %v", i, got, step.moved)
		}
	}
}

// A worker that stands still at the end of its time is killed then, whatever it might have taken; one that gets on is
// left alone for as long as it does, also by the next master.
func TestPool_ExtraTimeIsForWorkersThatGetOn(t *testing.T) {
	const timeout, extra = stillMoves + 200*time.Millisecond, time.Second
	for _, tc := range []struct {
		name    string
		moves   bool
		handOut bool
		least   time.Duration
		most    time.Duration
	}{
		{"stands still", false, false, timeout, timeout + extra},
		{"gets on", true, false, timeout + extra, time.Hour},
		{"stands still, adopted", false, true, timeout, timeout + extra},
		{"gets on, adopted", true, true, timeout + extra, time.Hour},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			heard, files := talker(t, w)
			m := w.newMaster(1, nil)
			before := m
			if err := m.Start(t.Context(), 1); err != nil {
				t.Fatal(err)
			}
			p := w.alive()[0]
			m.DrainAll(Order{Timeout: timeout, Extra: extra})
			if got := <-heard; got.Extra != extra {
				t.Errorf("it heard %+v", got)
			}
			<-files
			told := time.Now()
			if tc.handOut {
				records, err := m.Freeze()
				if err != nil {
					t.Fatal(err)
				}
				m.leave()
				before = m
				m = w.newMaster(2, nil)
				m.Adopt(travel(t, records))
			}
			tick := time.NewTicker(100 * time.Millisecond)
			defer tick.Stop()
			var st channel.Status
			for !isClosed(p.done) {
				if tc.moves {
					st.Bytes++
				}
				_ = p.ch.Send(st, nil) // it may be killed at any moment
				select {
				case <-tick.C:
				case <-p.done:
				}
			}
			killed := w.awaitEntry("group KILL", 0, 0).at.Sub(told)
			// What the test sees of the order, it sees a little later than it was given.
			if killed < tc.least-50*time.Millisecond || killed >= tc.most {
				t.Errorf("killed after %v, want between %v and %v", killed, tc.least, tc.most)
			}
			m.end()
			before.end() // both masters see it end, and let go of it each in its time
			w.verify()
		})
	}
}
