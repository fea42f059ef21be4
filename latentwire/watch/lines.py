"""A run as plain lines, for logs and pipes."""

from collections.abc import Iterator

from latentwire.config import OBJECTIVES
from latentwire.diagnostics.reading import Row, reason_of
from latentwire.watch.folder import RunFolder
from latentwire.watch.model import Curve, Place, StageProgress
from latentwire.watch.text import duration, number

GAUGES = {
    "right_minus_wrong": "right minus wrong wire",
    "wire_rank": "rank",
    "wire_cosine": "cosine",
    "wire_rms_ratio": "size",
    "prediction_diversity": "diversity",
    "kl_teacher": "KL",
    "teacher_nll": "teacher NLL",
}
"""Gauges of a health row, and what they are called in short."""


def head(run: RunFolder) -> str:
    """The run, its state and what is left of it, in one line."""
    parts = [f"{run.path.name}: {run.state}"]
    if run.status.get("reason"):
        parts[0] += f" ({run.status['reason']})"
    if run.model.num_ranks:
        parts.append(f"{run.model.num_ranks} ranks")
    silence = run.silence()
    if not run.is_over and silence is not None:
        parts.append(f"last row {duration(silence)} ago")
    return ", ".join(parts)


def stage_line(stage: StageProgress) -> str:
    """``stage B: step 12 of 300, 0.5 s a step, 2:24 left``."""
    of = f" of {stage.num_steps}" if stage.num_steps is not None else ""
    parts = [f"stage {stage.name}: step {stage.step}{of}"]
    if stage.seconds_per_step is not None:
        parts.append(f"{stage.seconds_per_step:.2f} s a step")
    parts.append(stage.left)
    return ", ".join(parts)


def losses(run: RunFolder, decoder: str, *, every: bool = False) -> dict[str, Curve]:
    """Losses and accuracy of a decoder, in the order of tables.

    Args:
        every: also of objectives that are only measured.
    """
    curves = run.model.decoders[decoder]
    keys = (*OBJECTIVES, "first_acc")
    return {key: curves[key] for key in keys if key in curves and _is_shown(run, key, every)}


def norms(run: RunFolder, decoder: str, *, every: bool = False) -> dict[str, Curve]:
    """Gradient norms at what a decoder reads, by objective; ``every`` as for ``losses``."""
    found = {
        key.removeprefix("grad_"): curve
        for key, curve in run.model.decoders[decoder].items()
        if key.startswith("grad_") and "/" not in key
    }
    return {key: curve for key, curve in found.items() if _is_shown(run, key, every)}


def unit_norms(run: RunFolder, decoder: str) -> dict[str, Curve]:
    """Norms of the whole gradient by trained unit, before clipping."""
    return {
        key.partition("/")[2]: curve
        for key, curve in run.model.decoders[decoder].items()
        if key.startswith("grad_norm/")
    }


def _is_shown(run: RunFolder, key: str, every: bool) -> bool:
    trained = run.model.trained
    return every or not trained or key in trained or key in ("tf", "first_acc")


def step_line(run: RunFolder) -> str:
    """The newest log step: losses, gradient norms and the slowest rank."""
    model = run.model
    assert model.last_place is not None
    stage, step = model.last_place
    parts = []
    for progress in run.stages:
        if progress.name == stage and not progress.is_over:
            parts.append(progress.left)
    for decoder in model.decoders:
        shown = losses(run, decoder) | {
            f"grad_{key}": curve for key, curve in norms(run, decoder).items()
        }
        parts += [f"{key}/{decoder} {number(curve.last)}" for key, curve in shown.items()]
    parts += [f"{key} {number(curve.last)}" for key, curve in model.shared.items()]
    slow = slowest(run, count=1)
    if slow:
        parts.append(f"slowest {slow}")
    return f"stage {stage} step {step}: {', '.join(parts)}"


def slowest(run: RunFolder, *, count: int) -> str:
    """The slowest ranks by name, with their seconds a step."""
    found = list(run.model.step_seconds().items())[:count]
    return ", ".join(f"rank {rank} {seconds:.2f} s" for rank, seconds in found)


def health_line(decoder: str, row: Row) -> str:
    """The state of one decoder's wire, why, and the gauges."""
    state = f"{row.get('state', 'unknown')}"
    reason = f" ({reason_of(row)})" if reason_of(row) else ""
    place = f"stage {row.get('stage')} step {row.get('step')}"
    return f"health of {decoder}, {place}: {', '.join([state + reason, *gauges(row)])}"


def gauges(row: Row) -> list[str]:
    """The gauges of a health row, each with its number."""
    found = [f"{name} {number(row[key])}" for key, name in GAUGES.items() if key in row]
    updates = [key for key in row if key.startswith("update_ratio/")]
    return found + [f"update of {key.partition('/')[2]} {number(row[key])}" for key in updates]


def trouble(run: RunFolder) -> list[str]:
    """What went wrong, where anything did."""
    model = run.model
    found = [f"not finite: {text}" for text in model.nonfinite]
    if model.skipped:
        found.append(f"skipped steps: {len(model.skipped)}")
    if model.num_late:
        found.append(f"late rows: {model.num_late}")
    if model.dropped.total:
        found.append(f"dropped rows: {model.dropped.total}")
    written = run.status.get("diagnostics")
    if isinstance(written, dict) and written.get("trouble"):
        found.append(str(written["trouble"]))
    return found


def snapshot(run: RunFolder) -> list[str]:
    """All there is to say at one moment."""
    found = [head(run), *map(stage_line, run.stages)]
    if run.model.last_place is not None:
        found.append(step_line(run))
    found += [health_line(decoder, row) for decoder, row in run.model.health.items()]
    if slow := slowest(run, count=3):
        found.append(f"slowest ranks: {slow}")
    return [*found, *trouble(run), *result_lines(run)]


def result_lines(run: RunFolder) -> list[str]:
    """The newest validation, and exact match by decoder where Stage C is done."""
    found = []
    if run.validation is not None:
        row = run.validation
        found.append(
            f"validation, stage {row.get('stage')} step {row.get('step')}: "
            f"{row.get('metric')} {number(row.get('score'))}"
            f"{', the best so far' if row.get('is_best') else ''}"
        )
    result = run.result() if run.state == "finished" else {}
    for decoder, scores in result.get("decoders", {}).items():
        arms = scores["arms"]
        shown = [f"{arm} {number(arms[arm].get('em'))}" for arm in _SHOWN_ARMS if arm in arms]
        found.append(f"exact match of {decoder}: {', '.join(shown)}")
    return found


_SHOWN_ARMS = ("text", "latent", "no_context", "truncated_text", "wrong_wire")


class Changes:
    """What is new since the last look, as lines."""

    def __init__(self) -> None:
        self._place: Place | None = None
        self._health: dict[str, object] = {}
        self._trouble: set[str] = set()

    def of(self, run: RunFolder) -> Iterator[str]:
        model = run.model
        if model.last_place is not None and model.last_place != self._place:
            self._place = model.last_place
            yield step_line(run)
        for decoder, row in model.health.items():
            # Numbers in a reason change with every row; a change of state is what is new.
            if row.get("state") != self._health.get(decoder):
                self._health[decoder] = row.get("state")
                yield health_line(decoder, row)
        found = trouble(run)
        yield from (line for line in found if line not in self._trouble)
        self._trouble = set(found)
