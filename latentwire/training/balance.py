"""Automatic weights in training: measured now and then, agreed by all ranks, applied at once."""

import dataclasses

import torch
import torch.distributed as dist

from latentwire.config import OBJECTIVES
from latentwire.distributed.assembly import Job
from latentwire.objectives.balance import Balance
from latentwire.training.preparation import is_balancing
from latentwire.training.records import StepRecord
from latentwire.training.stages import StepPlan

_BALANCED = [name for name in OBJECTIVES if name != "gist"]
"""The gist's gradient is in its own head and in the encoder, where this does not measure."""


class AutoWeights:
    """The balance of a run's objectives; without ``objectives.auto_weight`` it changes nothing.

    Args:
        balance: as it was where the run is resumed.
    """

    def __init__(self, job: Job, *, balance: Balance) -> None:
        self.balance = balance
        """Saved with every checkpoint."""
        self._job = job
        settings = job.config.objectives
        self._is_on = settings.auto_weight

    def is_due(self, plan: StepPlan) -> bool:
        """Whether this step measures the gradients' sizes."""
        return is_balancing(self._job.config, plan)

    def applied(self, plan: StepPlan) -> StepPlan:
        """The plan with the weights to train with."""
        if not self._is_on:
            return plan
        return dataclasses.replace(plan, weights=self.balance.applied(plan.weights))

    def update(self, plan: StepPlan, record: StepRecord) -> None:
        """Takes over what a step that was due has measured. All ranks must call.

        Args:
            plan: with the configured weights.
        """
        own = record.balanced_squares()
        totals = torch.tensor([own.get(name, 0.0) for name in _BALANCED], dtype=torch.float64)
        dist.all_reduce(totals, group=self._job.groups.world.bookkeeping)
        squares = dict(zip(_BALANCED, totals.tolist(), strict=True))
        self.balance = self.balance.updated(plan.weights, squares)
