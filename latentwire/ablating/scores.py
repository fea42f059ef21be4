"""Numbers of an ablation's rows over their seeds, and differences between rows."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from latentwire.ablating.file import Ablation, Row
from latentwire.ablating.results import Result
from latentwire.evaluation.arms import at_ratio
from latentwire.evaluation.metrics import bootstrap_ci95


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A mean with its 95 % interval, over documents and seeds."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ({self.low:+.3f} to {self.high:+.3f})"


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What is known of one row."""

    row: Row
    results: tuple[Result, ...]
    """By seed."""

    @property
    def wires(self) -> list[str]:
        """Arms that read their own wire; none as long as nothing is known."""
        return self.results[0].wires if self.results else []

    @property
    def decoders(self) -> list[str]:
        return list(self.results[0].em) if self.results else []

    def em(self, arm: str) -> float | None:
        """Over decoders and seeds; None where the row has no such arm."""
        return _mean(arms[arm] for result in self.results for arms in _having(result, arm))

    def em_of(self, decoder: str, name: str, ratio: int | None = None) -> float:
        """Of one decoder, over seeds.

        Args:
            ratio: of the arm's variant for it, where there is one.
        """
        known = self.results[0].em[decoder]
        arm = name if ratio is None or at_ratio(name, ratio) not in known else at_ratio(name, ratio)
        return statistics.fmean(result.em[decoder][arm] for result in self.results)

    def mean_em(self, arm: str) -> float:
        """Over decoders and seeds, and over all ratios of ``arm``."""
        return statistics.fmean(result.mean_em(arm) for result in self.results)

    def compression(self, arm: str) -> float | None:
        """Over decoders and seeds, in tokens of text for a position read."""
        return _mean(
            arms[arm]
            for result in self.results
            for arms in result.compression.values()
            if arm in arms
        )

    def compression_of(self, decoder: str, arm: str) -> float:
        """Of one decoder, over seeds."""
        return statistics.fmean(result.compression[decoder][arm] for result in self.results)

    def normalised(self, decoder: str, arm: str) -> list[float]:
        """Of each seed; none where the row has no such arm, or text gives the decoder nothing."""
        found = [
            result.normalised_em(decoder, arm)
            for result in self.results
            if arm in result.em.get(decoder, {})
        ]
        return [value for value in found if value is not None]

    def interval(self) -> tuple[float, float]:
        """The 95 % interval of exact match over documents, decoders and ratios."""
        rights = [_by_document(result, None) for result in self.results]
        return _over_documents(self.results, rights)[1:]

    def against(self, base: "Scores") -> Difference | None:
        """Paired by document and seed over the decoders and ratios that both rows have; None
        where they have no seed in common."""
        others = {result.seed: result for result in base.results}
        paired: list[Result] = []
        differences: list[list[float]] = []
        for result in self.results:
            other = others.get(result.seed)
            if other is None or other.asked != result.asked:
                continue
            common = _cells(result) & _cells(other)
            if common:
                pairs = zip(_by_document(result, common), _by_document(other, common), strict=True)
                paired.append(result)
                differences.append([own - theirs for own, theirs in pairs])
        if not paired:
            return None
        mean, low, high = _over_documents(paired, differences)
        return Difference(mean=mean, low=low, high=high)


def scores_of(ablation: Ablation, results: Mapping[str, Result]) -> list[Scores]:
    """Every row with its results, in the file's order."""
    return [
        Scores(
            row=row,
            results=tuple(
                sorted(
                    (result for result in results.values() if result.row == row.name),
                    key=lambda result: result.seed,
                )
            ),
        )
        for row in ablation.rows
    ]


def _mean(values: Iterator[float]) -> float | None:
    found = list(values)
    return statistics.fmean(found) if found else None


def _having(result: Result, arm: str) -> list[dict[str, float]]:
    return [arms for arms in result.em.values() if arm in arms]


def _cells(result: Result) -> set[tuple[str, str]]:
    return {(decoder, arm) for decoder, arms in result.right.items() for arm in arms}


def _by_document(result: Result, cells: set[tuple[str, str]] | None) -> list[float]:
    """Questions of each document answered right, the mean of the (decoder, arm) ``cells``; None
    is all of them."""
    chosen = sorted(_cells(result) if cells is None else cells)
    columns = [result.right[decoder][arm] for decoder, arm in chosen]
    return [statistics.fmean(counts) for counts in zip(*columns, strict=True)]


def _over_documents(
    results: Sequence[Result], sums: Sequence[Sequence[float]]
) -> tuple[float, float, float]:
    """Mean a question, and its 95 % interval over the documents of all results.

    Args:
        sums: over the questions of each document of each result.
    """
    values: list[float] = []
    documents: list[int] = []
    for result, of_result in zip(results, sums, strict=True):
        for asked, total in zip(result.asked, of_result, strict=True):
            document = documents[-1] + 1 if documents else 0
            # A document weighs as much as its questions, as it does in the mean.
            values += [total / asked] * asked
            documents += [document] * asked
    low, high = bootstrap_ci95(values, documents=documents)
    return statistics.fmean(values), low, high
