"""The true global gradient norm over units that live on different groups, and its clip factor."""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from latentwire.distributed.groups import Group
from latentwire.distributed.sharding import ShardedUnit


def global_norm(
    units: Mapping[str, ShardedUnit], names: Sequence[str], world: Group, device: torch.device
) -> Tensor:
    """Norm of the whole gradient: every unit on every group, each shard counted once.

    Args:
        units: this rank's units.
        names: every unit of the job, in one order on all ranks.

    One SUM over the world; SUM keeps a NaN, which MAX on gloo can lose.
    """
    squares = torch.zeros(len(names), device=device)
    for index, name in enumerate(names):
        if name in units:
            squares[index] = units[name].local_grad_square()
    if world.size > 1:
        dist.all_reduce(squares, group=world.handle)
    return squares.sum().sqrt()


def clip_factor(norm: Tensor, max_norm: float) -> Tensor:
    """What brings the gradient's norm down to ``max_norm``; 0 never clips."""
    if not max_norm:
        return torch.ones_like(norm)
    return (max_norm / (norm + 1e-6)).clamp(max=1.0)
