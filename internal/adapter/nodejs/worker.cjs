'use strict';
// The worker that this process is to its master: it says that it is ready, takes connections from the queue, and drains.

const { CHANNEL_PACKET, QUEUE_PACKET, Headroom, Packets, descriptorOf, guard, pack, say, unpack } = require('./wire.cjs');
const { Site } = require('./site.cjs');

const TICK = 10; // milliseconds between two looks at a drain, beside those that a finished response asks for
const BATCH = 128; // connections that leave in one turn
const ROOM_WAIT = 2000; // milliseconds for which a full queue may keep the one connection that waits for room
const AGAIN = 20; // milliseconds after which a connection that could not leave tries again
const STOP_IDLE = 1000; // milliseconds that idle connections get for one more request when everything stops
const SIGNALS = ['SIGTERM', 'SIGINT']; // what the program may have handlers for that end it
const MAX_MARGIN = 2000; // milliseconds before the deadline that are kept for what cannot be waited for

const NAME = `node ${process.versions.node}`;

class Worker {
  // With a reason the adapter is not in force, and the master only gets to know why.
  constructor(node, channel, queue, reason) {
    this.node = node;
    this.sites = [];
    this.order = undefined; // to drain, once there is one
    this.closing = false; // responses are their connections' last
    this.handed = 0;
    this.refused = 0; // when the queue last refused a connection
    this.waiting = 0; // since when one waits for room
    this.sending = 0;
    this.spent = false;
    this.channel = new Packets(node, channel);
    this.tell({ type: 'adapter', name: NAME, reason });
    if (reason) return;
    this.tell({ type: 'hello', version: 1, pid: process.pid });
    this.channel.hear(CHANNEL_PACKET, (n, packet) => this.told(n, packet));
    this.channel.pipe.readStart();
    if (queue >= 0) {
      this.queue = new Packets(node, queue);
      this.queue.hear(QUEUE_PACKET, (n, packet, handle) => this.received(n, packet, handle));
      this.room = new Headroom();
    }
  }

  tell(message) {
    this.channel.send(JSON.stringify(message));
  }

  // serve makes server one of the worker's: it is about to listen on an inherited socket.
  serve(server, listener) {
    this.sites.push(new Site(this, server, listener));
  }

  // listens is told when a server listens. The first one makes the worker ready: there is no telling whether the program
  // wants the other sockets.
  listens(site) {
    if (site.handle) return;
    site.handle = site.server._handle;
    if (this.order) return site.stopAccepting();
    const handoff = Boolean(this.queue) && site.takes;
    if (handoff) this.receiving(true);
    if (this.ready) return;
    this.ready = true;
    this.tell({ type: 'ready', version: 1, pid: process.pid, drain: true, handoff });
  }

  // closes is told when the program closes a server for its own reasons: what is in the queue is then for others.
  closes(site) {
    site.closed = true;
    if (this.sites.every((s) => s.closed || !s.takes)) this.receiving(false);
  }

  receiving(on) {
    if (!this.queue || on === this.reading) return;
    this.reading = on;
    if (on) this.queue.pipe.readStart();
    else this.queue.pipe.readStop();
  }

  received(n, packet, handle) {
    if (n < 0) return this.receiving(false);
    const p = unpack(packet);
    const site = p && this.sites.find((s) => s.listener === p.listener && s.takes && s.handle);
    if (handle && site) site.receive(handle, p.pending);
    // Where no server has that name it is closed: another one could open to the client what is closed to it.
    else if (handle) handle.close();
    this.last = performance.now();
    if (this.reading && !this.room.enough()) {
      this.receiving(false);
      const again = setInterval(() => guard(() => { // others may take what waits, or it stays in the queue
        if (!this.order && !this.room.enough()) return;
        clearInterval(again);
        this.receiving(!this.order);
      }), AGAIN);
      again.unref();
    }
  }

  // told takes what the master says.
  told(n, packet) {
    if (n < 0) { // master and parent are gone, and nobody will take over
      this.channel.pipe.readStop();
      return this.drain({ stop: true });
    }
    if (n === 0) return undefined;
    const m = JSON.parse(packet.toString());
    if (m.type === 'drain') this.drain(m);
    return undefined;
  }

  drain(m) {
    const stop = Boolean(m.stop);
    if (this.order) {
      if (stop && !this.order.stop) {
        this.order.stop = true;
        this.limit = Math.min(this.limit, performance.now() + STOP_IDLE);
        this.closeAll();
      }
      return;
    }
    const from = performance.now();
    const time = m.deadline_ms > 0 ? m.deadline_ms : Infinity;
    const margin = Math.min(MAX_MARGIN, time / 4);
    this.order = { stop, latest: from + time - margin, last: from + time - margin / 2, spread: m.spread_ms || 0 };
    this.limit = stop ? Math.min(from + STOP_IDLE, this.order.latest) : this.order.latest;
    if (m.handoff && !stop) this.out = this.openOut(m.queue);
    for (const site of this.sites) {
      site.stopAccepting();
      site.lastResponses();
    }
    if (this.out) {
      this.receiving(false); // the master moves on what is left
    } else {
      this.takeRest();
      this.closeAll();
    }
    // The program may want to end what has no end, such as event streams.
    setImmediate(() => process.emit('gapless:drain', { stop, deadline: m.deadline_ms || 0 }));
    this.ticking = setInterval(() => this.soon(true), TICK);
    this.reporting = setInterval(() => guard(() => this.report()), 1000);
    this.report();
    this.soon(true);
  }

