"""What a run tells while it trains: rows, the progress bar's values, its status, its health."""

import logging
import math
import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from latentwire.diagnostics.rank_stream import RankStream
from latentwire.training.doctor import Doctor
from latentwire.training.guard import NonFiniteError
from latentwire.training.records import StepRecord
from latentwire.training.run_folder import PROGRESS
from latentwire.training.signals import StopRequest
from latentwire.training.status import write_status

log = logging.getLogger(__name__)
progress = logging.getLogger(PROGRESS)


class Reporter:
    """Hands every rank's rows to the stream; on rank 0 it also keeps the progress and the status.

    To be entered; leaving it drains the stream, on every way out.
    """

    def __init__(
        self, folder: Path, stream: RankStream, doctor: Doctor, *, stop: StopRequest
    ) -> None:
        self._stream = stream
        self._doctor = doctor
        self._stop = stop
        self._status = LiveStatus(folder) if doctor.rank == 0 else None

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # All ranks end together after too many skipped steps; otherwise some may be gone already.
        together = kind is None or isinstance(error, NonFiniteError)
        totals = self._stream.close(hurried=not together)
        if self._status is None or totals is None:
            return
        if kind is not None:
            # The rank that failed first tells why; nothing may be written over it.
            self._status.abandon()
            return
        self._status.close(stream=asdict(totals))
        if totals.dropped or not totals.is_complete:
            log.warning(
                "diagnostics: %d rows written, %d dropped%s",
                totals.written,
                totals.dropped,
                "" if totals.is_complete else "; some may not have come in time",
            )

    def record(self, step: StepRecord) -> None:
        """Takes a step's record. All ranks must call."""
        self._doctor.passed(step)
        if step.is_logged:
            self._record_step(step)
        if step.is_health_due:
            self._record_health(step)

    def _record_step(self, step: StepRecord) -> None:
        reduced = step.reduced()
        self._stream.write(step.rows(reduced))
        trouble = self._stream.report()
        if self._status is None:
            return
        step.progress = progress_of(reduced, step)
        progress.info(
            "stage %s step %d: %s",
            step.stage,
            step.step,
            ", ".join(f"{key} {value}" for key, value in step.progress.items()),
        )
        self._status.set(stage=step.stage, step=step.step, trouble=trouble)

    def _record_health(self, step: StepRecord) -> None:
        rows = self._doctor.examine(step)
        states = {row["decoder"]: row["state"] for row in rows}
        sick = [row for row in rows if row["state"] in ("collapsed", "exploding")]
        if self._status is not None:
            pace = self._stream.pace()
            self._stream.write([row | pace for row in rows], kind="health")
            self._status.set(health=states)
            for row in rows:
                say = log.warning if row in sick else progress.info
                say(
                    "stage %s step %d: the wire of '%s' is %s%s",
                    step.stage,
                    step.step,
                    row["decoder"],
                    row["state"],
                    "".join(f"; {reason}" for reason in row["reasons"]),
                )
        collapsed = [row for row in rows if row["state"] == "collapsed"]
        if collapsed and self._doctor.stops_on_collapse:
            first = collapsed[0]
            self._stop.ask(
                "stopped",
                f"diagnostics.stop_on_collapse: the wire of '{first['decoder']}' has collapsed: "
                + "; ".join(first["reasons"]),
            )

    def health_memory(self) -> dict[str, Any]:
        """What a resumed run needs to judge the wire as this one would."""
        return self._doctor.memory()

    def flush(self) -> None:
        """Before a checkpoint: a run that goes on from it has every row up to it."""
        if not self._stream.flush():
            log.debug("diagnostics: rows are still on their way at this checkpoint")


_STATUS_SECONDS = 0.5
"""Between two writes of a running run's status."""


class LiveStatus:
    """Keeps a running run's status up to date from a thread of its own: a slow or full disk holds
    nobody up."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Condition()
        self._wanted: dict[str, Any] | None = None
        self._is_closing = False
        self._is_failing = False
        self._thread = threading.Thread(target=self._run, name="status", daemon=True)
        self._thread.start()

    def set(self, **fields: Any) -> None:
        """What the status should say; only the newest is written. Never waits."""
        with self._lock:
            self._wanted = (self._wanted or {}) | fields
            self._lock.notify_all()

    def abandon(self) -> None:
        """Writes no more."""
        with self._lock:
            self._wanted = None
            self._is_closing = True
            self._lock.notify_all()
        self._thread.join(5.0)

    def close(self, **fields: Any) -> None:
        """Writes the last one, and no more."""
        with self._lock:
            self._wanted = (self._wanted or {}) | fields
            self._is_closing = True
            self._lock.notify_all()
        self._thread.join(5.0)

    def _run(self) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._wanted is not None or self._is_closing)
                wanted, self._wanted = self._wanted, None
                is_closing = self._is_closing
            if wanted is not None:
                try:
                    write_status(self._folder, state="running", **wanted)
                    self._is_failing = False
                except OSError as error:
                    if not self._is_failing:
                        log.warning("status: cannot be written: %s; training goes on", error)
                    self._is_failing = True
            if is_closing:
                return
            with self._lock:
                self._lock.wait_for(lambda: self._is_closing, _STATUS_SECONDS)


def progress_of(reduced: Mapping[str, Mapping[str, float]], step: StepRecord) -> dict[str, str]:
    """The progress bar's values."""
    names = sorted(reduced)
    values = {f"tf/{name}": _number(reduced[name]["tf"], 3) for name in names}
    values |= {f"acc/{name}": _number(reduced[name]["first_acc"], 2) for name in names}
    return values | {"ex/s": f"{step.examples_per_second:.0f}"}


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "not finite"
