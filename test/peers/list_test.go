//go:build linux

package peers

// peer is a server and the documented way of deploying it. In all texts {addr}, {port}, {gapless} and {self} are
// replaced; commands run by sh in a directory of their own, in which the files lie.
type peer struct {
	name    string
	needs   string // the program that must be installed
	version string // prints it
	files   map[string]string
	start   string // becomes the server, or starts it
	deploy  string // for the page
	script  string // what deploys it and waits until that is done; "" = deploy
	remark  string
}

// newWorkers waits until a master has other children than those in $old, which `old` had noted before.
const (
	noteWorkers = `m=$(cat pid); old=$(pgrep -P $m | sort | tr '\n' ' '); `
	newWorkers  = `; until for p in $(pgrep -P $m); do case " $old" in *" $p "*) ;; *) exit 0;; esac; done; false; do sleep 0.02; done`
)

const (
	nginxConf = `
daemon on;
pid pid;
error_log error.log;
worker_processes 2;
events { worker_connections 2048; }
http {
  access_log off;
  client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;
  server { listen {addr}; location / { return 200 "ok\n"; } }
}
`
	haproxyConf = `
global
  maxconn 4000
defaults
  mode http
  timeout client 60s
  timeout connect 5s
  timeout server 60s
frontend web
  bind {addr}
  http-request return status 200 content-type text/plain string ok
`
	wsgi = `
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "2"), ("Content-Type", "text/plain")])
    return [b"ok"]
`
	asgi = `
async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})
`
)

func peers() []peer {
	const python = "main.py"
	return []peer{
		{
			name: "gapless, its own app", version: "{gapless} version",
			start:  "exec {gapless} run -w 2 --port {port} --control ./sock",
			deploy: "gapless upgrade", script: "{gapless} upgrade --control ./sock",
		},
		{
			name: "gapless, uvicorn", needs: "uvicorn", version: "uvicorn --version", files: map[string]string{python: asgi},
			start:  "exec {gapless} run -w 2 --port {port} --control ./sock -- uvicorn main:app --fd '{fd}' --log-level warning",
			deploy: "gapless upgrade", script: "{gapless} upgrade --control ./sock",
		},
		{
			name: "gapless, gunicorn", needs: "gunicorn", version: "gunicorn --version", files: map[string]string{python: wsgi},
			start:  "exec {gapless} run -w 2 --port {port} --control ./sock -- gunicorn -k gthread --threads 16 --log-level warning main:app",
			deploy: "gapless upgrade", script: "{gapless} upgrade --control ./sock",
		},
		{
			name: "nginx, reload", needs: "nginx", version: "nginx -v 2>&1", files: map[string]string{"nginx.conf": nginxConf},
			start: "$(command -v nginx) -p $PWD -c nginx.conf", deploy: "nginx -s reload", script: noteWorkers + "nginx -p $PWD -c nginx.conf -s reload" + newWorkers,
		},
		{
			name: "nginx, binary upgrade", needs: "nginx", version: "nginx -v 2>&1", files: map[string]string{"nginx.conf": nginxConf},
			start: "$(command -v nginx) -p $PWD -c nginx.conf", deploy: "kill -USR2 $PID, then kill -QUIT $PID",
			script: `old=$(cat pid); kill -USR2 $old; until [ -s pid.oldbin ] && [ -s pid ] && [ "$(cat pid)" != $old ] && pgrep -P $(cat pid) >/dev/null; do sleep 0.02; done; ` +
				`kill -QUIT $old; while [ -e /proc/$old/exe ]; do sleep 0.02; done`,
		},
		{
			name: "HAProxy, reload", needs: "haproxy", version: "haproxy -v | head -n 1", files: map[string]string{"haproxy.cfg": haproxyConf},
			start: "haproxy -W -q -f haproxy.cfg -p pid & echo $! >pid; wait", deploy: "kill -USR2 $PID", script: noteWorkers + "kill -USR2 $m" + newWorkers,
		},
		{
			name: "gunicorn, reload", needs: "gunicorn", version: "gunicorn --version", files: map[string]string{python: wsgi},
			start:  "exec gunicorn -w 2 -k gthread --threads 16 -b {addr} -p pid --log-level warning main:app",
			deploy: "kill -HUP $PID", script: noteWorkers + "kill -HUP $m" + newWorkers,
		},
		{
			name: "gunicorn, binary upgrade", needs: "gunicorn", version: "gunicorn --version", files: map[string]string{python: wsgi},
			start:  "exec gunicorn -w 2 -k gthread --threads 16 -b {addr} -p pid --log-level warning main:app",
			deploy: "kill -USR2 $PID, then kill -TERM $PID",
			script: `old=$(cat pid); kill -USR2 $old; until [ -s pid.2 ] && pgrep -P $(cat pid.2) >/dev/null; do sleep 0.02; done; ` +
				`sleep 0.5; kill -TERM $old; while [ -e /proc/$old/exe ]; do sleep 0.02; done; until [ -s pid ] && [ "$(cat pid)" != $old ]; do sleep 0.02; done`,
			remark: "with half a second between the two, for the new workers tell nobody when they are ready",
		},
		{
			name: "uvicorn, restart", needs: "uvicorn", version: "uvicorn --version", files: map[string]string{python: asgi},
			start:  "uvicorn main:app --host 127.0.0.1 --port {port} --log-level warning & echo $! >pid; wait",
			deploy: "kill -TERM $PID, and start it again",
			script: `old=$(cat pid); kill -TERM $old; while [ -e /proc/$old/exe ]; do sleep 0.02; done; ` +
				`setsid uvicorn main:app --host 127.0.0.1 --port {port} --log-level warning >/dev/null 2>&1 & echo $! >pid; sleep 0.02`,
			remark: "as a plain service does; this version has no way to reload",
		},
		{
			name: "tableflip and Server.Shutdown", version: "echo tableflip v1.2.3",
			start:  roleVariable + "=tableflip PEERS_ADDR={addr} exec {self}",
			deploy: "kill -HUP $PID",
			script: `old=$(cat pid); kill -HUP $old; until [ "$(cat pid)" != $old ]; do sleep 0.02; done`,
			remark: "a Go program as tableflip's own example shows it",
		},
	}
}
