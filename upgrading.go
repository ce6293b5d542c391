package gapless

import (
	"bufio"
	"io"
	"net"
	"net/http"
)

// upgradeWriter takes the answer to a request that asks to upgrade its connection, where an answer to any other would say
// that it is the last one. A program that agrees says Connection: upgrade, here or after it has hijacked the connection,
// and a second header of that name would confuse the client; so it is told with the status whether the answer is the last.
// Some clients ask with every request (Java's HttpClient, for HTTP/2): unless told they would never leave.
//
// It has all that net/http's own writers have for HTTP/1, as programs assert it.
type upgradeWriter struct {
	http.ResponseWriter
	begun bool // the status is known, or the connection is the program's
}

// begin is called with the status before it is written.
func (w *upgradeWriter) begin(status int) {
	if w.begun || status < http.StatusOK && status != http.StatusSwitchingProtocols {
		return
	}
	w.begun = true
	if status != http.StatusSwitchingProtocols {
		w.Header().Set("Connection", "close")
	}
}

// WriteHeader is as in http.ResponseWriter.
func (w *upgradeWriter) WriteHeader(status int) {
	w.begin(status)
	w.ResponseWriter.WriteHeader(status)
}

// Write is as in http.ResponseWriter.
func (w *upgradeWriter) Write(p []byte) (int, error) {
	w.begin(http.StatusOK)
	return w.ResponseWriter.Write(p)
}

// ReadFrom is as in io.ReaderFrom.
func (w *upgradeWriter) ReadFrom(r io.Reader) (int64, error) {
	w.begin(http.StatusOK)
	return io.Copy(w.ResponseWriter, r)
}

// Flush is as in http.Flusher.
func (w *upgradeWriter) Flush() { _ = w.FlushError() }

// FlushError is what http.ResponseController calls.
func (w *upgradeWriter) FlushError() error {
	w.begin(http.StatusOK)
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// Hijack is as in http.Hijacker.
func (w *upgradeWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	nc, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	w.begun = w.begun || err == nil
	return nc, rw, err
}

// CloseNotify is what programs used before requests had contexts.
func (w *upgradeWriter) CloseNotify() <-chan bool {
	if n, ok := w.ResponseWriter.(interface{ CloseNotify() <-chan bool }); ok {
		return n.CloseNotify()
	}
	return nil
}

// Unwrap lets http.ResponseController find what is not here.
func (w *upgradeWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

var _ interface {
	http.Hijacker
	http.Flusher
	io.ReaderFrom
} = (*upgradeWriter)(nil)
