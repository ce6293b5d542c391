'use strict';
// The two descriptors of a worker, its channel and its queue (docs/protocol.md), for a runtime that knows no seqpacket
// sockets. libuv reads and writes one as it does a pipe that carries descriptors: a packet comes as one read and leaves
// as one write, so that nobody has to stand in between.

const fs = require('fs');

const SPARE_FDS = 64; // what must be free before a packet is taken: the kernel closes what it cannot install
const LOOK_AGE = 50; // milliseconds for which that look holds
const QUEUE_PACKET = 8 + 255 + 65536; // bytes of the largest packet of the queue
const CHANNEL_PACKET = 65536;

// say tells whoever reads the program's log.
function say(text) {
  try {
    fs.writeSync(2, `gapless: ${text}\n`);
  } catch {
    // There is nobody to tell.
  }
}

// guard keeps our own mistakes from becoming the program's uncaught exceptions.
function guard(f) {
  try {
    return f();
  } catch (err) {
    say(`the node adapter failed and goes on as far as it can: ${err && err.stack}`);
    return undefined;
  }
}

// bindings are the parts of node that are not documented, the same from node 18 to 26. Where one is not as expected it
// throws, and the adapter does nothing.
function bindings() {
  const quiet = process.noDeprecation;
  process.noDeprecation = true; // a warning that the program's user could do nothing about
  try {
    const { Pipe, constants: pipes } = process.binding('pipe_wrap');
    const { TCP, constants: tcps } = process.binding('tcp_wrap');
    const { WriteWrap, streamBaseState, kReadBytesOrError } = process.binding('stream_wrap');
    for (const method of ['open', 'unref', 'useUserBuffer', 'readStart', 'readStop', 'writeLatin1String', 'close']) {
      if (typeof Pipe.prototype[method] !== 'function') throw new Error(`Pipe has no ${method}`);
    }
    for (const method of ['open', 'getsockname', 'readStart', 'readStop']) {
      if (typeof TCP.prototype[method] !== 'function') throw new Error(`TCP has no ${method}`);
    }
    if (!Number.isInteger(pipes.IPC) || !Number.isInteger(tcps.SERVER) || !Number.isInteger(kReadBytesOrError) ||
        typeof WriteWrap !== 'function' || !streamBaseState) {
      throw new Error('pipes and streams are not as expected');
    }
    return { Pipe, TCP, WriteWrap, IPC: pipes.IPC, SERVER: tcps.SERVER, state: streamBaseState, count: kReadBytesOrError };
  } finally {
    process.noDeprecation = quiet;
  }
}

// Packets is one end of a seqpacket pair. It never keeps the program alive.
class Packets {
  constructor(node, fd) {
    this.node = node;
    this.pipe = new node.Pipe(node.IPC);
    const err = this.pipe.open(fd);
    if (err) throw new Error(`descriptor ${fd} cannot be used (${err})`);
    this.pipe.unref();
  }

  // hear calls heard(n, packet, handle) for each packet: n is its length, or 0 or less once no more can come, and handle
  // that of the socket in it, if there is one that node knows. packet is valid during the call. Reading has to be started.
  hear(size, heard) {
    const buffer = new Uint8Array(size);
    this.pipe.useUserBuffer(buffer);
    this.pipe.onread = () => {
      const n = this.node.state[this.node.count];
      const handle = this.pipe.pendingHandle;
      this.pipe.pendingHandle = undefined;
      guard(() => heard(n, Buffer.from(buffer.buffer, 0, Math.max(n, 0)), handle));
    };
  }

  // send sends a packet, a latin1 string, with handle's descriptor if there is one. It never blocks. With a handle, done
  // is called later with 0 or libuv's error; until then the handle must stay open. While the other side has no room the
  // packet waits here, as backlog tells.
  send(packet, handle, done) {
    const req = new this.node.WriteWrap();
    req.handle = this.pipe;
    req.oncomplete = (status) => { if (done) guard(() => done(status)); };
    const err = handle ? this.pipe.writeLatin1String(req, packet, handle) : this.pipe.writeLatin1String(req, packet);
    if (err && done) setImmediate(() => guard(() => done(err)));
  }

  get backlog() {
    return this.pipe.writeQueueSize;
  }
}

// Headroom says whether descriptors are left for what the next packets carry.
class Headroom {
  constructor() {
    this.left = 0;
    this.until = 0;
  }

  enough() {
    const now = performance.now();
    if (this.left > 0 && now < this.until) {
      this.left--;
      return true;
    }
    const fds = [];
    try {
      while (fds.length < SPARE_FDS) fds.push(fs.openSync('/dev/null', 'r'));
    } catch {
      return false;
    } finally {
      for (const fd of fds) fs.closeSync(fd);
    }
    this.left = SPARE_FDS / 2;
    this.until = now + LOOK_AGE;
    return true;
  }
}

// pack makes the packet in which an idle connection leaves: it has no pending bytes.
function pack(listener) {
  const name = Buffer.from(listener);
  return Buffer.concat([Buffer.from([1, name.length, 0, 0, 0, 0, 0, 0]), name]).toString('latin1');
}

// unpack reads a packet of the queue; undefined if it is none.
function unpack(packet) {
  if (packet.length < 8 || packet[0] !== 1) return undefined;
  const body = 8 + packet[1];
  if (packet.length !== body + packet.readUInt32BE(4)) return undefined;
  return { listener: packet.toString('utf8', 8, body), pending: Buffer.from(packet.subarray(body)) };
}

// descriptorOf finds an open descriptor by its inode; -1 if there is none. It is how the queue in an order to drain is
// found: libuv keeps descriptors of a kind that it does not know to itself.
function descriptorOf(inode) {
  const is = (fd) => {
    try {
      const st = fs.fstatSync(fd, { bigint: true });
      return st.isSocket() && st.ino === BigInt(inode);
    } catch {
      return false; // it is not open
    }
  };
  let names;
  try {
    names = fs.readdirSync('/proc/self/fd').map(Number);
  } catch { // for want of one more descriptor, or of /proc
    names = Array.from({ length: 4096 }, (_, fd) => fd);
  }
  const fd = names.find(is);
  return fd === undefined ? -1 : fd;
}

module.exports = { CHANNEL_PACKET, QUEUE_PACKET, Headroom, Packets, bindings, descriptorOf, guard, pack, say, unpack };
