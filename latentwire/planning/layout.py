"""The groups of a job on its nodes, and where that costs more than it must."""

from dataclasses import dataclass

from latentwire.distributed.topology import GroupSpec, Topology


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """The machines of a job; ranks fill them in order."""

    num_nodes: int
    gpus_per_node: int

    @property
    def world_size(self) -> int:
        return self.num_nodes * self.gpus_per_node

    def of(self, group: GroupSpec) -> dict[int, int]:
        """How many of a group's ranks each node has."""
        found: dict[int, int] = {}
        for rank in group.ranks:
            node = rank // self.gpus_per_node
            found[node] = found.get(node, 0) + 1
        return found


def table(topology: Topology, nodes: Nodes) -> list[str]:
    """The groups with their nodes, a line each."""
    width = max(len(group.decoder) for group in topology.groups)
    lines = [
        f"{topology.world_size} ranks, {topology.placement}: "
        f"{nodes.num_nodes} x {nodes.gpus_per_node} GPUs"
    ]
    for group in topology.groups:
        first, last = group.ranks[0], group.ranks[-1]
        ranks = f"rank {first}" if first == last else f"ranks {first}-{last}"
        on = nodes.of(group)
        counts = sorted(set(on.values()))
        each = "" if len(on) == 1 else f" ({' or '.join(map(str, counts))} on each)"
        where = f"node {min(on)}" if len(on) == 1 else f"nodes {min(on)}-{max(on)}"
        lines.append(f"  {group.decoder:<{width}}  {group.size:>4}: {ranks}, {where}{each}")
    return lines


def warnings(topology: Topology, nodes: Nodes) -> list[str]:
    """Groups that stand unevenly on several nodes; what a step waits for is their slowest link."""
    found = []
    for group in topology.groups:
        counts = nodes.of(group)
        if len(counts) > 1 and len(set(counts.values())) > 1:
            found.append(
                f"the group of '{group.decoder}' has {', '.join(map(str, counts.values()))} ranks "
                f"on nodes {min(counts)} to {max(counts)}; with decoders.{group.decoder}.ranks a "
                f"multiple of {nodes.gpus_per_node} it would have whole nodes"
            )
    return found
