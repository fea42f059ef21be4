"""Which decoder lives on which ranks: pure data, the same on every rank, no torch.

The layout is a function of the configuration and the world size, computed before any process
group exists, so a bad layout is a message and never a hang.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate
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
    ranks_per_node: int | None = None
    """Ranks of each node, node after node; None where nodes are not known, or are not alike."""

    def nodes_of(self, group: GroupSpec) -> dict[int, int]:
        """How many of a group's ranks each node has, by the node's number."""
        per_node = self.ranks_per_node or self.world_size
        return dict(Counter(rank // per_node for rank in group.ranks))

    @property
    def uneven(self) -> tuple[GroupSpec, ...]:
        """Groups that lie across nodes with more ranks on one than on another."""
        return tuple(group for group in self.groups if len(set(self.nodes_of(group).values())) > 1)

    def warning(self) -> str:
        """What is to be said against the layout, with its table; empty where nothing is."""
        if not self.uneven:
            return ""
        names = ", ".join(f"'{group.decoder}'" for group in self.uneven)
        return (
            f"the group of {names} has more ranks on one node than on another, so that its "
            f"collectives wait for the link between them; decoders.<name>.ranks in multiples of "
            f"{self.ranks_per_node} keep each group on nodes of its own\n{self.table()}"
        )

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
            line = f"  {group.decoder:<{width}}  {group.size} ranks: {ranks}"
            lines.append(line + self._where(group))
            if group.shard > 1:
                copies = ", ".join("+".join(map(str, copy)) for copy in group.copies)
                lines[-1] += f"; a copy of the weights on {copies}"
        return "\n".join(lines)

    def _where(self, group: GroupSpec) -> str:
        if self.ranks_per_node in (None, self.world_size):
            return ""
        nodes = self.nodes_of(group)
        if len(nodes) == 1:
            return f" (node {next(iter(nodes))})"
        return f" (nodes {', '.join(f'{node}: {number}' for node, number in nodes.items())})"


def plan(
    decoders: Mapping[str, DecoderConfig],
    *,
    placement: str,
    world_size: int,
    ranks_per_node: int | None = None,
) -> Topology:
    """Lays the decoders out over the world.

    With ``separate`` each decoder has its own ranks: ``ranks`` where it names them, the rest by
    ``share``, leftover ranks going to decoders in configuration order. Groups keep to as few nodes
    as they can; where it makes no difference they stand in configuration order.

    Args:
        ranks_per_node: ranks of each node, node after node; None where they are not known.

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
        return Topology(
            world_size=world_size,
            placement="colocated",
            groups=_sharded(groups, decoders),
            ranks_per_node=ranks_per_node,
        )
    sizes = _sizes(decoders, world_size)
    layouts = [_in_order(sizes)]
    if ranks_per_node is not None:
        layouts.append(_by_node(sizes, ranks_per_node, world_size // ranks_per_node))
    topologies = [
        Topology(
            world_size=world_size,
            placement="separate",
            groups=tuple(GroupSpec(decoder=name, ranks=ranks) for name, ranks in layout.items()),
            ranks_per_node=ranks_per_node,
        )
        for layout in layouts
    ]
    best = min(topologies, key=_num_pieces)
    _check(best)
    return replace(best, groups=_sharded(best.groups, decoders))


def _in_order(sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    ends = list(accumulate(sizes.values()))
    return {
        name: tuple(range(end - size, end))
        for (name, size), end in zip(sizes.items(), ends, strict=True)
    }


def _by_node(sizes: Mapping[str, int], per_node: int, num_nodes: int) -> dict[str, tuple[int, ...]]:
    """Whole nodes to the largest groups first, then what is left where it fits most tightly."""
    free = [list(range(node * per_node, (node + 1) * per_node)) for node in range(num_nodes)]
    own: dict[str, list[int]] = {name: [] for name in sizes}

    def take(name: str, ranks: list[int], number: int) -> None:
        own[name] += ranks[:number]
        del ranks[:number]

    for name in sorted(sizes, key=lambda name: -sizes[name]):
        for ranks in free:
            if len(ranks) == per_node <= sizes[name] - len(own[name]):
                take(name, ranks, per_node)
    for name in sorted(sizes, key=lambda name: len(own[name]) - sizes[name]):
        while left := sizes[name] - len(own[name]):
            fitting = [ranks for ranks in free if len(ranks) >= left]
            ranks = min(fitting, key=len) if fitting else max(free, key=len)
            take(name, ranks, left)
    return {name: tuple(sorted(ranks)) for name, ranks in own.items()}


def _num_pieces(topology: Topology) -> int:
    return sum(len(topology.nodes_of(group)) for group in topology.groups)


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
    covered = sorted(rank for group in topology.groups for rank in group.ranks)
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
