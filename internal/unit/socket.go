package unit

import (
	"fmt"
	"strings"
)

// The kinds of a Socket.
const (
	TCP  = "tcp"
	Unix = "unix"
)

// Socket is one that systemd is to open.
type Socket struct {
	Name    string // its FileDescriptorName, 1 to 64 letters, digits, '-', '_' or '.'
	Network string // TCP or Unix
	Addr    string // IP:PORT; a path, or @NAME
}

// File is a unit file.
type File struct {
	Name string // with its suffix
	Text string
}

// socketUnits are the names of the socket units: systemd gives all sockets of one unit the same name, so each has its own
// unit, the first that of the service.
func (s *Settings) socketUnits() []string {
	names := make([]string, len(s.Sockets))
	for i, sock := range s.Sockets {
		names[i] = s.Name + "-" + sock.Name + ".socket"
		if i == 0 {
			names[i] = s.Name + ".socket"
		}
	}
	return names
}

// Files returns all units: the socket units, if there are, and the service.
func Files(s Settings) ([]File, error) {
	service, err := Service(s)
	if err != nil {
		return nil, err
	}
	var files []File
	for i, name := range s.socketUnits() {
		text, err := s.socket(s.Sockets[i], i == 0)
		if err != nil {
			return nil, err
		}
		files = append(files, File{name, text})
	}
	return append(files, File{s.Name + ".service", service}), nil
}

func (s *Settings) socket(sock Socket, first bool) (string, error) {
	addr, err := value("the address", sock.Addr)
	if err != nil {
		return "", err
	}
	if sock.Network == TCP && strings.HasSuffix(addr, ":0") {
		return "", fmt.Errorf("%w: %s: systemd cannot let the kernel choose a port: write one", ErrBadSettings, sock.Addr)
	}
	var w writer
	w.section("Unit")
	w.set("Description", fmt.Sprintf("The socket %s of %s", sock.Name, s.Name))

	w.section("Socket")
	w.set("ListenStream", addr)
	w.comment("The name by which --listen fd:" + sock.Name + " finds it.")
	w.set("FileDescriptorName", sock.Name)
	if !first {
		w.set("Service", s.Name+".service")
	}
	if sock.Network == TCP {
		w.comment("So that gapless may open more sockets beside it, one for each worker.")
		w.set("ReusePort", "yes")
		w.set("NoDelay", "yes")
		if strings.HasPrefix(addr, "[::]:") {
			w.set("BindIPv6Only", "both")
		} else if strings.HasPrefix(addr, "[") {
			w.set("BindIPv6Only", "ipv6-only")
		}
		if s.Online {
			w.comment("The address need not be there yet.")
			w.set("FreeBind", "yes")
		}
	} else if !strings.HasPrefix(addr, "@") {
		w.comment("Who may connect; systemd's own default is 0666.")
		w.set("SocketMode", "0666")
	}
	w.set("Backlog", "4096")

	w.section("Install")
	w.set("WantedBy", "sockets.target")
	return w.String(), nil
}
