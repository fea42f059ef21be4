"""Where a run goes on from: its newest checkpoint, what of it is done, and its best one so far.

Rank 0 looks at the files and tells the others: on a network file system another rank may see
another listing.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from latentwire.checkpointing import best
from latentwire.checkpointing.best import Best, Standing
from latentwire.checkpointing.commit import STAGES, Step, newest, step_at
from latentwire.checkpointing.manifest import manifest_digest
from latentwire.checkpointing.state import Place, place_from, place_tree, read_place
from latentwire.config import ConfigError
from latentwire.distributed.groups import ProcessGroups
from latentwire.distributed.messages import broadcast_json
from latentwire.training.preflight import Plan
from latentwire.training.stages import Stage
from latentwire.training.status import FILES, read_status
from latentwire.training.unreadable import agreed_first

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What Stage C evaluates."""

    step: Step | None
    """None where there is none: before anything was trained, or saved."""
    which: Literal["best", "last", "exported", "unsaved"]
    """``unsaved``: the wire as it was trained, of which no step could be saved."""

    def describe(self) -> dict[str, Any]:
        """For ``metrics.json``. ``manifest`` tells steps of one number apart: a run that has gone
        back writes such."""
        at: dict[str, Any] = {"stage": None, "step": 0, "manifest": None}
        if self.step is not None:
            at = {"stage": self.step.stage, "step": self.step.number}
            at["manifest"] = manifest_digest(self.step.path)
        return at | {"which": self.which}


def agreed_newest(plan: Plan, groups: ProcessGroups) -> tuple[Step, Place] | None:
    """The newest step and its place in the run, the same on every rank. All must call."""

    def look() -> list[Any] | None:
        step = newest(plan.checkpoint_folder, strict=True)
        return None if step is None else [step.stage, step.number, place_tree(read_place(step))]

    found = agreed_first(look, groups.world, what=plan.checkpoint_folder)
    if found is None:
        return None
    stage, number, tree = found
    return step_at(plan.checkpoint_folder, stage, number), place_from(tree)


def agreed_standing(plan: Plan, groups: ProcessGroups, place: Place | None) -> Standing:
    """The validations' standing to go on with, ``best.json`` brought in line. All must call."""
    before = place.validation if place else Standing()

    def repaired() -> dict[str, Any]:
        metric = plan.config.validation.metric
        standing, messages = best.repair(plan.checkpoint_folder, before, metric=metric)
        for message in messages:
            log.warning("%s", message)
        return asdict(standing)

    tree = agreed_first(repaired, groups.world, what=plan.checkpoint_folder)
    return Standing.from_tree(tree)


def chosen(plan: Plan, last: Step | None, best_one: Best | None) -> Checkpoint:
    """The checkpoint that ``eval.checkpoint`` means: the last one where nothing was validated."""
    if plan.config.eval.checkpoint == "best" and best_one is not None:
        step = step_at(plan.checkpoint_folder, best_one.stage, best_one.step)
        return Checkpoint(step=step, which="best")
    return Checkpoint(step=last, which="last")


def agreed_best(plan: Plan, groups: ProcessGroups, best_one: Best | None) -> Best | None:
    """The best checkpoint, unless it could not be saved. All must call."""
    if best_one is None:
        return None
    if _is_there(plan, groups, best_one):
        return best_one
    log.warning("the best checkpoint was not saved; the last one is evaluated")
    return None


def _is_there(plan: Plan, groups: ProcessGroups, best_one: Best) -> bool:
    root = plan.checkpoint_folder
    return bool(
        agreed_first(lambda: best.find(root, best_one) is not None, groups.world, what=root)
    )


def agreed_chosen(
    plan: Plan, groups: ProcessGroups, last: Step, best_one: Best | None
) -> Checkpoint:
    """``chosen`` for a run that is only evaluated. All must call.

    Raises:
        ConfigError: the best checkpoint is gone.
    """
    checkpoint = chosen(plan, last, best_one)
    if checkpoint.which == "last" or best_one is None:
        return checkpoint
    if not _is_there(plan, groups, best_one):
        raise ConfigError(
            [
                f"eval.checkpoint: best, but stage {best_one.stage} step {best_one.step} is gone; "
                "use eval.checkpoint=last"
            ]
        )
    return checkpoint


def steps_done(plan: Plan, stage: str, place: Place | None) -> int:
    """Steps of ``stage`` that need no training any more; beyond any length where it has ended."""
    if place is None or STAGES.index(stage) > STAGES.index(place.stage):
        return 0
    patience = plan.config.validation.patience
    # A run that reached Stage B has left Stage A behind, whatever A's length says now. With more
    # patience than before, a stage that ended early goes on.
    if stage != place.stage or place.validation.is_exhausted(stage, patience=patience):
        return 1 << 62
    return place.step


def is_trained(plan: Plan, place: Place) -> bool:
    """Whether a run that is only evaluated has nothing left to train, as far as its status says
    how long its stages are."""
    lengths = read_status(plan.run_folder).get("num_steps")
    known = lengths if isinstance(lengths, dict) else {}
    return all(steps_done(plan, stage, place) >= known.get(stage, 0) for stage in STAGES)


def agreed_finished(
    plan: Plan,
    groups: ProcessGroups,
    stages: Sequence[Stage],
    place: Place | None,
    checkpoint: Checkpoint,
) -> bool:
    """Whether nothing is left to train, and metrics of ``checkpoint`` exist. All must call."""
    is_trained = place is not None and all(
        steps_done(plan, stage.name, place) >= stage.num_steps for stage in stages
    )
    is_evaluated = False
    if groups.rank == 0:
        try:
            path = plan.run_folder / FILES["metrics"]
            evaluated = json.loads(path.read_text(encoding="utf-8"))["checkpoint"]
            wanted = checkpoint.describe()
            is_evaluated = all(evaluated[key] == wanted[key] for key in ("stage", "step"))
            # Older metrics do not have it.
            is_evaluated &= evaluated.get("manifest") in (None, wanted["manifest"])
        except (OSError, ValueError, KeyError, TypeError):
            is_evaluated = False
    return bool(broadcast_json(is_evaluated, groups.world)) and is_trained
