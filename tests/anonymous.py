"""How much memory of its own a process takes for something, at its peak."""

import threading
import time
from pathlib import Path
from types import TracebackType


def anonymous_bytes() -> int:
    """Memory of this process that no file stands behind."""
    return _of_status("RssAnon")


def resident_bytes() -> int:
    """The same with what is mapped from files."""
    return _of_status("VmRSS")


def _of_status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (kibibytes,) = (line.split()[1] for line in lines if line.startswith(f"{key}:"))
    return int(kibibytes) * 1024


class AnonymousPeak:
    """Watches this process while it is entered."""

    def __init__(self) -> None:
        self.above = 0
        """Peak over what there was at the start, in bytes."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "AnonymousPeak":
        self._before = anonymous_bytes()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._ended.is_set():
            self._look()
            time.sleep(0.002)

    def _look(self) -> None:
        self.above = max(self.above, anonymous_bytes() - self._before)
