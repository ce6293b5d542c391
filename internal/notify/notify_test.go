package notify_test

import (
	"errors"
	"maps"
	"net"
	"os"
	"testing"
	"time"

	"gapless/internal/notify"

	"github.com/coreos/go-systemd/v22/daemon"
)

func TestSocket_TellsWhoSaidWhat(t *testing.T) {
	s, err := notify.Listen()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	t.Setenv("NOTIFY_SOCKET", s.Address())
	if ok, err := daemon.SdNotify(false, "READY=1\nMAINPID=42\nSTATUS=a=b"); !ok || err != nil {
		t.Fatal(ok, err)
	}
	m, err := s.Receive()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"READY": "1", "MAINPID": "42", "STATUS": "a=b"}
	if !m.Ready() || m.PID != os.Getpid() || m.UID != os.Getuid() || !maps.Equal(m.Fields, want) {
		t.Fatalf("got %+v", m)
	}
}

func TestSocket_SurvivesGarbageAndHandsOver(t *testing.T) {
	s, err := notify.Listen()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	c, err := net.Dial("unixgram", s.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, data := range []string{"no equals sign", "=\n=", "READY=1"} {
		if _, err := c.Write([]byte(data)); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if _, err := s.Receive(); !errors.Is(err, notify.ErrForeign) {
			t.Fatalf("got %v, want ErrForeign", err)
		}
	}
	f, err := s.File()
	if err != nil {
		t.Fatal(err)
	}
	next, err := notify.FromFile(f, s.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	if err := next.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	if m, err := next.Receive(); err != nil || !m.Ready() {
		t.Fatalf("got %+v, %v", m, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("READY=1\nSTATUS=x\n"))
	f.Add([]byte("=\n\n==\nA"))
	f.Fuzz(func(t *testing.T, data []byte) {
		for k := range notify.Parse(data) {
			if k == "" {
				t.Fatal("empty key")
			}
		}
	})
}

func TestSend_PassesDescriptors(t *testing.T) {
	s, err := notify.Listen()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for range 2 {
		if err := notify.Send(s.Address(), "FDSTORE=1\nFDNAME=a", w, r); err != nil {
			t.Fatal(err)
		}
	}
	m, err := s.ReceiveFDs()
	if err != nil || len(m.FDs) != 2 || m.Fields["FDNAME"] != "a" || m.PID != os.Getpid() {
		t.Fatalf("got %+v, %v", m, err)
	}
	kept := os.NewFile(uintptr(m.FDs[0]), "kept")
	if _, err := kept.WriteString("x"); err != nil {
		t.Fatal(err)
	}
	if n, err := r.Read(make([]byte, 1)); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if m, err := s.Receive(); err != nil || m.FDs != nil { // it closes what came along
		t.Fatalf("got %+v, %v", m, err)
	}
	notify.CloseFDs(m.FDs[1:])
	kept.Close()
	w.Close()
	if _, err := r.Read(make([]byte, 1)); err == nil {
		t.Fatal("a descriptor was left open")
	}
	s.Close()
	if err := notify.Send(s.Address(), "READY=1"); err == nil {
		t.Fatal("nobody listens, and it was sent")
	}
}
