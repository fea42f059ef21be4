"""The order of a diagnostics file: steps one after the other, ranks and decoders inside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from latentwire.diagnostics.frames import Frame, Place


@dataclass
class _Open:
    since: float
    frames: dict[tuple[int, str], Frame] = field(default_factory=dict)


class Ordering:
    """Holds rows back until their step is complete, or closed without those that are missing.

    A step is not held beyond ``close_after`` seconds, nor for a rank that has sent something later
    already, that is gone, or that an earlier step was held for in vain and that is silent since.

    Args:
        expected: by kind of row, whose rows make a step complete: (rank, decoder).
        close_after: seconds from a step's first row to its closing.
    """

    def __init__(
        self,
        expected: Mapping[int, Sequence[tuple[int, str]]],
        *,
        close_after: float,
    ) -> None:
        self._expected = {kind: sorted(pairs) for kind, pairs in expected.items()}
        self._close_after = close_after
        self._open: dict[Place, _Open] = {}
        self._closed: Place = (-1, -1, -1)
        self._latest: dict[int, Place] = {}
        self._late: list[Frame] = []
        self._silent: set[int] = set()
        self.gone: set[int] = set()
        """Ranks that send nothing any more."""

    def add(self, frame: Frame, now: float) -> None:
        """Takes a row."""
        place = frame.place
        self._silent.discard(frame.rank)
        self._latest[frame.rank] = max(place, self._latest.get(frame.rank, place))
        if place <= self._closed:
            self._late.append(frame)
            return
        step = self._open.setdefault(place, _Open(since=now))
        step.frames[frame.rank, frame.decoder] = frame

    def ready(self, now: float, *, closing: bool = False) -> list[tuple[Frame, bool]]:
        """What may be written, in order, each with whether it is late.

        Args:
            closing: nothing is waited for any more.
        """
        found = [(frame, True) for frame in self._late]
        self._late = []
        for place in sorted(self._open):
            step = self._open[place]
            missing = self._missing(place, step)
            if missing and not closing:
                if now - step.since < self._close_after:
                    break
                self._silent |= missing
            found += [(step.frames[key], False) for key in sorted(step.frames)]
            self._closed = place
            del self._open[place]
        return found

    def next_closing(self) -> float | None:
        """When a step closes by itself next; None where none is open."""
        return min((step.since + self._close_after for step in self._open.values()), default=None)

    def _missing(self, place: Place, step: _Open) -> set[int]:
        """Ranks whose rows may still come."""
        return {
            rank
            for rank, decoder in self._expected[place[2]]
            if (rank, decoder) not in step.frames
            and rank not in self.gone
            and rank not in self._silent
            and self._latest.get(rank, place) <= place
        }
