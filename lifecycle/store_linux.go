package lifecycle

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// storeVariable tells a master that is started in place of a dead one where the manifest of the store is. The
// descriptors follow it.
const storeVariable = "GAPLESS_STORE_FD"

// openEstate takes over the store, if this process was started with one; nil: it was not.
func openEstate() (estate, error) {
	text := os.Getenv(storeVariable)
	if text == "" {
		return nil, nil
	}
	// The masters that follow inherit the environment, and not the store.
	if err := os.Unsetenv(storeVariable); err != nil {
		return nil, err
	}
	first, err := strconv.Atoi(text)
	if err != nil || first < 3 {
		return nil, fmt.Errorf("%s is %q and no descriptor", storeVariable, text)
	}
	unix.CloseOnExec(first)
	f := os.NewFile(uintptr(first), "store")
	defer f.Close()
	var m manifest
	if err := json.NewDecoder(io.NewSectionReader(f, 0, 64<<20)).Decode(&m); err != nil {
		return nil, fmt.Errorf("read the store's manifest: %w", err)
	}
	e := make(estate)
	fd := first + 1
	for _, entry := range m.Entries {
		for range entry.Count {
			unix.CloseOnExec(fd)
			e[entry.Name] = append(e[entry.Name], os.NewFile(uintptr(fd), entry.Name))
			fd++
		}
	}
	return e, nil
}
