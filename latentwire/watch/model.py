"""How a run stands, from its rows and its status: plain data, whoever shows it."""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from statistics import median
from typing import Any

from latentwire.config import OBJECTIVES
from latentwire.diagnostics.reading import DropCount, Row, kind_of
from latentwire.watch.text import duration

STAGES = ("A", "B")
ENDED = ("finished", "preempted", "stopped", "failed")
"""States of a run that does not go on by itself."""
KEPT = 120
"""Log steps of which curves are kept."""
_RECENT = 20
_BEHIND = 5
"""Logged steps that a rank's rows may be late by."""
"""Log steps over which speed is measured."""

_WORLD = ("grad_norm", "grad_norm_clipped")
"""Keys whose values are over all units and groups."""

Place = tuple[str, int]
"""(stage, step)."""


@dataclass
class StageProgress:
    """How far one stage is."""

    name: str
    step: int = 0
    num_steps: int | None = None
    """None where it is not known."""
    is_over: bool = False
    is_cut: bool = False
    """The run has ended before the stage has."""
    seconds_per_step: float | None = None
    """Of the wall clock between log steps, validations and saves included."""

    @property
    def share(self) -> float | None:
        """Of the stage that is done, from 0 to 1."""
        if self.is_over:
            return 1.0
        return min(1.0, self.step / self.num_steps) if self.num_steps else None

    @property
    def seconds_left(self) -> float | None:
        """Until the stage ends; None where that cannot be told."""
        if self.is_over:
            return 0.0
        if self.is_cut or self.num_steps is None or self.seconds_per_step is None:
            return None
        return max(0, self.num_steps - self.step) * self.seconds_per_step

    @property
    def left(self) -> str:
        """The same in words."""
        if self.is_over:
            return "over"
        return "not finished" if self.is_cut else f"{duration(self.seconds_left)} left"


class Curve:
    """The last values of one key, the median over the ranks that wrote it."""

    def __init__(self) -> None:
        self._values: dict[Place, list[float]] = {}

    def add(self, place: Place, value: float) -> None:
        """Takes one rank's value; NaN where it was not finite."""
        self._values.setdefault(place, []).append(value)
        if len(self._values) > KEPT:
            del self._values[next(iter(self._values))]

    @property
    def values(self) -> list[float]:
        """In the order of steps; NaN where any rank's was not finite."""
        return [
            math.nan if any(map(math.isnan, found)) else median(found)
            for found in self._values.values()
        ]

    @property
    def last(self) -> float:
        return self.values[-1]


