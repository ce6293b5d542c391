package lifecycle

import (
	"context"
	"errors"
	"syscall"
	"testing"
	"time"

	"gapless/internal/packet"
	"gapless/internal/testwait"

	"go.uber.org/zap"
)

// newLink returns a master's end with its actor running, and the parent's end.
func newLink(t *testing.T) (*masterLink, *packet.Conn) {
	t.Helper()
	a, b, err := packet.Pair()
	if err != nil {
		t.Fatal(err)
	}
	mine, err := packet.New(a)
	if err != nil {
		t.Fatal(err)
	}
	parent, err := packet.New(b)
	if err != nil {
		t.Fatal(err)
	}
	l := newMasterLink(mine)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- l.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			if !errors.Is(err, context.Canceled) {
				t.Errorf("the actor ended with %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("the actor does not end")
		}
		mine.Close()
		parent.Close()
	})
	return l, parent
}

func sendSignal(t *testing.T, parent *packet.Conn, seq uint64) {
	t.Helper()
	if err := parent.Send(linkMessage{Seq: seq, Signal: syscall.SIGUSR2}); err != nil {
		t.Fatal(err)
	}
}

func wantSignal(t *testing.T, l *masterLink, seq uint64) linkMessage {
	t.Helper()
	select {
	case m := <-l.signals:
		if m.Seq != seq || m.Signal != syscall.SIGUSR2 {
			t.Fatalf("came %+v, want number %d", m, seq)
		}
		return m
	case <-time.After(10 * time.Second):
		t.Fatalf("signal %d did not come", seq)
	}
	return linkMessage{}
}

func TestMasterLink_PassesASignalOnceAndAcknowledgesIt(t *testing.T) {
	l, parent := newLink(t)
	for _, seq := range []uint64{1, 1, 1, 2} { // the parent repeats what is not acknowledged
		sendSignal(t, parent, seq)
	}
	l.ack(wantSignal(t, l, 1))
	wantSignal(t, l, 2)
	var m linkMessage
	if _, err := parent.Receive(&m); err != nil || !m.Ack || m.Seq != 1 {
		t.Errorf("the parent heard %+v, %v", m, err)
	}
}

func TestMasterLink_LeavesTheNextMasterWhatComesWhilePaused(t *testing.T) {
	l, parent := newLink(t)
	l.pause()
	l.pause()
	quiet := func() bool {
		select {
		case m := <-l.signals:
			t.Logf("before the reader noticed the pause it took %+v", m)
			return false
		case <-time.After(50 * time.Millisecond):
			return true
		}
	}
	seq := uint64(1)
	sendSignal(t, parent, seq)
	if !quiet() { // the one that it was about to read; from now on it has noticed
		seq++
		sendSignal(t, parent, seq)
		if !quiet() {
			t.Error("a paused master goes on reading")
		}
	}
	l.resume()
	l.resume()
	wantSignal(t, l, seq)
}

func TestMasterLink_HearsAgainHoweverShortThePause(t *testing.T) {
	l, parent := newLink(t)
	for seq := range uint64(200) {
		l.pause()
		l.resume()
		sendSignal(t, parent, seq+1)
		wantSignal(t, l, seq+1)
	}
}

// The actor may hold a signal that nobody takes while the pause comes and goes.
func TestMasterLink_HearsAgainAfterAPauseWithASignalInHand(t *testing.T) {
	l, parent := newLink(t)
	sendSignal(t, parent, 1)
	testwait.Until(t, "the signal is read", func() bool { // nothing is left in the socket: the actor has it
		return pending(t, l) == 0
	})
	l.pause()
	l.resume()
	sendSignal(t, parent, 2)
	wantSignal(t, l, 1)
	wantSignal(t, l, 2)
}

// pending tells whether something waits to be read.
func pending(t *testing.T, l *masterLink) int {
	t.Helper()
	f, err := l.conn.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd, err := packet.Descriptor(f)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1)
	n, _, err := syscall.Recvfrom(fd, buf, syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	if errors.Is(err, syscall.EAGAIN) {
		return 0
	}
	return n
}

func TestMasterLink_NoticesThatTheParentIsGone(t *testing.T) {
	l, parent := newLink(t)
	parent.Close()
	select {
	case <-l.gone:
	case <-time.After(10 * time.Second):
		t.Fatal("nobody noticed")
	}
	l.ack(linkMessage{Seq: 1}) // nobody to tell
}

// A parent that speaks otherwise in one packet is still there: nothing may drain for it.
func TestMasterLink_GoesOnAfterWhatItCannotRead(t *testing.T) {
	l, parent := newLink(t)
	for _, m := range []any{"no message of the link", map[string]string{"seq": "one"}} {
		if err := parent.Send(m); err != nil {
			t.Fatal(err)
		}
	}
	sendSignal(t, parent, 1)
	select {
	case m := <-l.signals:
		if m.Seq != 1 {
			t.Errorf("came %+v, want number 1", m)
		}
	case <-l.gone:
		t.Error("the parent counts as gone")
	case <-time.After(10 * time.Second):
		t.Error("nothing came")
	}
}

func TestParent_HearsTheLinkAfterWhatItCannotRead(t *testing.T) {
	p := &parent{log: zap.NewNop(), acks: make(chan uint64)}
	end := linked(t, p)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- p.hearLink(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
	for _, m := range []any{"no message of the link", map[string]string{"seq": "one"}, linkMessage{Seq: 1, Ack: true}} {
		if err := end.Send(m); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case seq := <-p.acks:
		if seq != 1 {
			t.Errorf("acknowledged is %d, want 1", seq)
		}
	case <-time.After(10 * time.Second):
		t.Error("the parent does not listen any more")
	}
}
