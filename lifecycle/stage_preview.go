package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"

	"gapless/upgrade"

	"go.uber.org/zap"
)

// errInvalid is matched by what is wrong with a request itself: it would be refused at any time.
var errInvalid = errors.New("invalid request")

// invalidError is an error that matches errInvalid and reads as the one in it.
type invalidError struct{ error }

func (e invalidError) Is(target error) bool { return target == errInvalid }
func (e invalidError) Unwrap() error        { return e.error }

// stagePreview is a preview address of one staged upgrade alone.
//
// What always holds:
//   - The address is bound before anything of the new generation starts, so that one that is taken costs nothing; who comes
//     before the generation is staged waits.
//   - It belongs to this master: it is not with the parent, and a relay that loses its master closes it. So it ends with
//     the stage, whoever dies.
//   - It is closed before the staged generation loses the preview connections: nobody reaches another one there.
type stagePreview struct {
	preview
	listener string // Name of the address that is previewed

	mu     sync.Mutex
	closed bool
	cancel context.CancelFunc // nil: it is not served yet
	done   chan struct{}
}

// openStagePreview binds the address that a request to stage names, if it names one.
func (m *master) openStagePreview(text string, listeners []upgrade.Address) (*stagePreview, error) {
	if text == "" {
		return nil, nil
	}
	if a := m.cfg.Preview; a.Addr != "" {
		return nil, invalidError{fmt.Errorf("--preview %s: gapless run has --preview %s already, which reaches the staged generation; leave --preview out of the upgrade", text, a.Addr)}
	}
	a, err := ParsePreview(text, listeners)
	if err != nil {
		return nil, invalidError{fmt.Errorf("--preview: %w", err)}
	}
	f, err := listenPreview(a.Addr)
	if err != nil {
		return nil, err
	}
	p := &stagePreview{listener: a.Name}
	if err := p.use(f); err != nil {
		return nil, err
	}
	return p, nil
}

// serve has run serve the address until its ctx ends, unless the address is closed by then.
func (p *stagePreview) serve(run func(ctx context.Context)) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.cancel != nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	p.cancel, p.done = cancel, done
	go func() {
		defer close(done)
		run(ctx)
	}()
}

// close returns when nobody listens at the address any more, in no process. What has been accepted goes on.
func (p *stagePreview) close(log *zap.Logger) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	p.closed = true
	// A relay has the socket as well and closes it in its own time; this ends the listening itself.
	raw, err := p.file.SyscallConn()
	if err == nil {
		var failed error
		err = raw.Control(func(fd uintptr) { failed = syscall.Shutdown(int(fd), syscall.SHUT_RD) })
		err = errors.Join(err, failed)
	}
	if p.cancel != nil {
		p.cancel()
		<-p.done
	}
	if err = errors.Join(err, p.file.Close()); err != nil {
		log.Warn("The preview of the staged generation may end late", zap.String("preview", p.addr), zap.Error(err))
	}
}

// endPreview closes the preview address of the stage. It may be called at any time, and again.
func (s *stage) endPreview() { s.plan.preview.close(s.m.log) }

// beginPreview has a relay serve the preview address of the stage.
func (s *stage) beginPreview() {
	p := s.plan.preview
	if p == nil {
		return
	}
	s.m.log.Info("The staged generation can be previewed", zap.Int("to_generation", s.box.number), zap.String("preview", p.addr))
	p.serve(func(ctx context.Context) { s.m.servePreview(ctx, p.file, p.listener) })
}

// previewAt is the preview address that is open now and the listener that it previews; forStage: with the stage alone.
func (m *master) previewAt() (p *preview, listener string, forStage bool) {
	if m.preview.file != nil {
		return &m.preview, m.cfg.Preview.Name, false
	}
	if s := m.stage.Load(); s != nil && s.plan.preview != nil {
		return &s.plan.preview.preview, s.plan.preview.listener, true
	}
	return nil, m.cfg.Preview.Name, false
}
