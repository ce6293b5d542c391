package relay

import (
	"context"
	"errors"
	"net"
	"os"
	"syscall"
	"time"

	"go.uber.org/zap"
)

// acceptPause is how long a socket is left alone from which nothing can be accepted, as when descriptors have run out.
const acceptPause = 50 * time.Millisecond

// serve carries what arrives at a listening socket from now on until the drain. It owns f. Other processes hold the
// socket, too: what waits there after the drain is theirs.
func (r *relay) serve(ctx context.Context, target Target, f *os.File) {
	l, err := net.FileListener(f)
	_ = f.Close() // net.FileListener works on a duplicate
	if err != nil {
		r.log.Error("cannot serve a socket", zap.String("listener", target.Listener), zap.Error(err))
		return
	}
	r.acceptors.Go(func() {
		<-r.draining
		_ = l.Close()
	})
	r.acceptors.Go(func() { r.accept(ctx, target, l) })
}

func (r *relay) accept(ctx context.Context, target Target, l net.Listener) {
	for {
		c, err := l.Accept()
		switch {
		case errors.Is(err, net.ErrClosed), errors.Is(err, syscall.EINVAL):
			return // the second: whoever shares the socket has ended its listening
		case err != nil:
			r.log.Warn("cannot accept", zap.String("listener", target.Listener), zap.Error(err))
			select {
			case <-time.After(acceptPause):
			case <-r.draining:
				return
			}
			continue
		}
		s, ok := c.(stream)
		if !ok {
			_ = c.Close()
			continue
		}
		r.count(func(st *Status) { st.Taken++; st.Open++ })
		r.carriers.Go(func() {
			defer r.count(func(st *Status) { st.Open-- })
			r.carryTo(ctx, target, s)
		})
	}
}
