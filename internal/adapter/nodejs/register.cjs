'use strict';
// The gapless adapter for node, loaded into an unchanged program with NODE_OPTIONS=--require before its first line.
//
// It gives the program the inherited socket when it listens, tells the master so, and on the order to drain lets every
// connection leave between two requests instead of closing it. docs/node.md says what a user may count on,
// docs/protocol.md what is said to the master and to other workers.
//
// What must hold:
// - Nothing here may break the program: where a part of node is not as expected the program serves as it would alone,
//   and one line on stderr says why.
// - A connection leaves between two requests, and nothing is read from it after that was seen: looking, readStop and
//   sendmsg happen in one turn of the event loop.
// - A handle is not closed while libuv may still send it.
// - The program's children get neither this file nor the descriptors (node makes those close-on-exec at its start).

const { isMainThread } = require('worker_threads');
const fs = require('fs');
const net = require('net');
const path = require('path');

const { bindings, guard, say } = require('./wire.cjs');

const FIRST_FD = 3; // as in systemd's protocol
const BACKLOG = 4095; // what the kernel allows at most on most machines; node's 511 would shorten the queue of the socket
const HINT_AFTER = 1000; // milliseconds without a socket taken after which a listen elsewhere is worth a line
// Programs of node that start others, and are none of the servers meant.
const WRAPPER = /^(npm|npx|pnpm|pnpx|yarn|corepack|nodemon)([-.].*)?$/;

// inherited lists what the manager passed, as the environment says it.
function inherited(env) {
  const sockets = [];
  const names = (env.LISTEN_FDNAMES || '').split(':');
  for (let i = 0; i < Number(env.LISTEN_FDS || 0); i++) sockets.push({ fd: FIRST_FD + i, name: names[i] || '' });
  const number = (name) => (/^[0-9]+$/.test(env[name] || '') ? Number(env[name]) : -1);
  return { sockets, channel: number('GAPLESS_CHANNEL'), queue: number('GAPLESS_HANDOFF'), tickets: number('GAPLESS_TICKETS') };
}

function isSocket(fd) {
  try {
    return fs.fstatSync(fd).isSocket();
  } catch {
    return false;
  }
}

// forget takes out of the environment what is for this process alone.
function forget(env) {
  for (const name of ['GAPLESS_CHANNEL', 'GAPLESS_HANDOFF', 'GAPLESS_TICKETS']) delete env[name];
  const words = (env.NODE_OPTIONS || '').split(' ').filter((word) => {
    try {
      return !word.startsWith('--require=') || fs.realpathSync(word.slice('--require='.length)) !== __filename;
    } catch {
      return true;
    }
  });
  if (words.some((word) => word !== '')) env.NODE_OPTIONS = words.join(' ');
  else delete env.NODE_OPTIONS;
}

// passOn lets the descriptors through to what a wrapper starts: npm start, for one, would pass the first three only.
function passOn({ sockets, channel, queue, tickets }) {
  const all = [...sockets.map((s) => s.fd), channel, queue, tickets].filter((fd) => fd >= FIRST_FD);
  const last = Math.max(...all);
  const child = require('child_process');
  const { spawn } = child;
  child.spawn = function (command, args, options) {
    const opts = { ...(Array.isArray(args) ? options : args) };
    const { stdio } = opts;
    const list = Array.isArray(stdio) ? [...stdio] : Array(3).fill(stdio || 'pipe');
    if (list.length > FIRST_FD) return Reflect.apply(spawn, this, arguments);
    while (list.length < FIRST_FD) list.push('pipe');
    for (let fd = FIRST_FD; fd <= last; fd++) list.push(isSocket(fd) || all.includes(fd) ? fd : 'ignore');
    return Reflect.apply(spawn, this, [command, Array.isArray(args) ? args : [], { ...opts, stdio: list }]);
  };
}

// wanted reads the arguments of a listen: the port, path or descriptor that the program asks for.
function wanted(args) {
  const [first] = args;
  if (first !== null && typeof first === 'object') return first;
  if (typeof first === 'number' || (typeof first === 'string' && /^[0-9]+$/.test(first))) return { port: first, host: args[1] };
  if (typeof first === 'string') return { path: first };
  return {};
}

// boundAt finds the path to which a unix socket was bound among the system's, as node cannot ask a socket for it.
function boundAt(fd) {
  const { ino } = fs.fstatSync(fd);
  for (const line of fs.readFileSync('/proc/self/net/unix', 'utf8').split('\n')) {
    const field = line.trim().split(/ +/);
    if (field[6] === String(ino)) return field.slice(7).join(' ');
  }
  return undefined;
}

