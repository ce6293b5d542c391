package upgrade

import (
	"encoding/json"
	"fmt"
	"os"
	"time"

	"gapless/internal/packet"
)

// wire is a packet on the successor channel. Exactly one field beside Kind and Data is set, according to Kind.
type wire struct {
	Kind     kind            `json:"kind"`
	Offer    *Offer          `json:"offer,omitempty"`
	Progress *Progress       `json:"progress,omitempty"`
	Lanes    *laneRequest    `json:"lanes,omitempty"`
	Names    []string        `json:"names,omitempty"`
	Failure  *failure        `json:"failure,omitempty"`
	Parcel   string          `json:"parcel,omitempty"`
	Data     json.RawMessage `json:"data,omitempty"`
	Reason   string          `json:"reason,omitempty"`
	Seats    *Seats          `json:"seats,omitempty"`
	Spare    bool            `json:"spare,omitempty"` // of an abort: the workers stay

	files []*os.File
}

type kind string

const (
	// From the new master.
	kindProgress kind = "progress"
	kindLanes    kind = "lanes" // asks for lanes
	kindFailure  kind = "failure"
	kindKnock    kind = "knock" // asks for a connection to one of its lanes
	kindReady    kind = "ready" // asks for the commit
	kindSeats    kind = "seats" // a worker has come or gone since
	// From the master in charge.
	kindOffer   kind = "offer"
	kindGranted kind = "granted" // lanes; files come in several packets, the last one without
	kindRefused kind = "refused" // lanes
	kindParcel  kind = "parcel"  // the new master sends them, too, for one that stages it
	kindSpare   kind = "spare"   // the workers may have clients from now on
	kindCommit  kind = "commit"
	kindAbort   kind = "abort"
	// From the master in charge to itself: nothing that the new master sent comes after it.
	kindEnd kind = "end"
)

type laneRequest struct {
	Address string `json:"address"`
	Count   int    `json:"count,omitempty"`
	Lane    string `json:"lane,omitempty"` // of a knock
}

type failure struct {
	Phase  Phase    `json:"phase"`
	Reason string   `json:"reason"`
	Tail   []string `json:"tail,omitempty"`
}

// sendPatience bounds a send to a master that does not read.
const sendPatience = 5 * time.Second

// send writes one packet. The files stay the caller's.
func send(c *packet.Conn, w wire) error {
	if err := c.SetWriteDeadline(time.Now().Add(sendPatience)); err != nil {
		return fmt.Errorf("successor channel: send %s: %w", w.Kind, err)
	}
	if err := c.Send(w, w.files...); err != nil {
		return fmt.Errorf("successor channel: send %s: %w", w.Kind, err)
	}
	return nil
}

func receive(c *packet.Conn) (wire, error) {
	var w wire
	files, err := c.Receive(&w)
	if err != nil {
		return wire{}, fmt.Errorf("successor channel: %w", err)
	}
	w.files = files
	return w, nil
}

// sendLanes answers a request with names and sockets, some at a time: a packet has room for 253 descriptors.
func sendLanes(c *packet.Conn, names []string, files []*os.File) error {
	const batch = 100
	for len(names) > batch {
		if err := send(c, wire{Kind: kindGranted, Names: names[:batch], files: files[:batch]}); err != nil {
			return err
		}
		names, files = names[batch:], files[batch:]
	}
	if err := send(c, wire{Kind: kindGranted, Names: names, files: files}); err != nil {
		return err
	}
	return send(c, wire{Kind: kindGranted})
}
