"""The curves of a report: over which ranks, and how runs and decoders are told apart."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median

from latentwire.report.run_data import RunData
from latentwire.report.series import RunSeries, Series

MAX_RANKS = 8
"""Up to so many ranks of a decoder each have a curve; of more, the spread and the most unlike."""
SPREAD: tuple[tuple[str, Callable[[list[float]], float]], ...] = (
    ("least", min),
    ("median", median),
    ("greatest", max),
)
_UNLIKE = 3


class CurveMaker:
    """Makes the curves of one run, or of several side by side."""

    def __init__(self, runs: Sequence[RunData]) -> None:
        self.runs = runs
        self.series = [RunSeries(run.rows) for run in runs]
        self.decoders = list(dict.fromkeys(d for one in self.series for d in one.decoders))
        self.keys = list(dict.fromkeys(key for one in self.series for key in one.measured()))

    def named(self, run: int, name: str) -> str:
        """The name of a curve, with the run's where there are several."""
        return name if len(self.runs) == 1 else f"{self.runs[run].name}: {name}"

    def look(self, run: int, decoder: int) -> tuple[int, int]:
        """Colour and dash: colours are decoders, or runs where there are several."""
        return (decoder, 0) if len(self.runs) == 1 else (run, decoder)

    def by_decoder(
        self, key: str, *, reduce: Callable[[list[float]], float] = median
    ) -> list[Series]:
        """A curve per run and decoder."""
        found = []
        for run, one in enumerate(self.series):
            for decoder in one.decoders:
                colour, dash = self.look(run, self.decoders.index(decoder))
                curve = one.over_ranks(
                    self.named(run, decoder),
                    key,
                    decoder=decoder,
                    reduce=reduce,
                    colour=colour,
                    dash=dash,
                    run=run,
                )
                found += [curve] if curve else []
        return found

    def by_key(
        self, keys: Sequence[str], *, decoder: str | None, names: Sequence[str]
    ) -> list[Series]:
        """A curve per run and key, the median over ranks: colours are keys, dashes runs."""
        found = []
        for run, one in enumerate(self.series):
            for number, (key, name) in enumerate(zip(keys, names, strict=True)):
                named = self.named(run, name)
                # Colours come again after the eighth; another dash tells them apart.
                dash = run + number // 8
                curve = one.over_ranks(
                    named, key, decoder=decoder, colour=number, dash=dash, run=run
                )
                found += [curve] if curve else []
        return found

    def by_rank(self, key: str) -> list[Series]:
        """A curve per run, decoder and rank, or of many ranks the spread and the most unlike."""
        found: list[Series] = []
        for run, one in enumerate(self.series):
            for decoder in one.decoders:
                found += self._ranks_of(run, key, decoder, start=len(found))
        return found

    def _ranks_of(self, run: int, key: str, decoder: str, *, start: int) -> list[Series]:
        one = self.series[run]
        curves = {
            rank: one.of_rank(
                self.named(run, f"{decoder}, rank {rank}"), key, decoder=decoder, rank=rank
            )
            for own, rank in one.streams
            if own == decoder
        }
        curves = {rank: curve for rank, curve in sorted(curves.items()) if curve.xs}
        chosen = list(curves.values())
        if len(curves) > MAX_RANKS:
            spread = [
                one.over_ranks(
                    self.named(run, f"{decoder}, {name} of {len(curves)} ranks"),
                    key,
                    decoder=decoder,
                    reduce=reduce,
                )
                for name, reduce in SPREAD
            ]
            unlike = sorted(curves.values(), key=lambda c: -_distance(c, spread[1]))
            chosen = [curve for curve in spread if curve] + unlike[:_UNLIKE]
        return [
            replace(curve, colour=start + number, dash=(start + number) // 8, run=run)
            for number, curve in enumerate(chosen)
        ]

    def ranks_note(self) -> str:
        """What is said below a chart of ``by_rank``; empty where every rank has its curve."""
        hosts = [
            sum(own == decoder for own, _ in one.streams)
            for one in self.series
            for decoder in one.decoders
        ]
        if max(hosts, default=0) <= MAX_RANKS:
            return ""
        return (
            f"Of a decoder on more than {MAX_RANKS} ranks: the spread, and the {_UNLIKE} ranks "
            "most unlike the median."
        )


def _distance(curve: Series, middle: Series | None) -> float:
    """How far a rank is from the median, over the steps that both have."""
    if middle is None:
        return 0.0
    known = dict(zip(middle.xs, middle.ys, strict=True))
    pairs = [(y, known.get(x)) for x, y in zip(curve.xs, curve.ys, strict=True)]
    return sum(abs(y - other) for y, other in pairs if y is not None and other is not None)
