"""Asking a run to stop: a signal sets a flag, the loop acts on it at a step boundary."""

import signal
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist

from latentwire.distributed.groups import Group

_MEANING = {
    signal.SIGTERM: "preempted",
    signal.SIGUSR1: "preempted",
    signal.SIGINT: "stopped",
}
_CODES = ("", "preempted", "stopped", "unsaved")


class StopRequest:
    """Handles stop signals while entered; the original handlers come back on exit.

    Repeated signals change nothing: a launcher may well send more than one.
    """

    def __init__(self) -> None:
        self._wanted = ""
        self.reason = ""
        """Why, where it was not a signal."""
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in _MEANING:
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._wanted = self._wanted or _MEANING[signal.Signals(number)]

    def ask(self, meaning: str, reason: str) -> None:
        """Asks the run to stop by itself; every rank must.

        Args:
            meaning: ``preempted`` or ``stopped``.
            reason: for the status.
        """
        self._wanted = self._wanted or meaning
        self.reason = self.reason or reason

    def cannot_save(self) -> None:
        """Asks for a stop because a checkpoint could not be saved."""
        self._wanted = "unsaved"

    def agreed(self, world: Group) -> str:
        """``preempted``, ``stopped``, ``unsaved`` or empty: the same answer on every rank. All
        must call."""
        code = torch.tensor([_CODES.index(self._wanted)], dtype=torch.int32)
        if world.size > 1:
            dist.all_reduce(code, op=dist.ReduceOp.MAX, group=world.bookkeeping)
        return _CODES[int(code)]
