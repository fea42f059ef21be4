"""Steps whose loss or gradient is not finite: skipped by every rank, counted, and named.

Whether a step is finite is agreed before any optimizer moves (``distributed.gradients``), so one
rank's NaN never reaches another rank's weights or moments.
"""

import logging
from typing import Any

import torch

from latentwire.data.loader import global_batch
from latentwire.diagnostics.gradients import objective_norms
from latentwire.distributed.assembly import Job
from latentwire.distributed.gradients import GlobalGradient
from latentwire.distributed.messages import broadcast_json, gather_json
from latentwire.training.objectives import measure
from latentwire.training.records import StepRecord
from latentwire.training.stages import StepPlan

log = logging.getLogger(__name__)


class NonFiniteError(RuntimeError):
    """Too many steps in a row were not finite; every rank raises it at the same step."""


class Guard:
    """Counts skipped steps and says what was wrong with each.

    Args:
        limit: steps that may be skipped in a row.
        num_skipped: steps skipped before this process, where a run is resumed.
    """

    def __init__(self, job: Job, *, limit: int, num_skipped: int = 0) -> None:
        self.num_skipped = num_skipped
        """Steps of the run that were skipped."""
        self._job = job
        self._limit = limit
        self.reason = ""
        """What was wrong with the last of them."""
        self._in_a_row = 0

    def passed(self) -> None:
        """The step is finite."""
        self._in_a_row = 0

    def skipped(self, plan: StepPlan, record: StepRecord, gradient: GlobalGradient) -> None:
        """The step is not: counts it and logs why. All ranks must call."""
        self.num_skipped += 1
        self._in_a_row += 1
        self.reason = "; ".join(blame(self._job, plan, record, gradient))
        if self._job.groups.rank == 0:
            log.warning("stage %s step %d: skipped: %s", plan.stage, plan.step, self.reason)

    def exhausted(self) -> str:
        """Why the run must end, or an empty string."""
        if self._in_a_row <= self._limit:
            return ""
        return (
            f"{self._in_a_row} steps in a row were not finite (train.max_skipped is "
            f"{self._limit}); the last: {self.reason}. The same command goes on from here, with "
            "a larger train.max_skipped if need be; lower optim.encoder_lr and optim.adapter_lr "
            "want another run.tag"
        )


def blame(job: Job, plan: StepPlan, record: StepRecord, gradient: GlobalGradient) -> list[str]:
    """What was not finite: objective, group and rank. The same list on every rank; all call."""
    losses = _agreed(job, record.bad_objectives())
    if losses:
        return [f"loss {where}" for where in losses]
    # A finite loss with a bad gradient: the step's graph is gone, so the way down to the soft
    # prompts is gone over once more, objective by objective.
    objectives = _agreed(job, _bad_gradients(job, plan))
    if objectives:
        return [f"gradient of {where}" for where in objectives]
    units = [name for name, square in gradient.squares.items() if not torch.isfinite(square)]
    return [f"gradient inside {name}" for name in units] or ["the gradient's norm overflows"]


def _agreed(job: Job, found: dict[str, list[str]]) -> list[str]:
    """Every rank's findings, as sentences."""
    world = job.groups.world
    ranks: Any = broadcast_json(gather_json(found, world), world)
    return [
        f"{objective} of '{decoder}' on rank {rank}"
        for rank, findings in enumerate(ranks)
        for decoder, objectives in findings.items()
        for objective in objectives
    ]


def _bad_gradients(job: Job, plan: StepPlan) -> dict[str, list[str]]:
    """Objectives whose gradient at this rank's soft prompts is not finite, by decoder."""
    found: dict[str, list[str]] = {}
    for examples in plan.micro_batches(job.config.train.accumulation):
        batch = global_batch(examples, job.any_prompts, draws=plan.draws)
        with torch.no_grad():
            latents = job.latents(batch)
        for name, own in job.parts(batch):
            with torch.no_grad():
                wire = job.inject(name, latents, own)
            for end in wire.ends:
                end.requires_grad_()
            names = plan.trained(dict.fromkeys(plan.weights))
            measured = measure(job, name, batch, own, wire, names=names, k=plan.k)
            norms = objective_norms(plan.trained(measured.sums), measured.wire.ends)
            bad = [key for key, norm in norms.items() if not torch.isfinite(norm)]
            if bad:
                found.setdefault(name, []).extend(bad)
    return {name: sorted(set(bad)) for name, bad in found.items()}
