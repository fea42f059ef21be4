"""What a run says of itself in its log."""

import logging
from collections.abc import Sequence

from latentwire.checkpointing.changes import changed_keys
from latentwire.checkpointing.state import Place
from latentwire.data.example import Example
from latentwire.data.padding import Padding
from latentwire.distributed.assembly import Job
from latentwire.distributed.messages import gather_json
from latentwire.training import resume
from latentwire.training.held_out import num_shared_documents
from latentwire.training.preflight import Plan, recorded_config
from latentwire.training.stages import Stage

log = logging.getLogger(__name__)


def tell_of_other_settings(plan: Plan) -> None:
    """Which settings an evaluation has that the run has not."""
    before = recorded_config(plan.run_folder, plan.checkpoint_folder)
    for change in changed_keys(before, plan.config) if before is not None else ():
        log.warning("the evaluation differs from the run in %s", change)


def report_early_end(plan: Plan, stages: Sequence[Stage], place: Place | None) -> None:
    """Which stage ended before its last step, where ``place`` is in it."""
    for stage in stages:
        if place is None or stage.name != place.stage or place.step >= stage.num_steps:
            continue
        if resume.steps_done(plan, stage.name, place) > place.step:
            log.info(
                "stage %s ended early with step %d; more validation.patience would go on",
                stage.name,
                place.step,
            )


def report_units(job: Job) -> None:
    """How many parameters each unit trains."""
    for name, unit in job.units.items():
        log.info("unit %s: %d trained parameters", name, unit.num_parameters)


def report_state(job: Job) -> None:
    """What the optimizer keeps here."""
    sizes = {name: unit.state_bytes() / 2**20 for name, unit in job.units.items()}
    parts = ", ".join(f"{name} {size:.1f} MiB" for name, size in sizes.items())
    log.info("optimizer state on this rank (fp32 weights, both moments): %s", parts)


def report_padding(job: Job, stage: str, own: Padding) -> None:
    """The padding in what all ranks have read in a stage. All ranks must call."""
    ranks = gather_json(own.tree(), job.groups.world)
    if ranks is not None:
        total = sum((Padding.from_tree(tree) for tree in ranks), Padding())
        log.info("stage %s: padding: %s", stage, total.summary())


def warn_of_shared(validated: Sequence[Example], evaluated: Sequence[Example]) -> None:
    """How many evaluated documents the best checkpoint was chosen on."""
    if shared := num_shared_documents(validated, evaluated):
        log.warning(
            "%d documents of Stage C are validated on too: the best checkpoint is chosen on them",
            shared,
        )
