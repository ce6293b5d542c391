package upgrade

import (
	"fmt"
	"slices"
)

// Mode says how the workers of a generation share an address.
type Mode int

// The modes. What an address is claimed with is a wish: where the kernel cannot steer, it becomes ModePlain.
const (
	ModeSteered Mode = iota // a lane per worker
	ModeShared              // a lane per generation
	ModePlain               // one lane for all generations, for ever
	modeCount
)

var modeNames = [modeCount]string{"steered", "shared", "plain"}

// String returns the mode's name, for the first two as --accept takes it.
func (m Mode) String() string {
	if m < 0 || m >= modeCount {
		return fmt.Sprintf("Mode(%d)", int(m))
	}
	return modeNames[m]
}

// MarshalText writes the mode's name.
func (m Mode) MarshalText() ([]byte, error) {
	if m < 0 || m >= modeCount {
		return nil, fmt.Errorf("mode %d has no name", int(m))
	}
	return []byte(modeNames[m]), nil
}

// UnmarshalText reads the mode's name.
func (m *Mode) UnmarshalText(text []byte) error {
	i := slices.Index(modeNames[:], string(text))
	if i < 0 {
		return fmt.Errorf("unknown accept mode %q: choose steered, shared or plain", text)
	}
	*m = Mode(i)
	return nil
}
