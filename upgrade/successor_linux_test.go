package upgrade

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"gapless/internal/packet"
)

// handMade is a master in charge that a test plays by hand, and the Handover of the one that is to follow.
type handMade struct {
	*newMaster
	conn *packet.Conn
	gone chan struct{} // closed when the master in charge has exited
}

func newHandMade(t *testing.T) *handMade {
	t.Helper()
	mine, theirs, err := packet.Pair()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := packet.New(mine)
	if err != nil {
		t.Fatal(err)
	}
	gone := make(chan struct{})
	c := &newMaster{h: &fakeHandover{parentGone: gone}, files: newFakeFiles(t), ready: make(chan struct{})}
	if err := c.AddFile(successorFile, theirs); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	h := &handMade{c, conn, gone}
	t.Cleanup(func() { conn.Close() })
	return h
}

// File hands the channel over for good, as exec does: otherwise its end would never be seen.
func (h *handMade) File(name string) (*os.File, error) {
	defer h.files.closeTable()
	return h.newMaster.File(name)
}

func (h *handMade) say(t *testing.T, w wire) {
	t.Helper()
	if err := send(h.conn, w); err != nil {
		t.Error(err)
	}
}

func (h *handMade) hear(t *testing.T, want kind) wire {
	t.Helper()
	w, err := receive(h.conn)
	if err != nil || w.Kind != want {
		t.Errorf("heard %+v, %v; want %s", w, err, want)
	}
	return w
}

func (h *handMade) exit() { h.conn.Close(); close(h.gone) }

func (h *handMade) join(t *testing.T) *Predecessor {
	t.Helper()
	h.say(t, wire{Kind: kindOffer, Offer: &Offer{Version: protocolVersion, Generation: 7}})
	p, err := Join(h)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func TestJoin_AFirstMasterHasNoPredecessor(t *testing.T) {
	p, err := Join(newFakeHandover(t, nil))
	if p != nil || err != nil {
		t.Errorf("got %v, %v", p, err)
	}
}

func TestJoin_Refuses(t *testing.T) {
	for _, tc := range []struct {
		name string
		say  func(t *testing.T, h *handMade)
		want string
		is   error
	}{
		{"no channel", func(_ *testing.T, h *handMade) { h.files.closeTable() }, "passed no successor channel; stop it and start gapless anew", nil},
		{"another version", func(t *testing.T, h *handMade) {
			h.say(t, wire{Kind: kindOffer, Offer: &Offer{Version: protocolVersion + 1}})
		}, fmt.Sprintf("speaks version %d of the successor channel, this one %d: stop it", protocolVersion+1, protocolVersion), nil},
		{"no offer", func(t *testing.T, h *handMade) { h.say(t, wire{Kind: kindCommit}) }, `expected an offer, got "commit"`, nil},
		{"an empty offer", func(t *testing.T, h *handMade) { h.say(t, wire{Kind: kindOffer}) }, `expected an offer`, nil},
		{"garbage", func(t *testing.T, h *handMade) {
			if err := h.conn.Send(json.RawMessage(`[1,2]`)); err != nil {
				t.Error(err)
			}
		}, "decode a packet", nil},
		{"the end", func(_ *testing.T, h *handMade) { h.exit() }, "successor channel", io.EOF},
		{"no channel but a file", func(t *testing.T, h *handMade) {
			null, err := os.Open(os.DevNull)
			if err != nil {
				t.Fatal(err)
			}
			defer null.Close()
			if err := h.AddFile(successorFile, null); err != nil {
				t.Error(err)
			}
		}, "no packet socket", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			noLeaks(t, func() {
				h := newHandMade(t)
				tc.say(t, h)
				p, err := Join(h)
				if err == nil {
					p.Close()
					t.Fatal("it joined")
				}
				if !strings.Contains(err.Error(), tc.want) || tc.is != nil && !errors.Is(err, tc.is) {
					t.Errorf("got %q, want %q", err, tc.want)
				}
				h.conn.Close()
			})
		})
	}
}

