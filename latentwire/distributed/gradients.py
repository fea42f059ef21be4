"""The true global gradient over units that live on different groups: norm, clipping, finiteness."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from latentwire.distributed.groups import Group
from latentwire.distributed.sharding import ShardedUnit
from latentwire.wire.parts import PARTS


@dataclass(frozen=True, kw_only=True)
class GlobalGradient:
    """The whole gradient of a step, the same on every rank."""

    norm: Tensor
    """Norm over every unit on every group, each shard counted once."""
    squares: dict[str, Tensor]
    """Squared norm by unit, as ``Job.unit_names`` has them."""
    part_squares: dict[str, dict[str, Tensor]]
    """The same by unit and part of it; a part that the unit does not have has 0."""
    finite: Tensor
    """Whether every loss and every gradient of every rank is finite, on the device."""
    is_finite: "OnHost"
    """The same on its way to the host."""


class OnHost:
    """A truth value of the device's, which the host asks for later, without waiting for what the
    device was given since."""

    def __init__(self, value: Tensor) -> None:
        self._host = value
        self._copied: torch.cuda.Event | None = None
        if value.device.type == "cuda":
            self._host = torch.empty((), dtype=torch.bool, pin_memory=True)
            self._host.copy_(value, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def __bool__(self) -> bool:
        if self._copied is not None:
            self._copied.synchronize()
        return bool(self._host.numpy())


def global_gradient(
    units: Mapping[str, ShardedUnit], names: Sequence[str], loss: Tensor, world: Group
) -> GlobalGradient:
    """Measures the gradient before the step, and agrees on whether there may be one.

    Args:
        units: this rank's units.
        names: every unit of the job, in one order on all ranks.
        loss: this rank's loss; it need not be the same elsewhere.

    One SUM over the world; SUM keeps a NaN, which MAX on gloo can lose.
    """
    totals = torch.zeros(len(names) * len(PARTS) + 1, device=loss.device)
    for index, name in enumerate(names):
        if name in units:
            for part, square in units[name].local_grad_squares().items():
                totals[index * len(PARTS) + PARTS.index(part)] = square
    totals[-1] = (~torch.isfinite(loss)).float()
    if world.size > 1:
        dist.all_reduce(totals, group=world.handle)
    table = totals[:-1].view(len(names), len(PARTS))
    norm = table.sum().sqrt()
    finite = torch.isfinite(norm) & (totals[-1] == 0)
    return GlobalGradient(
        norm=norm,
        squares=dict(zip(names, table.sum(1), strict=True)),
        part_squares={
            name: dict(zip(PARTS, row, strict=True)) for name, row in zip(names, table, strict=True)
        },
        finite=finite,
        is_finite=OnHost(finite),
    )


def clip_factor(norm: Tensor, max_norm: float) -> Tensor:
    """What brings the gradient's norm down to ``max_norm``; 0 never clips."""
    if not max_norm:
        return torch.ones_like(norm)
    return (max_norm / (norm + 1e-6)).clamp(max=1.0)
