"""gapless's adapter for uvicorn: idle connections move to the workers that take over, instead of being closed.

It speaks docs/protocol.md of gapless over two inherited descriptors. Nothing of it lies in the way of a request: what it
adds to uvicorn is one callback on each of the two, and, from the order to drain on, a look at each connection when its
response is complete.

Two rules carry everything. Whether a connection stands between two requests is asked, and the connection sent, in one
callback of the event loop: no byte can be read in between. And where uvicorn is not as it is known here, nothing is
patched, and gapless is told why.
"""
from __future__ import annotations

import array
import asyncio
import errno
import inspect
import json
import os
import random
import signal
import socket
import stat
import struct
from contextlib import contextmanager
from typing import Any, Callable, Iterator

VERSION = 1
HEADER = struct.Struct("!BBHI")  # version, length of the name, 0, length of the pending bytes
MAX_PENDING = 64 << 10
MAX_PACKET = HEADER.size + 255 + MAX_PENDING
FIRST_FD = 3  # of LISTEN_FDS
SPARE_FDS = 64  # that must be free before a connection is taken: the kernel closes one that it cannot install
TCP_BYTES = struct.Struct("=120xQQ")  # tcp_info: bytes acknowledged, bytes received
CLOSE = (b"connection", b"close")
KINDS = {"H11Protocol": "h11", "HttpToolsProtocol": "httptools"}


class Unfit(Exception):
    """Why the adapter leaves the server as it is."""


def install(module: Any, here: str) -> None:
    """Patches uvicorn.server, if it is as expected."""
    pid = os.getpid()
    listeners = inherited()
    try:
        original = module.Server.startup
        if not inspect.iscoroutinefunction(original) or "sockets" not in inspect.signature(original).parameters:
            raise Unfit("Server.startup of this uvicorn is not as it is known")
        for name in ("shutdown", "main_loop"):
            if not inspect.iscoroutinefunction(getattr(module.Server, name, None)):
                raise Unfit(f"this uvicorn has no Server.{name}")
    except Exception as e:
        tell_unfit(e)
        return
    taken = False

    async def startup(self: Any, sockets: Any = None) -> None:
        nonlocal taken
        adapter = None
        try:
            if os.getpid() != pid:
                raise Unfit("the server runs in a child process of the command")
            if taken:
                raise Unfit("a second server in one process")
            adapter = Adapter(self, sockets, listeners, here)
            taken = True
            adapter.hello()
        except Exception as e:
            tell_unfit(e)
            adapter = None
        await original(self, sockets=sockets)
        if adapter is not None and self.started:
            adapter.begin()

    module.Server.startup = startup


def tell_unfit(e: Exception) -> None:
    """Says why the adapter is not in force."""
    reason = str(e) if isinstance(e, Unfit) else f"{type(e).__name__}: {e}"
    try:
        fd = packets(os.environ["GAPLESS_CHANNEL"])
        with borrowed(fd) as sock:
            say(sock, {"type": "adapter", "name": server_name(), "reason": reason})
    except (KeyError, OSError, Unfit):
        pass


def server_name() -> str:
    import uvicorn

    return f"uvicorn {getattr(uvicorn, '__version__', '')}".strip()


def packets(text: str) -> int:
    """Returns a descriptor that an environment variable names, if it is a socket for packets."""
    fd = int(text)
    try:
        ok = stat.S_ISSOCK(os.fstat(fd).st_mode)
        with borrowed(fd) as sock:
            ok = ok and sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_SEQPACKET
    except OSError:
        ok = False
    if not ok:
        raise Unfit("the descriptors of gapless were closed on the way to this process")
    return fd


@contextmanager
def borrowed(fd: int) -> Iterator[socket.socket]:
    """A socket object for a descriptor that stays somebody else's."""
    sock = socket.socket(fileno=fd)
    try:
        yield sock
    finally:
        sock.detach()


