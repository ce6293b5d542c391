"""How code in a worker speaks to gapless: docs/protocol.md of gapless, as far as Python has need of it."""
from __future__ import annotations

import array
import json
import os
import socket
import stat
import struct
from contextlib import contextmanager
from typing import Any, Iterator

VERSION = 1
HEADER = struct.Struct("!BBHI")  # version, length of the name, 0, length of the pending bytes
MAX_PENDING = 64 << 10
MAX_PACKET = HEADER.size + 255 + MAX_PENDING
FIRST_FD = 3  # of LISTEN_FDS
SPARE_FDS = 64  # that must be free before a connection is taken: the kernel closes one that it cannot install
TCP_BYTES = struct.Struct("=120xQQ")  # tcp_info: bytes acknowledged, bytes received


class Unfit(Exception):
    """Why an adapter leaves its server as it is."""


def tell_unfit(name: str, e: Exception) -> None:
    """Says why an adapter is not in force."""
    reason = str(e) if isinstance(e, Unfit) else f"{type(e).__name__}: {e}"
    try:
        with borrowed(packets("GAPLESS_CHANNEL")) as sock:
            say(sock, {"type": "adapter", "name": name, "reason": reason})
    except Unfit:
        pass  # gapless tells that it has heard nothing


def packets(variable: str) -> int:
    """Returns the descriptor that an environment variable names, if it is a socket for packets."""
    try:
        fd = int(os.environ[variable])
        ok = stat.S_ISSOCK(os.fstat(fd).st_mode)
        with borrowed(fd) as sock:
            ok = ok and sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_SEQPACKET
    except (KeyError, ValueError, OSError):
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


def send_connection(queue: socket.socket, listener: bytes, fd: int, pending: bytes) -> None:
    """Gives a connection away. With an OSError it is still the caller's."""
    packet = HEADER.pack(VERSION, len(listener), 0, len(pending)) + listener + pending
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
    queue.sendmsg([packet], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def receive_connection(queue: socket.socket) -> tuple[str, bytes, socket.socket | None] | None:
    """Takes a connection: its listener, what the client has sent, the socket (None: the packet was of no use).

    None says that nobody can send any more; BlockingIOError, that none waits.
    """
    data, fd = receive(queue, MAX_PACKET)
    if fd < 0:
        return ("", b"", None) if data else None
    try:
        sock = socket.socket(fileno=fd)
    except OSError:  # it is no socket
        os.close(fd)
        return "", b"", None
    try:
        version, length, _, rest = HEADER.unpack_from(data)
        name, pending = data[HEADER.size : HEADER.size + length].decode(), data[HEADER.size + length :]
        if version == VERSION and len(pending) == rest:
            return name, pending.lstrip(b"\r\n"), sock
    except (struct.error, ValueError):
        pass
    sock.close()
    return "", b"", None


def room(fd: int) -> bool:
    """Whether there are descriptors to spare."""
    fds = []
    try:
        while len(fds) < SPARE_FDS:
            fds.append(os.dup(fd))
    except OSError:
        return False
    finally:
        for spare in fds:
            os.close(spare)
    return True


def moved(fd: int) -> int:
    """The bytes that a connection has moved, in both directions; 0 where the kernel does not count."""
    try:
        with borrowed(fd) as sock:
            return sum(TCP_BYTES.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_BYTES.size)))
    except (OSError, struct.error):
        return 0


def notify(text: str) -> None:
    """Sends a line to NOTIFY_SOCKET, if somebody listens."""
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