@dataclass
class RunModel:
    """What the rows of one run add up to.

    ``add`` takes rows in any order that a stream has them in, also of keys and kinds that it does
    not know, and with keys missing.
    """

    decoders: dict[str, dict[str, Curve]] = field(default_factory=dict)
    """By decoder and key: losses, ``first_acc`` and gradient norms."""
    shared: dict[str, Curve] = field(default_factory=dict)
    """Norms over all units and groups."""
    trained: set[str] = field(default_factory=set)
    """Objectives that have had a weight; the others were only measured."""
    health: dict[str, Row] = field(default_factory=dict)
    """The newest health row of each decoder."""
    skipped: set[Place] = field(default_factory=set)
    nonfinite: list[str] = field(default_factory=list)
    """The newest places where something was not finite, and what."""
    num_late: int = 0
    dropped: DropCount = field(default_factory=DropCount)
    last_place: Place | None = None
    last_time: datetime | None = None
    _seconds: dict[int, deque[float]] = field(default_factory=dict)
    _seen: dict[int, Place] = field(default_factory=dict)
    """Of each rank, its last row's."""
    _times: dict[str, dict[int, datetime]] = field(default_factory=dict)
    _steps: dict[str, int] = field(default_factory=dict)

    def add(self, rows: Iterable[Row]) -> None:
        for row in rows:
            stage, step = row.get("stage"), row.get("step")
            if not isinstance(stage, str) or not isinstance(step, int):
                continue
            if kind_of(row) == "health":
                self._add_health(row)
            elif kind_of(row) == "step":
                self._add_step(row, (stage, step))

    def _add_health(self, row: Row) -> None:
        self.health[str(row.get("decoder"))] = row

    def _add_step(self, row: Row, place: Place) -> None:
        stage, step = place
        rank, decoder = row.get("rank"), str(row.get("decoder"))
        bad = [str(name) for name in row.get("nonfinite") or ()]
        self.trained |= {name for name in OBJECTIVES if f"weight_{name}" in row}
        curves = self.decoders.setdefault(decoder, {})
        for key in [*row, *bad]:
            value = math.nan if key in bad else row[key]
            if not isinstance(value, int | float) or isinstance(value, bool):
                continue
            if key in _WORLD:
                self.shared.setdefault(key, Curve()).add(place, value)
            elif key in OBJECTIVES or key == "first_acc" or key.startswith("grad_"):
                curves.setdefault(key, Curve()).add(place, value)
        if bad:
            self.nonfinite.append(
                f"stage {stage} step {step}, rank {rank}, {decoder}: {', '.join(bad)}"
            )
            del self.nonfinite[:-5]
        if row.get("skipped") is True:
            self.skipped.add(place)
        self.num_late += row.get("late") is True
        self.dropped.add(row)
        if _is_number(row.get("sec_per_step")) and isinstance(rank, int):
            self._seconds.setdefault(rank, deque(maxlen=_RECENT)).append(row["sec_per_step"])
            self._seen[rank] = place
        self._steps[stage] = max(step, self._steps.get(stage, 0))
        if self.last_place is None or _order(place) > _order(self.last_place):
            self.last_place = place
        if (time := _time(row.get("time"))) is not None:
            self._times.setdefault(stage, {}).setdefault(step, time)
            self.last_time = max(time, self.last_time or time)
            times = self._times[stage]
            while len(times) > _RECENT + 1:
                del times[next(iter(times))]

    @property
    def num_ranks(self) -> int:
        return len(self.step_seconds())

    def step_seconds(self) -> dict[int, float]:
        """Each rank's median time of its last logged steps, the slowest rank first.

        Of ranks whose rows still come: a run may go on with fewer.
        """
        found = {
            rank: median(seconds)
            for rank, seconds in self._seconds.items()
            if _order(self._seen[rank]) >= self._oldest()
        }
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))

    def _oldest(self) -> tuple[int, str, int]:
        """Where a rank must have been that is still there: a few logged steps ago."""
        assert self.last_place is not None
        stage, _ = self.last_place
        steps = list(self._times.get(stage, {}))[-_BEHIND:]
        # Early in a stage the others may not have come to it yet.
        return _order((stage, steps[0])) if len(steps) == _BEHIND else (-1, "", 0)

    def stages(self, *, num_steps: dict[str, int], state: str) -> list[StageProgress]:
        """Progress of every stage that has steps.

        Args:
            num_steps: of each stage, as far as it is known.
            state: of the run, as its status tells.
        """
        found = []
        for index, name in enumerate(STAGES):
            step, total = self._steps.get(name, 0), num_steps.get(name)
            if total == 0 or (total is None and not step):
                continue
            # A stage that validation ended early is over when a later one has begun.
            later = any(self._steps.get(other) for other in STAGES[index + 1 :])
            is_over = later or state == "finished" or (total is not None and step >= total)
            found.append(
                StageProgress(
                    name=name,
                    step=step,
                    num_steps=total,
                    is_over=is_over,
                    is_cut=not is_over and state in ENDED,
                    seconds_per_step=self._pace(name),
                )
            )
        return found

    def _pace(self, stage: str) -> float | None:
        """Median over the last log steps: a pause, as of a run that was resumed, does not count."""
        items = sorted(self._times.get(stage, {}).items())
        paces = [
            (after - before).total_seconds() / (later - earlier)
            for (earlier, before), (later, after) in zip(items, items[1:], strict=False)
        ]
        return median(paces) if paces else None


def _order(place: Place) -> tuple[int, str, int]:
    stage, step = place
    return (STAGES.index(stage) if stage in STAGES else len(STAGES), stage, step)


def _time(value: Any) -> datetime | None:
    try:
        found = datetime.fromisoformat(value.replace("Z", "+00:00"))
    except (AttributeError, TypeError, ValueError):
        return None
    # One without a zone is no moment that could be compared with others.
    return None if found.tzinfo is None else found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
