package lifecycle

import (
	"errors"
	"io"
	"net"
	"slices"
	"syscall"
	"testing"

	"gapless/internal/handoff"
	"gapless/internal/packet"

	"go.uber.org/zap"
)

// newQueues returns the queues of generation 3 with the older one of generation 2.
func newQueues(t *testing.T) (q *queues, older queue) {
	t.Helper()
	q = &queues{work: make(chan struct{}, 1)}
	recv, send, err := handoff.NewPair()
	if err != nil {
		t.Fatal(err)
	}
	q.init(zap.NewNop(), queue{generation: 3, recv: recv, send: send})
	recv, send, err = handoff.NewPair()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, left := range q.all() {
			left.close()
		}
	})
	return q, queue{generation: 2, recv: recv, send: send}
}

// give puts a connection into a queue and returns the client's end.
func give(t *testing.T, o *queue, text string) net.Conn {
	t.Helper()
	client, err := tryGive(t, o, text)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func tryGive(t *testing.T, o *queue, text string) (net.Conn, error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	f, err := packet.Dup(o.send, "queue")
	if err != nil {
		t.Fatal(err)
	}
	s, err := handoff.NewSender(f)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	raw, err := server.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	return client, s.Send(raw, "http", []byte(text))
}

// taken returns what waits in a queue.
func taken(t *testing.T, o *queue) (texts []string) {
	t.Helper()
	f, err := packet.Dup(o.recv, "queue")
	if err != nil {
		t.Fatal(err)
	}
	r, err := handoff.NewReceiver(f)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for {
		c, err := r.TryReceive()
		if errors.Is(err, handoff.ErrEmpty) || errors.Is(err, io.EOF) {
			return texts
		}
		if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, string(c.Pending))
		nc, err := c.NetConn()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := nc.Write([]byte("served " + string(c.Pending))); err != nil {
			t.Error(err)
		}
		nc.Close()
	}
}

func TestQueues_MoveWhatTheDeadLeft(t *testing.T) {
	q, older := newQueues(t)
	living := []int{3, 2}
	q.inherit([]queue{older}, func() bool { return true }, func() []int { return living })
	select {
	case <-q.work:
	default:
		t.Error("nobody was told of the older queue")
	}
	first, second := give(t, &older, "GET /1"), give(t, &older, "GET /2")
	if !q.sweep() {
		t.Error("a generation that lives was forgotten")
	}
	third := give(t, &older, "GET /3") // it lives, so it may still get some
	living = []int{3}
	if q.sweep() {
		t.Error("a generation that has gone is kept")
	}
	if got := taken(t, &q.own); len(got) != 3 || got[0] != "GET /1" || got[2] != "GET /3" {
		t.Errorf("moved were %q", got)
	}
	for i, c := range []net.Conn{first, second, third} {
		if text, err := io.ReadAll(c); err != nil || len(text) != len("served GET /1") {
			t.Errorf("client %d got %q, %v", i+1, text, err)
		}
	}
	if n := len(q.all()); n != 1 {
		t.Errorf("%d queues are left", n)
	}
	if q.sweep() {
		t.Error("something is left")
	}
}

func TestQueues_AreKeptWhileNobodyTakes(t *testing.T) {
	q, older := newQueues(t)
	takes := false
	q.inherit([]queue{older}, func() bool { return takes }, func() []int { return []int{2, 3} })
	if q.target() != nil {
		t.Error("connections would be given to nobody")
	}
	give(t, &older, "GET /")
	if !q.sweep() {
		t.Error("the older queue was forgotten")
	}
	takes = true
	if q.target() != q.own.send {
		t.Error("the own queue is not the target")
	}
	q.sweep()
	if got := taken(t, &q.own); len(got) != 1 {
		t.Errorf("moved were %q", got)
	}
}

func TestQueues_WithoutHeirsHaveNoTarget(t *testing.T) {
	q, older := newQueues(t)
	older.close()
	if q.target() != nil {
		t.Error("a target before it is known who takes")
	}
	q.inherit(nil, func() bool { return true }, func() []int { return []int{3} })
	select {
	case <-q.work:
		t.Error("there is nothing to do")
	default:
	}
}

