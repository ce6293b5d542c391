package upgrade

import (
	"errors"
	"fmt"
	"io"
	"os"
	"testing"

	"gapless/internal/packet"
)

func TestAttempt_PassesLanes(t *testing.T) {
	for _, count := range []int{0, 1, 99, 100, 101, 253, 254, 600} {
		t.Run(fmt.Sprint(count), func(t *testing.T) {
			noLeaks(t, func() {
				null, err := os.Open(os.DevNull)
				if err != nil {
					t.Fatal(err)
				}
				defer null.Close()
				tr := newTransaction(t, func(c *newMaster) {
					p := hello(t, c)
					defer p.Close()
					names, files, err := p.Lanes(t.Context(), "http", count)
					defer packet.CloseAll(files)
					if err != nil || len(names) != count || len(files) != count {
						t.Errorf("%d names, %d files, %v; want %d", len(names), len(files), err, count)
						return
					}
					for i, name := range names {
						if name != fmt.Sprint("http.", i) {
							t.Errorf("lane %d is called %q", i, name)
						}
					}
				})
				tr.owner.lanes = func(address string, n int) (names []string, files []*os.File, err error) {
					if address != "http" || n != count {
						t.Errorf("asked for %d lanes of %q", n, address)
					}
					for i := range n {
						names, files = append(names, fmt.Sprint("http.", i)), append(files, null)
					}
					return names, files, nil
				}
				abortError(t, tr.run(t, t.Context()))
				tr.h.closeTable()
			})
		})
	}
}

func TestAttempt_RefusesLanesInWords(t *testing.T) {
	noLeaks(t, func() {
		tr := newTransaction(t, func(c *newMaster) {
			p := hello(t, c)
			defer p.Close()
			_, _, err := p.Lanes(t.Context(), "admin", 2)
			if err == nil || err.Error() != "lanes for admin: address already in use" {
				t.Errorf("got %v", err)
			}
			if f, err := p.Knock(t.Context(), "http", "http.1"); err == nil {
				f.Close()
				t.Error("a master that cannot knock did")
			}
		})
		tr.owner.lanes = func(string, int) ([]string, []*os.File, error) { return nil, nil, errors.New("address already in use") }
		abortError(t, tr.run(t, t.Context()))
		tr.h.closeTable()
	})
}

func TestAttempt_KnocksAtOneLane(t *testing.T) {
	noLeaks(t, func() {
		tr := newTransaction(t, func(c *newMaster) {
			p := hello(t, c)
			defer p.Close()
			f, err := p.Knock(t.Context(), "http", "http.1")
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			if text, err := io.ReadAll(f); string(text) != "http http.1" {
				t.Errorf("came %q, %v", text, err)
			}
		})
		tr.Knock = func(address, lane string) (*os.File, error) { return says(address + " " + lane) }
		abortError(t, tr.run(t, t.Context()))
		tr.h.closeTable()
	})
}

// says returns a file from which the text can be read.
func says(text string) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	_, err = w.WriteString(text)
	return r, err
}
