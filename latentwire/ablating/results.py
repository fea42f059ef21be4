"""What an ablation keeps of each run: scores, scores by document, and the learning curve."""

import json
import statistics
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from latentwire.config import Config, ConfigError
from latentwire.diagnostics import reading
from latentwire.evaluation.arms import OF_RATIO, at_ratio, ratio_of
from latentwire.evaluation.metrics import exact_match, normalised_score
from latentwire.files import publish
from latentwire.training.status import FILES

RESULTS = "ablations.json"
_CURVE_POINTS = 24
"""Of a learning curve, each the mean of the rows between two of them."""
_DIGITS = 4


Table = dict[str, dict[str, float]]
"""A number by decoder and arm."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One row of an ablation with one seed.

    Arms that read a wire have its ratio in their name (``latent@8``), the configuration's own
    ratio too; only a wire with a fixed number of latents has none.
    """

    row: str
    seed: int
    digest: str
    """Of the configuration that was trained."""
    num_steps: int
    seconds_per_step: float
    """The median."""
    em: Table
    """Exact match of every arm."""
    compression: Table
    """Of the arms that read their own wire."""
    by_kind: dict[str, dict[str, dict[str, float]]]
    """Exact match by decoder, arm and kind of question; empty where there is one kind only."""
    asked: tuple[int, ...]
    """Questions on each test document."""
    right: dict[str, dict[str, tuple[int, ...]]]
    """How many of them were answered right from the wire, by decoder and arm."""
    curve: tuple[tuple[float, float, float], ...]
    """(step, NLL per token, first-token accuracy) in training, on texts not seen before while
    there are any; means over the decoders and over neighbouring steps."""

    @property
    def wires(self) -> list[str]:
        """The arms that read their own wire, the shortest wire last."""
        names = {name: None for arms in self.compression.values() for name in arms}
        return sorted(names, key=lambda name: ratio_of(name) or 0)

    def mean_em(self, arm: str) -> float:
        """Over the decoders, and over all ratios of ``arm``."""
        return statistics.fmean(
            value for arms in self.em.values() for name, value in arms.items() if _is(name, arm)
        )

    def normalised_em(self, decoder: str, arm: str) -> float | None:
        """Which share of what the text gives over no context the arm gives too."""
        em = self.em[decoder]
        return normalised_score(em[arm], em["no_context"], em["text"])


class UnreadableRunError(Exception):
    """A run's files are not those that a finished run leaves."""


def harvest(folder: Path, config: Config, *, row: str, digest: str) -> Result:
    """Reads a finished run's folder.

    Raises:
        OSError: a file cannot be read.
        UnreadableRunError: one is damaged, or of something else.
    """
    try:
        found = _harvest(folder, config, row=row, digest=digest)
        # Once written, a result that no report can be made of would end every later one.
        _ = [found.mean_em(arm) for arm in ("text", "no_context", "latent")]
        return found
    except (LookupError, TypeError, ValueError, AttributeError, StopIteration) as error:
        raise UnreadableRunError(f"{folder}: no files of a finished run: {error!r}") from error


def _harvest(folder: Path, config: Config, *, row: str, digest: str) -> Result:
    own = None if config.wire.num_latents else config.wire.ratio
    metrics = json.loads((folder / FILES["metrics"]).read_text(encoding="utf-8"))
    decoders = {
        name: {_named(arm, own): scores for arm, scores in decoder["arms"].items()}
        for name, decoder in metrics["decoders"].items()
    }
    rows = [row for row in reading.rows(folder, kind="step") if not row["skipped"]]
    asked, right = _by_document(_lines(folder / FILES["predictions"]), own)
    return Result(
        row=row,
        seed=config.run.seed,
        digest=digest,
        num_steps=sum(_last_steps(rows).values()),
        seconds_per_step=round(statistics.median(line["sec_per_step"] for line in rows), _DIGITS),
        em={
            name: {arm: round(scores["em"], _DIGITS) for arm, scores in arms.items()}
            for name, arms in decoders.items()
        },
        compression={
            name: {
                arm: round(scores["compression_tokens"], _DIGITS)
                for arm, scores in arms.items()
                if _is(arm, "latent")
            }
            for name, arms in decoders.items()
        },
        by_kind={
            name: {
                arm: {kind: round(em, _DIGITS) for kind, em in scores["em_by_kind"].items()}
                for arm, scores in arms.items()
                if "em_by_kind" in scores
            }
            for name, arms in decoders.items()
        },
        asked=asked,
        right=right,
        curve=_curve(rows),
    )


