"""A rank's end of the diagnostics stream: a bounded queue, and a thread that empties it.

Training puts rows into the queue and never waits, nor wakes anyone: the thread looks by itself, a
few times a second, so that a step pays for little more than its row. A row stays in the queue until
rank 0 says that it is written; what was sent over a connection that broke is sent again, and told
apart there by its number.
"""

import contextlib
import logging
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from latentwire.diagnostics.frames import MAX_GREETING, Frame, has_norms, place_of, row_json

log = logging.getLogger(__name__)

WINDOW = 256
"""Rows that a rank may have sent and not yet seen written: what rank 0 must hold for it."""
_PACE = 0.25
"""Seconds from one look into the queue to the next."""
_PATIENCE = 30.0
"""Seconds that one exchange with rank 0's end may take before the connection counts as broken."""


@dataclass
class _Waiting:
    row: dict[str, Any]
    is_kept_longest: bool
    frame: Frame | None = None
    """Once it was sent; it may not be dropped any more."""


class Sender:
    """Sends one rank's rows.

    Args:
        connect: makes a connection that is greeted and ready for frames; raises OSError.
        capacity: rows in the queue; beyond it the oldest go that hold no gradient norms, then the
            oldest.
    """

    def __init__(self, connect: Callable[[], socket.socket], *, rank: int, capacity: int) -> None:
        self._connect = connect
        self._rank = rank
        self._capacity = capacity
        self._lock = threading.Condition()
        self._queue: deque[_Waiting] = deque()
        self._num_sent = 0
        """Leading rows of the queue that were sent over the present connection."""
        self._seq = 0
        self._dropped = 0
        self._next_look = 0.0
        self._num_flushing = 0
        """Callers that wait for the queue to be empty: what they wait for is sent at once."""
        self._is_closing = False
        self._is_done = False
        self._trouble = ""
        self._wake, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._wake.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="diagnostics sender", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Rows dropped so far."""
        return self._dropped

    @property
    def trouble(self) -> str:
        """Why nothing gets through at present, or an empty string."""
        return self._trouble

    def put(self, rows: Sequence[dict[str, Any]]) -> None:
        """Takes rows over; never waits for anyone."""
        with self._lock:
            for row in rows:
                self._queue.append(_Waiting(row, has_norms(row)))
                if len(self._queue) > self._capacity:
                    self._drop()

    def flush(self, timeout: float) -> bool:
        """Waits until every row so far is written; False where that takes longer."""
        with self._lock:
            self._num_flushing += 1
        self._poke()
        with self._lock:
            is_empty = self._lock.wait_for(lambda: not self._queue or self._is_done, timeout)
            self._num_flushing -= 1
        return is_empty

    def close(self, timeout: float) -> bool:
        """Drains the queue for up to ``timeout`` seconds and says goodbye; False where rows are
        left, which are then counted as dropped."""
        is_empty = self.flush(timeout)
        with self._lock:
            self._is_closing = True
            self._lock.notify_all()
        self._poke()
        self._thread.join(1.0)
        with self._lock:
            self._dropped += len(self._queue)
            self._queue.clear()
        return is_empty

    def _drop(self) -> None:
        # Sent ones are rank 0's already; they are the queue's oldest.
        for index in range(len(self._queue)):
            waiting = self._queue[index]
            if waiting.frame is None and not waiting.is_kept_longest:
                break
        else:
            index = next((i for i, one in enumerate(self._queue) if one.frame is None), -1)
        del self._queue[index]
        self._dropped += 1

    def _poke(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it is awake
            self._wake.send(b"x")

    def _run(self) -> None:
        connection: socket.socket | None = None
        while True:
            with self._lock:
                if self._is_closing:
                    break
            try:
                if connection is None:
                    connection = self._connected()
                self._exchange(connection)
                self._trouble = ""
            except OSError as error:
                if connection is not None:
                    connection.close()
                connection = None
                self._say(f"rank {self._rank} does not reach rank 0: {error}")
                self._sleep(0.5)
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.sendall(b"bye\n")
            connection.close()
        with self._lock:
            self._is_done = True
            self._lock.notify_all()

    def _connected(self) -> socket.socket:
        connection = self._connect()
        connection.settimeout(_PATIENCE)
        with self._lock:
            self._num_sent = 0
        return connection

    def _say(self, trouble: str) -> None:
        if not self._trouble:
            log.warning("diagnostics: %s; training goes on", trouble)
        self._trouble = trouble

    def _sleep(self, seconds: float) -> None:
        with self._lock:
            self._lock.wait_for(lambda: self._is_closing, seconds)

    def _exchange(self, connection: socket.socket) -> None:
        """Sends what may be sent where it is time to, then waits for news of either side."""
        now = time.monotonic()
        with self._lock:
            frames: list[Frame] = []
            # What does not fit into one look goes on as soon as there is room for it.
            if now >= self._next_look or self._num_flushing or len(self._queue) > WINDOW:
                last = min(len(self._queue), WINDOW)
                batch = [self._queue[index] for index in range(self._num_sent, last)]
                frames = [waiting.frame or self._framed(waiting) for waiting in batch]
                self._num_sent += len(frames)
                self._next_look = now + _PACE
        if frames:
            connection.sendall(b"".join(frame.encoded() for frame in frames))
        pause = max(0.0, self._next_look - time.monotonic())
        readable, _, _ = select.select([connection, self._woken], [], [], pause)
        if self._woken in readable:
            with contextlib.suppress(BlockingIOError):
                while self._woken.recv(4096):
                    pass
        if connection in readable:
            self._written(_acknowledged(connection))

    def _framed(self, waiting: _Waiting) -> Frame:
        self._seq += 1
        waiting.frame = Frame(
            seq=self._seq,
            dropped=self._dropped,
            place=place_of(waiting.row),
            rank=self._rank,
            decoder=waiting.row["decoder"],
            seconds=waiting.row.get("step_seconds", 0.0),
            row=row_json(waiting.row),
        )
        return waiting.frame

    def _written(self, seq: int) -> None:
        with self._lock:
            while self._queue:
                frame = self._queue[0].frame
                if frame is None or frame.seq > seq:
                    break
                self._queue.popleft()
                self._num_sent -= 1
            if not self._queue:
                self._lock.notify_all()


def _acknowledged(connection: socket.socket) -> int:
    """The last number of a row that is written."""
    data = connection.recv(1 << 16)
    while data and not data.endswith(b"\n"):
        more = connection.recv(MAX_GREETING)
        data = data + more if more else b""
    if not data:
        raise ConnectionError("the other end has closed the connection")
    return int(data.split()[-1])
