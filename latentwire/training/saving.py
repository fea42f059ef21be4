"""A run's checkpoints as its trainer sees them: what a step's place is, and who writes it."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from latentwire import config_file
from latentwire.checkpointing.state import Place
from latentwire.checkpointing.writer import CheckpointWriter
from latentwire.distributed.assembly import Job
from latentwire.distributed.groups import Group
from latentwire.training.preflight import Plan
from latentwire.training.signals import StopRequest
from latentwire.training.stages import Stage
from latentwire.training.trainer import Trainer
from latentwire.training.validation import Validator
from latentwire.wire.parts import decoder_of


def unit_groups(job: Job) -> dict[str, Group]:
    """The group that each of this rank's units is sharded over."""
    found = {}
    for name in job.units:
        decoder = decoder_of(name)
        found[name] = job.groups.world if decoder is None else job.groups.decoder(decoder)
    return found


def open_writer(
    plan: Plan, job: Job, stop: StopRequest, *, decoders: Mapping[str, dict[str, Any]]
) -> CheckpointWriter:
    """The writer of a run's checkpoints.

    Args:
        decoders: identity of each frozen decoder.
    """
    config = plan.config
    return CheckpointWriter(
        plan.checkpoint_folder,
        job.units,
        unit_groups(job),
        world=job.groups.world,
        settings=config.checkpoint,
        decoders=decoders,
        config_text=yaml.safe_dump(config_file.to_tree(config), sort_keys=False),
        metric=config.validation.metric,
        failed=stop.cannot_save,
    )


def place_at(
    stages: Sequence[Stage],
    stage: str,
    step: int,
    trainer: Trainer,
    validator: Validator,
    *,
    health: Mapping[str, Any],
) -> Place:
    """Where the run stands after ``step`` of ``stage``."""
    own = next(found for found in stages if found.name == stage)
    return Place(
        stage=stage,
        step=step,
        samples=step * own.batch_size,
        tokens=trainer.num_tokens,
        num_skipped=trainer.guard.num_skipped,
        schedules=own.schedules(step),
        validation=validator.standing,
        balance=trainer.auto_weights.balance.state(),
        health=health,
    )
