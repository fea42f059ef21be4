"""Shards sent from rank to rank arrive as torch's collectives bring them."""

from typing import Any

import pytest
import torch
import torch.distributed as dist

from latentwire.distributed.pairwise import PairwiseAllGather, PairwiseReduceScatter
from latentwire.testing import run_distributed

NUM = 5


def both_on_rank(rank: int, world_size: int) -> dict[str, Any]:
    """What every rank gets, in a group that leaves the first of several ranks out."""
    members = list(range(1, world_size))
    group = dist.new_group(members)
    if rank not in members:
        return {}
    size, own = group.size(), group.rank()
    generator = torch.Generator().manual_seed(rank)
    shard = torch.randn(NUM, generator=generator)
    gradient = torch.randn(size * NUM, generator=generator)
    reference = {
        "gathered": [torch.empty(NUM) for _ in range(size)],
        "summed": gradient.clone(),
    }
    dist.all_gather(reference["gathered"], shard, group=group)
    dist.all_reduce(reference["summed"], group=group)
    summed = reference["summed"].chunk(size)[own]

    found = {}
    apart = torch.empty(size * NUM)
    PairwiseAllGather()(apart, shard, group)
    inside = torch.empty(size * NUM)
    inside.chunk(size)[own].copy_(shard)
    PairwiseAllGather()(inside, inside.chunk(size)[own], group)
    whole = torch.cat(reference["gathered"])
    found["gather"] = torch.equal(apart, whole) and torch.equal(inside, whole)
    before = gradient.clone()
    for op, by in ((dist.ReduceOp.SUM, 1), (dist.ReduceOp.AVG, size)):
        output = torch.full((NUM,), torch.nan)
        PairwiseReduceScatter()(output, gradient, group, op)
        found[str(op)] = torch.allclose(output, summed / by, atol=1e-6)
    found["input is kept"] = torch.equal(gradient, before)
    return found


@pytest.mark.parametrize("world_size", [3, 4, 5])
def test_shards_arrive_as_by_collectives(world_size: int) -> None:
    found = [rank for rank in run_distributed(both_on_rank, world_size) if rank]
    assert len(found) == world_size - 1
    assert all(all(rank.values()) and len(rank) == 4 for rank in found), found
