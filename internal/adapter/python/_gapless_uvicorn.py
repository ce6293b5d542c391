"""gapless's adapter for uvicorn: idle connections move to the workers that take over, instead of being closed.

Next to nothing of it lies in the way of a request: it has a callback on each of two descriptors, and, from the order to drain on,
a look at each connection when its response is complete (_gapless_drain.py). Where uvicorn is not as it is known here,
nothing is patched, and gapless is told why. What is known is checked by name and signature, never by version.
"""
from __future__ import annotations

import asyncio
import inspect
import json
import os
import socket
from typing import Any, Callable

from _gapless_drain import Drain
from _gapless_wire import (
    MAX_PACKET, SPARE_FDS, VERSION, Unfit, borrowed, inherited, packets, port_of, receive, receive_connection, room, say,
    tell_unfit,
)

KINDS = {"H11Protocol": "h11", "HttpToolsProtocol": "httptools"}
NO_SOCKET = "the server does not listen on a socket of gapless; does it have --fd {fd}?"


def install(module: Any, here: str) -> None:
    """Patches uvicorn.server, if it is as expected."""
    pid = os.getpid()
    listeners = inherited()
    try:
        original = module.Server.startup
        if not inspect.iscoroutinefunction(original) or "sockets" not in inspect.signature(original).parameters:
            raise Unfit("Server.startup of this uvicorn is not as it is known")
        if not inspect.iscoroutinefunction(getattr(module.Server, "shutdown", None)):
            raise Unfit("this uvicorn has no Server.shutdown")
    except Exception as e:
        tell_unfit(server_name(), e)
        return
    taken = False

    async def startup(self: Any, sockets: Any = None) -> None:
        nonlocal taken
        adapter = None
        if not taken:  # a second server in one process is left alone
            try:
                adapter = Adapter(self, sockets, listeners, leader_of(self.config, pid))
                taken = True
                adapter.hello(here)
            except Exception as e:
                tell_unfit(server_name(), e)
                adapter = None
        await original(self, sockets=sockets)
        if adapter is not None and self.started:
            adapter.begin()

    module.Server.startup = startup


def leader_of(config: Any, pid: int) -> int:
    """The process whose child this one is, of which it is the only one, as gunicorn's worker may be; 0: none, it leads itself."""
    if os.getpid() == pid:
        return 0
    worker = getattr(getattr(config, "callback_notify", None), "__self__", None)
    if os.getppid() != pid or getattr(getattr(worker, "cfg", None), "workers", None) != 1:
        raise Unfit("the server runs in a child process of the command, perhaps in several")  # of which one would hear the order
    return pid


def server_name() -> str:
    import uvicorn

    return f"uvicorn {getattr(uvicorn, '__version__', '')}".strip()


