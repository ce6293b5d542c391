package lifecycle

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"time"

	"gapless/upgrade"
	"gapless/workerpool"
)

// ledgerVersion is raised when an older master could misread a ledger. A ledger is read by the binary that wrote it,
// unless somebody upgrades while it is being restarted, so there is no need to read others.
const ledgerVersion = 1

// ledger is what a master in charge leaves if it dies: what the parcels of an upgrade hold, and what an upgrade does not
// need because the next generation has its own. The descriptors are in the store.
type ledger struct {
	Version    int                    `json:"version"`
	Generation int                    `json:"generation"`
	Revision   int                    `json:"revision"`
	Next       int                    `json:"next"`       // the number of the next generation
	Wanted     int                    `json:"wanted"`     // workers
	Configured int                    `json:"configured"` // workers, by what was read last
	Acked      []uint64               `json:"acked"`      // signals and commands that have been acted on
	Slots      int                    `json:"slots"`
	Facts      []facts                `json:"facts"` // of this generation, and of those that may still have workers
	Config     Config                 `json:"config"`
	Recipe     recipeRecord           `json:"recipe"`
	Inventory  upgrade.InventoryState `json:"inventory"`
	Workers    []workerpool.Record    `json:"workers"`
	Queues     []int                  `json:"queues"` // the generations whose handoff queues it holds, its own first
	Operation  *operationRecord       `json:"operation,omitempty"`
	Stopping   bool                   `json:"stopping"`

	After       []afterRecord `json:"after,omitempty"`
	AfterFailed string        `json:"after_failed,omitempty"`
}

// recipeRecord is how workers are started, so that one that is restarted gets what its predecessor had.
type recipeRecord struct {
	Dir    string   `json:"dir"`
	Path   string   `json:"path"`
	Argv   []string `json:"argv"`
	Env    []string `json:"env"`
	UID    *int     `json:"uid,omitempty"`
	GID    *int     `json:"gid,omitempty"`
	Groups []int    `json:"groups,omitempty"`
	Umask  *int     `json:"umask,omitempty"`
	NoFile uint64   `json:"nofile,omitempty"`

	Blocking bool `json:"blocking,omitempty"`

	Adapter string `json:"adapter,omitempty"` // as in Config
}

// operationRecord is what was under way, and who waits for its outcome.
type operationRecord struct {
	Kind   string    `json:"kind"`
	Target int       `json:"target,omitempty"`
	Began  time.Time `json:"began"`
	Answer []uint64  `json:"answer,omitempty"`
	Undo   []uint64  `json:"undo,omitempty"` // the commands that wait for its being undone
	Done   bool      `json:"done,omitempty"` // it has succeeded, and nobody may have been told
}

// The ledger is written to two pieces of memory in turn: whoever is killed while it writes has left the one before.
const (
	ledgerName  = privatePrefix + "ledger-"
	ledgerHead  = 20 // number, length, checksum
	maxLedger   = 64 << 20
	ledgerCount = 2
)

var errNoLedger = errors.New("no ledger of the master before is readable")

// ledgerFiles are those of one master.
type ledgerFiles struct {
	files  [ledgerCount]*os.File
	number uint64 // of the last version
}

func newLedgerFiles() (*ledgerFiles, error) {
	l := &ledgerFiles{}
	for i := range l.files {
		f, err := anonymousFile("gapless-ledger")
		if err != nil {
			l.close()
			return nil, fmt.Errorf("memory for the ledger: %w", err)
		}
		l.files[i] = f
	}
	return l, nil
}

func (l *ledgerFiles) close() {
	for _, f := range l.files {
		if f != nil {
			f.Close()
		}
	}
}

// write adds a version.
func (l *ledgerFiles) write(v ledger) error {
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode the ledger: %w", err)
	}
	l.number++
	page := make([]byte, ledgerHead, ledgerHead+len(text))
	binary.BigEndian.PutUint64(page, l.number)
	binary.BigEndian.PutUint64(page[8:], uint64(len(text)))
	page = append(page, text...)
	binary.BigEndian.PutUint32(page[16:], ledgerSum(page))
	if _, err := l.files[l.number%ledgerCount].WriteAt(page, 0); err != nil {
		return fmt.Errorf("write the ledger: %w", err)
	}
	return nil
}

// ledgerSum covers all of a page but itself.
func ledgerSum(page []byte) uint32 {
	return crc32.Update(crc32.ChecksumIEEE(page[:16]), crc32.IEEETable, page[ledgerHead:])
}

// readLedger returns the latest whole version.
func readLedger(files []*os.File) (v ledger, err error) {
	var latest uint64
	for _, f := range files {
		number, text, ok := readPage(f)
		if !ok || number <= latest {
			continue
		}
		var w ledger
		if err := json.Unmarshal(text, &w); err != nil {
			return v, fmt.Errorf("decode the ledger: %w", err)
		}
		latest, v = number, w
	}
	switch {
	case latest == 0:
		return v, errNoLedger
	case v.Version != ledgerVersion:
		return v, fmt.Errorf("the ledger has version %d and this gapless reads %d: stop gapless and start it anew", v.Version, ledgerVersion)
	}
	return v, nil
}

func readPage(f *os.File) (number uint64, text []byte, ok bool) {
	head := make([]byte, ledgerHead)
	if _, err := f.ReadAt(head, 0); err != nil {
		return 0, nil, false
	}
	length := binary.BigEndian.Uint64(head[8:])
	if length > maxLedger {
		return 0, nil, false
	}
	page := make([]byte, ledgerHead+length)
	if _, err := f.ReadAt(page, 0); err != nil && !errors.Is(err, io.EOF) {
		return 0, nil, false
	}
	copy(page, head)
	if ledgerSum(page) != binary.BigEndian.Uint32(page[16:]) {
		return 0, nil, false
	}
	return binary.BigEndian.Uint64(page), page[ledgerHead:], true
}
