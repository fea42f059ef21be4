"""Which decoder lives on which ranks: pure data, the same on every rank, no torch.

The layout is a function of the configuration and the world size, computed before any process
group exists, so a bad layout is a message and never a hang.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from latentwire.config import DecoderConfig


@dataclass(frozen=True, kw_only=True)
class GroupSpec:
    """The ranks that hold one decoder."""

    decoder: str
    ranks: tuple[int, ...]
    shard: int = 1
    """Ranks that hold one copy of the decoder's weights together."""

    @property
    def size(self) -> int:
        return len(self.ranks)

    @property
    def copies(self) -> tuple[tuple[int, ...], ...]:
        """The ranks of each copy of the decoder's weights: neighbours."""
        starts = range(0, self.size, self.shard)
        return tuple(self.ranks[start : start + self.shard] for start in starts)


@dataclass(frozen=True, kw_only=True)
class Topology:
    """Every group of the job, in the order in which all ranks create them."""

    world_size: int
    placement: Literal["separate", "colocated"]
    groups: tuple[GroupSpec, ...]

    def hosted_by(self, rank: int) -> tuple[GroupSpec, ...]:
        """The groups a global rank belongs to, in order."""
        return tuple(group for group in self.groups if rank in group.ranks)

    def group(self, decoder: str) -> GroupSpec:
        return next(group for group in self.groups if group.decoder == decoder)

    def table(self) -> str:
        """The layout for people, one line a group."""
        lines = [f"{self.world_size} ranks, {self.placement}"]
        width = max(len(group.decoder) for group in self.groups)
        for group in self.groups:
            ranks = ", ".join(str(rank) for rank in group.ranks)
            lines.append(f"  {group.decoder:<{width}}  {group.size} ranks: {ranks}")
            if group.shard > 1:
                copies = ", ".join("+".join(map(str, copy)) for copy in group.copies)
                lines[-1] += f"; a copy of the weights on {copies}"
        return "\n".join(lines)


def plan(decoders: Mapping[str, DecoderConfig], *, placement: str, world_size: int) -> Topology:
    """Lays the decoders out over the world.

    With ``separate`` each decoder has its own ranks: ``ranks`` where it names them, the rest by
    ``share``, leftover ranks going to decoders in configuration order.

    Raises:
        ValueError: naming the key and the fix, when the layout cannot be made.
    """
    if placement == "auto":
        placement = "separate" if world_size >= len(decoders) else "colocated"
    if placement == "colocated":
        for name, decoder in decoders.items():
            if decoder.ranks not in (None, world_size):
                raise ValueError(
                    f"decoders.{name}.ranks: {decoder.ranks}, but placement=colocated puts every "
                    f"decoder on all {world_size} ranks; remove it or use placement=separate"
                )
        everyone = tuple(range(world_size))
        groups = tuple(GroupSpec(decoder=name, ranks=everyone) for name in decoders)
        groups = _sharded(groups, decoders)
        return Topology(world_size=world_size, placement="colocated", groups=groups)
    sizes = _sizes(decoders, world_size)
    separate: list[GroupSpec] = []
    start = 0
    for name, size in sizes.items():
        separate.append(GroupSpec(decoder=name, ranks=tuple(range(start, start + size))))
        start += size
    groups = _sharded(separate, decoders)
    topology = Topology(world_size=world_size, placement="separate", groups=groups)
    _check(topology)
    return topology


def _sharded(
    groups: Sequence[GroupSpec], decoders: Mapping[str, DecoderConfig]
) -> tuple[GroupSpec, ...]:
    """The groups with the number of ranks that hold a copy."""
    problems = []
    for group in groups:
        shard, size = decoders[group.decoder].shard, group.size
        if size % shard:
            divisors = ", ".join(str(n) for n in range(1, size + 1) if size % n == 0)
            problems.append(
                f"decoders.{group.decoder}.shard: {shard} does not divide the {size} ranks of its "
                f"group; use one of {divisors}, or give it a multiple of {shard} ranks"
            )
    if problems:
        raise ValueError("; ".join(problems))
    return tuple(replace(group, shard=decoders[group.decoder].shard) for group in groups)


def _sizes(decoders: Mapping[str, DecoderConfig], world_size: int) -> dict[str, int]:
    if world_size < len(decoders):
        raise ValueError(
            f"placement: separate needs a rank for each of {len(decoders)} decoders, the world has "
            f"{world_size}; start {len(decoders)} processes or use placement=colocated"
        )
    fixed = {name: d.ranks for name, d in decoders.items() if d.ranks is not None}
    free = {name: d.share for name, d in decoders.items() if d.ranks is None}
    left = world_size - sum(fixed.values())
    if left < len(free) or (left > 0 and not free):
        raise ValueError(
            f"decoders.<name>.ranks: {fixed} take {sum(fixed.values())} of {world_size} ranks, "
            f"which leaves {left} for {len(free)} other decoders; make them add up to the world"
        )
    shares = _shared_out(free, left)
    return {name: fixed.get(name, shares.get(name, 0)) for name in decoders}


def _shared_out(shares: Mapping[str, float], total: int) -> dict[str, int]:
    """``total`` ranks by share: at least one each, the leftover in configuration order."""
    if not shares:
        return {}
    # Exact in decimals: 0.3 of 0.4 is three quarters, which floats miss by a hair.
    exact = {name: Fraction(str(share)) for name, share in shares.items()}
    weight = sum(exact.values())
    sizes = {name: max(1, int(total * share / weight)) for name, share in exact.items()}
    while sum(sizes.values()) > total:
        # The minimum of one rank took more than a share allows: the largest gives one back.
        largest = max(sizes, key=lambda name: sizes[name])
        sizes[largest] -= 1
    names = list(sizes)
    for index in range(total - sum(sizes.values())):
        sizes[names[index % len(names)]] += 1
    return sizes


def _check(topology: Topology) -> None:
    covered = [rank for group in topology.groups for rank in group.ranks]
    assert covered == list(range(topology.world_size)), "groups are disjoint and cover the world"


def batch_problems(
    topology: Topology, *, batch_size: int, accumulation: int, key: str = "train.batch_size"
) -> list[str]:
    """Why the batch cannot be split over every group, with the nearest sizes that can.

    Args:
        key: what sets the size.
    """
    needs = {topology.world_size: "the world"}
    needs |= {group.size: f"the group of '{group.decoder}'" for group in topology.groups}
    micro = batch_size // accumulation
    bad = [f"{size} ranks of {name}" for size, name in needs.items() if micro % size]
    if not bad:
        return []
    unit = accumulation * math.lcm(*needs)
    below, above = batch_size // unit * unit, (batch_size // unit + 1) * unit
    nearest = f"{below} or {above}" if below else str(above)
    return [
        f"{key}: a micro-batch of {batch_size} / {accumulation} = {micro} examples does "
        f"not divide by the {' and the '.join(bad)}; the nearest valid sizes are {nearest}"
    ]


def eval_batch_size(topology: Topology, batch_size: int) -> int:
    """The evaluation batch rounded up to a size that every group can split."""
    unit = math.lcm(topology.world_size, *(group.size for group in topology.groups))
    return -(-batch_size // unit) * unit
