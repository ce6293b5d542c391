package procfs

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"gapless/internal/pidfd"
)

// ProbeMain is the helper: it serves requests until r ends. It is started by a Prober with the rights of the master and
// gives them up for those of the worker in its first request. It does that itself, rather than being started as that
// user, because a fork with credentials would make the master undumpable, and because the worker's user
// need not be able to execute our binary.
func ProbeMain(r io.Reader, w io.Writer) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	out := json.NewEncoder(w)
	for lines.Scan() {
		if err := out.Encode(serve(lines.Bytes())); err != nil {
			return fmt.Errorf("answer a probe: %w", err)
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read a probe: %w", err)
	}
	return nil
}

func serve(line []byte) response {
	req, err := decode(line)
	if err != nil {
		return answer(Evidence{}, fmt.Errorf("read a probe: %w", err))
	}
	if req.Become != nil {
		return answer(Evidence{}, become(*req.Become))
	}
	inodes := map[uint64]bool{}
	for _, ino := range req.Inodes {
		inodes[ino] = true
	}
	return answer(look(req.PID, inodes))
}

// become gives up everything for the rights of one ordinary user, for good.
func become(id identity) error {
	if err := syscall.Setgroups(nil); err != nil {
		return fmt.Errorf("give up the groups: %w", err)
	}
	if err := syscall.Setresgid(id.GID, id.GID, id.GID); err != nil {
		return fmt.Errorf("become gid %d: %w", id.GID, err)
	}
	if err := syscall.Setresuid(id.UID, id.UID, id.UID); err != nil {
		return fmt.Errorf("become uid %d: %w", id.UID, err)
	}
	return nil
}

// Prober is Waiting for masters that may not read their workers: root without CAP_SYS_PTRACE, as in most containers, with
// workers of another user. What it may not read itself it asks a helper process that runs with the worker's rights, one
// for each pair of uid and gid, started when first needed. Its methods may be called from any goroutine.
type Prober struct {
	argv []string

	mu      sync.Mutex
	closed  bool
	helpers map[identity]*helper
	failed  map[identity]error // could not be started: would not be the next time either
	denied  map[int]denial     // what could not be read
}

// NewProber returns a Prober whose helper is argv, a program that calls ProbeMain with its standard input and output:
// "/proc/self/exe", "probe". The owner closes it.
func NewProber(argv ...string) *Prober {
	return &Prober{
		argv:    slices.Clone(argv),
		helpers: map[identity]*helper{},
		failed:  map[identity]error{},
		denied:  map[int]denial{},
	}
}

// patience is how long a process may be unreadable before that is reported. Between the change of its user and its exec,
// a worker cannot be read by anybody.
const patience = time.Second

// Waiting is the package's Waiting, with the helpers' eyes where ours are not allowed. A process tree that they could
// not read either for a second on end is ErrNoRights; until then it counts as one that does not wait yet. ctx bounds
// how long a helper is waited for; any other error than ErrNoRights and os.ErrProcessDone may pass.
func (p *Prober) Waiting(ctx context.Context, pid int, inodes map[uint64]bool) (Evidence, error) {
	seen, err := waiting(pid, func(pid int) (Evidence, error) { return p.look(ctx, pid, inodes) })
	return seen, p.tolerate(pid, err)
}

// look looks into one process, by ourselves or by a helper.
func (p *Prober) look(ctx context.Context, pid int, inodes map[uint64]bool) (Evidence, error) {
	seen, err := look(pid, inodes)
	var rights *RightsError
	if !errors.As(err, &rights) || rights.UID <= 0 || rights.GID < 0 || os.Geteuid() != 0 {
		return seen, err
	}
	h, startErr := p.helper(ctx, identity{rights.UID, rights.GID})
	if startErr != nil && ctx.Err() != nil {
		return Evidence{}, startErr
	}
	if startErr != nil {
		return Evidence{}, errors.Join(err, startErr)
	}
	resp, askErr := h.ask(ctx, request{PID: pid, Inodes: slices.Collect(maps.Keys(inodes))})
	if askErr != nil {
		p.drop(h)
		return Evidence{}, askErr
	}
	return resp.Evidence, resp.err(pid)
}

// denial is how long a process has been unreadable without a break.
type denial struct{ since, last time.Time }

// tolerate holds back ErrNoRights for a while. A denial that was last heard of long ago was another process with the same
// PID, or a worker that was given up: it is forgotten.
func (p *Prober) tolerate(pid int, err error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(p.denied, func(_ int, d denial) bool { return now.Sub(d.last) > 2*patience })
	if !errors.Is(err, ErrNoRights) {
		delete(p.denied, pid)
		return err
	}
	d, ok := p.denied[pid]
	if !ok {
		d.since = now
	}
	d.last = now
	p.denied[pid] = d
	if now.Sub(d.since) < patience {
		return nil
	}
	return err
}

