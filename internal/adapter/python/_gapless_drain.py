"""The drain of a uvicorn server: what is idle moves to the workers that take over, what is busy is finished.

Whether a connection stands between two requests is asked, and the connection sent, in one callback of the event loop: no
byte can be read in between. All the while the server runs as ever; it is stopped, by the signal that stops it without
gapless too, when nothing is left that could suffer from it.
"""
from __future__ import annotations

import asyncio
import errno
import os
import random
import signal
from contextlib import suppress
from typing import Any

from _gapless_wire import MAX_PENDING, borrowed, moved, notify, say, send_connection

CLOSE = (b"connection", b"close")
LAST_ANSWERS = 1.0  # seconds for a last request on idle connections, where everything stops
RETRY = 0.01  # seconds before a queue that was full is tried again


def say_close(holder: Any) -> None:
    if CLOSE not in holder.default_headers:
        holder.default_headers = [*holder.default_headers, CLOSE]


class Drain:
    """Is begun once, and ends with a signal to this process."""

    def __init__(self, adapter: Any, order: dict[str, Any], queue: Any) -> None:
        self.adapter, self.server, self.config = adapter, adapter.server, adapter.config
        self.connections, self.cls, self.loop = adapter.connections, adapter.cls, adapter.loop
        self.queue = queue  # takes the connections; None: nobody takes over
        self.stop = bool(order.get("stop"))
        self.limit = int(order.get("deadline_ms") or 0) / 1000
        self.spread = int(order.get("spread_ms") or 0) / 1000
        self.blocked = 0.0  # until then the queue is not tried again
        self.handed = self.bytes = 0
        self.seen: dict[Any, int] = {}  # bytes that each connection had moved at the last report
        self.watched: set[Any] = set()
        self.closing: dict[Any, float] = {}  # WebSockets, and when each is to be closed
        self.closed: set[Any] = set()  # those that have been told

    def begin(self) -> None:
        self.began = self.loop.time()
        # A part of the time is kept for what the server's own shutdown, and the lifespan's, may take.
        self.last = self.began + self.limit - min(self.limit / 4, 5) if self.limit else float("inf")
        if self.queue is None:
            self.announce()
        self.report()
        self.task = self.loop.create_task(self.run())

    async def run(self) -> None:
        try:
            await self.close_listeners()
            empty, pause = 0, 0.002
            while empty < 3 and not self.overdue():
                self.step()
                empty = 0 if self.connections or self.adapter.moving else empty + 1
                await asyncio.sleep(0 if empty else pause)
                pause = min(pause * 1.5, 0.05)
        finally:  # whatever happens, the server is asked to end as it is without gapless, and so by whoever has a say in it
            self.stop_server()

    def stop_server(self) -> None:
        leader = self.adapter.leader
        if leader:
            with suppress(OSError, AttributeError):  # no pidfds, or it has gone, and with it whoever would start another worker
                fd = os.pidfd_open(leader)
                try:
                    if os.getppid() == leader:
                        signal.pidfd_send_signal(fd, signal.SIGTERM)
                        return
                finally:
                    os.close(fd)
        signal.raise_signal(signal.SIGTERM)

    async def close_listeners(self) -> None:
        """Accepts nothing more. With asyncio a connection whose listener closes while it is being accepted would be lost."""
        for server in self.server.servers:
            for sock in server.sockets or ():
                try:
                    self.loop.remove_reader(sock.fileno())
                except Exception:
                    pass  # uvloop accepts in one step, and has no reader to remove
        for _ in range(3):
            await asyncio.sleep(0)
        for server in self.server.servers:
            server.close()

    def overdue(self) -> bool:
        """Whether the user's own limit for a graceful shutdown is over."""
        graceful = getattr(self.config, "timeout_graceful_shutdown", None)
        if graceful is None or self.loop.time() < self.began + graceful:
            return False
        self.config.timeout_graceful_shutdown = 0  # it has been waited for
        return True

    def step(self) -> None:
        """Lets go of what can leave, and closes what has waited long enough."""
        now = self.loop.time()
        idle_until = min(self.last, self.began + LAST_ANSWERS) if self.stop else self.last
        for protocol in list(self.connections):
            if not isinstance(protocol, self.cls):
                due = self.closing.setdefault(protocol, self.last - random.random() * self.spread)
                if now > min(due, idle_until) and protocol not in self.closed:
                    self.closed.add(protocol)
                    close_websocket(protocol)
            elif not self.give(protocol):
                self.watch(protocol)
                if self.queue is None:
                    self.announce_on(protocol)  # also where it came, or its request, while the order did
                if now > idle_until and self.unread(protocol) is not None:
                    protocol.shutdown()

    def watch(self, protocol: Any) -> None:
        """Has a connection looked at when its response is complete, which may be its only idle moment."""
        if protocol in self.watched:
            return
        self.watched.add(protocol)
        original = protocol.on_response_complete

        def on_response_complete() -> None:
            original()
            self.loop.call_soon(self.leave, protocol, 2)

        protocol.on_response_complete = on_response_complete
        for cycle in self.cycles(protocol):
            cycle.on_response = on_response_complete

    def leave(self, protocol: Any, tries: int) -> None:
        """Gives a connection away whose response is complete; uvloop writes that at the end of its turn only."""
        if protocol in self.connections and not self.give(protocol) and tries > 0:
            self.loop.call_soon(self.leave, protocol, tries - 1)

    def cycles(self, protocol: Any) -> list[Any]:
        """The requests that a connection has not been answered yet."""
        all_of_them = [protocol.cycle] + [cycle for cycle, _ in getattr(protocol, "pipeline", ())]
        return [cycle for cycle in all_of_them if cycle is not None and not cycle.response_complete]

    def announce(self) -> None:
        """From now on each response says that it is the last of its connection."""
        self.config.encoded_headers = [*self.config.encoded_headers, CLOSE]  # of which the state gets its own every second
        say_close(self.server.server_state)
        for protocol in self.connections:
            if isinstance(protocol, self.cls):
                self.announce_on(protocol)

    def announce_on(self, protocol: Any) -> None:
        for holder in [protocol, *self.cycles(protocol)]:
            # A protocol has headers of its own before uvicorn 0.18; a response that has begun has sent them.
            if hasattr(holder, "default_headers") and not getattr(holder, "response_started", False):
                say_close(holder)

    def unread(self, protocol: Any) -> bytes | None:
        """The bytes read behind the last request; None if the connection does not stand between two requests."""
        transport, cycle = protocol.transport, protocol.cycle
        if transport is None or transport.is_closing() or transport.get_write_buffer_size() > 0:
            return None
        if (cycle is not None and not cycle.response_complete) or protocol.flow.read_paused:
            return None
        if self.adapter.kind == "h11":
            conn = protocol.conn
            if conn.our_state is not conn.their_state or str(conn.our_state) != "IDLE":
                return None
            data, ended = conn.trailing_data
            return None if ended else bytes(data)
        if cycle is None:
            return b"" if protocol.scope is None else None
        # A scope that is not the last request's belongs to one whose head is not complete.
        if protocol.scope is not cycle.scope or protocol.pipeline or getattr(protocol, "_gapless_read", None) is not cycle:
            return None
        return None if protocol.parser is None or protocol.parser.should_upgrade() else b""

    def give(self, protocol: Any) -> bool:
        """Sends a connection to those who take over, if it may leave now. Checking and sending are one step."""
        if self.queue is None or self.loop.time() < self.blocked:
            return False
        unread = self.unread(protocol)
        if unread is None or len(unread) > MAX_PENDING:
            return False
        transport = protocol.transport
        fd = transport.get_extra_info("socket").fileno()
        name = self.listener_of(fd)
        if name is None:
            return False
        transport.pause_reading()
        try:
            send_connection(self.queue, name, fd, unread)
        except OSError as e:
            # It is served on. The queue may have room again (EAGAIN), or the user fewer descriptors under way (ETOOMANYREFS).
            transport.resume_reading()
            self.blocked = self.loop.time() + RETRY
            if e.errno in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ECONNREFUSED):  # nobody can take it any more
                self.queue.close()
                self.queue = None
                self.announce()
            return False
        protocol._unset_keepalive_if_required()
        transport.abort()  # close(2) alone
        self.handed += 1
        return True

    def listener_of(self, fd: int) -> bytes | None:
        """The name of the listener that a connection came from."""
        names = self.adapter.names
        if len(names) == 1:
            return next(iter(names)).encode()
        with borrowed(fd) as sock:
            mine = sock.getsockname()
        matching = [name for name, address in names.items() if address == mine]
        return matching[0].encode() if len(matching) == 1 else None

    def report(self) -> None:
        """Tells what still holds this worker, now and once a second."""
        busy = web = 0
        seen = {}
        for protocol in list(self.connections):
            if not isinstance(protocol, self.cls):
                web += 1
            elif protocol.cycle is not None and not protocol.cycle.response_complete:
                busy += 1
            sock = protocol.transport.get_extra_info("socket") if protocol.transport is not None else None
            seen[protocol] = now = moved(sock.fileno()) if sock is not None and sock.fileno() >= 0 else 0
            self.bytes += max(0, now - self.seen.get(protocol, now))
        self.seen = seen
        say(self.adapter.channel_sock, {"type": "status", "in_flight": busy, "connections": len(self.connections),
                                        "handed": self.handed, "bytes": self.bytes})
        notify(f"STATUS=draining: {busy} requests in flight, {web} WebSockets open, {self.handed} connections handed over")
        self.loop.call_later(1, self.report)


def close_websocket(protocol: Any) -> None:
    """Closes with 1012, which asks the client to come again. What older uvicorns do with the websockets library has no code."""
    shaken = getattr(protocol, "handshake_completed_event", None)
    if shaken is not None and shaken.is_set() and hasattr(protocol, "fail_connection"):
        protocol.fail_connection(1012)  # a second time, as newer ones do in shutdown, it does nothing
    protocol.shutdown()
