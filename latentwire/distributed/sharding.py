"""The seam between the trainer and what shards its weights and optimizer state."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from latentwire.config import ConfigError
from latentwire.distributed.adamw import MOMENTS
from latentwire.distributed.groups import Group
from latentwire.distributed.state_tensors import HostBuffers, cut_tensor


@dataclass(frozen=True, kw_only=True)
class UnitState:
    """A unit's state by parameter name, on the host, cut by rows over the unit's ranks.

    See ``state_tensors``: the same form whatever backend and precision it comes from.
    """

    weights: dict[str, Tensor]
    """fp32 master weights."""
    first_moments: dict[str, Tensor]
    """fp32; of an 8-bit optimizer the codes, and the scales under names of their own."""
    second_moments: dict[str, Tensor]
    num_steps: int
    """Optimizer steps taken."""

    @property
    def moments(self) -> dict[str, dict[str, Tensor]]:
        """Both moments by torch's names; empty where no step was taken."""
        return dict(zip(MOMENTS, (self.first_moments, self.second_moments), strict=True))


class ShardedUnit(Protocol):
    """One module trained over one process group."""

    module: nn.Module
    """The sharded module, to be called in place of the one it was made from."""
    num_parameters: int
    """Trained parameters, over all ranks."""
    can_skip: bool
    """Whether ``step`` takes ``finite``."""

    def set_sync(self, enabled: bool) -> None:
        """Whether the next backward reduces gradients (only the last micro-batch needs to)."""

    def local_grad_squares(self) -> dict[str, Tensor]:
        """This rank's share of the squared gradient norm, by part of the unit (``part_of``); the
        shares of all ranks add up to it."""

    def local_weights(self) -> dict[str, list[Tensor]]:
        """This rank's share of the fp32 master weights, by part of the unit; not copies."""

    def put_away(self) -> None:
        """Frees the whole weights that a forward without a backward leaves behind, which the next
        forward would read."""

    def whole_weights(self) -> AbstractContextManager[dict[str, Tensor]]:
        """Every parameter whole, frozen ones too, as the forward computes with them. All members
        must enter and leave; the tensors hold only between the two."""

    def step(
        self, rates: Mapping[str, float], grad_scale: Tensor, finite: Tensor | None = None
    ) -> None:
        """One optimizer step with learning rates by parameter group; gradients are scaled first.

        Args:
            finite: where this is False on the device, nothing is changed; for units that can.
        """

    def zero_grad(self) -> None:
        """Forgets all gradients, in every buffer that holds a part of them."""

    def state_bytes(self) -> int:
        """Bytes of fp32 master weights and of moments on this rank."""

    def export_state(self, buffers: HostBuffers | None = None) -> UnitState:
        """A copy of the state, which further steps leave alone. All members must call.

        Args:
            buffers: host memory to copy into.
        """

    def import_state(self, state: UnitState) -> None:
        """Takes over a state of this group's ranks. All members must call."""


class ShardingBackend(Protocol):
    """Makes sharded units."""

    def wrap(self, name: str, module: nn.Module, group: Group) -> ShardedUnit:
        """Shards ``module`` over ``group``; the unit's own ``module`` takes its place.

        Args:
            name: the unit's name in checkpoints and messages.
        """


def export_parts(
    read: Callable[[str, str | None], Tensor],
    shapes: Mapping[str, torch.Size],
    group: Group,
    *,
    num_steps: int,
    buffers: HostBuffers | None,
) -> UnitState:
    """A unit's state out of what a backend reads of it, one tensor at a time.

    Args:
        read: (parameter's name, moment's name or None for the weight) -> this rank's rows of it.
        shapes: whole shape of each trained parameter.
        num_steps: without a step there are no moments.
    """
    host = buffers or HostBuffers()
    parts: dict[str | None, dict[str, Tensor]] = {part: {} for part in (None, *MOMENTS)}
    for name, shape in shapes.items():
        for part, tensors in parts.items():
            if part is None or num_steps:
                own = host.copy(f"{part}/{name}", read(name, part))
                tensors[name] = cut_tensor(own, shape, group)
    weights, first_moments, second_moments = parts.values()
    return UnitState(
        weights=weights,
        first_moments=first_moments,
        second_moments=second_moments,
        num_steps=num_steps,
    )


def check_fits(state: UnitState, shapes: Mapping[str, torch.Size], *, unit: str) -> None:
    """Compares a state with the parameters it is to be loaded into.

    Args:
        shapes: whole shape of each trained parameter.

    Raises:
        ConfigError: naming what differs.
    """
    missing = sorted(shapes.keys() ^ state.weights.keys())
    if missing:
        raise ConfigError(
            [
                f"the checkpoint of unit '{unit}' does not fit the model: {missing[:5]} are in one "
                "of them only; resume with the models and the encoder.lora it was trained with"
            ]
        )
    for name, shape in shapes.items():
        found = state.weights[name].shape
        if found != shape:
            raise ConfigError(
                [
                    f"the checkpoint of unit '{unit}' holds '{name}' of shape {tuple(found)} where "
                    f"the model has {tuple(shape)}: was it trained with another model or width?"
                ]
            )
