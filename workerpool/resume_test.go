package workerpool

import (
	"testing"
	"testing/synctest"
	"time"
)

// In a killed master's place the workers of its generation serve on, and the older ones drain, also those that had not
// been told, in whatever order the records come: an older one must not wait for ever for a worker to become ready, when
// those that serve have been ready all the time.
func TestPool_ResumeDrainsTheOlderOnes(t *testing.T) {
	for range 20 {
		synctest.Test(t, func(t *testing.T) {
			w, old := started(t, 1, nil)
			older := w.alive()[0]
			first, err := old.Freeze()
			if err != nil {
				t.Fatal(err)
			}
			old.leave()
			killed := w.newMaster(2, nil)
			if err := killed.Start(t.Context(), 1); err != nil {
				t.Fatal(err)
			}
			killed.Adopt(travel(t, first))
			records, err := killed.Freeze() // as good as what the parent keeps
			if err != nil {
				t.Fatal(err)
			}
			killed.leave()
			if len(records) == 2 && records[0].Generation != 1 {
				records[0], records[1] = records[1], records[0]
			}
			heir := w.newMaster(2, nil)
			heir.Resume(1, Recipe{Launch: heir.cfg.Launch}, travel(t, records), Order{Reason: "a newer generation serves", Timeout: time.Minute})
			w.awaitEntry("TERM", older.pid, 0)
			heir.end()
			old.Wait()
			killed.Wait()
			w.verify()
		})
	}
}
