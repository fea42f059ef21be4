"""Names of a unit's state in a checkpoint: a folder per component, a key per tensor.

A unit is what is sharded together; a component is what a reader of the folder looks for: the
encoder, a decoder's adapter, its deep prefix, its gist head, its LoRA updates.
"""

from collections.abc import Mapping

from torch import Tensor

from latentwire.distributed.adamw import MOMENTS
from latentwire.distributed.sharding import UnitState
from latentwire.wire.parts import (
    DECODER_PARTS,
    SHARED_PARTS,
    SHARED_UNIT,
    decoder_of,
    part_of_decoder,
    part_of_shared,
    unit_name,
)

PARTS = ("weight", *MOMENTS)
"""First word of a tensor's key: the fp32 master weight, or a moment."""


def component_of(unit: str, parameter: str) -> str:
    """The component that a unit's parameter belongs to, e.g. ``deep_prefix_<decoder>``."""
    decoder = decoder_of(unit)
    if decoder is None:
        return part_of_shared(parameter)
    return f"{part_of_decoder(parameter)}_{decoder}"


def unit_of(component: str) -> str:
    """The unit that a component belongs to."""
    if component in SHARED_PARTS:
        return SHARED_UNIT
    part = next(part for part in DECODER_PARTS if component.startswith(f"{part}_"))
    return unit_name(component.removeprefix(f"{part}_"))


def by_component(unit: str, state: UnitState) -> dict[str, dict[str, Tensor]]:
    """A unit's tensors by component and key, weights before moments."""
    found: dict[str, dict[str, Tensor]] = {}
    for part, tensors in zip(
        PARTS, (state.weights, state.first_moments, state.second_moments), strict=True
    ):
        for name, tensor in tensors.items():
            found.setdefault(component_of(unit, name), {})[f"{part}.{name}"] = tensor
    return found


def to_state(tensors: Mapping[str, Tensor], *, num_steps: int) -> UnitState:
    """A unit's state out of the tensors of all its components."""
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
    for key, tensor in tensors.items():
        part, name = key.split(".", 1)
        parts[part][name] = tensor
    weights, first_moments, second_moments = parts.values()
    return UnitState(
        weights=weights,
        first_moments=first_moments,
        second_moments=second_moments,
        num_steps=num_steps,
    )
