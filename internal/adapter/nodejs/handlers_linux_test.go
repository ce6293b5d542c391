package nodejs_test

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"gapless/internal/channel"
	"gapless/internal/testwait"
)

// The program's own handlers run, when every request has been answered.
func TestDrain_OwnHandlers(t *testing.T) {
	for name, handler := range map[string]string{
		"close":           `server.close((err) => { if (err) process.exitCode = 1; console.log('closed') })`,
		"close and exit":  `server.close((err) => { console.log('closed'); process.exit(err ? 1 : 0) })`,
		"exit":            `console.log('closed'); process.exit(0)`,
		"asynchronous":    `await new Promise((ok, no) => server.close((err) => err ? no(err) : ok())); console.log('closed'); process.exit(0)`,
		"close all":       `server.close(() => console.log('closed')); server.closeAllConnections()`,
		"exit at once":    `server.close(); console.log('closed'); process.exit(0)`,
		"signal and code": `(signal, n) => { if (signal === 'SIGTERM' && n === 15) server.close(() => console.log('closed')) }`,
	} {
		for _, queue := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, queue %t", name, queue), func(t *testing.T) {
				t.Parallel()
				f := handler
				if !strings.HasPrefix(f, "(") {
					f = "async () => {" + f + "}"
				}
				a := launch(t, echo+"process.on('SIGTERM', "+f+");", setting{})
				idle, slow := a.dial(), a.dial()
				idle.ask("/0", "one")
				slow.send(request("/300", "slow"))
				a.dial().ask("/0", "all accepted")
				r := a.order(channel.Drain{Deadline: minute, Handoff: queue, Stop: !queue})
				if queue {
					_ = a.take(r).Close()
					_ = a.take(r).Close()
				}
				slow.answer("slow")
				if queue {
					_ = a.take(r).Close()
				}
				if status := a.exits(); status != 0 {
					t.Errorf("status %d", status)
				}
				if got := a.output(); got != "closed\n" {
					t.Errorf("it printed %q", got)
				}
			})
		}
	}
}

// A program that has closed its server for its own reasons is drained as well.
func TestDrain_ClosedServer(t *testing.T) {
	t.Parallel()
	a := launch(t, strings.Replace(echo, "setTimeout", "if (req.url === '/1000') server.close(() => console.log('closed')); setTimeout", 1), setting{})
	c := a.dial()
	c.ask("/0", "one")
	c.send(request("/1000", "slow"))
	testwait.Until(t, "the server accepts no more", func() bool {
		nc, err := net.Dial("tcp", a.addr)
		if err == nil {
			nc.Close()
		}
		return err != nil
	})
	a.order(channel.Drain{Deadline: minute, Handoff: true})
	c.answer("slow")
	if status := a.exits(); status != 0 || a.output() != "closed\n" {
		t.Errorf("status %d, %q", status, a.output())
	}
}

// WebSockets stay until shortly before the deadline, and are told why they end.
func TestDrain_WebSockets(t *testing.T) {
	t.Parallel()
	a := launch(t, echo+`
server.on('upgrade', (req, socket, head) => {
  socket.write('HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n');
  socket.on('data', (d) => socket.write(d));
  socket.on('error', () => {});
});
`, setting{})
	c := a.dial()
	c.send("GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	for line := ""; line != "\r\n"; {
		var err error
		if line, err = c.r.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	a.order(channel.Drain{Deadline: 6 * time.Second, Handoff: true})
	st := a.waitDraining()
	if st.Connections != 1 || st.InFlight != 0 {
		t.Errorf("the status is %+v", st)
	}
	c.send("still")
	got := make([]byte, 5+4)
	for n := 0; n < len(got); {
		m, err := c.r.Read(got[n:])
		if err != nil {
			t.Fatal(err)
		}
		n += m
	}
	if string(got) != "still\x88\x02\x03\xf4" {
		t.Errorf("got %q", got)
	}
	_ = c.Close()
	a.exits()
}

// Event streams have no end: on a full stop the program's handlers do not wait for them, in an upgrade they do.
func TestDrain_EventStreams(t *testing.T) {
	t.Parallel()
	const script = `
const server = require('http').createServer((req, res) => {
  res.writeHead(200, { 'Content-Type': 'text/event-stream' });
  res.write('data: 1\n\n');
  process.on('gapless:drain', ({ stop }) => { console.log('told', stop); if (req.url === '/ends') res.end(); });
});
server.listen(process.env.PORT);
process.on('SIGTERM', () => { console.log('closed'); process.exit(0); });
`
	open := func(a *app, path string) *client {
		c := a.dial()
		c.send("GET " + path + " HTTP/1.1\r\nHost: x\r\n\r\n")
		if _, err := c.r.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		return c
	}
	t.Run("stop", func(t *testing.T) {
		a := launch(t, script, setting{})
		open(a, "/")
		a.order(channel.Drain{Deadline: minute, Stop: true})
		if status := a.exits(); status != 0 || a.output() != "told true\nclosed\n" {
			t.Errorf("status %d, %q", status, a.output())
		}
	})
	t.Run("ended by the program", func(t *testing.T) {
		a := launch(t, script, setting{})
		open(a, "/ends")
		r := a.order(channel.Drain{Deadline: minute, Handoff: true})
		_ = a.take(r).Close()
		if status := a.exits(); status != 0 || a.output() != "told false\nclosed\n" {
			t.Errorf("status %d, %q", status, a.output())
		}
	})
}

// What is reported while it drains.
func TestDrain_Status(t *testing.T) {
	t.Parallel()
	a := launch(t, echo, setting{})
	slow := a.dial()
	slow.send(request("/2500", strings.Repeat("x", 1000)))
	a.dial().ask("/0", "all accepted")
	r := a.order(channel.Drain{Deadline: minute, Handoff: true})
	if st := a.waitDraining(); st.InFlight != 1 || st.Connections != 2 || st.Handed != 0 || st.Bytes != 0 {
		t.Errorf("at first %+v", st)
	}
	_ = a.take(r).Close()
	var st channel.Status
	for st.Handed == 0 { // the first reports may have come before it was given away
		st = a.waitDraining()
	}
	if st.InFlight != 1 || st.Connections != 1 || st.Handed != 1 {
		t.Errorf("then %+v", st)
	}
	slow.answer(strings.Repeat("x", 1000))
	_ = a.take(r).Close()
	for st.Handed == 1 {
		st = a.waitDraining()
	}
	if st.InFlight != 0 || st.Connections != 0 || st.Handed != 2 || st.Bytes < 1000 {
		t.Errorf("at last %+v", st)
	}
	a.exits()
}