// A worker that drains for long gives its connections to the queue that it was told of, whoever is in charge by then.
func TestQueues_AreKeptForWhoeverMayUseThem(t *testing.T) {
	for _, tt := range []struct {
		name   string
		older  []int // the own one is that of generation 9
		living []int
		kept   []int
	}{
		{"nobody but the own generation", []int{8}, []int{9}, nil},
		{"who takes from it", []int{8}, []int{9, 8}, []int{8}},
		{"who was told by the one after it", []int{8}, []int{9, 7}, []int{8}},
		{"who was told long ago, and all after it have gone", []int{8, 7, 6, 4}, []int{9, 3}, []int{4}},
		{"with its own", []int{8, 7, 6, 4, 3}, []int{9, 9, 3, 3}, []int{4, 3}},
		{"a staged one that was aborted, and told by the one before", []int{8, 6, 4}, []int{9, 7}, []int{8, 6}},
		{"the last staged one that was aborted", []int{8}, []int{9, 10}, nil},
		{"two that drain", []int{8, 6, 5, 3, 2}, []int{9, 5, 2}, []int{6, 5, 3, 2}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			q := &queues{work: make(chan struct{}, 1)}
			open := func(generation int) queue {
				recv, send, err := handoff.NewPair()
				if err != nil {
					t.Fatal(err)
				}
				return queue{generation: generation, recv: recv, send: send}
			}
			q.init(zap.NewNop(), open(9))
			defer func() {
				for _, left := range q.all() {
					left.close()
				}
			}()
			var older []queue
			for _, g := range tt.older {
				older = append(older, open(g))
			}
			q.inherit(older, func() bool { return true }, func() []int { return tt.living })
			if left := q.sweep(); left != (len(tt.kept) > 0) {
				t.Errorf("sweep says %v", left)
			}
			var kept []int
			for _, o := range q.all()[1:] {
				kept = append(kept, o.generation)
			}
			if !slices.Equal(kept, tt.kept) {
				t.Errorf("kept are %v, want %v", kept, tt.kept)
			}
		})
	}
}

// What cannot be moved at present is not closed with the queue that it waits in.
func TestQueues_AreKeptWhileTheyCannotBeEmptied(t *testing.T) {
	q, older := newQueues(t)
	q.inherit([]queue{older}, func() bool { return true }, func() []int { return []int{3} })
	give(t, &older, "GET /")
	if err := q.own.recv.Close(); err != nil { // what is given to it fails
		t.Fatal(err)
	}
	first := q.sweep()
	second := q.sweep() // what the first one left is looked at again
	if !first || !second {
		t.Error("a queue was forgotten with a connection in it")
	}
}

// Before workers are told to drain with nobody to take over, what is in the queues is brought to them, and nothing can follow.
func TestQueues_Refuse(t *testing.T) {
	for _, tt := range []struct {
		name string
		stop bool
		into int // the generation whose workers are told
	}{{"everything stops", true, 3}, {"the next generation takes none", false, 2}} {
		t.Run(tt.name, func(t *testing.T) {
			q, second := newQueues(t)
			recv, send, err := handoff.NewPair()
			if err != nil {
				t.Fatal(err)
			}
			first := queue{generation: 1, recv: recv, send: send}
			q.inherit([]queue{second, first}, func() bool { return tt.stop }, func() []int { return []int{1, 2, 3} })
			give(t, &first, "GET /1")
			give(t, &second, "GET /2")
			q.refuse(tt.stop)
			var got []string
			for _, o := range q.all() {
				if _, err := tryGive(t, &o, "GET /late"); o.generation <= tt.into && !errors.Is(err, syscall.EPIPE) {
					t.Errorf("queue %d: %v", o.generation, err)
				} else if o.generation > tt.into && err != nil {
					t.Errorf("queue %d: %v, and its workers may take some one day", o.generation, err)
				}
				if o.generation == tt.into {
					got = taken(t, &o)
				}
			}
			slices.Sort(got)
			if !slices.Equal(got, []string{"GET /1", "GET /2"}) {
				t.Errorf("those who are told find %q", got)
			}
			q.refuse(tt.stop) // a master that follows a killed one does so again
		})
	}
}
