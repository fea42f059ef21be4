"""Validation while a stage trains: generated answers on held-out examples, scored at intervals.

It chooses the best checkpoint and ends a stage in which nothing better comes any more. It reads
the wire as Stage C does, draws nothing from any random generator, and leaves the wire as it was.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from latentwire.checkpointing.best import Best, Standing
from latentwire.config import Config
from latentwire.data.example import Example
from latentwire.diagnostics.stream import DiagnosticsStream
from latentwire.distributed.assembly import Job
from latentwire.distributed.messages import broadcast_json
from latentwire.evaluation.arms import LATENT
from latentwire.evaluation.runner import evaluate

log = logging.getLogger(__name__)

_SHOWN = ("em", "f1", "nll_per_token", "first_acc", "num_examples")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What follows from a step's validation; the same on every rank."""

    is_best: bool = False
    """The step has the best score so far, so it must be saved."""
    ends_stage: bool = False
    """Patience is over."""
    progress: dict[str, str] = field(default_factory=dict)
    """Postfix of the progress bar, where there was a validation."""


class Validator:
    """Validates one run on one rank; all ranks validate in step.

    Args:
        examples: the validation's own, the same on every rank; may be empty with interval 0.
        stream: takes one row for each validation.
        standing: what earlier validations came to, where the run is resumed.
    """

    def __init__(
        self,
        job: Job,
        examples: Sequence[Example],
        *,
        stream: DiagnosticsStream,
        standing: Standing,
    ) -> None:
        self.standing = standing
        """What all validations so far came to; saved with every checkpoint."""
        self._job = job
        self._examples = examples
        self._stream = stream
        self._settings = job.config.validation

    def after_step(self, stage: str, step: int, *, is_last: bool) -> Verdict:
        """Validates where it is due. All ranks must call.

        A signal that comes meanwhile takes effect when the validation is done.

        Args:
            is_last: the stage ends with this step.
        """
        interval = self._settings.interval
        if not interval or (step % interval and not is_last):
            return Verdict()
        decoders = self._measure()
        score = mean_score(decoders, self._settings.metric)
        before = self.standing.best
        self.standing = self.standing.after(stage=stage, step=step, score=score)
        is_best = self.standing.best != before
        self._record(stage, step, decoders, score, is_best=is_best)
        self._report(stage, step, decoders, score, before=before)
        patience = self._settings.patience
        ends_stage = self.standing.is_exhausted(stage, patience=patience) and not is_last
        if ends_stage:
            log.info(
                "stage %s: ends early with step %d: %d validations without a new best "
                "(validation.patience is %d)",
                stage,
                step,
                self.standing.num_stale,
                patience,
            )
        shown = {f"val {self._settings.metric}": _number(score, self._settings.metric)}
        return Verdict(is_best=is_best, ends_stage=ends_stage, progress=shown)

    def _measure(self) -> dict[str, dict[str, Any]]:
        """Every decoder's scores through its wire, as rank 0 has them, on every rank."""
        world = self._job.groups.world
        result = evaluate(self._job, self._examples, arms=[LATENT], description="validation")
        self._job.wire.train()
        scores = None
        if result is not None:
            scores = {
                name: {key: found["arms"][LATENT.name][key] for key in _SHOWN}
                for name, found in result[0]["decoders"].items()
            }
        agreed: dict[str, dict[str, Any]] = broadcast_json(scores, world)
        return agreed

    def _record(
        self,
        stage: str,
        step: int,
        decoders: dict[str, dict[str, Any]],
        score: float | None,
        *,
        is_best: bool,
    ) -> None:
        row = {
            "stage": stage,
            "step": step,
            "metric": self._settings.metric,
            "score": score,
            "is_best": is_best,
            "decoders": decoders,
        }
        try:
            self._stream.write([row] if self._job.groups.rank == 0 else [])
        except OSError as error:
            # The checkpoint has the standing too, and a lost row is no reason to lose the run.
            log.warning("the scores of step %d could not be written: %s", step, error)

    def _report(
        self,
        stage: str,
        step: int,
        decoders: Mapping[str, Mapping[str, Any]],
        score: float | None,
        *,
        before: Best | None,
    ) -> None:
        metric, best = self._settings.metric, self.standing.best
        each = ", ".join(
            f"{name} {_number(_value(scores, metric), metric)}" for name, scores in decoders.items()
        )
        what = "no best so far"
        if best is not None:
            what = f"the best is stage {best.stage} step {best.step}"
            what = "the best so far" if best != before else what
        number = _number(score, metric)
        log.info(
            "stage %s step %d: validation %s %s (%s), %s", stage, step, metric, number, each, what
        )


def no_validation(stage: str, step: int, *, is_last: bool) -> Verdict:
    """In place of ``Validator.after_step``, where nothing is validated."""
    return Verdict()


def mean_score(decoders: Mapping[str, Mapping[str, Any]], metric: str) -> float | None:
    """The mean over the decoders of what ``validation.metric`` names, larger being better.

    None where one of them has a likelihood that is not finite.
    """
    values = [_value(scores, metric) for scores in decoders.values()]
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return math.fsum(finite) / len(values) if len(finite) == len(values) else None


def _value(scores: Mapping[str, Any], metric: str) -> float | None:
    if metric != "nll":
        return float(scores[metric])
    nll = scores["nll_per_token"]
    return None if nll is None else -float(nll)


def _number(score: float | None, metric: str) -> str:
    # People read a likelihood the usual way round, as Stage C's table has it.
    return "not finite" if score is None else f"{-score if metric == 'nll' else score:.3f}"


def describe(config: Config, num_examples: int) -> list[str]:
    """What will be validated, as lines for ``--dry-run``."""
    validation = config.validation
    if not validation.interval:
        return ["validation         none"]
    patience = "a stage is never ended early"
    if validation.patience:
        patience = f"a stage ends after {validation.patience} without a new best"
    return [
        f"validation         every {validation.interval} steps and after a stage's last, "
        f"{num_examples} examples",
        f"                   best by {validation.metric}; {patience}; Stage C reads the "
        f"{config.eval.checkpoint} checkpoint",
    ]