func TestPredecessor_ThatDiesBeforeTheCommitEndsEverything(t *testing.T) {
	null := func() *os.File {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	for _, tc := range []struct {
		name string
		do   func(p *Predecessor) error
		die  func(h *handMade)
	}{
		{"while nothing is asked", func(p *Predecessor) error { <-p.Aborted(); return p.Reason() }, (*handMade).exit},
		{"while lanes are asked for", func(p *Predecessor) error {
			_, _, err := p.Lanes(t.Context(), "http", 3)
			return err
		}, func(h *handMade) {
			h.hear(t, kindLanes)
			f := null()
			defer f.Close()
			h.say(t, wire{Kind: kindGranted, Names: []string{"http.1"}, files: []*os.File{f}})
			h.exit()
		}},
		{"while it leaves what it had", func(p *Predecessor) error {
			return p.Commit(t.Context(), func([]Parcel) error { t.Error("accepted"); return nil })
		}, func(h *handMade) {
			h.hear(t, kindReady)
			f := null()
			defer f.Close()
			h.say(t, wire{Kind: kindParcel, Parcel: "state", Data: []byte(`{}`), files: []*os.File{f}})
			h.exit()
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			noLeaks(t, func() {
				h := newHandMade(t)
				h.say(t, wire{Kind: kindOffer, Offer: &Offer{Version: protocolVersion}})
				p, err := Join(h)
				if err != nil {
					t.Fatal(err)
				}
				defer p.Close()
				var dying sync.WaitGroup
				defer dying.Wait() // it closes its own copies last
				dying.Go(func() { tc.die(h) })
				if err := tc.do(p); !errors.Is(err, ErrPredecessorGone) {
					t.Errorf("got %v", err)
				}
				select {
				case <-p.Aborted():
				case <-time.After(10 * time.Second):
					t.Error("not aborted")
				}
			})
		})
	}
}

// Once all has been left there is no way back: the new master takes charge without the old one.
func TestPredecessor_ThatDiesAfterTheCommitIsFollowed(t *testing.T) {
	h := newHandMade(t)
	p := h.join(t)
	go func() {
		h.hear(t, kindReady)
		h.say(t, wire{Kind: kindParcel, Parcel: "state", Data: []byte(`{"a":1}`)})
		h.say(t, wire{Kind: kindCommit})
		h.exit()
	}()
	accepted := 0
	if err := p.Commit(t.Context(), func(parcels []Parcel) error {
		<-h.gone
		accepted = len(parcels)
		return nil
	}); err != nil {
		t.Error(err)
	}
	if accepted != 1 {
		t.Errorf("%d parcels", accepted)
	}
	select {
	case <-p.Aborted():
		t.Errorf("aborted after the commit: %v", p.Reason())
	case <-h.ready:
	}
}

func TestPredecessor_AnAbortSaysWhy(t *testing.T) {
	h := newHandMade(t)
	p := h.join(t)
	h.say(t, wire{Kind: "of a later version", Reason: "unknown kinds are passed over"})
	h.say(t, wire{Kind: kindAbort, Reason: "gapless is stopped"})
	if err := p.Commit(t.Context(), func([]Parcel) error { t.Error("accepted"); return nil }); err == nil || err.Error() != "gapless is stopped" {
		t.Errorf("got %v", err)
	}
}

func TestPredecessor_AnAnswerThatCameTooLateIsNobodyElses(t *testing.T) {
	noLeaks(t, func() {
		h := newHandMade(t)
		h.say(t, wire{Kind: kindOffer, Offer: &Offer{Version: protocolVersion}})
		p, err := Join(h)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { p.Close(); h.conn.Close() }()
		late := errors.New("the worker was given up")
		for range 2 {
			ctx, cancel := context.WithCancelCause(t.Context())
			cancel(late)
			if f, err := p.Knock(ctx, "http", "http.1"); !errors.Is(err, late) {
				t.Fatalf("got %v, %v", f, err)
			}
		}
		answered := make(chan struct{})
		go func() {
			defer close(answered)
			for range 3 {
				asked := h.hear(t, kindKnock).Lanes
				if asked == nil {
					return
				}
				f, err := says(asked.Lane)
				if err != nil {
					t.Error(err)
					return
				}
				if err := sendLanes(h.conn, []string{asked.Lane}, []*os.File{f}); err != nil {
					t.Error(err)
				}
				f.Close()
			}
		}()
		f, err := p.Knock(t.Context(), "http", "http.2")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if text, err := io.ReadAll(f); string(text) != "http.2" {
			t.Errorf("the knock at http.2 was answered by %q, %v", text, err)
		}
		<-answered // it has closed what it sent
	})
}

func TestPredecessor_NamesWithoutSocketsAreAnError(t *testing.T) {
	h := newHandMade(t)
	p := h.join(t)
	h.say(t, wire{Kind: kindGranted, Names: []string{"http.1", "http.2"}})
	if _, files, err := p.Lanes(t.Context(), "http", 2); err == nil || files != nil || !strings.Contains(err.Error(), "2 names came with 0 sockets") {
		t.Errorf("got %v, %v", files, err)
	}
}

func TestParcel_ThatIsNotUnderstoodNamesItsKind(t *testing.T) {
	if _, err := NewParcel("state", make(chan int)); err == nil || !strings.Contains(err.Error(), "pack state") {
		t.Errorf("got %v", err)
	}
	if err := (Parcel{Kind: "state", Data: []byte("[")}).Open(new(int)); err == nil || !strings.Contains(err.Error(), "unpack state") {
		t.Errorf("got %v", err)
	}
}

// Whatever comes over the channel: a master does not crash, and what it understands it would say the same way.
func FuzzWire(f *testing.F) {
	for _, w := range []wire{
		{Kind: kindOffer, Offer: &Offer{Version: 1, Generation: 2}},
		{Kind: kindProgress, Progress: &Progress{Phase: PhaseSteps, Limit: time.Second}},
		{Kind: kindLanes, Lanes: &laneRequest{Address: "http", Count: 3}},
		{Kind: kindFailure, Failure: &failure{PhaseWorkers, "why", []string{"a", "b"}}},
		{Kind: kindParcel, Parcel: "state", Data: []byte(`{"a":[1]}`)},
		{Kind: kindCommit}, {Kind: kindEnd},
	} {
		data, err := json.Marshal(w)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte(`{"kind":null,"offer":{"version":1e99}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var w wire
		if json.Unmarshal(data, &w) != nil {
			return
		}
		again, err := json.Marshal(w)
		if err != nil {
			t.Fatal(err)
		}
		var back wire
		if err := json.Unmarshal(again, &back); err != nil {
			t.Fatalf("%s became %s: %v", data, again, err)
		}
		third, err := json.Marshal(back)
		if err != nil || !reflect.DeepEqual(again, third) {
			t.Fatalf("%s became %s became %s, %v", data, again, third, err)
		}
	})
}
