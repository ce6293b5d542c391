package upgrade

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// noFiles keeps nothing, so that closing an inventory closes its sockets.
type noFiles struct{}

func (noFiles) File(string) (*os.File, error)  { return nil, nil }
func (noFiles) AddFile(string, *os.File) error { return nil }

// TestClaim_OnlyOneOfManyWins lets several managers claim one address at the same moment: never may two have it.
func TestClaim_OnlyOneOfManyWins(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", ":0", "unix:" + filepath.Join(t.TempDir(), "s")} {
		t.Run(addr, func(t *testing.T) {
			place := parse(t, addr)
			for range 200 * loadFactor(t) {
				invs, errs := make([]*Inventory, 4), make([]error, 4)
				if place.Network == NetworkTCP { // find a free port
					probe := NewInventory(noFiles{}, InventoryOptions{})
					if err := probe.Claim(parse(t, addr), ModeSteered); err != nil {
						t.Fatal(err)
					}
					place = probe.Addresses()[0]
					if err := probe.Close(); err != nil {
						t.Fatal(err)
					}
				}
				start := make(chan struct{})
				var all sync.WaitGroup
				for i := range invs {
					invs[i] = NewInventory(noFiles{}, InventoryOptions{})
					all.Go(func() { <-start; errs[i] = invs[i].Claim(place, ModeSteered) })
				}
				close(start)
				all.Wait()
				won := 0
				for i, err := range errs {
					switch {
					case err == nil:
						won++
					case !errors.Is(err, ErrAddressInUse):
						t.Fatal(err)
					}
					if err := errors.Join(invs[i].Unlink(), invs[i].Close()); err != nil {
						t.Fatal(err)
					}
				}
				if won != 1 {
					t.Errorf("%d of %d won", won, len(invs))
				}
			}
		})
	}
}