  openOut(inode) {
    try {
      const fd = inode > 0 ? descriptorOf(inode) : -1;
      if (fd < 0) throw new Error('its descriptor is not among ours');
      return new Packets(this.node, fd);
    } catch (err) {
      say(`connections cannot be handed over and get "Connection: close": the queue cannot be opened: ${err.message}`);
      return undefined;
    }
  }

  // takeRest takes what is in our own queue until nothing has come for a while: nobody else will.
  takeRest() {
    if (!this.reading) return;
    this.last = performance.now();
    const rest = setInterval(() => guard(() => {
      if (performance.now() - this.last < 2 * TICK) return;
      clearInterval(rest);
      this.receiving(false);
    }), TICK);
  }

  closeAll() {
    this.closing = true;
    for (const site of this.sites) site.lastResponses();
  }

  // soon looks at the drain right after the sockets have been read, so that what is idle then has nothing unread.
  soon(all) {
    if (!this.order || this.done) return;
    this.all = this.all || all === true;
    if (this.planned) return;
    this.planned = true;
    setImmediate(() => {
      const over = guard(() => {
        const whole = this.all;
        this.planned = this.all = false;
        return this.look(whole);
      });
      if (over) this.finish(); // not guarded: the program's handlers run in it
    });
  }

  // look lets go what can go, and tells whether the drain is over. With whole it looks at fresh connections, too.
  look(whole) {
    if (this.done) return false;
    const now = performance.now();
    if (this.out) this.giveAll(now, whole);
    if (!this.closing && now >= this.limit) this.closeAll();
    const { latest, last, spread, stop } = this.order;
    for (const site of this.sites) {
      if (now >= this.limit) site.end();
      if (latest !== Infinity && now >= latest - spread) site.closeUpgraded(now, this.order);
    }
    if (this.sending > 0) return false; // to end now would close what waits for room
    if (!this.reading && this.sites.every((site) => site.busy === 0)) return true;
    // The program's own handlers may end what we cannot. They wait for requests that are still to get an answer.
    return (now >= last || (stop && now >= this.limit)) && SIGNALS.some((s) => process.listenerCount(s) > 0) &&
      this.sites.every((site) => site.inFlight(false) === 0);
  }

  // giveAll sends away what is idle. One connection at most waits for room in the queue, and not for long: its client
  // may be sending.
  giveAll(now, whole) {
    if (this.out.backlog > 0 && this.waiting > 0 && now - this.waiting > ROOM_WAIT) {
      say(`the queue has had no room for ${ROOM_WAIT / 1000} s: the other connections get "Connection: close"`);
      this.out.pipe.close(); // which gives back the one that waits
      this.out = undefined;
      return this.closeAll();
    }
    if (now - this.refused < AGAIN) return undefined;
    let left = BATCH - this.sending;
    for (const site of this.sites) {
      if (!site.takes) continue;
      const packet = pack(site.listener);
      const done = (status) => this.sent(status);
      for (const handle of site.parked) {
        if (left <= 0 || this.out.backlog > 0) return undefined;
        left--;
        this.sending++;
        site.giveParked(handle, this.out, packet, done);
        this.waiting = now;
      }
      if (left <= 0 || this.out.backlog > 0) return undefined;
      for (const socket of site.idle(whole)) {
        if (left <= 0 || this.out.backlog > 0) return undefined;
        left--;
        this.sending++;
        site.give(socket, this.out, packet, done);
        this.waiting = now;
      }
    }
    return undefined;
  }

  sent(status) {
    this.sending--;
    if (status === 0) this.handed++;
    else this.refused = performance.now();
    this.soon();
  }

  report() {
    let inFlight = 0;
    let connections = 0;
    let bytes = 0;
    for (const site of this.sites) {
      inFlight += site.inFlight(true);
      connections += site.busy;
      bytes += site.movedBytes();
    }
    this.tell({ type: 'status', in_flight: inFlight, connections, handed: this.handed, bytes });
  }

  // finish ends the process as the program would have it: its own handlers run, as if the signal had come only now.
  finish() {
    this.done = true;
    clearInterval(this.ticking);
    clearInterval(this.reporting);
    guard(() => this.report());
    for (const signal of SIGNALS) {
      if (process.listenerCount(signal) > 0) {
        process.emit(signal, signal, require('os').constants.signals[signal]);
        return;
      }
    }
    process.exit();
  }
}

module.exports = { Worker };
