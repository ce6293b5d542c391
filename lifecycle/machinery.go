package lifecycle

import (
	"context"
	"os"

	"gapless/internal/notify"
	"gapless/internal/procfs"
	"gapless/upgrade"
	"gapless/workerpool"
)

// predecessor is what a master that is to take charge needs of the one in charge. *upgrade.Predecessor is one, and says
// what the methods do.
type predecessor interface {
	Offer() upgrade.Offer
	Progress(p upgrade.Progress)
	Lanes(ctx context.Context, address string, count int) (names []string, files []*os.File, err error)
	Knock(ctx context.Context, address, lane string) (*os.File, error)
	Commit(ctx context.Context, accept func([]upgrade.Parcel) error) error
	Has(p upgrade.Parcel) error
	Seats(s upgrade.Seats)
	Fail(reason string, tail []string)
	Spared() bool
	Aborted() <-chan struct{}
	Reason() error
	Close()
}

// prober tells when workers wait for connections, and can rest when nobody starts. *procfs.Prober is one.
type prober interface {
	workerpool.Prober
	Rest() error
}

// machinery is what a master stands on: the processes that it starts, and its own. Tests have another.
type machinery struct {
	spawner workerpool.Spawner
	prober  prober
	listen  func() (*notify.Socket, error) // workerpool.Config.Listen
	attempt func(*upgrade.Attempt, context.Context) error
	// exit ends the process the moment the next master is in charge: whatever this one still holds is that one's now.
	exit func()
}

// realMachinery is that of a process; the prober is to be closed.
func realMachinery() (machinery, *procfs.Prober) {
	p := procfs.NewProber("/proc/self/exe", "probe")
	return machinery{
		spawner: workerpool.ExecSpawner{}, prober: p, attempt: (*upgrade.Attempt).Run,
		exit: func() { os.Exit(0) }, //nolint:forbidigo // see above
	}, p
}