class Adapter:
    """One server's part in handoffs. Raises Unfit for a server that it does not know; then nothing has changed."""

    def __init__(self, server: Any, sockets: Any, listeners: dict[int, tuple[str, int]], leader: int) -> None:
        self.server, self.config = server, server.config
        self.leader = leader  # the process that is to be stopped, if it is not this one
        self.connections: set[Any] = server.server_state.connections
        if getattr(self.config, "ssl", None) is not None:
            raise Unfit("connections with TLS cannot change the process")
        self.channel, self.queue = packets("GAPLESS_CHANNEL"), packets("GAPLESS_HANDOFF")
        self.names = self.listening(sockets, listeners)
        self.new_protocol = self.known_protocol()
        self.watch_requests()

        self.moving: set[Any] = set()  # connections on their way in
        self.receiving = False
        self.checked, self.may_take = 0.0, 0  # when there was room, and for how many more that counts
        self.deferred = 0  # how often in a row what waits was left to other workers
        self.drain: Drain | None = None

    def listening(self, sockets: Any, given: dict[int, tuple[str, int]]) -> dict[str, Any]:
        """Returns the names of the sockets that the server will listen on, each with its address."""
        if sockets is not None:
            fds = [sock.fileno() for sock in sockets]
        elif getattr(self.config, "fd", None) is not None:
            fds = [self.config.fd]
        else:
            # It would fail for a port that is taken, so it gets the socket instead.
            fds = [fd for _, fd in given.values() if self.config.uds is None and port_of(fd) == self.config.port][:1]
            if fds:
                self.config.fd = fds[0]
        names = {}
        for fd in fds:
            name, _ = given.get(os.fstat(fd).st_ino, (None, -1))
            if name is None:
                raise Unfit(NO_SOCKET)
            with borrowed(fd) as sock:
                names[name] = sock.getsockname()
        if not names:
            raise Unfit(NO_SOCKET)
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

    def watch_requests(self) -> None:
        """With httptools nobody else notes that a request has been read to its end by the time of its response."""
        if self.kind != "httptools":
            return
        original = self.cls.on_message_complete

        def on_message_complete(protocol: Any) -> None:
            protocol._gapless_read = protocol.cycle
            original(protocol)

        self.cls.on_message_complete = on_message_complete

    def hello(self, here: str) -> None:
        """The first word, before any socket is touched. What is gapless's own is nothing for programs that this one starts."""
        for fd in (self.channel, self.queue):
            os.set_inheritable(fd, False)
        for name in ("GAPLESS_CHANNEL", "GAPLESS_HANDOFF"):
            os.environ.pop(name, None)
        path = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p != here]
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
        if not self.receiving and self.drain is None:
            self.receiving = True
            self.loop.add_reader(self.queue, self.on_queue)

    def receive_off(self) -> None:
        if self.receiving:
            self.receiving = False
            self.loop.remove_reader(self.queue)

    def on_queue(self) -> None:
        for _ in range(8):  # other workers may take the rest
            if not self.has_room() or self.left_to_others():
                self.receive_off()
                self.loop.call_later(0.02, self.receive_on)
                return
            if not self.receive_one():
                self.deferred = 0
                return

    def left_to_others(self) -> bool:
        """Whether one more connection would have uvicorn answer 503 (--limit-concurrency), and others may have had no time yet to take it."""
        limit = getattr(self.config, "limit_concurrency", None)
        if limit is None or len(self.connections) + len(self.moving) + 1 < limit:
            self.deferred = 0
            return False
        self.deferred += 1
        return self.deferred <= 10  # then no worker has room, and who waits is to get an answer

    def has_room(self) -> bool:
        """Whether a connection may be taken; looked at anew every few connections, and every 50 ms."""
        now = self.loop.time()
        if self.may_take == 0 or now > self.checked + 0.05:
            self.checked, self.may_take = now, SPARE_FDS // 2 if room(self.queue) else 0
        self.may_take -= 1 if self.may_take else 0
        return self.may_take > 0

    def receive_one(self) -> bool:
        """Takes a connection from the queue and tells whether there may be more."""
        try:
            packet = receive_connection(self.queue_sock)
        except BlockingIOError:
            return False
        except OSError:
            packet = None
        if packet is None:
            self.receive_off()
            return False
        name, pending, sock = packet
        if sock is not None and name not in self.names:
            sock.close()  # to serve it as something else could open what was closed to it
        elif sock is not None:
            task = self.loop.create_task(self.take(sock, pending))
            self.moving.add(task)
            task.add_done_callback(self.moving.discard)
        return True

    async def take(self, sock: socket.socket, pending: bytes) -> None:
        try:
            sock.setblocking(False)
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            protocol = self.new_protocol()
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
                self.ordered({"stop": True, "deadline_ms": 30_000}, -1)
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
        """Begins the drain. The first order counts, except that a later one may say that everything stops."""
        if self.drain is not None:
            self.drain.stop = self.drain.stop or bool(order.get("stop"))
            if fd >= 0:
                os.close(fd)
            return
        queue = socket.socket(fileno=fd) if fd >= 0 else None
        while queue is None and self.has_room() and self.receive_one():
            pass  # nobody else takes what waits for this generation
        self.drain = Drain(self, order, queue)
        self.receive_off()
        self.drain.begin()
