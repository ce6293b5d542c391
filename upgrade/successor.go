package upgrade

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"gapless/internal/packet"
)

// joinTimeout bounds how long a new master waits for its offer, which was sent before it was started.
const joinTimeout = 10 * time.Second

// Predecessor is the master in charge, seen from the one that is to follow it.
type Predecessor struct {
	handover Handover
	conn     *packet.Conn
	offer    Offer

	asking    sync.Mutex    // held by ask
	skip      int           // answers to requests that were given up and are still to come; ask's
	lanes     chan wire     // answers to ask
	aborted   chan struct{} // closed when the predecessor gives up on us or is gone before the commit
	committed chan struct{} // closed when all parcels are here
	closing   chan struct{} // closed by Close
	done      chan struct{} // closed when listen has returned

	mu      sync.Mutex
	reason  error // valid after aborted
	parcels []Parcel
	phase   Phase
	spared  bool // the workers may have clients
}

// Join returns the predecessor of a process that tableflip started, or nil in a first one.
func Join(h Handover) (*Predecessor, error) {
	if !h.HasParent() {
		return nil, nil
	}
	f, err := h.File(successorFile)
	if err != nil {
		return nil, fmt.Errorf("successor channel: %w", err)
	}
	if f == nil {
		return nil, errors.New("the running master passed no successor channel; stop it and start gapless anew")
	}
	conn, err := packet.New(f)
	if err != nil {
		return nil, fmt.Errorf("successor channel: %w", err)
	}
	p := &Predecessor{handover: h, conn: conn, lanes: make(chan wire, 8), aborted: make(chan struct{}),
		committed: make(chan struct{}), closing: make(chan struct{}), done: make(chan struct{}), phase: PhasePrepare}
	if err := conn.SetReadDeadline(time.Now().Add(joinTimeout)); err != nil {
		conn.Close()
		return nil, err
	}
	w, err := receive(conn)
	if err == nil && (w.Kind != kindOffer || w.Offer == nil) {
		err = fmt.Errorf("successor channel: expected an offer, got %q", w.Kind)
	}
	if err == nil && w.Offer.Version != protocolVersion {
		err = fmt.Errorf("the running master speaks version %d of the successor channel, this one %d: stop it and start gapless anew",
			w.Offer.Version, protocolVersion)
	}
	if err == nil {
		err = conn.SetReadDeadline(time.Time{})
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	p.offer = *w.Offer
	go p.listen()
	return p, nil
}

// Offer returns what the predecessor offered.
func (p *Predecessor) Offer() Offer { return p.offer }

// Aborted is closed when this generation must end itself, before the commit. Reason says why.
func (p *Predecessor) Aborted() <-chan struct{} { return p.aborted }

// Reason is valid after Aborted.
func (p *Predecessor) Reason() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.reason
}

func (p *Predecessor) listen() {
	defer close(p.done)
	for {
		w, err := receive(p.conn)
		switch {
		case err != nil:
			if errors.Is(err, io.EOF) {
				err = ErrPredecessorGone
			}
			p.abort(err)
			return
		case w.Kind == kindSpare:
			p.spare()
		case w.Kind == kindAbort:
			if w.Spare {
				p.spare()
			}
			p.abort(errors.New(w.Reason))
			return
		case w.Kind == kindGranted || w.Kind == kindRefused:
			select {
			case p.lanes <- w:
			case <-p.closing:
				packet.CloseAll(w.files)
				return
			}
		case w.Kind == kindParcel:
			p.mu.Lock()
			p.parcels = append(p.parcels, Parcel{Kind: w.Parcel, Data: w.Data, Files: w.files})
			p.mu.Unlock()
		case w.Kind == kindCommit:
			close(p.committed)
			return // nothing that comes now, not even the end of file, takes it back
		default:
			packet.CloseAll(w.files)
		}
	}
}

func (p *Predecessor) abort(reason error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reason = reason
	for _, parcel := range p.parcels {
		packet.CloseAll(parcel.Files)
	}
	p.parcels = nil
	close(p.aborted)
}

// Progress tells the predecessor how far we are.
func (p *Predecessor) Progress(pr Progress) {
	p.setPhase(pr.Phase)
	_ = send(p.conn, wire{Kind: kindProgress, Progress: &pr}) // that it is gone is told by Aborted
}

// Fail tells the predecessor why this generation ends.
func (p *Predecessor) Fail(reason string, tail []string) {
	p.mu.Lock()
	phase := p.phase
	p.mu.Unlock()
	_ = send(p.conn, wire{Kind: kindFailure, Failure: &failure{Phase: phase, Reason: reason, Tail: tail}})
}

