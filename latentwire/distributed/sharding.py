"""The seam between the trainer and what shards its weights and optimizer state."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from latentwire.config import ConfigError
from latentwire.distributed.adamw import MOMENTS
from latentwire.distributed.groups import Group


@dataclass(frozen=True, kw_only=True)
class UnitState:
    """A unit's logical state: whole tensors by parameter name, whatever the sharding."""

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

    def set_sync(self, enabled: bool) -> None:
        """Whether the next backward reduces gradients (only the last micro-batch needs to)."""

    def local_grad_squares(self) -> dict[str, Tensor]:
        """This rank's share of the squared gradient norm, by part of the unit (``part_of``); the
        shares of all ranks add up to it."""

    def local_weights(self) -> dict[str, list[Tensor]]:
        """This rank's share of the fp32 master weights, by part of the unit; not copies."""

    def whole_weights(self) -> AbstractContextManager[dict[str, Tensor]]:
        """Every parameter whole, frozen ones too, as the forward computes with them. All members
        must enter and leave; the tensors hold only between the two."""

    def step(self, rates: Mapping[str, float], grad_scale: Tensor) -> None:
        """One optimizer step with learning rates by parameter group; gradients are scaled first."""

    def zero_grad(self) -> None:
        """Forgets all gradients, in every buffer that holds a part of them."""

    def state_bytes(self) -> int:
        """Bytes of fp32 master weights and of moments on this rank."""

    def export_state(self) -> UnitState | None:
        """The whole state on the group's first rank, None elsewhere. All members must call."""

    def import_state(self, state: UnitState) -> None:
        """Takes over a whole state. All members must call, each with the same state."""


class ShardingBackend(Protocol):
    """Makes sharded units."""

    def wrap(self, name: str, module: nn.Module, group: Group) -> ShardedUnit:
        """Shards ``module`` over ``group``; the unit's own ``module`` takes its place.

        Args:
            name: the unit's name in checkpoints and messages.
        """


def gather_state(
    read: Callable[[str, str | None], Tensor], names: Iterable[str], group: Group, *, num_steps: int
) -> UnitState | None:
    """A unit's whole state on the group's first rank, None elsewhere. All members must call.

    Args:
        read: (parameter's name, moment's name or None for the weight) -> the whole tensor; a
            collective over the group.
        num_steps: without a step there are no moments.
    """
    parts: dict[str | None, dict[str, Tensor]] = {part: {} for part in (None, *MOMENTS)}
    for name in names:
        for part, tensors in parts.items():
            if part is not None and num_steps == 0:
                continue
            # One tensor at a time is whole; only the first rank keeps it.
            whole = read(name, part)
            if group.rank == 0:
                tensors[name] = whole.detach().cpu().contiguous()
    if group.rank != 0:
        return None
    weights, first_moments, second_moments = parts.values()
    return UnitState(
        weights=weights,
        first_moments=first_moments,
        second_moments=second_moments,
        num_steps=num_steps,
    )


def check_fits(state: UnitState, shapes: Mapping[str, torch.Size], *, unit: str) -> None:
    """Compares a whole state with the parameters it is to be loaded into.

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
