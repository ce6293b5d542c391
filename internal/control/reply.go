//go:build unix

package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// The codes of a problem.
const (
	codeBadRequest = "bad_request"
	codeForbidden  = "forbidden"
	codeNotFound   = "not_found"
	codeMethod     = "method_not_allowed"
	codeBusy       = "busy"
	codeNotRunning = "not_running"
	codeNoMaster   = "no_master"
	codeFailed     = "failed"
	codeLagged     = "lagged"
)

func problemOf(err error) *problem {
	code := codeFailed
	switch {
	case errors.Is(err, ErrBusy):
		code = codeBusy
	case errors.Is(err, ErrNoMaster):
		code = codeNoMaster
	case errors.Is(err, ErrNotRunning):
		code = codeNotRunning
	}
	return &problem{Code: code, Message: err.Error()}
}

func statusOf(code string) int {
	switch code {
	case codeBusy:
		return http.StatusConflict
	case codeNoMaster, codeNotRunning:
		return http.StatusServiceUnavailable
	default:
		return http.StatusInternalServerError
	}
}

func fail(w http.ResponseWriter, err error) {
	p := problemOf(err)
	refuse(w, statusOf(p.Code), p.Code, p.Message)
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	reply(w, status, line{Error: &problem{Code: code, Message: message}})
}

func reply(w http.ResponseWriter, status int, body any) {
	text, err := json.Marshal(body)
	if err != nil { // a NaN; a mistake of ours
		status, text = http.StatusInternalServerError, fmt.Appendf(nil, `{"error":{"code":%q,"message":%q}}`, codeFailed, err)
	}
	w.Header().Set("Content-Type", "application/json")
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writePatience))
	w.WriteHeader(status)
	_, _ = w.Write(append(text, '\n')) // a client that is gone needs no answer
}

// send writes the lines of a stream until it ends or the client is gone. The answer's status tells of a failure if it
// is the first line: an operation that is refused at once is no 200. With strict, a client that has missed events is
// told so and gets no more.
func send(w http.ResponseWriter, r *http.Request, st *stream, strict bool) {
	defer st.leave()
	rc := http.NewResponseController(w)
	begun := false
	begin := func(status int) {
		if !begun {
			begun = true
			w.Header().Set("Content-Type", "application/x-ndjson")
			w.WriteHeader(status)
		}
	}
	if strict { // nothing may happen for a long time, and the client should know that it is heard
		begin(http.StatusOK)
		if rc.Flush() != nil {
			return
		}
	}
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	for {
		select {
		case <-st.change:
		case <-r.Context().Done():
			return
		}
		lines, lost, more := st.take()
		_ = rc.SetWriteDeadline(time.Now().Add(writePatience))
		for _, l := range lines {
			switch {
			case l.Error != nil:
				begin(statusOf(l.Error.Code))
			case l.Result != nil && l.Result.Busy:
				begin(http.StatusConflict)
			case l.Result != nil && l.Result.Invalid:
				begin(http.StatusBadRequest)
			default:
				begin(http.StatusOK)
			}
			if enc.Encode(l) != nil {
				return
			}
		}
		if lost > 0 && strict {
			_ = enc.Encode(line{Error: &problem{Code: codeLagged, Message: fmt.Sprintf("this client is too slow: %d events were dropped", lost)}})
			return
		}
		if rc.Flush() != nil || !more {
			return
		}
	}
}
