"""A frozen causal LM in use, of which several ranks hold one copy together (FSDP2).

Layers are gathered one by one as they run. The input embeddings are not gathered to be looked up
in: each rank looks up what it holds.

All ranks of a copy must read as often as each other: every forward, lookup and gathered table is
one of all of them, and so is every backward.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from latentwire.collectives import all_gather, reduce_scatter
from latentwire.wire.backbones import transformer_layers


@dataclass(frozen=True, kw_only=True)
class CopyRanks:
    """The ranks that hold one copy of a decoder together."""

    mesh: DeviceMesh
    """One-dimensional, on the decoder's device."""
    bookkeeping: dist.ProcessGroup
    """A gloo group of the same ranks."""

    @property
    def size(self) -> int:
        return self.mesh.size()

    @property
    def rank(self) -> int:
        """This process's place among them."""
        return self.mesh.get_local_rank()

    def all_agree(self, flag: bool) -> bool:
        """Whether ``flag`` is true on every rank. All must call."""
        number = torch.tensor([int(flag)])
        dist.all_reduce(number, op=dist.ReduceOp.MIN, group=self.bookkeeping)
        return bool(number)

    def total(self, values: Tensor) -> Tensor:
        """The sum of every rank's ``values``, on the host. All must call."""
        values = values.cpu()
        dist.all_reduce(values, group=self.bookkeeping)
        return values

    def largest(self, number: int) -> int:
        """The largest of every rank's numbers. All must call."""
        found = torch.tensor([number])
        dist.all_reduce(found, op=dist.ReduceOp.MAX, group=self.bookkeeping)
        return int(found)


class ShardedTable:
    """The input embeddings of a sharded model.

    Args:
        embed: an embedding whose weight is sharded by rows.
        scale: what it multiplies the rows with.
    """

    def __init__(self, embed: Any, ranks: CopyRanks, *, scale: float) -> None:
        self._embed, self._ranks, self._scale = embed, ranks, scale

    def lookup(self, ids: Tensor) -> Tensor:
        """[...] token ids -> [..., hidden]. All ranks must call, each with ids of its own."""
        weight = self._embed.weight
        if not isinstance(weight, DTensor):  # tied to an output layer that is whole at present
            return self._scaled(F.embedding(ids, weight))
        own, ranks = weight.to_local(), self._ranks
        longest = ranks.largest(ids.numel())
        asked = F.pad(ids.flatten(), (0, longest - ids.numel()))
        every = asked.new_empty(ranks.size * longest)
        group = ranks.mesh.get_group()
        all_gather(every, asked, group=group)
        place = every - ranks.rank * -(-len(weight) // ranks.size)
        there = (place >= 0) & (place < len(own))
        found = own.new_zeros(len(every), own.shape[1])
        if len(own):
            found = F.embedding(place.clamp(0, len(own) - 1), own)
            found = found.masked_fill(~there[:, None], 0)
        # One rank has the vector and all others zeros, so nothing is rounded.
        mine = found.new_empty(longest, own.shape[1])
        reduce_scatter(mine, found, group=group)
        return self._scaled(mine[: ids.numel()].view(*ids.shape, -1))

    def whole(self) -> Tensor:
        """All of them [vocabulary, hidden], for as long as the result lives. All must call."""
        weight = self._embed.weight.detach()
        if isinstance(weight, DTensor):
            return self._scaled(weight.full_tensor())
        # A copy: the memory of the gathered one is let go of.
        return self._scaled(weight.clone())

    def own(self) -> Tensor:
        """The rows that this rank holds."""
        weight = self._embed.weight.detach()
        assert isinstance(weight, DTensor), "no forward has run yet"
        return self._scaled(weight.to_local())

    def _scaled(self, rows: Tensor) -> Tensor:
        return rows if self._scale == 1 else rows * self._scale


class _Weight:
    """In place of a gathered weight that backward wants: its memory may be gone by then."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def keep_whole_in_backward(model: nn.Module, *, recomputed: bool) -> None:
    """Has every unit gathered whenever backward reads a weight of it.

    FSDP2 gathers a unit when a gradient comes to its output. In a decoder that reads into a cache,
    gradients come to keys and values too, of a last layer to them alone.

    Args:
        recomputed: layers run again in backward, and keep no weight until then.
    """
    layers = {id(layer) for layer in transformer_layers(model)} if recomputed else set()
    for unit in model.modules():
        if isinstance(unit, FSDPModule):
            run = _gathered_first if id(unit) in layers else _gathered_again
            unit.forward = partial(run, unit, unit.forward)  # type: ignore[attr-defined]


def _gathered_first(unit: Any, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    unit.unshard()
    return forward(*args, **kwargs)


def _gathered_again(unit: Any, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    # Inner units are gathered when they run, within hooks of their own.
    weights = {
        parameter.untyped_storage().data_ptr()
        for parameter in unit.parameters()
        if not isinstance(parameter, DTensor)
    }

    def pack(tensor: Tensor) -> Tensor | _Weight:
        return _Weight(tensor) if tensor.untyped_storage().data_ptr() in weights else tensor

    def unpack(kept: Tensor | _Weight) -> Tensor:
        if not isinstance(kept, _Weight):
            return kept
        # Gathered again, a weight has the memory that it had.
        unit.unshard()
        return kept.tensor

    with saved_tensors_hooks(pack, unpack):
        return forward(*args, **kwargs)
