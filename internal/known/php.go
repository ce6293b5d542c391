package known

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// ErrUnix is what the errors match that say why a server cannot be given a unix socket.
var ErrUnix = errors.New("a unix socket, which it removes")

var phpFPM = server{
	// It does not know LISTEN_FDS but the list that it passes on to itself when it starts anew: address=descriptor.
	names: []string{"php-fpm", "php-fpm7.4", "php-fpm8.1", "php-fpm8.2", "php-fpm8.3", "php-fpm8.4", "php-fpm8.5"},
	takes: func(args []string, addr string) (more, env []string) {
		if !has(args, "-F", "--nodaemonize") {
			more = []string{"-F"}
		}
		return more, []string{"FPM_SOCKETS=" + addr + "={fd}"}
	},
	options: []option{{names: []string{"-D", "--daemonize"}, bare: true, instead: useFront}},
	// Its children end where accept(2) says that nothing is there, and are started anew, in a circle.
	blocks: true,
	stop:   "QUIT", // TERM cuts its requests off
	looks: func(args []string, dir, addr string) ([]Note, error) {
		if strings.HasPrefix(addr, "/") || strings.HasPrefix(addr, "@") {
			// Whichever generation ends takes the path with it, and with that every new client of the next one.
			return nil, fmt.Errorf("%w: php-fpm takes %s out of the file system when it ends, also while others serve it: "+
				"use gapless run --port PORT, and listen = 127.0.0.1:PORT in its pool", ErrUnix, addr)
		}
		if file := phpConfig(args, dir); file != "" && cutsOff(file) {
			return []Note{{"php-fpm", "set process_control_timeout in " + file + " to as long as an answer takes: without it, " +
				"php-fpm cuts requests off that are in flight when it is to end, at each upgrade"}}, nil
		}
		return nil, nil
	},
}

// phpConfig returns the configuration that the arguments name; "": the one that was compiled in.
func phpConfig(args []string, dir string) string {
	_, file, _ := option{names: []string{"-y", "--fpm-config"}}.in(args)
	if file != "" && !filepath.IsAbs(file) {
		file = filepath.Join(dir, file)
	}
	return file
}

var controlTimeout = regexp.MustCompile(`(?m)^[ \t]*process_control_timeout[ \t]*=[ \t]*[1-9]`)

// cutsOff tells whether php-fpm, with this configuration, sends TERM to its children right behind QUIT.
func cutsOff(file string) bool {
	text, err := os.ReadFile(file)
	return err == nil && !controlTimeout.Match(text)
}
