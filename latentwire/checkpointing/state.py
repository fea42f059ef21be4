"""What a run resumes from: its units, its place, and the configuration it was started with."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from latentwire.checkpointing.best import Standing
from latentwire.checkpointing.commit import Step, publish, write_json
from latentwire.checkpointing.store import read_unit, write_unit
from latentwire.config import Config, flatten
from latentwire.distributed.groups import Group
from latentwire.distributed.sharding import ShardedUnit

_MAY_CHANGE = (
    "placement",
    "sharding.",
    "checkpoint.interval",
    "diagnostics.",
    "distributed.",
    "train.max_skipped",
    # What a best checkpoint is, the samples and the metric, may not.
    "validation.interval",
    "validation.patience",
)
_MAY_CHANGE_OF_DECODER = (".ranks", ".share")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where in the run a checkpoint stands."""

    stage: str
    step: int
    """Steps done in this stage."""
    samples: int
    """Examples seen in this stage, over all ranks."""
    num_skipped: int = 0
    """Steps of the run so far that were skipped because they were not finite."""
    validation: Standing = Standing()
    """What the validations so far, one at this step included, came to."""
    balance: Mapping[str, float] = field(default_factory=dict)
    """Multipliers of the objectives' weights, where they are balanced."""


def save(
    root: Path,
    place: Place,
    units: Mapping[str, ShardedUnit],
    config_tree: Any,
    *,
    world: Group,
) -> bool:
    """Publishes a checkpoint of every unit. All ranks must call.

    Returns:
        False when this step was published before, and nothing was written.
    """
    with publish(root, stage=place.stage, step=place.step, world=world) as folder:
        if folder is None:
            return False
        for name, unit in units.items():
            state = unit.export_state()
            if state is not None:
                write_unit(folder / name, state)
        if world.rank == 0:
            write_json(folder / "trainer.json", asdict(place))
            (folder / "config.yaml").write_text(yaml.safe_dump(config_tree, sort_keys=False))
    return True


def restore(step: Step, units: Mapping[str, ShardedUnit], *, with_optimizer: bool = True) -> Place:
    """Loads every unit of this rank from a published step. All ranks must call."""
    for name, unit in units.items():
        unit.import_state(read_unit(step.path / name, with_optimizer=with_optimizer))
    return read_place(step)


def read_place(step: Step) -> Place:
    """Where in the run a published step stands."""
    return place_from(json.loads((step.path / "trainer.json").read_text(encoding="utf-8")))


def place_from(tree: Mapping[str, Any]) -> Place:
    """Out of what ``dataclasses.asdict`` made of a place."""
    if "validation" not in tree:
        return Place(**tree)
    return Place(**{**tree, "validation": Standing.from_tree(tree["validation"])})


def changed_keys(before: Config, now: Config) -> list[str]:
    """Keys that differ although a resumed run may not change them, each with both values.

    World size, placement, backend, intervals, patience and more steps may change.
    """
    old, new = flatten(before), flatten(now)
    found = []
    for key in [*old, *(key for key in new if key not in old)]:
        if old.get(key) == new.get(key) or key.startswith(_MAY_CHANGE):
            continue
        if key.startswith("decoders.") and key.endswith(_MAY_CHANGE_OF_DECODER):
            continue
        if key.startswith("train.stage_") and key.endswith((".steps", ".epochs")):
            was, is_now = old.get(key), new.get(key)
            if isinstance(was, int | float) and isinstance(is_now, int | float) and is_now > was:
                continue
        found.append(f"{key}: the run has '{old.get(key)}', the command '{new.get(key)}'")
    return found
