package known

import (
	"fmt"
	"net"
	"slices"
)

// fastAPI starts uvicorn on a host and a port, and cannot be given a descriptor: the adapter has the server that wants the
// port of gapless take the socket of gapless.
var fastAPI = server{
	names: []string{"fastapi"},
	takes: func(args []string, addr string) (more, env []string) {
		host, port, err := net.SplitHostPort(addr)
		if err != nil || !runs(args) {
			return nil, nil
		}
		if !has(args, "--host") && host != "" {
			more = append(more, "--host", host) // what it prints is then the truth
		}
		if !has(args, "--port") {
			more = append(more, "--port", port)
		}
		return more, nil
	},
	options: []option{
		{names: []string{"--workers"}, fine: one, instead: useWorkers},
		{names: []string{"--reload"}, bare: true, instead: useReload},
	},
	looks: func(args []string, _, addr string) ([]Note, error) {
		if len(args) > 0 && args[0] == "dev" {
			return nil, fmt.Errorf("%w: fastapi dev: it starts anew whenever a file changes: use fastapi run, and take new code in with gapless reload", ErrOption)
		}
		if !runs(args) {
			return nil, nil
		}
		_, port, err := net.SplitHostPort(addr)
		if err != nil { // it would open port 8000 of its own
			return nil, fmt.Errorf("%w: fastapi run must be told a port, and %s has none: give gapless one, --port PORT, or run uvicorn main:app", ErrOption, addr)
		}
		if port == "0" {
			return nil, fmt.Errorf("%w: fastapi run must be told its port, which the kernel is yet to choose: give gapless one, --port PORT", ErrOption)
		}
		mine := option{names: []string{"--port"}, fine: func(p string) bool { return p == port }}
		if flag, value, ok := mine.in(args); ok {
			return nil, fmt.Errorf("%w: fastapi %s %s: "+usePort, ErrOption, flag, value, value)
		}
		return nil, nil
	},
}

// runs says whether fastapi is to serve, and not only to tell of itself.
func runs(args []string) bool {
	return len(args) > 0 && args[0] == "run" && !slices.Contains(args, "--help")
}