def _is(name: str, arm: str) -> bool:
    return name.partition("@")[0] == arm


def _named(arm: str, own: int | None) -> str:
    """An arm's name with the ratio of the wire it reads, or is as long as."""
    own_of = own is not None and ratio_of(arm) is None and arm in OF_RATIO
    return at_ratio(arm, own) if own_of and own is not None else arm


def _mean(values: Any) -> float:
    return round(statistics.fmean(values), _DIGITS)


def _by_document(
    predictions: list[dict[str, Any]], own: int | None
) -> tuple[tuple[int, ...], dict[str, dict[str, tuple[int, ...]]]]:
    """Questions on each document, and how many were answered right by decoder and arm."""
    cells: dict[str, dict[str, dict[int, list[float]]]] = {}
    for line in predictions:
        if _is(line["arm"], "latent"):
            arms = cells.setdefault(line["decoder"], {})
            documents = arms.setdefault(_named(line["arm"], own), defaultdict(list))
            documents[line["document"]].append(exact_match(line["prediction"], line["answers"]))
    counts = next(iter(next(iter(cells.values())).values()))
    order = sorted(counts)
    right = {
        decoder: {
            arm: tuple(int(sum(documents[number])) for number in order)
            for arm, documents in arms.items()
        }
        for decoder, arms in cells.items()
    }
    return tuple(len(counts[number]) for number in order), right


def _last_steps(rows: list[dict[str, Any]]) -> dict[str, int]:
    """Of every stage."""
    last: dict[str, int] = {}
    for line in rows:
        last[line["stage"]] = max(last.get(line["stage"], 0), line["step"])
    return last


def _curve(rows: list[dict[str, Any]]) -> tuple[tuple[float, float, float], ...]:
    """Of the steps that had the wire alone; Stage B's come after Stage A's."""
    before = _last_steps(rows).get("A", 0)
    points: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for line in rows:
        if line["mode"] == "latent":
            step = line["step"] + (before if line["stage"] == "B" else 0)
            points[step].append((line["tf"], line["first_acc"]))
    steps = sorted(points)
    size = max(1, -(-len(steps) // _CURVE_POINTS))
    curve = []
    for start in range(0, len(steps), size):
        part = steps[start : start + size]
        values = [value for step in part for value in points[step]]
        curve.append((_mean(part), _mean(v[0] for v in values), _mean(v[1] for v in values)))
    return tuple(curve)


def _lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def read_results(path: Path) -> dict[str, Result]:
    """Results by trial, as ``write_results`` left them; none where there is no file.

    Raises:
        ConfigError: the file is none of results.
    """
    if not path.exists():
        return {}
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        return {name: _result(entry) for name, entry in tree.items()}
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise ConfigError(
            [f"{path}: is not a file of results ({error}); move it away or restore it"]
        ) from None


def _result(entry: Mapping[str, Any]) -> Result:
    values = {field.name: entry[field.name] for field in fields(Result)}
    values["asked"] = tuple(values["asked"])
    values["right"] = {
        decoder: {arm: tuple(right) for arm, right in arms.items()}
        for decoder, arms in values["right"].items()
    }
    values["curve"] = tuple(tuple(point) for point in values["curve"])
    return Result(**values)


def write_results(path: Path, results: Mapping[str, Result]) -> None:
    """Replaces the file as a whole, one line a trial, so that a change of one is one line's."""
    lines = [
        f"{json.dumps(name)}: {json.dumps(asdict(result))}"
        for name, result in sorted(results.items())
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    publish(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())
