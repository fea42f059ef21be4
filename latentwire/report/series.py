"""Curves out of rows: one per key, decoder and rank, gaps kept, thinned without losing extremes."""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from latentwire.diagnostics.reading import Row

POINTS = 400
"""Most points that a curve is drawn with; what lies between is within them."""
_AROUND = 5
"""Rows on either side that tell how far apart rows are."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One curve. ``ys`` holds None where there is a gap, which is not drawn over."""

    name: str
    xs: list[int]
    ys: list[float | None]
    bad: list[int] = field(default_factory=list)
    """Where the value was not finite; there is a gap there too."""
    colour: int = 0
    dash: int = 0
    run: int = 0

    @property
    def finite(self) -> list[float]:
        return [y for y in self.ys if y is not None]

    def thinned(self, limit: int = POINTS) -> "Series":
        """With at most about ``limit`` points: the least and the greatest of each share, both
        ends, and every gap."""
        if len(self.xs) <= limit:
            return self
        kept = {0, len(self.xs) - 1}
        num_shares = max(1, limit // 2)
        for share in range(num_shares):
            start = share * len(self.xs) // num_shares
            stop = (share + 1) * len(self.xs) // num_shares
            there = [i for i in range(start, stop) if self.ys[i] is not None]
            if there:
                kept.add(min(there, key=lambda i: self._at(i)))
                kept.add(max(there, key=lambda i: self._at(i)))
            # One gap a share is enough to break the line; all that were bad stay in ``bad``.
            gap = next((i for i in range(start, stop) if self.ys[i] is None), None)
            if gap is not None:
                kept.add(gap)
        order = sorted(kept)
        return replace(self, xs=[self.xs[i] for i in order], ys=[self.ys[i] for i in order])

    def _at(self, index: int) -> float:
        value = self.ys[index]
        assert value is not None
        return value


class Axis:
    """Steps of all stages one behind the other: where a stage begins, and where a row lies."""

    def __init__(self, rows: Iterable[Row]) -> None:
        last: dict[str, int] = {}
        for row in rows:
            stage, step = row.get("stage"), row.get("step")
            if isinstance(stage, str) and isinstance(step, int):
                last[stage] = max(step, last.get(stage, 0))
        self.starts: dict[str, int] = {}
        """Steps before each stage, in the stages' order."""
        before = 0
        for stage in sorted(last):
            self.starts[stage] = before
            before += last[stage]
        self.end = before

    def at(self, row: Row) -> int | None:
        start, step = self.starts.get(str(row.get("stage"))), row.get("step")
        return start + step if start is not None and isinstance(step, int) else None


class Stream:
    """The rows of one rank and decoder in the order of steps, as columns."""

    def __init__(self) -> None:
        self._rows: dict[int, Row] = {}

    def add(self, x: int, row: Row) -> None:
        self._rows[x] = row

    def close(self) -> None:
        """Puts late rows where they belong; to be called once, after the last row."""
        self._rows = dict(sorted(self._rows.items()))
        self.holes = holes(list(self._rows))

    def measured(self) -> list[str]:
        found: dict[str, None] = {}
        for row in self._rows.values():
            for key, value in row.items():
                if is_number(value):
                    found[key] = None
            for key in row.get("nonfinite") or ():
                found[str(key)] = None
        return list(found)

    def points(self, key: str) -> dict[int, float | None]:
        """Values where the key was measured; None where it was not finite."""
        found: dict[int, float | None] = {}
        for x, row in self._rows.items():
            if key in (row.get("nonfinite") or ()):
                found[x] = None
            elif is_number(value := row.get(key)):
                found[x] = float(value)  # type: ignore[arg-type]
        return found


def holes(xs: Sequence[int]) -> list[tuple[int, int]]:
    """Neighbours further apart than the rows on both sides of them are: rows are missing there.

    A change of the interval is no hole: then one side is as far apart.
    """
    gaps = [after - before for before, after in zip(xs, xs[1:], strict=False)]
    found = []
    for i, gap in enumerate(gaps):
        before, after = gaps[max(0, i - _AROUND) : i], gaps[i + 1 : i + 1 + _AROUND]
        if before and after and gap > 1.5 * max(median(before), median(after)):
            found.append((xs[i], xs[i + 1]))
    return found


def line(
    name: str,
    points: Mapping[int, float | None],
    missing: Sequence[tuple[int, int]] = (),
    **look: Any,
) -> Series:
    """A curve through ``points``, broken where one is None and at each of the holes."""
    with_gaps = dict(points)
    order = sorted(points)
    for start, stop in missing:
        after = bisect_left(order, stop)
        # Where the key has a value on both sides, the line between them would bridge the hole.
        if 0 < after < len(order) and order[after - 1] <= start:
            with_gaps.setdefault(start + 1, None)
    xs = sorted(with_gaps)
    return Series(
        name=name,
        xs=xs,
        ys=[with_gaps[x] for x in xs],
        bad=[x for x in order if points[x] is None],
        **look,
    )


class RunSeries:
    """All curves of one run.

    Args:
        rows: its diagnostics, of kinds ``step`` and ``health``.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.axis = Axis(rows)
        self.streams: dict[tuple[str, int], Stream] = {}
        self.health: dict[str, Stream] = {}
        for row in rows:
            x, kind = self.axis.at(row), row.get("kind") or "step"
            decoder, rank = str(row.get("decoder")), row.get("rank")
            if x is None:
                continue
            if kind == "health":
                self.health.setdefault(decoder, Stream()).add(x, row)
            elif kind == "step" and isinstance(rank, int):
                self.streams.setdefault((decoder, rank), Stream()).add(x, row)
        for stream in (*self.streams.values(), *self.health.values()):
            stream.close()

    @property
    def decoders(self) -> list[str]:
        return list(dict.fromkeys(decoder for decoder, _ in self.streams))

    @property
    def ranks(self) -> list[int]:
        return sorted({rank for _, rank in self.streams})

    def measured(self) -> list[str]:
        """Of rows of steps, in the order in which they appeared."""
        found: dict[str, None] = {}
        for stream in self.streams.values():
            found.update(dict.fromkeys(stream.measured()))
        return [key for key in found if key not in ("schema", "step", "rank")]

    def over_ranks(
        self,
        name: str,
        key: str,
        *,
        decoder: str | None = None,
        reduce: Callable[[list[float]], float] = median,
        **look: Any,
    ) -> Series | None:
        """One value of each step over the ranks of a decoder, or of all; None without any.

        Not finite where it was not on any of them.
        """
        streams = [s for (own, _), s in self.streams.items() if decoder in (None, own)]
        found: dict[int, list[float | None]] = {}
        for stream in streams:
            for x, value in stream.points(key).items():
                found.setdefault(x, []).append(value)
        points = {
            x: None if None in values else reduce([v for v in values if v is not None])
            for x, values in found.items()
        }
        if not points:
            return None
        # Rows are missing where they are of every rank.
        missing = [
            hole for hole in streams[0].holes if all(hole in other.holes for other in streams[1:])
        ]
        return line(name, points, missing, **look)

    def of_rank(self, name: str, key: str, *, decoder: str, rank: int, **look: Any) -> Series:
        stream = self.streams[decoder, rank]
        return line(name, stream.points(key), stream.holes, **look)


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
