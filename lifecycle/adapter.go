package lifecycle

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"

	"gapless/internal/adapter"
	"gapless/workerpool"

	"go.uber.org/zap"
)

// parentVariable tells the masters the PID of the parent, under which adapters have their folder: it removes that at the end.
const parentVariable = "GAPLESS_PARENT_PID"

// injection puts an adapter into the workers of one revision. A nil one puts none.
type injection struct {
	match  adapter.Match
	off    bool
	folder *adapter.Folder
	err    error // why there is no folder
	log    *zap.Logger
}

// newInjection returns nil for a command that no adapter is known for.
func newInjection(mode string, rel *release, ids credentials, log *zap.Logger) *injection {
	if len(rel.argv) == 0 || rel.exe == nil { // the built-in app
		return nil
	}
	match, ok := adapter.Recognise(rel.argv, rel.path)
	if !ok {
		return nil
	}
	i := &injection{match: match, off: mode != adapter.Auto, log: log}
	if !i.off {
		// A master's own parent is, at its start, the master before it.
		parent, err := strconv.Atoi(os.Getenv(parentVariable))
		if err != nil {
			i.err = errors.New("the parent process is of an older gapless; restart it once")
			return i
		}
		i.folder, i.err = adapter.OpenFolder(parent, ids.uid, os.Getenv)
	}
	return i
}

// mode is what newInjection was told, for the ledger.
func (i *injection) mode() string {
	if i == nil || !i.off {
		return adapter.Auto
	}
	return adapter.Off
}

// into adds the adapter to the start of a worker. What fails is told, and changes nothing else.
func (i *injection) into(l *workerpool.Launch) {
	switch {
	case i == nil:
		return
	case i.off:
		if i.match.Expected {
			l.Adapter.Reason = "--adapter off"
		}
		return
	}
	err := i.err
	if err == nil {
		l.Env, err = i.folder.Environ(i.match.Name, l.Env)
	}
	if err != nil {
		if i.match.Expected {
			l.Adapter.Reason = fmt.Sprintf("it cannot be put there: %v", err)
		}
		return
	}
	l.Adapter = workerpool.Adapter{Name: i.match.Name, Expected: i.match.Expected}
}

// untold is the first revision whose want of an adapter has not been told.
type untold struct {
	sync.Mutex
	since int
}

// adapterFields tell of a worker that has become ready whether an adapter is in force.
func adapterFields(w workerpool.Info) []zap.Field {
	switch {
	case w.Adapter != "":
		return []zap.Field{zap.String("adapter", w.Adapter)}
	case w.NoAdapter != "":
		return []zap.Field{zap.String("adapter", "none")}
	}
	return nil
}

// tellAdapter says, once for each revision, that an adapter is not in force although one is known for the command.
func (m *master) tellAdapter(e workerpool.Event) {
	if e.NoAdapter == "" || e.Generation != m.generation {
		return
	}
	m.untold.Lock()
	defer m.untold.Unlock()
	if m.untold.since > e.Revision {
		return
	}
	m.untold.since = e.Revision + 1
	m.log.Info("No adapter in force: idle connections are closed as the command closes them", fPID(e.PID), zap.String("reason", e.NoAdapter))
}
