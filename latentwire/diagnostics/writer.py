"""The one thread that writes a diagnostics file: in order, line by line, and never in vain."""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from latentwire.diagnostics.frames import Frame
from latentwire.diagnostics.ordering import Ordering

log = logging.getLogger(__name__)

_SLOW = 10.0
"""Seconds after which a write that has not ended is reported."""
_RETRY = 1.0


class FileEnd:
    """The end of a file that is only appended to, in whole lines.

    A write that fails part of the way is taken back, so that the next one starts on a line of its
    own.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        self._end = os.lseek(self._file, 0, os.SEEK_END)

    def append(self, data: bytes) -> None:
        """Raises OSError where nothing was written."""
        try:
            os.lseek(self._file, self._end, os.SEEK_SET)
            left = memoryview(data)
            while left:
                left = left[os.write(self._file, left) :]
        except OSError:
            os.ftruncate(self._file, self._end)
            raise
        self._end += len(data)

    def close(self) -> None:
        os.close(self._file)


class Writer:
    """Writes frames as they become ready.

    Args:
        written: told, after each write, the last row's number by rank.
    """

    def __init__(
        self,
        path: Path,
        ordering: Ordering,
        *,
        written: Callable[[dict[int, int]], None],
    ) -> None:
        self._path = path
        self._ordering = ordering
        self._written = written
        self._lock = threading.Condition()
        self._inbox: deque[Frame] = deque()
        self._gone: set[int] = set()
        self._deadline: float | None = None
        self._writing_since: float | None = None
        self._error = ""
        self._file: FileEnd | None = None
        self.num_written = 0
        self.num_late = 0
        self.pace: dict[int, float] = {}
        """Seconds a step by rank: a running mean over the rows that came."""
        self._thread = threading.Thread(target=self._run, name="diagnostics writer", daemon=True)
        self._thread.start()

    @property
    def trouble(self) -> str:
        """What is wrong with the file at present, or an empty string."""
        since = self._writing_since
        if self.is_slow and since is not None:
            return f"writing to {self._path} has taken {time.monotonic() - since:.0f} s so far"
        return self._error

    @property
    def is_slow(self) -> bool:
        """Whether a write has hung for long."""
        since = self._writing_since
        return since is not None and time.monotonic() - since > _SLOW

    def put(self, frames: Sequence[Frame]) -> None:
        """Takes frames over; never waits."""
        with self._lock:
            self._inbox.extend(frames)
            self._lock.notify_all()

    def set_gone(self, rank: int, is_gone: bool) -> None:
        """A rank sends nothing any more, or does again."""
        with self._lock:
            (self._gone.add if is_gone else self._gone.discard)(rank)
            self._lock.notify_all()

    def close(self, timeout: float) -> bool:
        """Writes what it has, for up to ``timeout`` seconds; False where that was not enough."""
        with self._lock:
            self._deadline = time.monotonic() + timeout
            self._lock.notify_all()
        self._thread.join(timeout + 0.5)
        return not self._thread.is_alive() and not self._error

    def _run(self) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._inbox or self._deadline, self._pause())
                frames, is_closing = list(self._inbox), self._deadline is not None
                self._inbox.clear()
                self._ordering.gone = set(self._gone)
            now = time.monotonic()
            for frame in frames:
                self._ordering.add(frame, now)
                if frame.seconds:
                    before = self.pace.get(frame.rank, frame.seconds)
                    self.pace[frame.rank] = 0.9 * before + 0.1 * frame.seconds
            self._write(self._ordering.ready(now, closing=is_closing))
            if is_closing:
                break
        if self._file is not None:
            self._file.close()

    def _pause(self) -> float:
        closing = self._ordering.next_closing()
        return 1.0 if closing is None else min(1.0, max(0.01, closing - time.monotonic()))

    def _write(self, ready: Sequence[tuple[Frame, bool]]) -> None:
        if not ready:
            return
        data = b"".join(frame.line(late=late) for frame, late in ready)
        while not self._appended(data):
            with self._lock:
                deadline = self._deadline
                if deadline is not None and time.monotonic() > deadline:
                    return
                self._lock.wait(_RETRY if deadline is None else 0.1)
        self.num_written += len(ready)
        self.num_late += sum(late for _, late in ready)
        self._written({frame.rank: frame.seq for frame, _ in ready})

    def _appended(self, data: bytes) -> bool:
        self._writing_since = time.monotonic()
        try:
            if self._file is None:
                self._file = FileEnd(self._path)
            self._file.append(data)
        except OSError as error:
            if not self._error:
                log.warning("diagnostics: cannot write %s: %s; training goes on", self._path, error)
            self._error = f"cannot write {self._path}: {error}"
            return False
        finally:
            self._writing_since = None
        self._error = ""
        return True
