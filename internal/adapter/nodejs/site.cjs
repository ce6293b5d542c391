'use strict';
// One server of the program that listens on an inherited socket: what connections it has, which of them are between two
// requests, and how they come and go.

const { guard } = require('./wire.cjs');

const RESTARTING = Buffer.from([0x88, 2, 0x03, 0xf4]); // a WebSocket's close frame, 1012: service restart
const EVENTS = /^content-type:[ \t]*text\/event-stream/im;

class Site {
  // worker is told of what changes; listener is the socket's name.
  constructor(worker, server, listener) {
    this.worker = worker;
    this.server = server;
    this.listener = listener;
    this.handle = undefined; // of the listening socket, once it listens
    this.open = new Set(); // connections that are not upgraded
    this.upgraded = new Map(); // socket: when to close it, 0 for not yet known
    this.parked = new Set(); // handles of received connections that have not sent anything since
    this.sessions = new Set(); // of HTTP/2
    this.sending = new Set(); // sockets on their way out: they must not be closed
    this.finding = undefined; // collects what node finds idle
    this.ended = 0; // bytes moved by connections that have ended since the drain began
    // Only servers of package http and https have it.
    this.web = typeof server.closeIdleConnections === 'function';
    this.secure = typeof server.setSecureContext === 'function';
    this.watch();
  }

  // takes says whether connections can come and go here.
  get takes() {
    return this.web && !this.secure;
  }

  // closing says whether, in a drain, responses are their connections' last.
  get closing() {
    return this.web && (this.worker.closing || !this.takes);
  }

  get busy() {
    if (!this.web && this.sessions.size === 0) return this.server._connections;
    return this.open.size + this.upgraded.size + this.parked.size + this.sessions.size + this.arriving;
  }

  // arriving counts TLS connections whose handshake is under way.
  get arriving() {
    return this.secure ? Math.max(0, this.server._connections - this.open.size - this.upgraded.size) : 0;
  }

  // watch sees the server's events go by. A listener would be seen by the program, and one for "upgrade" would change what
  // node does.
  watch() {
    const site = this;
    const emit = this.server.emit;
    this.server.emit = function (event, a, b) {
      switch (event) {
        case 'connection':
          if (!site.secure) guard(() => site.opened(a));
          break;
        case 'secureConnection':
          guard(() => site.opened(a));
          break;
        case 'session':
          guard(() => site.began(a));
          break;
        case 'upgrade':
        case 'connect':
          guard(() => site.upgrades(b, a));
          break;
        case 'request':
        case 'checkContinue':
        case 'checkExpectation':
          if (site.worker.order) guard(() => site.asked(a.socket, b));
          break;
        case 'listening': {
          const handled = Reflect.apply(emit, this, arguments);
          guard(() => site.worker.listens(site));
          return handled;
        }
      }
      return Reflect.apply(emit, this, arguments);
    };
    const close = this.server.close;
    this.server.close = function () {
      guard(() => site.worker.closes(site));
      return Reflect.apply(close, this, arguments);
    };
  }

  opened(socket) {
    this.open.add(socket);
    socket.once('close', () => guard(() => {
      this.left(socket);
      this.upgraded.delete(socket);
      this.worker.soon();
    }));
    if (this.worker.order) this.prepare(socket);
  }

  // left takes a socket out that has ended, here at least.
  left(socket) {
    this.open.delete(socket);
    if (socket.gaplessMoved !== undefined) this.ended += Math.max(0, moved(socket) - socket.gaplessMoved);
    socket.gaplessMoved = undefined;
  }

  began(session) {
    this.sessions.add(session);
    session.once('close', () => {
      this.sessions.delete(session);
      this.worker.soon();
    });
    if (this.worker.order) session.close();
  }

  upgrades(socket, req) {
    if (!this.open.delete(socket)) return;
    this.upgraded.set(socket, 0);
    socket.gaplessWebSocket = /^websocket$/i.test(req.headers.upgrade || '');
  }

  // asked is told of a request that comes during the drain.
  asked(socket, res) {
    res.once('close', () => this.worker.soon());
    if (!this.closing) return;
    // Of requests that were sent together only the last one's answer may be the connection's last.
    const before = socket.gaplessLast;
    if (before && !before.headersSent) before.shouldKeepAlive = true;
    this.last(socket, res);
  }

  // last has a response be its connection's last.
  last(socket, res) {
    if (!res.shouldKeepAlive) return; // it is, by the client's wish
    res.shouldKeepAlive = false;
    socket.gaplessLast = res;
  }

  // stopAccepting closes this process's listening socket and leaves something in its place by which the server still
  // seems to listen: so the program's own close() does and reports what it always did.
  stopAccepting() {
    const real = this.server._handle;
    if (real && real === this.handle) this.standIn(real);
    for (const socket of [...this.open, ...this.upgraded.keys()]) this.prepare(socket);
    for (const session of this.sessions) session.close();
    if (!this.web) return;
    // What is idle leaves; the program's close() must not end it first.
    const site = this;
    const idle = this.server.closeIdleConnections;
    this.server.closeIdleConnections = function () {
      if (site.finding) Reflect.apply(idle, this, []);
    };
  }

  standIn(real) {
    const name = {};
    if (real.getsockname) real.getsockname(name);
    this.server._handle = {
      close(done) { if (done) setImmediate(done); },
      getsockname(out) { Object.assign(out, name); return 0; },
      getAsyncId: () => real.getAsyncId(),
      hasRef: () => false,
      ref() {},
      unref() {},
    };
    real.close();
  }

