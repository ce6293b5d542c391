//go:build linux

package bench

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// The smallest servers: what an adapter costs a request is then the largest part of it.
const (
	asgi = `async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})
`
	nodeServer = `require("http").createServer((q, r) => { r.setHeader("Content-Length", 2); r.end("ok"); }).listen({ fd: 3 });
process.on("SIGTERM", () => process.exit(0));
`
)

// BenchmarkAdapter compares one worker of uvicorn and of node with the adapter and without it.
func BenchmarkAdapter(b *testing.B) {
	for name, text := range map[string]string{"main.py": asgi, "server.js": nodeServer} {
		if err := os.WriteFile(filepath.Join(built.dir, name), []byte(text), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	uvicorn := []string{"uvicorn", "main:app", "--fd", "{fd}", "--lifespan", "off", "--log-level", "warning"}
	for _, tc := range []struct {
		name    string
		command []string
	}{
		{"uvicorn (asyncio, h11)", append(uvicorn[:len(uvicorn):len(uvicorn)], "--loop", "asyncio", "--http", "h11")},
		{"uvicorn (uvloop, httptools)", append(uvicorn[:len(uvicorn):len(uvicorn)], "--loop", "uvloop", "--http", "httptools")},
		{"node", []string{"node", "server.js"}},
	} {
		b.Run(tc.name, func(b *testing.B) {
			if _, err := exec.LookPath(tc.command[0]); err != nil {
				b.Fatalf("%v: run `make test-deps`", err)
			}
			with := func(b testing.TB) *server { return run(b, nil, []string{"-w", "1"}, tc.command...) }
			without := func(b testing.TB) *server { return run(b, nil, []string{"-w", "1", "--adapter", "off"}, tc.command...) }
			versus(b, tc.name+" with the adapter / without it", "with, without", 0.98, with, without)
		})
	}
}
