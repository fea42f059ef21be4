"""The groups of a job on its nodes, and where that costs more than it must."""

from collections.abc import Sequence
from dataclasses import dataclass

from latentwire.config import Config
from latentwire.distributed import topology
from latentwire.distributed.topology import Topology
from latentwire.planning.frozen import shard_of


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """The machines of a job; ranks fill them in order."""

    num_nodes: int
    gpus_per_node: int

    @property
    def world_size(self) -> int:
        return self.num_nodes * self.gpus_per_node


def lay_out(config: Config, nodes: Nodes) -> Topology:
    """The layout that a job on all these GPUs would have.

    Raises:
        ValueError: there is none.
    """
    return topology.plan(
        config.decoders,
        placement=config.placement,
        world_size=nodes.world_size,
        ranks_per_node=nodes.gpus_per_node,
    )


def _runs(ranks: Sequence[int]) -> str:
    """Sorted ranks as ``0-3, 8``."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def table(topology: Topology, nodes: Nodes) -> list[str]:
    """The groups with their nodes, a line each."""
    width = max(len(group.decoder) for group in topology.groups)
    lines = [
        f"{topology.world_size} ranks, {topology.placement}: "
        f"{nodes.num_nodes} x {nodes.gpus_per_node} GPUs"
    ]
    for group in topology.groups:
        ranks = f"{'rank' if group.size == 1 else 'ranks'} {_runs(group.ranks)}"
        on = topology.nodes_of(group)
        counts = sorted(set(on.values()))
        each = "" if len(on) == 1 else f" ({' or '.join(map(str, counts))} on each)"
        where = f"node {_runs(sorted(on))}" if len(on) == 1 else f"nodes {_runs(sorted(on))}"
        lines.append(f"  {group.decoder:<{width}}  {group.size:>4}: {ranks}, {where}{each}")
    return lines


def warnings(config: Config, topology: Topology, nodes: Nodes) -> list[str]:
    """Groups that stand unevenly on several nodes, and sharded copies that lie across them: what a
    step waits for is their slowest link."""
    found = []
    for group in topology.groups:
        name, counts = group.decoder, topology.nodes_of(group)
        if group in topology.uneven:
            found.append(
                f"the group of '{name}' has {', '.join(map(str, counts.values()))} ranks on nodes "
                f"{_runs(sorted(counts))}; with decoders.{name}.ranks a multiple of "
                f"{nodes.gpus_per_node} it would have whole nodes"
            )
        shard = shard_of(config.decoders[name])
        copies = (group.ranks[i : i + shard] for i in range(0, group.size, shard))
        if any(len({rank // nodes.gpus_per_node for rank in copy}) > 1 for copy in copies):
            found.append(
                f"a copy of '{name}' lies across nodes, so that its layers cross between them "
                f"several times a step; use a decoders.{name}.shard that divides "
                f"{nodes.gpus_per_node}, and whole nodes"
            )
    return found
