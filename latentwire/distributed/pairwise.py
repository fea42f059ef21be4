"""An all-gather and a reduce-scatter made of messages between pairs, for ranks on CPUs.

Every rank sends each other rank just what that one needs, and receives in place: no rank passes on
what is not its own, and nothing is copied on the way, where gloo's collectives do both. The bytes
that a rank sends are those of a ring, (N - 1) / N of the whole.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def _wait(works: Sequence[dist.Work | None], group: dist.ProcessGroup) -> None:
    # A message by itself would wait as long as the group could when it was made.
    limit = group._get_backend(torch.device("cpu")).options._timeout
    for work in works:
        assert work is not None, "between two members of the group"
        work.wait(limit)


class _Allocates:
    """Buffers of ordinary memory."""

    def allocate(
        self, size: Sequence[int | torch.SymInt], *, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)


class PairwiseAllGather(_Allocates):
    """FSDP2's ``AllGather``: every rank's shard to every rank."""

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        async_op: bool = False,
    ) -> None:
        """Fills ``output_tensor`` [N * n] with the ranks' ``input_tensor`` [n], in group order.

        ``input_tensor`` may be this rank's part of the output. It has happened when this returns,
        whatever ``async_op``.
        """
        size, rank = group.size(), group.rank()
        parts = output_tensor.chunk(size)
        works: list[dist.Work | None] = []
        for step in range(1, size):
            to, source = (rank + step) % size, (rank - step) % size
            works.append(dist.irecv(parts[source], group=group, group_src=source))
            works.append(dist.isend(input_tensor, group=group, group_dst=to))
        if parts[rank].data_ptr() != input_tensor.data_ptr():
            parts[rank].copy_(input_tensor)
        _wait(works, group)


class PairwiseReduceScatter(_Allocates):
    """FSDP2's ``ReduceScatter``: to every rank the sum of its part over all ranks."""

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> None:
        """Writes the ranks' sum, or average, of part ``rank`` of ``input_tensor`` [N * n] to [n].

        Parts are added in one order at every rank: its own, then those of the ranks before it. It
        has happened when this returns, whatever ``async_op``.
        """
        assert op in (dist.ReduceOp.SUM, dist.ReduceOp.AVG), op
        size, rank = group.size(), group.rank()
        assert size > 1, "one rank alone has nobody to reduce with"
        parts = input_tensor.chunk(size)
        received = output_tensor
        for step in range(1, size):
            to, source = (rank + step) % size, (rank - step) % size
            if step == 2:
                received = torch.empty_like(output_tensor)
            works = [
                dist.irecv(received, group=group, group_src=source),
                dist.isend(parts[to], group=group, group_dst=to),
            ]
            _wait(works, group)
            output_tensor.add_(parts[rank] if step == 1 else received)
        if op == dist.ReduceOp.AVG:
            output_tensor.div_(size)
