"""Which charts a report has, and what is drawn in each."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from latentwire.config import OBJECTIVES
from latentwire.report.curves import SPREAD, CurveMaker
from latentwire.report.run_data import RunData
from latentwire.report.series import Series, is_number, line

_GIB = 2**30

GAUGES = {
    "right_minus_wrong": "Loss with the right wire minus loss with a wrong one",
    "nll_right": "Loss with the right wire",
    "nll_wrong": "Loss with a wrong wire",
    "wire_rank": "Effective rank of the wire",
    "wire_cosine": "Mean cosine between latents",
    "wire_rms_ratio": "Size of the soft prompt over that of input embeddings",
    "prediction_diversity": "Diversity of predictions",
    "kl_teacher": "KL to the text teacher",
    "teacher_nll": "NLL of the text teacher on the targets",
}
_NO_GAUGE = {"step", "schema", "rank", "dropped", "num_examples"}


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One chart; ``id`` is unique in a page."""

    id: str
    title: str
    y_name: str
    series: list[Series]
    is_log: bool = False
    note: str = ""
    kind: Literal["steps", "points"] = "steps"
    """``points``: marks with intervals, in place of curves over steps."""
    points: list[dict[str, Any]] = field(default_factory=list)
    """Of ``points``: per series ``name``, ``colour``, ``x``, ``y``, ``low``, ``high``, ``label``
    and ``reference``."""


