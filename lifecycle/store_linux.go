package lifecycle

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// openEstate takes over the descriptors that a variable tells of, if this process was started with some; nil: it was not.
func openEstate(variable string) (estate, error) {
	text := os.Getenv(variable)
	if text == "" {
		return nil, nil
	}
	// The masters that follow inherit the environment, and not the descriptors.
	if err := os.Unsetenv(variable); err != nil {
		return nil, err
	}
	first, err := strconv.Atoi(text)
	if err != nil || first < 3 {
		return nil, fmt.Errorf("%s is %q and no descriptor", variable, text)
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