  // prepare makes a socket ready for the drain.
  prepare(socket) {
    const site = this;
    socket.gaplessMoved = moved(socket);
    socket.destroy = function () {
      if (site.finding) {
        site.finding.push(this);
        return this;
      }
      if (site.sending.has(this)) return this; // libuv may still send it; it is closed, or goes on, after that
      delete this.destroy;
      return Reflect.apply(this.destroy, this, arguments);
    };
    const res = socket._httpMessage;
    if (res) res.once('close', () => this.worker.soon());
  }

  // lastResponses has every response that can still say so be its connection's last, unless more requests wait behind it.
  lastResponses() {
    if (!this.closing) return;
    for (const socket of this.open) {
      const { _httpMessage: res, parser } = socket;
      if (res && !res.headersSent && parser && parser.incoming === res.req) this.last(socket, res);
    }
  }

  // idle returns the sockets that are between two requests, by node's own word: its parser has seen no byte of a next one.
  // To most versions of node a connection on which nothing has come at all is not idle; here it is, and all asks for those.
  idle(all) {
    if (!this.web) return [];
    this.finding = [];
    let found;
    try {
      this.server.closeIdleConnections();
    } finally {
      found = new Set(this.finding);
      this.finding = undefined;
    }
    if (all && !this.secure) { // some versions of node find these, too: none may be given away twice
      for (const socket of this.open) if (socket.bytesRead === 0 && !socket.gaplessFed) found.add(socket);
    }
    return [...found].filter((s) => this.open.has(s) && !this.sending.has(s) && s._handle && !s.destroyed && !s._httpMessage &&
      s.writableLength === 0 && !s.writableEnded && !s.readableEnded && s.readableLength === 0 && !s._paused);
  }

  // give sends an idle socket away. What it was doing there is nothing, so it needs no goodbye but close(2).
  give(socket, queue, packet, done) {
    const handle = socket._handle;
    const timeout = socket.timeout;
    this.sending.add(socket);
    socket.setTimeout(0);
    handle.readStop();
    queue.send(packet, handle, (status) => {
      this.sending.delete(socket);
      if (status === 0) {
        this.left(socket);
        socket.destroy();
      } else if (!socket.destroyed) {
        socket.setTimeout(timeout || 0);
        handle.readStart();
      }
      done(status);
    });
  }

  giveParked(handle, queue, packet, done) {
    this.parked.delete(handle);
    clearTimeout(handle.gaplessTimer);
    handle.readStop();
    queue.send(packet, handle, (status) => {
      if (status === 0) handle.close();
      else this.park(handle);
      done(status);
    });
  }

  // receive takes a connection as if it had just been accepted, except that it is no new one: until its client sends
  // something it may wait as long as it could have where it came from.
  receive(handle, pending) {
    if (pending.length > 0) this.enter(handle, pending);
    else this.park(handle);
  }

  park(handle) {
    const { state, count } = this.worker.node;
    this.parked.add(handle);
    const end = () => {
      this.unpark(handle);
      handle.close();
    };
    handle.onread = (bytes) => guard(() => {
      const n = state[count];
      if (n === 0) return;
      if (n < 0) return end();
      const got = Buffer.from(bytes, 0, n);
      if (got.every((b) => b === 13 || b === 10)) return; // empty lines behind a request that was answered elsewhere
      handle.readStop();
      this.unpark(handle);
      this.enter(handle, got);
    });
    const wait = this.server.keepAliveTimeout;
    if (wait > 0) {
      handle.gaplessTimer = setTimeout(() => guard(end), wait + (this.server.keepAliveTimeoutBuffer || 0));
      handle.gaplessTimer.unref();
    }
    if (handle.readStart() !== 0) end();
  }

  unpark(handle) {
    clearTimeout(handle.gaplessTimer);
    this.parked.delete(handle);
    this.worker.soon();
  }

  // enter hands a connection to the server, with the first bytes of a request.
  enter(handle, bytes) {
    const first = (socket) => {
      socket.gaplessFed = true;
      socket.unshift(bytes);
    };
    this.server.prependOnceListener('connection', first);
    this.handle.onconnection(0, handle);
    this.server.removeListener('connection', first); // where the server did not want it
  }

  // end closes what waits for a request.
  end() {
    for (const socket of this.idle(true)) socket.destroy();
    for (const handle of this.parked) {
      this.unpark(handle);
      handle.close();
    }
  }

  // closeUpgraded says 1012 on the WebSockets whose time has come, and closes at last what has not ended by that. What is
  // no WebSocket stays.
  closeUpgraded(now, { latest, last, spread }) {
    for (const [socket, due] of this.upgraded) {
      if (!socket.gaplessWebSocket) continue;
      if (due === 0) {
        this.upgraded.set(socket, latest - Math.random() * spread);
      } else if (due === Infinity) {
        if (now >= last) socket.destroySoon();
      } else if (now >= due) {
        this.upgraded.set(socket, Infinity);
        if (socket.writable) socket.write(RESTARTING);
      }
    }
  }

  // inFlight counts the connections that are in a request; those of event streams, which have no end, only if asked for.
  inFlight(streams) {
    const idle = new Set(this.idle(true));
    let n = 0;
    for (const socket of this.open) {
      if (idle.has(socket) || this.sending.has(socket)) continue;
      const res = socket._httpMessage;
      if (streams || !res || !EVENTS.test(res._header || '')) n++;
    }
    return n;
  }

  // movedBytes counts what connections have moved since the drain began.
  movedBytes() {
    let n = this.ended;
    for (const set of [this.open, this.upgraded.keys()]) {
      for (const socket of set) n += Math.max(0, moved(socket) - (socket.gaplessMoved || 0));
    }
    return n;
  }
}

// moved is how many bytes a connection has moved; what its client has not taken does not count while it is open.
function moved(socket) {
  const from = socket._handle || socket;
  return (from.bytesRead || 0) + (from.bytesWritten || 0) - (from.writeQueueSize || 0);
}

module.exports = { Site };
