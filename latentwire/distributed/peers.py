"""Who the other ranks are, and what it means in words when one of them is lost."""

import os
import re
import socket
from contextlib import suppress
from dataclasses import dataclass

from latentwire.distributed.groups import Group
from latentwire.distributed.messages import broadcast_json, gather_json

_CLOSED = re.compile(
    r"closed by peer|reset by peer|connection refused|broken pipe|socket closed"
    r"|remote process exited|network error",
    re.IGNORECASE,
)
_SILENT = re.compile(r"timed? ?out", re.IGNORECASE)
_ADDRESS = re.compile(r"\[([0-9a-f.:]+)\]:\d+", re.IGNORECASE)


class LostPeerError(RuntimeError):
    """Another rank is gone or does not answer; the words are for people."""


@dataclass(frozen=True, kw_only=True)
class Peers:
    """Where every rank is, by global rank."""

    hosts: tuple[str, ...]
    addresses: tuple[str, ...]

    def at(self, address: str) -> str:
        """Who is at an address, in words."""
        address = address.removeprefix("::ffff:")
        ranks = [rank for rank, own in enumerate(self.addresses) if own == address]
        # On one machine, and where a rank is reached by another address than it thinks.
        if not ranks or len(ranks) == len(self.addresses):
            return f"another rank ({address})"
        numbers = ", ".join(map(str, ranks))
        return f"node {self.hosts[ranks[0]]} ({address}, rank{'s' * (len(ranks) > 1)} {numbers})"


def meet(world: Group) -> Peers:
    """Tells every rank where all are. All must call."""
    found = gather_json([socket.gethostname(), _own_address()], world)
    hosts, addresses = zip(*broadcast_json(found, world), strict=True)
    return Peers(hosts=hosts, addresses=addresses)


def _own_address() -> str:
    """The address by which this rank reaches the launcher's store; nothing is sent."""
    host = os.environ.get("MASTER_ADDR")
    with suppress(OSError):
        for family, kind, *_, where in socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM):
            with socket.socket(family, kind) as probe:
                probe.connect(where)
                return str(probe.getsockname()[0])
    return ""


def lost_peer(error: BaseException, peers: Peers | None, *, timeout: float, key: str) -> str:
    """What a failed collective says about another rank, in words; empty where it says nothing.

    Args:
        timeout: seconds that the ranks have had, by the configuration's ``key``.
    """
    text = str(error)
    if _CLOSED.search(text):
        address = _ADDRESS.search(text)
        who = peers.at(address[1]) if address and peers else "another rank"
        return f"{who} is gone: its connection was closed"
    if _SILENT.search(text):
        return (
            f"another rank did not answer for {timeout:g} s ({key}): a node or a process is dead, "
            "hangs or cannot be reached"
        )
    return ""
