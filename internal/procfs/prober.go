package procfs

import (
	"encoding/json"
	"errors"
	"os"
)

// The helper's protocol: one JSON object a line each way, one answer for each request, in order.
type (
	request struct {
		Become *identity `json:"become,omitempty"` // first request: give up all other rights for these
		PID    int       `json:"pid,omitempty"`    // else: look into this one process
		Inodes []uint64  `json:"inodes,omitempty"`
	}
	identity struct {
		UID int `json:"uid"`
		GID int `json:"gid"`
	}
	response struct {
		Evidence Evidence `json:"evidence,omitzero"`
		Error    string   `json:"error,omitempty"`
		Kind     kind     `json:"kind,omitempty"`
		Rights   identity `json:"rights,omitzero"` // of the process that may not be read, with kindRights
	}
	kind string
)

const (
	kindRights kind = "rights"
	kindGone   kind = "gone"
	kindOther  kind = "other"
)

// maxLine bounds one line of the protocol: some hundred thousand inodes.
const maxLine = 4 << 20

func answer(seen Evidence, err error) response {
	var rights *RightsError
	switch {
	case err == nil:
		return response{Evidence: seen}
	case errors.As(err, &rights):
		return response{Error: rights.Err.Error(), Kind: kindRights, Rights: identity{rights.UID, rights.GID}}
	case errors.Is(err, os.ErrProcessDone):
		return response{Error: err.Error(), Kind: kindGone}
	}
	return response{Error: err.Error(), Kind: kindOther}
}

// err rebuilds the error that answer took apart.
func (r response) err(pid int) error {
	switch {
	case r.Error == "":
		return nil
	case r.Kind == kindRights:
		return &RightsError{PID: pid, UID: r.Rights.UID, GID: r.Rights.GID, Err: errors.New(r.Error)}
	case r.Kind == kindGone:
		return os.ErrProcessDone
	}
	return errors.New(r.Error)
}

// decode reads a request and refuses what makes no sense, before any of it is acted on.
func decode(line []byte) (request, error) {
	var req request
	if err := json.Unmarshal(line, &req); err != nil {
		return request{}, err
	}
	if (req.Become == nil) == (req.PID <= 0) {
		return request{}, errors.New("a request is either become or pid")
	}
	if req.Become != nil && (req.Become.UID <= 0 || req.Become.GID < 0) {
		return request{}, errors.New("become takes the uid of an ordinary user and a gid")
	}
	return req, nil
}

// Took is the package's Took. What may not be seen is not there.
func (*Prober) Took(pid int, inodes map[uint64]bool) bool { return Took(pid, inodes) }

// Elsewhere is the package's Elsewhere. What may not be seen is not there.
func (*Prober) Elsewhere(pid int, inodes map[uint64]bool) []string { return Elsewhere(pid, inodes) }
