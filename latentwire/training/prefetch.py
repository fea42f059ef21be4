"""Makes what the next steps need in a thread of its own, while the present one computes."""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Hands out ``make(step)`` for one step after the other; to be entered.

    Results are those of calling ``make`` in order: one thread makes them, one at a time. What it
    raises is raised by ``next`` at the step it belongs to. No thread is left when this is left,
    on any way out.

    Args:
        make: called in the other thread; it must touch nothing that this one changes.
        depth: steps that may be made ahead; 0 makes each when it is asked for, without a thread.
    """

    def __init__(self, make: Callable[[int], T], steps: Iterable[int], *, depth: int) -> None:
        self._make = make
        self._steps = iter(steps)
        self._depth = depth
        self._lock = threading.Condition()
        self._ready: deque[tuple[T | None, BaseException | None]] = deque()
        self._is_closing = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Prefetcher[T]":
        if self._depth:
            self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._thread is None:
            return
        with self._lock:
            self._is_closing = True
            self._lock.notify_all()
        # What it is making is soon made.
        self._thread.join()
        self._ready.clear()

    def next(self) -> T:
        """What the next step needs; waits for it.

        Raises:
            StopIteration: there are no further steps.
        """
        if self._thread is None:
            return self._make(next(self._steps))
        with self._lock:
            self._lock.wait_for(lambda: self._ready)
            found, error = self._ready.popleft()
            self._lock.notify_all()
        if error is not None:
            raise error
        return found  # type: ignore[return-value]

    def _run(self) -> None:
        error = None
        while error is None:
            with self._lock:
                self._lock.wait_for(lambda: self._is_closing or len(self._ready) < self._depth)
                if self._is_closing:
                    return
            found = None
            try:
                found = self._make(next(self._steps))
            except BaseException as raised:
                error = raised
            with self._lock:
                self._ready.append((found, error))
                self._lock.notify_all()