// setPhase is called by whichever goroutine has got further: workers become ready at the same time.
func (p *Predecessor) setPhase(phase Phase) {
	p.mu.Lock()
	p.phase = phase
	p.mu.Unlock()
}

// Lanes asks the predecessor for lanes. The files are the caller's.
func (p *Predecessor) Lanes(ctx context.Context, address string, count int) (names []string, files []*os.File, err error) {
	return p.ask(ctx, kindLanes, laneRequest{Address: address, Count: count})
}

// Knock asks the predecessor for a connection to one of the granted lanes, whatever share that lane has. The file is the
// caller's.
func (p *Predecessor) Knock(ctx context.Context, address, lane string) (*os.File, error) {
	_, files, err := p.ask(ctx, kindKnock, laneRequest{Address: address, Lane: lane})
	if err == nil && len(files) != 1 {
		packet.CloseAll(files)
		err = fmt.Errorf("knock at %s: %d connections came", lane, len(files))
	}
	if err != nil {
		return nil, err
	}
	return files[0], nil
}

// ask sends a request and collects its answer. One is under way at a time.
func (p *Predecessor) ask(ctx context.Context, what kind, r laneRequest) (names []string, files []*os.File, err error) {
	p.asking.Lock()
	defer p.asking.Unlock()
	if err := send(p.conn, wire{Kind: what, Lanes: &r}); err != nil {
		return nil, nil, err
	}
	address := r.Address
	defer func() {
		if err != nil {
			packet.CloseAll(files)
			names, files = nil, nil
		}
	}()
	for {
		select {
		case w := <-p.lanes:
			if p.skip > 0 {
				packet.CloseAll(w.files)
				if w.Kind == kindRefused || len(w.Names) == 0 {
					p.skip--
				}
				continue
			}
			if w.Kind == kindRefused {
				return names, files, fmt.Errorf("lanes for %s: %s", address, w.Reason)
			}
			if len(w.Names) == 0 {
				return names, files, nil
			}
			names, files = append(names, w.Names...), append(files, w.files...)
			if len(names) != len(files) {
				return names, files, fmt.Errorf("lanes for %s: %d names came with %d sockets", address, len(names), len(files))
			}
		case <-p.aborted:
			return names, files, p.Reason()
		case <-ctx.Done():
			p.skip++
			return names, files, context.Cause(ctx)
		}
	}
}

// Commit asks for the change of charge and returns when it has happened: the predecessor has left what it had, has
// heard from us, and has exited.
//
// accept is called in between, with what was left. If it fails, so does the commit, and nothing has changed hands: this
// generation must end itself. Once it has returned nil there is no way back: this master takes charge even if the
// predecessor dies on the spot. Files of the Handover that accept has not claimed are closed thereafter.
func (p *Predecessor) Commit(ctx context.Context, accept func([]Parcel) error) error {
	p.setPhase(PhaseCommit)
	if err := send(p.conn, wire{Kind: kindReady}); err != nil {
		return err
	}
	select {
	case <-p.committed:
	case <-p.aborted:
		return p.Reason()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	p.mu.Lock()
	parcels := p.parcels
	p.parcels = nil
	p.mu.Unlock()
	if err := accept(parcels); err != nil {
		return err
	}
	// A predecessor that died meanwhile cannot read the byte; it has left everything all the same.
	readyErr := p.handover.Ready()
	if err := p.handover.WaitForParent(context.Background()); err != nil && readyErr == nil {
		return fmt.Errorf("wait for the predecessor's exit: %w", err)
	}
	return nil
}

// Close ends the conversation.
func (p *Predecessor) Close() {
	close(p.closing)
	p.conn.Close()
	<-p.done
	for {
		select {
		case w := <-p.lanes: // an answer that nobody waited for any more
			packet.CloseAll(w.files)
		default:
			return
		}
	}
}

// NewParcel makes a parcel of v, as JSON.
func NewParcel(kind string, v any, files ...*os.File) (Parcel, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return Parcel{}, fmt.Errorf("pack %s: %w", kind, err)
	}
	return Parcel{Kind: kind, Data: data, Files: files}, nil
}

// Open reads a parcel's data into v.
func (p Parcel) Open(v any) error {
	if err := json.Unmarshal(p.Data, v); err != nil {
		return fmt.Errorf("unpack %s: %w", p.Kind, err)
	}
	return nil
}
