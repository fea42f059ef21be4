"""What a run resumes from: its units, its place, its generators, and its configuration."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from latentwire.checkpointing import rng
from latentwire.checkpointing.best import Standing
from latentwire.checkpointing.commit import Step
from latentwire.checkpointing.components import PARTS, by_component, to_state, unit_of
from latentwire.checkpointing.manifest import Manifest, read_manifest
from latentwire.checkpointing.shards import read_tensors
from latentwire.config import ConfigError
from latentwire.distributed.groups import Group
from latentwire.distributed.sharding import ShardedUnit
from latentwire.distributed.state_tensors import HostBuffers

log = logging.getLogger(__name__)

TRAINER = "trainer.json"
CONFIG = "config.yaml"
GENERATORS = "rng"
"""Folder of the ranks' random states."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where in the run a checkpoint stands."""

    stage: str
    step: int
    """Steps done in this stage."""
    samples: int
    """Examples seen in this stage, over all ranks: the sampler's position."""
    tokens: int = 0
    """Tokens of texts that the encoder has read in the run so far, over all ranks."""
    num_skipped: int = 0
    """Steps of the run so far that were skipped because they were not finite."""
    schedules: Mapping[str, Any] = field(default_factory=dict)
    """What the schedules gave this step, for the record: they are functions of the step."""
    validation: Standing = Standing()
    """What the validations so far, one at this step included, came to."""
    balance: Mapping[str, float] = field(default_factory=dict)
    """Multipliers of the objectives' weights, where they are balanced."""
    health: Mapping[str, Any] = field(default_factory=dict)
    """What the wire's later gauges are judged by: how large the weights were when training began,
    and the gauges so far."""


@dataclass(frozen=True, kw_only=True)
class Component:
    """What one folder of a checkpoint will hold, and who writes it."""

    tensors: Mapping[str, Tensor]
    group: Group


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A copy of everything that a step of a checkpoint holds of this rank."""

    place: Place
    num_steps: Mapping[str, int]
    """Optimizer steps of each of this rank's units."""
    components: Mapping[str, Component]
    generators: tuple[dict[str, Tensor], str]


def snapshot(
    place: Place,
    units: Mapping[str, ShardedUnit],
    groups: Mapping[str, Group],
    buffers: Mapping[str, HostBuffers],
) -> Snapshot:
    """Copies the state into host memory, where training on leaves it alone. All ranks must call.

    Args:
        groups: of each unit.
        buffers: of each unit; the copy lives in them until the next one is made.
    """
    components: dict[str, Component] = {}
    num_steps: dict[str, int] = {}
    for unit, sharded in units.items():
        state = sharded.export_state(buffers[unit])
        num_steps[unit] = state.num_steps
        for name, tensors in by_component(unit, state).items():
            components[name] = Component(tensors=tensors, group=groups[unit])
    return Snapshot(
        place=place, num_steps=num_steps, components=components, generators=rng.capture()
    )


def restore(
    step: Step,
    units: Mapping[str, ShardedUnit],
    groups: Mapping[str, Group],
    *,
    with_optimizer: bool = True,
) -> Place:
    """Loads every unit of this rank from a published step. All ranks must call.

    Raises:
        ConfigError: the step does not hold what the model has.
    """
    manifest, place = read_manifest(step.path), read_place(step)
    for name, unit in units.items():
        tensors: dict[str, Tensor] = {}
        for component in _components_of(name, manifest, step):
            tensors |= read_tensors(
                step.path / component,
                groups[name],
                wanted=lambda key: with_optimizer or key.startswith(PARTS[0]),
            )
        num_steps = manifest.optimizer_steps[name]
        try:
            unit.import_state(to_state(tensors, num_steps=num_steps))
        except ConfigError as error:
            raise ConfigError([f"{step.path}: {problem}" for problem in error.problems]) from None
    return place


def _components_of(unit: str, manifest: Manifest, step: Step) -> list[str]:
    found = [name for name in manifest.units if unit_of(name) == unit]
    if not found:
        raise ConfigError(
            [f"{step.path} holds nothing of unit '{unit}', only {', '.join(manifest.units)}"]
        )
    return found


def restore_generators(step: Step, *, rank: int, world_size: int) -> None:
    """Sets this rank's random generators as they were at the step.

    On another world size they start anew: each rank's would be some other rank's, and no step
    depends on them.
    """
    folder = step.path / GENERATORS
    if len(list(folder.glob("rank-*.safetensors"))) != world_size:
        if rank == 0:
            log.info("another number of ranks: random generators start anew")
        return
    rng.restore(rank_file(folder, rank))


def rank_file(folder: Path, rank: int) -> Path:
    """The generators of one global rank."""
    return folder / f"rank-{rank:05d}.safetensors"


def read_place(step: Step) -> Place:
    """Where in the run a published step stands."""
    return place_from(json.loads((step.path / TRAINER).read_text(encoding="utf-8")))


def place_from(tree: Mapping[str, Any]) -> Place:
    """Out of what ``dataclasses.asdict`` made of a place."""
    return Place(**{**tree, "validation": Standing.from_tree(tree["validation"])})


def place_tree(place: Place) -> dict[str, Any]:
    """A place as JSON holds it."""
    return asdict(place)
