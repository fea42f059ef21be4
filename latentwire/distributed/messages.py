"""JSON between ranks: what bookkeeping needs to say, without pickled objects."""

import json
from typing import Any

import torch
import torch.distributed as dist

from latentwire.distributed.groups import Group


def gather_json(value: Any, group: Group) -> list[Any] | None:
    """Every member's ``value`` in group order on the group's first rank, None elsewhere."""
    data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    size = torch.tensor([data.numel()])
    sizes = [torch.zeros_like(size) for _ in range(group.size)]
    dist.all_gather(sizes, size, group=group.bookkeeping)
    longest = int(max(sizes))
    padded = torch.zeros(longest, dtype=torch.uint8)
    padded[: data.numel()] = data
    first = group.rank == 0
    boxes = [torch.zeros_like(padded) for _ in range(group.size)] if first else None
    dist.gather(padded, boxes, group=group.bookkeeping, group_dst=0)
    if boxes is None:
        return None
    return [
        json.loads(bytes(box[: int(length)].numpy()))
        for box, length in zip(boxes, sizes, strict=True)
    ]


def broadcast_json(value: Any, group: Group) -> Any:
    """The first rank's ``value`` on every member."""
    encoded = json.dumps(value).encode() if group.rank == 0 else b""
    size = torch.tensor([len(encoded)])
    dist.broadcast(size, group=group.bookkeeping, group_src=0)
    data = torch.zeros(int(size), dtype=torch.uint8)
    if group.rank == 0:
        data.copy_(torch.frombuffer(bytearray(encoded), dtype=torch.uint8))
    dist.broadcast(data, group=group.bookkeeping, group_src=0)
    return json.loads(bytes(data.numpy()))


def barrier(group: Group) -> None:
    """Waits for every member."""
    dist.barrier(group=group.bookkeeping)