def say(sock: socket.socket, message: dict[str, Any]) -> None:
    try:
        sock.send(json.dumps(message).encode(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    except OSError:
        pass  # nobody reads: what is lost is for status only, or the master is gone, which is heard elsewhere


def receive(sock: socket.socket, size: int) -> tuple[bytes, int]:
    """Receives a packet and the descriptor in it (or -1)."""
    data, ancillary, _, _ = sock.recvmsg(size, socket.CMSG_SPACE(4), socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, value in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(value[: len(value) - len(value) % fds.itemsize])
    for fd in fds[1:]:
        os.close(fd)
    return data, fds[0] if fds else -1


def inherited() -> dict[int, tuple[str, int]]:
    """Returns the listening sockets that gapless gave: their names and descriptors, by inode."""
    found = {}
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    for i in range(int(os.environ.get("LISTEN_FDS") or 0)):
        try:
            info = os.fstat(FIRST_FD + i)
        except OSError:
            continue
        if stat.S_ISSOCK(info.st_mode):
            found[info.st_ino] = (names[i] if i < len(names) else "", FIRST_FD + i)
    return found


def port_of(fd: int) -> int | None:
    with borrowed(fd) as sock:
        address = sock.getsockname()
    return address[1] if isinstance(address, tuple) else None


class Adapter:
    """One server's part in handoffs."""

    def __init__(self, server: Any, sockets: Any, listeners: dict[int, tuple[str, int]], here: str) -> None:
        self.server, self.config, self.here = server, server.config, here
        self.connections: set[Any] = server.server_state.connections
        if getattr(self.config, "ssl", None) is not None:
            raise Unfit("connections with TLS cannot change the process")
        self.channel = packets(os.environ["GAPLESS_CHANNEL"])
        self.queue = packets(os.environ["GAPLESS_HANDOFF"])
        self.names = self.listeners(sockets, listeners)
        self.protocol = self.known_protocol()
        self.wrap_protocol()

        self.moving: set[Any] = set()  # connections on their way in
        self.order: dict[str, Any] | None = None
        self.out: socket.socket | None = None  # the queue to give connections to
        self.stop = False
        self.receiving = False
        self.blocked = 0.0  # until then the queue is not tried again
        self.handed = self.bytes = 0
        self.seen: dict[Any, int] = {}  # bytes that each connection had moved
        self.looks_left, self.looked = 0, 0.0

    def listeners(self, sockets: Any, given: dict[int, tuple[str, int]]) -> dict[str, Any]:
        """Returns the names of the sockets that the server will listen on, each with its address."""
        if sockets is not None:
            fds = [sock.fileno() for sock in sockets]
        elif getattr(self.config, "fd", None) is not None:
            fds = [self.config.fd]
        else:
            # It would fail for a port that is taken, so it gets the socket instead.
            fds = [fd for _, fd in given.values() if port_of(fd) == self.config.port and self.config.uds is None]
            if not fds:
                raise Unfit("the server does not listen on a socket of gapless; does it have --fd {fd}?")
            self.config.fd = fds[0]
        names = {}
        for fd in fds:
            name, _ = given.get(os.fstat(fd).st_ino, (None, -1))
            if name is None:
                raise Unfit("the server does not listen on a socket of gapless; does it have --fd {fd}?")
            with borrowed(fd) as sock:
                names[name] = sock.getsockname()
        return names

    def known_protocol(self) -> Callable[[], Any]:
        """Returns what makes a protocol for a connection, as uvicorn's own startup does."""
        cls = self.config.http_protocol_class
        known = [c for c in cls.__mro__ if c.__name__ in KINDS and c.__module__.startswith("uvicorn.protocols.http.")]
        if not known:
            raise Unfit(f"the HTTP implementation {cls.__name__} is unknown")
        self.kind, self.cls = KINDS[known[0].__name__], cls
        offers: dict[str, Callable[[], Any]] = {
            "config": lambda: self.config,
            "server_state": lambda: self.server.server_state,
            "app_state": lambda: self.server.lifespan.state,
        }
        takes = inspect.signature(cls).parameters
        for name, p in takes.items():
            if name not in offers and p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                raise Unfit(f"{cls.__name__} wants a {name}, which is unknown")
        make = {name: offer for name, offer in offers.items() if name in takes}
        cycle = getattr(inspect.getmodule(known[0]), "RequestResponseCycle", None)
        if cycle is None or not {"on_response", "default_headers"} <= set(inspect.signature(cycle).parameters):
            raise Unfit("RequestResponseCycle of this uvicorn is not as it is known")

        def protocol() -> Any:
            return cls(**{name: offer() for name, offer in make.items()})

        example = protocol()
        wanted = ["transport", "cycle", "flow", "timeout_keep_alive", "timeout_keep_alive_task", "timeout_keep_alive_handler",
                  "_unset_keepalive_if_required", "on_response_complete", "shutdown"]
        wanted += ["conn"] if self.kind == "h11" else ["parser", "pipeline", "scope", "on_message_complete"]
        missing = [name for name in wanted if not hasattr(example, name)]
        if self.kind == "h11":
            missing += [name for name in ("our_state", "their_state", "trailing_data") if not hasattr(example.conn, name)]
        if missing:
            raise Unfit(f"{cls.__name__} has no {missing[0]}")
        return protocol

    def wrap_protocol(self) -> None:
        """With httptools nobody else notes that a request has been read to its end by the time of its response."""
        if self.kind != "httptools":
            return
        original = self.cls.on_message_complete

        def on_message_complete(protocol: Any) -> None:
            protocol._gapless_read = protocol.cycle
            original(protocol)

        self.cls.on_message_complete = on_message_complete

    def hello(self) -> None:
        """The first word, before any socket is touched. What is gapless's own is nothing for programs that this one starts."""
        for fd in (self.channel, self.queue):
            os.set_inheritable(fd, False)
        for name in ("GAPLESS_CHANNEL", "GAPLESS_HANDOFF"):
            os.environ.pop(name, None)
        path = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p != self.here]
        if path:
            os.environ["PYTHONPATH"] = os.pathsep.join(path)
        else:
            os.environ.pop("PYTHONPATH", None)
        self.channel_sock, self.queue_sock = socket.socket(fileno=self.channel), socket.socket(fileno=self.queue)
        loop = asyncio.get_running_loop()
        kind = "uvloop" if type(loop).__module__.startswith("uvloop") else "asyncio"
        say(self.channel_sock, {"type": "adapter", "name": f"{server_name()} ({self.kind}, {kind})"})
        say(self.channel_sock, {"type": "hello", "version": VERSION, "pid": os.getpid()})

    def begin(self) -> None:
        """The server listens."""
        self.loop = asyncio.get_running_loop()
        works = True
        try:
            self.loop.add_reader(self.channel, self.on_channel)
            self.receive_on()
        except Exception as e:  # an event loop that cannot watch descriptors
            works = False
            reason = f"the event loop: {type(e).__name__}: {e}"
            say(self.channel_sock, {"type": "adapter", "name": server_name(), "reason": reason})
        say(self.channel_sock, {"type": "ready", "version": VERSION, "pid": os.getpid(), "drain": works, "handoff": works})

    # Connections that come

    def receive_on(self) -> None:
        if not self.receiving and self.order is None:
            self.receiving = True
            self.loop.add_reader(self.queue, self.on_queue)

    def receive_off(self) -> None:
        if self.receiving:
            self.receiving = False
            self.loop.remove_reader(self.queue)

    def on_queue(self) -> None:
        for _ in range(8):  # other workers may take the rest
            if not self.has_room():
                self.receive_off()
                self.loop.call_later(0.02, self.receive_on)
                return
            if not self.receive_one():
                return

    def receive_one(self) -> bool:
        """Takes a connection from the queue and tells whether there may be more."""
        try:
            data, fd = receive(self.queue_sock, MAX_PACKET)
        except BlockingIOError:
            return False
        except OSError:
            self.receive_off()
            return False
        if fd < 0:
            if not data:
                self.receive_off()  # nobody can send any more
                return False
            return True
        sock = socket.socket(fileno=fd)
        try:
            version, name_length, _, length = HEADER.unpack_from(data)
            name = data[HEADER.size : HEADER.size + name_length].decode()
            pending = data[HEADER.size + name_length :]
            if version != VERSION or len(pending) != length or name not in self.names:
                raise ValueError("not for this server")
        except (struct.error, ValueError):
            sock.close()  # to serve it as something else could open what was closed to it
            return True
        task = self.loop.create_task(self.take(sock, pending.lstrip(b"\r\n")))
        self.moving.add(task)
        task.add_done_callback(self.moving.discard)
        return True

    async def take(self, sock: socket.socket, pending: bytes) -> None:
        try:
            sock.setblocking(False)
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            protocol = self.protocol()
            made = protocol.connection_made

            def connection_made(transport: Any) -> None:
                # Here and not later: before this returns nothing is read from the socket.
                del protocol.connection_made
                made(transport)
                protocol._unset_keepalive_if_required()
                protocol.timeout_keep_alive_task = self.loop.call_later(
                    protocol.timeout_keep_alive, protocol.timeout_keep_alive_handler
                )
                if pending:
                    protocol.data_received(pending)

            protocol.connection_made = connection_made
            await self.loop.connect_accepted_socket(lambda: protocol, sock)
        except Exception:
            sock.close()

    def has_room(self) -> bool:
        """Whether there are descriptors to spare; asked anew every few connections, and every 50 ms."""
        if self.looks_left > 0 and self.loop.time() < self.looked + 0.05:
            self.looks_left -= 1
            return True
        fds = []
        try:
            while len(fds) < SPARE_FDS:
                fds.append(os.dup(self.queue))
        except OSError:
            return False
        finally:
            for fd in fds:
                os.close(fd)
        self.looks_left, self.looked = SPARE_FDS // 2, self.loop.time()
        return True

    # The order to drain

    def on_channel(self) -> None:
        while True:
            try:
                data, fd = receive(self.channel_sock, MAX_PACKET)
            except BlockingIOError:
                return
            except OSError:
                data, fd = b"", -1
            if not data:  # master and parent are both gone
                self.loop.remove_reader(self.channel)
                self.ordered({"stop": True}, -1)
                return
            try:
                message = json.loads(data)
                drain = message.get("type") == "drain"
            except (ValueError, AttributeError):
                drain = False
            if drain:
                self.ordered(message, fd)
            elif fd >= 0:
                os.close(fd)

    def ordered(self, order: dict[str, Any], fd: int) -> None:
        self.stop = self.stop or bool(order.get("stop"))
        if self.order is not None:
            if fd >= 0:
                os.close(fd)
            return
        if fd >= 0:
            self.out = socket.socket(fileno=fd)
        else:
            while self.has_room() and self.receive_one():
                pass  # nobody else takes what waits for this generation
        self.order = order
        self.receive_off()
        self.draining = self.loop.create_task(self.drain())

    async def drain(self) -> None:
        began = self.loop.time()
        limit = int(self.order.get("deadline_ms") or 0) / 1000
        spread = int(self.order.get("spread_ms") or 0) / 1000
        # What uvicorn's own shutdown, and the lifespan's, may take.
        last = began + limit - min(limit / 4, 5) if limit else float("inf")
        graceful = getattr(self.config, "timeout_graceful_shutdown", None)
        closing: dict[Any, float] = {}  # WebSockets, and when each is closed
        for server in self.server.servers:
            server.close()
        if self.out is None:
            self.announce()
        self.report()
        empty, pause = 0, 0.002
        while empty < 3:
            now = self.loop.time()
            self.sweep()
            empty = 0 if self.connections or self.moving else empty + 1
            if graceful is not None and now > began + graceful:
                self.config.timeout_graceful_shutdown = 0  # it has been waited for here
                break
            idle_until = min(last, began + 1) if self.stop else last
            for protocol in list(self.connections):
                if isinstance(protocol, self.cls):
                    if now > idle_until and self.pending(protocol) is not None:
                        protocol.shutdown()
                    continue
                if limit and now > closing.setdefault(protocol, last - random.random() * spread):
                    protocol.shutdown()  # with 1012
                    closing[protocol] = float("inf")
            await asyncio.sleep(0 if empty else pause)
            pause = min(pause * 1.5, 0.05)
        # The rest is done as when somebody else asks for it, and so by whoever has a say in it.
        signal.raise_signal(signal.SIGTERM)

    def sweep(self) -> None:
        """Lets go of all connections that can, and looks after the others when their responses are complete."""
        for protocol in [c for c in self.connections if isinstance(c, self.cls)]:
            if not self.give(protocol) and not hasattr(protocol, "_gapless_watched"):
                self.watch(protocol)

    def watch(self, protocol: Any) -> None:
        original = protocol.on_response_complete

        def on_response_complete() -> None:
            original()
            self.loop.call_soon(self.give, protocol)

        protocol._gapless_watched = True
        protocol.on_response_complete = on_response_complete
        cycles = [protocol.cycle] + [cycle for cycle, _ in getattr(protocol, "pipeline", ())]
        for cycle in cycles:
            if cycle is not None and not cycle.response_complete:
                cycle.on_response = on_response_complete
                if self.out is None and not cycle.response_started:
                    cycle.default_headers = [*cycle.default_headers, CLOSE]
        if self.out is None and hasattr(protocol, "default_headers"):  # uvicorn before 0.18
            protocol.default_headers = [*protocol.default_headers, CLOSE]

    def announce(self) -> None:
        """From now on each response says that it is the last of its connection."""
        self.config.encoded_headers = [*self.config.encoded_headers, CLOSE]
        state = self.server.server_state
        state.default_headers = [*state.default_headers, CLOSE]

    def pending(self, protocol: Any) -> bytes | None:
        """The bytes read behind the last request; None if the connection does not stand between two requests."""
        transport, cycle = protocol.transport, protocol.cycle
        if transport is None or transport.is_closing() or transport.get_write_buffer_size() > 0:
            return None
        if (cycle is not None and not cycle.response_complete) or protocol.flow.read_paused:
            return None
        if self.kind == "h11":
            state = protocol.conn
            if state.our_state is not state.their_state or str(state.our_state) != "IDLE":
                return None
            data, ended = state.trailing_data
            return None if ended else bytes(data)
        if cycle is None:
            return b"" if protocol.scope is None else None
        # A scope that is not the last request's belongs to one whose head is not complete.
        if protocol.scope is not cycle.scope or protocol.pipeline or getattr(protocol, "_gapless_read", None) is not cycle:
            return None
        return None if protocol.parser is None or protocol.parser.should_upgrade() else b""

    def give(self, protocol: Any) -> bool:
        """Sends a connection to those who take over, if it may leave now. Checking and sending are one step."""
        if self.out is None or self.loop.time() < self.blocked:
            return False
        pending = self.pending(protocol)
        if pending is None or len(pending) > MAX_PENDING:
            return False
        transport = protocol.transport
        fd = transport.get_extra_info("socket").fileno()
        name = self.name_of(fd)
        if name is None:
            return False
        transport.pause_reading()
        packet = HEADER.pack(VERSION, len(name), 0, len(pending)) + name + pending
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        try:
            self.out.sendmsg([packet], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError as e:
            transport.resume_reading()
            self.blocked = self.loop.time() + 0.01
            if e.errno in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN):  # all who could take it are gone
                self.out.close()
                self.out = None
                self.announce()
            return False
        protocol._unset_keepalive_if_required()
        transport.abort()  # close(2) alone
        self.handed += 1
        return True

    def name_of(self, fd: int) -> bytes | None:
        """The name of the listener that a connection came from."""
        if len(self.names) == 1:
            return next(iter(self.names)).encode()
        with borrowed(fd) as sock:
            mine = sock.getsockname()
        matching = [name for name, address in self.names.items() if address == mine]
        return matching[0].encode() if len(matching) == 1 else None

    def report(self) -> None:
        """Tells what still holds this worker, now and once a second."""
        busy = web = 0
        for protocol in list(self.connections):
            if not isinstance(protocol, self.cls):
                web += 1
            elif protocol.cycle is not None and not protocol.cycle.response_complete:
                busy += 1
            moved = self.moved(protocol)
            self.bytes += max(0, moved - self.seen.get(protocol, moved))
            self.seen[protocol] = moved
        self.seen = {p: n for p, n in self.seen.items() if p in self.connections}
        say(self.channel_sock, {"type": "status", "in_flight": busy, "connections": len(self.connections),
                                "handed": self.handed, "bytes": self.bytes})
        self.notify(f"STATUS=draining: {busy} requests in flight, {web} WebSockets open, {self.handed} connections handed over")
        self.loop.call_later(1, self.report)

    def moved(self, protocol: Any) -> int:
        """The bytes that a connection has moved in both directions."""
        try:
            with borrowed(protocol.transport.get_extra_info("socket").fileno()) as sock:
                return sum(TCP_BYTES.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_BYTES.size)))
        except (OSError, AttributeError, struct.error, ValueError):
            return 0

    def notify(self, text: str) -> None:
        address = os.environ.get("NOTIFY_SOCKET", "")
        if not address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sock.connect("\0" + address[1:] if address[0] == "@" else address)
                sock.send(text.encode())
        except OSError:
            pass
