"""Rank 0's end of the diagnostics stream: one thread that takes every rank's rows in.

Whoever connects must know the job's secret: the server sends a nonce, the rank answers with its
number and a keyed digest of both, and only then is it listened to.
"""

import contextlib
import hashlib
import hmac
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass, field

from latentwire.diagnostics.frames import MAX_GREETING, MAX_LINE, decoded
from latentwire.diagnostics.writer import Writer

_GREETING_SECONDS = 10.0


def greeting(secret: str, nonce: str, rank: int) -> bytes:
    """What a rank answers to a nonce, without the line's end."""
    text = f"{nonce} {rank}".encode()
    return f"hello {rank} {hmac.new(secret.encode(), text, hashlib.sha256).hexdigest()}".encode()


def greet(connection: socket.socket, secret: str, rank: int) -> socket.socket:
    """A rank's side of the greeting. Raises OSError where the other side does not answer."""
    data = b""
    while not data.endswith(b"\n"):
        more = connection.recv(MAX_GREETING)
        if not more or len(data) > MAX_GREETING:
            raise ConnectionError("no greeting from rank 0")
        data += more
    connection.sendall(greeting(secret, data.decode("ascii", "replace").strip(), rank) + b"\n")
    return connection


@dataclass(eq=False)
class _Peer:
    connection: socket.socket
    nonce: str
    since: float
    rank: int | None = None
    buffer: bytearray = field(default_factory=bytearray)


class Collector:
    """Takes frames from all ranks and hands them to the writer.

    Args:
        listener: where other ranks connect; None where there are none.
        ranks: who may send.
    """

    def __init__(
        self,
        writer: Writer,
        *,
        secret: str,
        ranks: Collection[int],
        listener: socket.socket | None,
    ) -> None:
        self._writer = writer
        self._secret = secret
        self._waiting_for = set(ranks)
        self._ranks = frozenset(ranks)
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._peers: dict[int, _Peer] = {}
        """By rank, of those that greeted."""
        self._received: dict[int, int] = {}
        self._written: dict[int, int] = {}
        self._told: dict[int, int] = {}
        self._dropped: dict[int, int] = {}
        self._lock = threading.Condition()
        self._is_closing = False
        self._wake, self._woken = socket.socketpair()
        for own in (self._wake, self._woken):
            own.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)
        if listener is not None:
            listener.setblocking(False)
            self._selector.register(listener, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="diagnostics collector", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> dict[int, int]:
        """Rows dropped so far by rank, as far as their ranks have told."""
        return dict(self._dropped)

    def connect(self) -> socket.socket:
        """A connection from within this process, yet to be greeted."""
        own, other = socket.socketpair()
        self._admit(other)
        return own

    def written(self, seqs: dict[int, int]) -> None:
        """The writer has written rows up to these numbers, by rank."""
        with self._lock:
            self._written |= seqs
        self._poke()

    def close(self, timeout: float) -> bool:
        """Waits for every rank's goodbye, for up to ``timeout`` seconds, then takes nothing more.

        False where one was missing.
        """
        with self._lock:
            is_complete = self._lock.wait_for(lambda: not self._waiting_for, timeout)
            self._is_closing = True
        self._poke()
        self._thread.join(5.0)
        return is_complete

    def _poke(self) -> None:
        with contextlib.suppress(OSError):  # it is awake, or closed
            self._wake.send(b"x")

    def _admit(self, connection: socket.socket) -> None:
        peer = _Peer(connection, secrets.token_hex(16), time.monotonic())
        try:
            # A new connection has room for so little.
            connection.setblocking(False)
            connection.sendall(f"{peer.nonce}\n".encode())
        except OSError:
            connection.close()
            return
        self._selector.register(connection, selectors.EVENT_READ, peer)
        self._poke()

    def _run(self) -> None:
        while not self._is_closing:
            for key, _ in self._selector.select(1.0):
                if key.fileobj is self._woken:
                    self._acknowledge()
                elif key.fileobj is self._listener:
                    self._accept()
                else:
                    self._read(key.data)
            self._dismiss_silent()
        for key in list(self._selector.get_map().values()):
            socket_: socket.socket = key.fileobj  # type: ignore[assignment]
            socket_.close()
        self._selector.close()
        self._wake.close()

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        self._admit(connection)

    def _read(self, peer: _Peer) -> None:
        try:
            data = peer.connection.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._dismiss(peer)
            return
        peer.buffer += data
        *lines, rest = bytes(peer.buffer).split(b"\n")
        peer.buffer = bytearray(rest)
        if len(rest) > (MAX_LINE if peer.rank is not None else MAX_GREETING):
            self._dismiss(peer)
            return
        try:
            self._take(peer, lines)
        except ValueError:
            self._dismiss(peer)

    def _take(self, peer: _Peer, lines: list[bytes]) -> None:
        """Raises ValueError where a line is not what it must be."""
        frames = []
        for line in lines:
            if peer.rank is None:
                self._welcome(peer, line)
            elif line == b"bye":
                with self._lock:
                    self._waiting_for.discard(peer.rank)
                    self._lock.notify_all()
            else:
                frame = decoded(line)
                if frame.rank != peer.rank:
                    raise ValueError("a frame of another rank")
                # A rank repeats what it does not know to be written.
                if frame.seq > self._received.get(peer.rank, 0):
                    self._received[peer.rank] = frame.seq
                    self._dropped[peer.rank] = frame.dropped
                    frames.append(frame)
        if frames:
            self._writer.put(frames)

    def _welcome(self, peer: _Peer, line: bytes) -> None:
        words = line.split()
        rank = int(words[1]) if len(words) == 3 else -1
        if rank not in self._ranks or not hmac.compare_digest(
            line, greeting(self._secret, peer.nonce, rank)
        ):
            raise ValueError("no greeting of ours")
        peer.rank = rank
        before = self._peers.get(rank)
        self._peers[rank] = peer
        if before is not None:
            self._forget(before)
        self._writer.set_gone(rank, False)
        self._tell(peer, self._written.get(rank, 0))

    def _dismiss_silent(self) -> None:
        """Who does not greet in time is sent away."""
        limit = time.monotonic() - _GREETING_SECONDS
        for key in list(self._selector.get_map().values()):
            peer = key.data
            if isinstance(peer, _Peer) and peer.rank is None and peer.since < limit:
                self._dismiss(peer)

    def _dismiss(self, peer: _Peer) -> None:
        self._forget(peer)
        if peer.rank is not None and self._peers.get(peer.rank) is peer:
            del self._peers[peer.rank]
            # Nothing more of it is waited for; should it come back, its rows may be late.
            self._writer.set_gone(peer.rank, True)

    def _forget(self, peer: _Peer) -> None:
        try:
            self._selector.unregister(peer.connection)
        except (KeyError, ValueError):
            return
        peer.connection.close()

    def _acknowledge(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._woken.recv(4096):
                pass
        with self._lock:
            news = dict(self._written)
        for rank, seq in news.items():
            peer = self._peers.get(rank)
            if peer is not None and seq > self._told.get(rank, 0):
                self._tell(peer, seq)

    def _tell(self, peer: _Peer, seq: int) -> None:
        assert peer.rank is not None
        self._told[peer.rank] = seq
        try:
            peer.connection.sendall(f"{seq}\n".encode())
        except OSError:
            self._dismiss(peer)
