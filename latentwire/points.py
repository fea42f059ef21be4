"""Runs that belong together: the points of a sweep or of an ablation, one or several at a time.

A finished point is not run again and an interrupted one goes on where it stopped, so the command
that started them can always be repeated.
"""

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType

import torch

from latentwire.config import ConfigError, flatten
from latentwire.diagnostics.run_files import read_metrics
from latentwire.training.preflight import Plan, recorded_config
from latentwire.training.status import read_status

_POLL_SECONDS = 0.05
_DEVICES = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run, checked."""

    name: str
    values: tuple[str, ...] = ()
    """Of the swept keys, in order."""
    overrides: tuple[str, ...]
    plan: Plan


def is_finished(plan: Plan) -> bool:
    """Whether the run has ended with what this command would train."""
    if read_status(plan.run_folder).get("state") != "finished":
        return False
    before = recorded_config(plan.run_folder, plan.checkpoint_folder)
    # Without metrics that can be read there is nothing to compare: it is evaluated again.
    if before is None or "decoders" not in read_metrics(plan.run_folder):
        return False
    old, new = flatten(before), flatten(plan.config)
    # More steps of the same run are no other run, and not a finished one either.
    return all(old.get(key) == new[key] for key in new if key.startswith("train."))


def refuse_shared_rows(points: Sequence[Point]) -> None:
    """Runs that go side by side cannot write one file of diagnostics.

    Raises:
        ConfigError: two would.
    """
    key = "diagnostics.diagnostic_log"
    files = Counter(point.plan.config.diagnostics.diagnostic_log for point in points)
    shared = [file for file, number in files.items() if file is not None and number > 1]
    if shared:
        raise ConfigError(
            [f"{key}: '{shared[0]}' would have several writers at a time; leave the key out"]
        )


class Runner:
    """Runs points as subprocesses; a signal to stop reaches every run and ends the rest.

    Args:
        command: the command line of a point.
        workers: runs at a time. Several share out the cores that this process may use, and its
            GPUs, each with its own, so that none waits for another's threads.
        started: called with a point when it starts.
        ended: called with a point and whether it finished.
    """

    def __init__(
        self,
        command: Callable[[Point], list[str]],
        *,
        workers: int = 1,
        started: Callable[[Point], None],
        ended: Callable[[Point, bool], None],
    ) -> None:
        self._command = command
        self._started, self._ended = started, ended
        self._free = _slots(workers) if workers > 1 else [_Slot()]
        self._running: list[tuple[subprocess.Popen[bytes], Point, _Slot]] = []
        self.stopped_by: int | None = None
        """The signal that ended it all."""

    def run(self, points: Sequence[Point]) -> None:
        """Runs all points, in order; returns when none is running."""
        handled = (signal.SIGINT, signal.SIGTERM)
        previous = {number: signal.signal(number, self._stop) for number in handled}
        waiting = list(points)
        try:
            while self._running or (waiting and self.stopped_by is None):
                while waiting and self._free and self.stopped_by is None:
                    self._start(waiting.pop(0))
                time.sleep(_POLL_SECONDS)
                self._collect()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _start(self, point: Point) -> None:
        self._started(point)
        slot = self._free.pop()
        environment = dict(os.environ)
        if slot.cores:
            environment["OMP_NUM_THREADS"] = str(len(slot.cores))
        if slot.device is not None:
            environment[_DEVICES] = slot.device
        # A session of its own: a terminal's Ctrl-C comes once, through here.
        child = subprocess.Popen(self._command(point), start_new_session=True, env=environment)
        if slot.cores:
            with suppress(ProcessLookupError):  # it has ended already
                os.sched_setaffinity(child.pid, slot.cores)
        self._running.append((child, point, slot))
        if self.stopped_by is not None:  # it came before there was a child
            child.send_signal(signal.SIGTERM)

    def _collect(self) -> None:
        for entry in list(self._running):
            child, point, slot = entry
            code = child.poll()
            if code is None:
                continue
            self._running.remove(entry)
            self._free.append(slot)
            state = read_status(point.plan.run_folder).get("state")
            self._ended(point, code == 0 and state == "finished")

    def _stop(self, number: int, frame: FrameType | None = None) -> None:
        """A signal's handler: the runs save and end, and no other starts.

        Only the first signal is passed on: the launcher kills workers that do not end in time, and
        another signal would interrupt it in that.
        """
        if self.stopped_by is None:
            self.stopped_by = number
            for child, _, _ in self._running:
                if child.poll() is None:
                    child.send_signal(signal.SIGTERM)


def devices() -> list[str]:
    """GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    count = torch.cuda.device_count()
    named = [name for name in os.environ.get(_DEVICES, "").split(",") if name]
    return (named or [str(number) for number in range(count)])[:count]


@dataclass(frozen=True, kw_only=True)
class _Slot:
    """What of the machine one run has for itself."""

    cores: tuple[int, ...] = ()
    """None are given where it has them all."""
    device: str | None = None


def _slots(workers: int) -> list[_Slot]:
    """The machine in ``workers`` parts; two parts share a core, or a GPU, where there are too
    few."""
    cores, gpus = sorted(os.sched_getaffinity(0)), devices()
    size = max(1, len(cores) // workers)
    return [
        _Slot(
            cores=tuple(cores[(part * size + i) % len(cores)] for i in range(size)),
            device=gpus[part % len(gpus)] if gpus else None,
        )
        for part in range(workers)
    ]
