"""How a run ends, and what it leaves behind when it was asked to stop."""

import logging
from dataclasses import dataclass

from latentwire.checkpointing.commit import newest
from latentwire.distributed.groups import ProcessGroups
from latentwire.distributed.messages import barrier
from latentwire.training.preflight import Plan
from latentwire.training.status import write_status

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended."""

    state: str
    """finished, preempted or stopped."""
    code: int


def stopped(plan: Plan, groups: ProcessGroups, reason: str, *, why: str = "") -> Outcome:
    """A run that was asked to end. All ranks must call.

    Args:
        why: in words; by a signal where none are given.
    """
    code = 0 if reason == "preempted" else 1
    if groups.rank == 0:
        log.info("%s: the trained steps are saved; the same command continues", reason)
        why = why or "asked by a signal"
        step = newest(plan.checkpoint_folder)
        write_status(
            plan.run_folder,
            state=reason,
            code=code,
            reason=why,
            stage=step.stage if step else None,
            step=step.number if step else None,
        )
    barrier(groups.world)
    return Outcome(state=reason, code=code)
