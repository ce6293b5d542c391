package lifecycle

import (
	"fmt"
	"syscall"
	"time"

	"gapless/internal/control"

	"go.uber.org/zap"
)

// Lame duck: between the order to stop and the drain the service goes on, and says to those who ask --health that nothing
// new should come. A load balancer takes a few seconds to see that; without the wait it would go on sending connections to
// an address that nobody listens at.

// duck begins the lame-duck time, unless there is none, or nothing is in charge that could serve on.
func (p *parent) duck() (begun bool) {
	if p.cfg.LameDuck <= 0 || p.current == nil || !p.inCharge {
		return false
	}
	p.duckC = time.After(p.cfg.LameDuck)
	p.log.Info("Not ready any more; serving on before the drain", zap.Duration("lame_duck", p.cfg.LameDuck))
	p.up.extend(fmt.Sprint((p.cfg.LameDuck + extendBy).Microseconds()))
	p.ctl.stopsAt(time.Now().Add(p.cfg.LameDuck))
	return true
}

// stopsAt notes for the status when the drain begins.
func (c *controller) stopsAt(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopAt = t
	for _, handle := range c.heard {
		handle(control.Event{Time: time.Now(), Kind: control.KindStop, State: "lame-duck"})
	}
}

// ducked ends the lame-duck time: the drain begins.
func (p *parent) ducked() {
	p.duckC = nil
	p.pass(linkMessage{Seq: p.nextSeq(), Signal: syscall.SIGTERM})
}