// Rest ends the helpers until they are needed again: an owner that lives long calls it when its workers are ready.
func (p *Prober) Rest() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.end()
}

// end ends the helpers; p.mu is held.
func (p *Prober) end() error {
	var errs []error
	for _, h := range p.helpers {
		errs = append(errs, h.stop())
	}
	clear(p.helpers)
	return errors.Join(errs...)
}

// Close ends the helpers and waits for them.
func (p *Prober) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	return p.end()
}

func (p *Prober) helper(ctx context.Context, id identity) (*helper, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, fmt.Errorf("start a probe: %w", os.ErrClosed)
	}
	if h := p.helpers[id]; h != nil {
		return h, nil
	}
	if err := p.failed[id]; err != nil {
		return nil, err
	}
	h, err := startHelper(ctx, p.argv, id)
	if err != nil {
		err = fmt.Errorf("start a probe as uid %d, gid %d: %w", id.UID, id.GID, err)
		if ctx.Err() == nil {
			p.failed[id] = err
		}
		return nil, err
	}
	p.helpers[id] = h
	return h, nil
}

// drop ends a helper that did not answer, so that the next question starts another.
func (p *Prober) drop(h *helper) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.helpers[h.id] == h {
		delete(p.helpers, h.id)
		h.stop() // its fault is already on its way to the caller
	}
}

// helper is one running helper process.
type helper struct {
	id   identity
	proc *pidfd.Process

	mu   sync.Mutex // one question at a time
	to   *os.File
	from *os.File
	read *bufio.Reader
}

func startHelper(ctx context.Context, argv []string, id identity) (*helper, error) {
	if len(argv) == 0 {
		return nil, errors.New("no helper program was given")
	}
	stdin, to, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer stdin.Close()
	from, stdout, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, to.Close())
	}
	defer stdout.Close()
	// os.Pipe's ends are in the poller, which Fd would take them out of; the child's ends are only passed on.
	proc, err := pidfd.Start(argv[0], argv, &syscall.ProcAttr{
		Dir:   "/",
		Env:   []string{"GOMAXPROCS=1"}, // no secrets of the master's; one look at a time needs one thread
		Files: []uintptr{stdin.Fd(), stdout.Fd(), 2},
		Sys:   &syscall.SysProcAttr{Setpgid: true}, // Ctrl-C is not for it
	})
	if err != nil {
		return nil, errors.Join(err, to.Close(), from.Close())
	}
	h := &helper{id: id, proc: proc, to: to, from: from, read: bufio.NewReader(from)}
	resp, err := h.ask(ctx, request{Become: &id})
	if err == nil {
		err = resp.err(proc.PID())
	}
	if err != nil {
		return nil, errors.Join(err, h.stop())
	}
	return h, nil
}

// ask sends one question and reads its answer.
func (h *helper) ask(ctx context.Context, req request) (response, error) {
	line, err := json.Marshal(req)
	if err != nil {
		return response{}, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return response{}, context.Cause(ctx)
	}
	// An answer that comes after its question was given up would be taken for the next one's: the caller drops us then.
	stop := context.AfterFunc(ctx, func() {
		h.to.SetDeadline(time.Unix(1, 0))
		h.from.SetDeadline(time.Unix(1, 0))
	})
	if _, err := h.to.Write(append(line, '\n')); err != nil {
		stop()
		return response{}, h.fault(ctx, err)
	}
	text, err := h.read.ReadBytes('\n')
	if err != nil {
		stop()
		return response{}, h.fault(ctx, err)
	}
	var resp response
	if err := json.Unmarshal(bytes.TrimSpace(text), &resp); err != nil {
		stop()
		return response{}, h.fault(ctx, err)
	}
	if !stop() { // the deadlines are being set: this helper's pipes are of no more use
		return response{}, h.fault(ctx, context.Cause(ctx))
	}
	return resp, nil
}

func (h *helper) fault(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return fmt.Errorf("ask the probe (pid %d): %w", h.proc.PID(), err)
}

// stop kills the helper: it holds nothing that would have to be put down first.
func (h *helper) stop() error {
	errs := []error{h.to.Close(), h.from.Close()}
	if err := h.proc.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		errs = append(errs, err)
	}
	h.proc.Status()
	return errors.Join(append(errs, h.proc.Close())...)
}
