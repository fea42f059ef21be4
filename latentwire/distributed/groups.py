"""Process groups: all created up front, by all ranks, in one order; each named, each timed.

``start`` works under torchrun and without it, where the world is this one process.
"""

import hashlib
import os
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.device_mesh import DeviceMesh

from latentwire.distributed.topology import GroupSpec, Topology


class LayoutError(ValueError):
    """The ranks do not agree on who holds what; every rank raises it."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """One process group that this process is a member of."""

    name: str
    ranks: tuple[int, ...]
    """Global ranks, in group order."""
    handle: dist.ProcessGroup
    """Carries tensors of the training device."""
    bookkeeping: dist.ProcessGroup
    """A gloo group of the same ranks for counts, metrics and agreement."""
    saving: dist.ProcessGroup
    """A gloo group of the same ranks that belongs to the thread that writes checkpoints."""
    mesh: DeviceMesh
    """The same ranks as a one-dimensional mesh."""
    host_mesh: DeviceMesh
    """The same over host memory, by ``saving``."""

    @property
    def size(self) -> int:
        return len(self.ranks)

    @property
    def rank(self) -> int:
        """This process's rank inside the group."""
        return self.ranks.index(dist.get_rank())

    def for_saving(self) -> "Group":
        """The same ranks, with messages that never meet those of the training thread."""
        return replace(self, bookkeeping=self.saving)


class ProcessGroups:
    """Owner of every process group of the job.

    Args:
        timeout: seconds that a message may take before it ends the job.
        step_timeout: the same while steps are made; ``timeout`` where none is given.
    """

    def __init__(
        self,
        topology: Topology,
        *,
        device: torch.device,
        timeout: float,
        step_timeout: float | None = None,
    ) -> None:
        self.topology = topology
        self.device = device
        self.rank = dist.get_rank()
        self.timeout = timeout
        """Seconds that a message of the training thread may take at present."""
        self._long = timeout
        self._short = timeout if step_timeout is None else step_timeout
        _check_alike(topology)
        limit = timedelta(seconds=timeout)
        everyone = tuple(range(topology.world_size))
        self.world = self._create("world", everyone, limit)
        self._decoders = {
            spec.decoder: self._create(spec.decoder, spec.ranks, limit) for spec in topology.groups
        }
        self._copies = {
            spec.decoder: self._create_copies(spec, limit)
            for spec in topology.groups
            if spec.shard > 1
        }

    def _create(self, name: str, ranks: tuple[int, ...], limit: timedelta) -> Any:
        # Every rank enters every new_group in the same order, member or not.
        handle = dist.new_group(list(ranks), timeout=limit, group_desc=name)
        bookkeeping = dist.new_group(
            list(ranks), timeout=limit, backend="gloo", group_desc=f"{name}/bookkeeping"
        )
        saving = dist.new_group(
            list(ranks), timeout=limit, backend="gloo", group_desc=f"{name}/saving"
        )
        if self.rank not in ranks:
            return None
        return Group(
            name=name,
            ranks=ranks,
            handle=handle,
            bookkeeping=bookkeeping,
            saving=saving,
            mesh=DeviceMesh.from_group(handle, self.device.type),
            host_mesh=DeviceMesh.from_group(saving, "cpu"),
        )

    def _create_copies(self, spec: GroupSpec, limit: timedelta) -> Any:
        """A group for each copy of a sharded decoder; the one that this process belongs to."""
        found = None
        for number, ranks in enumerate(spec.copies):
            found = self._create(f"{spec.decoder}/copy {number}", ranks, limit) or found
        return found

    def expect_steps(self) -> None:
        """From here on ranks answer soon: a message may take ``step_timeout``.

        The saving groups keep their time: what a rank waits for there is another's disk.
        """
        self._limit(self._short)

    def expect_waits(self) -> None:
        """Ranks may be busy for long, each for itself, as in loading: back to ``timeout``."""
        self._limit(self._long)

    def _limit(self, seconds: float) -> None:
        if seconds == self.timeout:
            return
        self.timeout = seconds
        every = (self.world, *self._decoders.values(), *self._copies.values())
        own = [group for group in every if group is not None]
        handles = [handle for group in own for handle in (group.handle, group.bookkeeping)]
        # The default group too: libraries use it where they are given none.
        for handle in (None, *handles):
            distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), handle)

    @property
    def hosted(self) -> tuple[GroupSpec, ...]:
        """The decoders this process hosts."""
        return self.topology.hosted_by(self.rank)

    def decoder(self, name: str) -> Group:
        """The group of a decoder this process hosts.

        Raises:
            ValueError: when this process is no member, since a collective would silently do
                nothing.
        """
        group: Group | None = self._decoders[name]
        if group is None:
            raise ValueError(f"rank {self.rank} does not belong to the group of decoder '{name}'")
        return group

    def copy_of(self, name: str) -> Group | None:
        """The ranks that hold this process's copy of a decoder's weights together with it; None
        where the decoder is not sharded, or not hosted here."""
        group: Group | None = self._copies.get(name)
        return group


def _check_alike(topology: Topology) -> None:
    """That every rank has this very layout, before any group is made of it. All must call."""
    digest = hashlib.sha256(repr(topology).encode()).digest()
    own = torch.tensor([*digest[:8], topology.ranks_per_node or 0], dtype=torch.int64)
    every = [torch.zeros_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(every, own)
    if any(not torch.equal(other, own) for other in every):
        raise LayoutError(
            "placement: the ranks do not agree on who holds which decoder, as when nodes have "
            "different numbers of processes; start every node with the same command and NPROC"
        )


def launch_rank() -> int:
    """This process's global rank as the launcher set it, before any process group exists."""
    return int(os.environ.get("RANK", "0"))


def launch_world_size() -> int:
    """The world size as the launcher set it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launch_ranks_per_node() -> int | None:
    """Processes of each node as the launcher set it; None where it did not, or nodes differ."""
    per_node = int(os.environ.get("LOCAL_WORLD_SIZE", "0"))
    num_nodes = int(os.environ.get("GROUP_WORLD_SIZE", "0"))
    return per_node if 0 < per_node * num_nodes == launch_world_size() else None


def pick_device() -> torch.device:
    """This process's device: its own GPU where there are any, else the CPU."""
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        return device
    return torch.device("cpu")


def start(device: torch.device, *, timeout: float) -> None:
    """Joins the default process group unless that is done; a world of one without a launcher."""
    if dist.is_initialized():
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    limit = timedelta(seconds=timeout)
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=limit)
        return
    store = dist.HashStore()
    dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=limit)


def stop() -> None:
    """Leaves the default process group. All ranks must call: NCCL waits for them, so a rank that
    fails ends without."""
    if dist.is_initialized():
        dist.destroy_process_group()
