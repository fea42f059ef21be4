"""The plots of an ablation."""

import statistics
from collections.abc import Sequence

from latentwire.ablating.scores import Scores
from latentwire.evaluation.arms import ratio_of
from latentwire.svg import Mark, curves, forest

_BESIDE = {
    "text": "the text",
    "truncated_text": "text as short as the wire",
    "wrong_wire": "wrong wire",
    "no_context": "no context",
}
"""Arms that stand beside the wire, as the plot calls them."""


def differences(every: Sequence[Scores], default: Scores) -> str:
    """Every row's difference from the default, the best first."""
    found = []
    for scores in every:
        difference = None if scores is default else scores.against(default)
        if difference is not None:
            name = scores.row.name
            found.append(
                Mark(
                    x=difference.mean,
                    y=0,
                    low=difference.low,
                    high=difference.high,
                    label=name,
                    title=f"{name} ({', '.join(scores.row.change)}): {difference}",
                )
            )
    found.sort(key=lambda mark: -mark.x)
    return forest(
        title="exact match against the default, mean of ratios and decoders",
        x_name="difference, with its 95 % interval over documents",
        marks=found,
    )


def learning_curves(part: str, rows: Sequence[Scores]) -> str:
    """First-token accuracy in training, of each row's first seed."""
    return curves(
        title=f"{part}: first-token accuracy in training",
        x_name="step",
        y_name="first-token accuracy",
        series={
            scores.row.name: [(step, right) for step, _, right in scores.results[0].curve]
            for scores in rows
        },
    )


def against_compression(scores: Scores) -> str:
    """Exact match of one wire at all its compressions, of each decoder, and of what stands beside
    it, the mean of the decoders."""
    series = {
        f"wire, {decoder}": [
            (scores.compression_of(decoder, arm), scores.em_of(decoder, arm))
            for arm in scores.wires
        ]
        for decoder in scores.decoders
    }
    for name, shown in _BESIDE.items():
        series[shown] = [
            (
                statistics.fmean(scores.compression_of(d, arm) for d in scores.decoders),
                statistics.fmean(scores.em_of(d, name, ratio_of(arm)) for d in scores.decoders),
            )
            for arm in scores.wires
        ]
    return curves(
        title="exact match against compression",
        x_name="tokens of text for each position that is read",
        y_name="exact match",
        series=series,
        log_x=True,
    )