// atPath finds the socket that listens at a path. gapless binds to a name of four random bytes in the same folder and renames that,
// which the kernel does not note; of two such sockets in one folder nobody knows which is meant.
function atPath(sockets, file) {
  const wanted = path.resolve(file);
  const unix = sockets.filter((s) => !s.handle).map((s) => ({ s, bound: boundAt(s.fd) || '' }));
  const found = unix.find(({ bound }) => bound === wanted);
  if (found) return found.s;
  const renamed = unix.filter(({ bound }) => path.dirname(bound) === path.dirname(wanted) &&
    /^\.[0-9a-f]{8}$/.test(path.basename(bound)) && !fs.existsSync(bound));
  return renamed.length === 1 && fs.existsSync(wanted) && fs.statSync(wanted).isSocket() ? renamed[0].s : undefined;
}

// Sockets are the inherited ones, each of which is given to the first server that asks for its address.
class Sockets {
  constructor(node, sockets) {
    this.all = sockets.filter((s) => isSocket(s.fd));
    this.lost = sockets.length - this.all.length;
    for (const s of this.all) {
      const handle = new node.TCP(node.SERVER);
      const name = {};
      if (handle.open(s.fd) === 0 && handle.getsockname(name) === 0 && name.address) Object.assign(s, { handle, port: name.port });
    }
  }

  // port is what $PORT is where the user has not set it.
  get port() {
    const tcp = this.all.find((s) => s.port > 0);
    return tcp && tcp.port;
  }

  take({ fd, port, path: file }) {
    const free = this.all.filter((s) => !s.taken);
    let found;
    if (typeof fd === 'number') found = free.find((s) => s.fd === fd);
    else if (typeof file === 'string') found = atPath(free, file);
    else if (Number(port) > 0) {
      found = free.find((s) => s.port === Number(port));
      // A port that the environment names is meant to be the server's, whatever gapless listens on.
      if (!found && String(port) === process.env.PORT) found = free.find((s) => s.port > 0);
    }
    if (found) found.taken = true;
    return found;
  }
}

// obstacle says why a server can be no part of a worker; undefined: it can.
function obstacle(server) {
  if (server instanceof require('http').Server && typeof server.closeIdleConnections !== 'function') {
    return `it needs node 18.2 or newer, and this is ${process.version}`;
  }
  const cluster = require('cluster');
  if (cluster.isPrimary && Object.keys(cluster.workers || {}).length > 0) {
    return 'the program uses the cluster module; let gapless run the workers (-w)'; // none but they know the connections
  }
  return undefined;
}

function install(node, passed) {
  const sockets = new Sockets(node, passed.sockets);
  if (!process.env.PORT && sockets.port) process.env.PORT = String(sockets.port);
  let worker;
  let hinted = false;

  // enter makes the server one of a worker's that its master can speak with.
  const enter = (server, socket) => {
    if (!isSocket(passed.channel)) return say('the node adapter is not in force: its channel did not reach this process');
    const reason = obstacle(server);
    if (!worker) {
      const { Worker } = require('./worker.cjs');
      worker = new Worker(node, passed.channel, isSocket(passed.queue) ? passed.queue : -1, reason);
    }
    return reason ? undefined : worker.serve(server, socket.name);
  };

  // hint explains a program that listens where gapless does not.
  const hint = (want) => {
    if (hinted || !(Number(want.port) > 0)) return;
    hinted = true;
    const late = setTimeout(() => {
      if (sockets.lost > 0) {
        say('the sockets did not get through what started this program; start node itself, or let it pass on descriptors 3 and above');
      } else if (sockets.port && !sockets.all.some((s) => s.taken)) {
        say(`this program listens on port ${want.port} and gapless on ${sockets.port}: start gapless with --port ${want.port}, ` +
          'or let the program listen on process.env.PORT');
      }
    }, HINT_AFTER);
    late.unref();
  };

  const { listen } = net.Server.prototype;
  net.Server.prototype.listen = function (...args) {
    const want = wanted(args);
    const socket = guard(() => sockets.take(want));
    if (!socket) {
      guard(() => hint(want));
      return Reflect.apply(listen, this, args);
    }
    guard(() => enter(this, socket));
    const callback = args.findLast ? args.findLast((a) => typeof a === 'function') : args.filter((a) => typeof a === 'function').pop();
    const backlog = want.backlog || args.slice(1).find((a) => typeof a === 'number') || BACKLOG;
    if (want.signal) want.signal.addEventListener('abort', () => this.close(), { once: true });
    const target = socket.handle || { fd: socket.fd };
    return Reflect.apply(listen, this, callback ? [target, backlog, callback] : [target, backlog]);
  };
}

function start() {
  const passed = inherited(process.env);
  if (passed.sockets.length === 0) return;
  if (WRAPPER.test(path.basename(process.argv[1] || ''))) {
    passOn(passed);
    return;
  }
  forget(process.env);
  let node;
  try {
    node = bindings();
  } catch (err) {
    say(`the node adapter is not in force: this node (${process.version}) is not known to it: ${err.message}`);
    return;
  }
  install(node, passed);
}

if (isMainThread) guard(start);