class ChartMaker:
    """Makes the charts of one run, or of several side by side.

    Every method leaves out charts that would have no curve.
    """

    def __init__(self, runs: Sequence[RunData]) -> None:
        self.runs = runs
        self.curves = CurveMaker(runs)

    def losses(self) -> list[Chart]:
        """Each objective, trained ones first, and the accuracy of the answer's first token."""
        keys = self.curves.keys
        weighted = {key.removeprefix("weight_") for key in keys if key.startswith("weight_")}
        names = sorted(OBJECTIVES, key=lambda name: name not in weighted)
        charts = [
            Chart(
                id=f"loss-{name}",
                title=f"{name}" + ("" if not weighted or name in weighted else " (only measured)"),
                y_name=name,
                series=self.curves.by_decoder(name),
            )
            for name in names
        ]
        charts.append(
            Chart(
                id="first_acc",
                title="First-token accuracy",
                y_name="share right",
                series=self.curves.by_decoder("first_acc"),
            )
        )
        charts.append(
            Chart(
                id="tf_local",
                title="tf of each rank's own part",
                y_name="tf_local",
                series=self.curves.by_rank("tf_local"),
                note=self.curves.ranks_note(),
            )
        )
        return _drawn(charts)

    def norms(self) -> list[Chart]:
        """Global norms by unit; of each decoder by objective, for each place; then by rank."""
        totals = [key for key in self.curves.keys if key.startswith("grad_norm")]
        world = [key for key in totals if "/" not in key]
        units = [key for key in totals if "/" in key]
        charts = [
            Chart(
                id="grad_norm",
                title="Norm of the whole gradient",
                y_name="norm",
                is_log=True,
                series=self.curves.by_key(world, decoder=None, names=world),
                note="Over all units, ranks and groups. grad_norm is the one before clipping.",
            )
        ]
        charts += [
            Chart(
                id=f"units-{decoder}",
                title=f"{decoder}: norm of the whole gradient, by unit",
                y_name="norm",
                is_log=True,
                series=self.curves.by_key(
                    units, decoder=decoder, names=[k.removeprefix("grad_norm/") for k in units]
                ),
                note="What the decoders share has one gradient, which is that of all of them.",
            )
            for decoder in self.curves.decoders
        ]
        objectives = [k for k in self.curves.keys if k.startswith("grad_") and k not in totals]
        places = list(dict.fromkeys(key.partition("/")[2] for key in objectives))
        for place in places:
            keys = [key for key in objectives if key.partition("/")[2] == place]
            names = [key.partition("/")[0].removeprefix("grad_") for key in keys]
            for decoder in self.curves.decoders:
                where = place or "what the decoder reads"
                charts.append(
                    Chart(
                        id=f"grad-{decoder}-{place or 'prompt'}",
                        title=f"{decoder}: objectives' gradients at {where}",
                        y_name="norm",
                        is_log=True,
                        series=self.curves.by_key(keys, decoder=decoder, names=names),
                        note="Of unweighted objectives; "
                        + ("over the group." if place else "the median over the group's ranks."),
                    )
                )
        weights = {key.replace("grad_", "weight_", 1): key for key in objectives}
        weighted = [key for weight, key in weights.items() if weight in self.curves.keys]
        for key in weighted or [k for k in objectives if "/" not in k]:
            charts.append(
                Chart(
                    id=f"ranks-{key}",
                    title=f"{key}, by rank",
                    y_name="norm",
                    is_log=True,
                    series=self.curves.by_rank(key),
                    note=self.curves.ranks_note(),
                )
            )
        return _drawn(charts)

    def health(self) -> list[Chart]:
        """Each gauge over the steps."""
        keys: dict[str, None] = dict.fromkeys(GAUGES)
        for one in self.curves.series:
            for stream in one.health.values():
                keys.update(dict.fromkeys(k for k in stream.measured() if k not in _NO_GAUGE))
        charts = []
        for key in keys:
            found = []
            for run, one in enumerate(self.curves.series):
                for number, (decoder, stream) in enumerate(one.health.items()):
                    points = stream.points(key)
                    if points:
                        colour, dash = self.curves.look(run, number)
                        look = {"colour": colour, "dash": dash, "run": run}
                        curve = line(self.curves.named(run, decoder), points, stream.holes, **look)
                        found.append(curve)
            title = GAUGES.get(key, key)
            charts.append(Chart(id=f"health-{key}", title=title, y_name=key, series=found))
        return _drawn(charts)

    def speed(self) -> list[Chart]:
        """Seconds a step over the ranks, what they go into, and memory."""
        found = []
        for run, one in enumerate(self.curves.series):
            for number, (name, reduce) in enumerate(SPREAD):
                curve = one.over_ranks(
                    self.curves.named(run, f"{name} of the ranks"),
                    "sec_per_step",
                    reduce=reduce,
                    colour=number,
                    dash=run,
                    run=run,
                )
                found += [curve] if curve else []
        parts = [k for k in self.curves.keys if k.endswith("_seconds")]
        charts = [
            Chart(id="sec_per_step", title="Seconds a step", y_name="s", series=found),
            Chart(
                id="seconds",
                title="Where time goes",
                y_name="s",
                series=self.curves.by_key(parts, decoder=None, names=parts),
                note="The median over the ranks.",
            ),
            Chart(
                id="peak_memory",
                title="Peak memory",
                y_name="GiB",
                series=self.curves.by_decoder(
                    "peak_memory_bytes", reduce=lambda values: max(values) / _GIB
                ),
                note="Of the rank that took most.",
            ),
        ]
        rates = [k for k in self.curves.keys if k.startswith("lr_")]
        weights = [k for k in self.curves.keys if k.startswith("weight_")]
        charts.append(
            Chart(
                id="lr",
                title="Learning rates",
                y_name="rate",
                series=self.curves.by_key(rates, decoder=None, names=rates),
            )
        )
        charts.append(
            Chart(
                id="weights",
                title="Objectives' weights",
                y_name="weight",
                is_log=True,
                series=self.curves.by_key(
                    weights, decoder=None, names=[k.removeprefix("weight_") for k in weights]
                ),
            )
        )
        return _drawn(charts)

    def validations(self) -> list[Chart]:
        """Scores on validation examples over the steps."""
        charts = []
        names = {
            "em": "exact match",
            "f1": "F1",
            "nll_per_token": "NLL a token",
            "first_acc": "first-token accuracy",
        }
        for key, name in names.items():
            found = []
            for run, (data, one) in enumerate(zip(self.runs, self.curves.series, strict=True)):
                points: dict[str, dict[int, float | None]] = {}
                for row in data.validations:
                    x = one.axis.at(row)
                    for decoder, scores in (row.get("decoders") or {}).items():
                        if x is not None and key in scores:
                            value = scores[key] if is_number(scores[key]) else None
                            points.setdefault(decoder, {})[x] = value
                for number, (decoder, own) in enumerate(points.items()):
                    colour, dash = self.curves.look(run, number)
                    look = {"colour": colour, "dash": dash, "run": run}
                    found.append(line(self.curves.named(run, decoder), own, (), **look))
            charts.append(
                Chart(id=f"val-{key}", title=f"Validation, {name}", y_name=name, series=found)
            )
        return _drawn(charts)

    def compression(self) -> list[Chart]:
        """Exact match of the wire, at every ratio it was read at, against its compression."""
        found = []
        for run, data in enumerate(self.runs):
            for number, (decoder, scores) in enumerate(data.metrics.get("decoders", {}).items()):
                marks = []
                for arm, own in scores["arms"].items():
                    ratio, em = own.get("compression_tokens"), own.get("em")
                    is_wire = arm.partition("@")[0] == "latent"
                    if is_wire and is_number(ratio) and is_number(em):
                        marks.append((ratio, arm, own))
                marks.sort(key=lambda mark: mark[0])
                if not marks:
                    continue
                colour, dash = self.curves.look(run, number)
                reference = scores["arms"].get("text", {}).get("em")
                intervals = [_interval(own) for _, _, own in marks]
                found.append(
                    {
                        "name": self.curves.named(run, decoder),
                        "colour": colour,
                        "dash": dash,
                        "x": [ratio for ratio, _, _ in marks],
                        "y": [own["em"] for _, _, own in marks],
                        "low": [low for low, _ in intervals],
                        "high": [high for _, high in intervals],
                        "label": [arm for _, arm, _ in marks],
                        "reference": reference if is_number(reference) else None,
                    }
                )
        chart = Chart(
            id="compression",
            title="Exact match against compression",
            y_name="exact match",
            series=[],
            kind="points",
            points=found,
            note="Bars are 95 % intervals; dashed lines are the decoder reading the text itself.",
        )
        return [chart] if found else []

    def explorer(self) -> dict[str, list[Series]]:
        """Every key of the rows, by rank."""
        found = {key: self.curves.by_rank(key) for key in self.curves.keys}
        return {key: curves for key, curves in found.items() if curves}


def _interval(scores: Mapping[str, Any]) -> tuple[float, float]:
    """Of exact match; without width where there is none."""
    match scores.get("em_ci95"):
        case [low, high] if is_number(low) and is_number(high):
            return low, high
    return scores["em"], scores["em"]


def _drawn(charts: Iterable[Chart]) -> list[Chart]:
    """Those with a curve; one of non-finite values only has one too."""
    return [chart for chart in charts if any(s.finite or s.bad for s in chart.series)]
