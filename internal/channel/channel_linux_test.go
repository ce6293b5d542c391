package channel

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"gapless/internal/seqpacket"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func ends(t *testing.T) (master, worker *Conn) {
	t.Helper()
	mf, wf, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	if master, err = New(mf); err != nil {
		t.Fatal(err)
	}
	if worker, err = New(wf); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = master.Close(); _ = worker.Close() })
	return master, worker
}

func TestConn_Messages(t *testing.T) {
	for name, m := range map[string]Message{
		"adapter": Adapter{Name: "a server 1.0", Reason: "it is not as it is known"},
		"hello":   Hello{Version: Version, PID: 812},
		"ready":   Ready{Version: Version, PID: 812, Drain: true, Handoff: true},
		"status":  Status{InFlight: 1, Connections: 2, Handed: 3, Bytes: 4, OldestMS: 5},
		"drain":   Drain{Deadline: 30 * time.Second, Extra: time.Millisecond, Spread: 5 * time.Second, Handoff: true, Stop: true},
		"zero":    Drain{},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := ends(t)
			if err := a.Send(m, nil); err != nil {
				t.Fatal(err)
			}
			got, f, err := b.Receive(t.Context())
			if err != nil || f != nil || got != m {
				t.Fatalf("got %#v, %v, %v", got, f, err)
			}
		})
	}
}

func TestConn_CarriesADescriptor(t *testing.T) {
	a, b := ends(t)
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte("queue"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Send(Drain{Handoff: true}, f); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	_, got, err := b.Receive(t.Context())
	if err != nil || got == nil {
		t.Fatalf("got %v, %v", got, err)
	}
	defer got.Close()
	if text, err := io.ReadAll(got); err != nil || string(text) != "queue" {
		t.Fatalf("read %q, %v", text, err)
	}
}

func TestReceive_PassesOverUnknownTypes(t *testing.T) {
	a, b := ends(t)
	if err := a.c.Send([]byte(`{"type":"sing","song":3}`), -1); err != nil {
		t.Fatal(err)
	}
	if err := a.c.Send([]byte(`{"type":"drain","deadline_ms":5,"moon":"full"}`), -1); err != nil {
		t.Fatal(err)
	}
	m, _, err := b.Receive(t.Context())
	if err != nil || m != (Drain{Deadline: 5 * time.Millisecond}) {
		t.Fatalf("got %#v, %v", m, err)
	}
}

func TestReceive_GoesOnAfterNonsense(t *testing.T) {
	a, b := ends(t)
	if err := a.c.Send([]byte(`{"type"`), -1); err != nil {
		t.Fatal(err)
	}
	if err := a.Send(Status{}, nil); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.Receive(t.Context()); !errors.Is(err, ErrPacket) {
		t.Error("nonsense was accepted")
	}
	if m, _, err := b.Receive(t.Context()); err != nil || m != (Status{}) {
		t.Fatalf("got %#v, %v", m, err)
	}
}

func TestReceive_EndOfTheOtherSide(t *testing.T) {
	a, b := ends(t)
	// A packet that the other side never reads makes the kernel say
	// "connection reset", which must not hide what it sent before.
	if err := b.Send(Status{}, nil); err != nil {
		t.Fatal(err)
	}
	if err := a.Send(Drain{}, nil); err != nil {
		t.Fatal(err)
	}
	_ = a.Close()
	if m, _, err := b.Receive(t.Context()); err != nil || m != (Drain{}) {
		t.Fatalf("got %#v, %v", m, err)
	}
	if _, _, err := b.Receive(t.Context()); !errors.Is(err, io.EOF) {
		t.Fatalf("got %v, want EOF", err)
	}
}

func TestReceive_Context(t *testing.T) {
	a, b := ends(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { _, _, err := b.Receive(ctx); done <- err }()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	if err := a.Send(Status{}, nil); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.Receive(t.Context()); err != nil {
		t.Fatalf("receive after a cancelled one: %v", err)
	}
}

func TestSend_NeverBlocks(t *testing.T) {
	a, _ := ends(t)
	for range 1 << 20 {
		err := a.Send(Status{}, nil)
		if errors.Is(err, seqpacket.ErrFull) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Fatal("the channel never fills")
}

func TestFile_IsAnotherHolder(t *testing.T) {
	a, b := ends(t)
	f, err := a.File()
	if err != nil {
		t.Fatal(err)
	}
	_ = a.Close()
	again, err := New(f)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if err := again.Send(Status{Handed: 1}, nil); err != nil {
		t.Fatal(err)
	}
	if m, _, err := b.Receive(t.Context()); err != nil || m != (Status{Handed: 1}) {
		t.Fatalf("got %#v, %v", m, err)
	}
}

func TestNew_RefusesOtherFiles(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "x")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(f); err == nil {
		t.Error("a regular file was accepted")
	}
}

func FuzzDecode(f *testing.F) {
	for _, m := range []Message{Ready{Version: 1, PID: 2}, Adapter{Name: "a", Reason: "b"}, Status{1, 2, 3, 4, 5}, Drain{Deadline: time.Second}} {
		p, _ := Encode(m)
		f.Add(p)
	}
	f.Add([]byte(`{"type":"drain","deadline_ms":-1,"extra_ms":9223372036854775807}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, p []byte) {
		m, err := Decode(p)
		if err != nil {
			return
		}
		if d, ok := m.(Drain); ok && (d.Deadline < 0 || d.Extra < 0 || d.Spread < 0) {
			t.Fatalf("negative duration: %#v", d)
		}
		once, err := Encode(m)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Decode(once)
		if err != nil || again != m {
			t.Fatalf("%#v became %#v, %v", m, again, err)
		}
		if twice, _ := Encode(again); !bytes.Equal(once, twice) {
			t.Fatalf("%s became %s", once, twice)
		}
	})
}

// A runtime that does not tell which descriptor it got finds the queue by the inode that the order names.
func TestConn_DrainNamesItsDescriptor(t *testing.T) {
	a, b := ends(t)
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := a.Send(Drain{Handoff: true}, f); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, MaxPacket)
	n, fd, err := b.c.Receive(p)
	if err != nil || fd < 0 {
		t.Fatalf("got descriptor %d, %v", fd, err)
	}
	got := os.NewFile(uintptr(fd), "got")
	defer got.Close()
	var m struct {
		Queue uint64 `json:"queue"`
	}
	if err := json.Unmarshal(p[:n], &m); err != nil || m.Queue == 0 || m.Queue != inodeOf(got) {
		t.Fatalf("%s: got inode %d, %v, want %d", p[:n], m.Queue, err, inodeOf(got))
	}
}
