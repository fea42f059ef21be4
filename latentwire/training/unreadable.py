"""What ends a run where a file cannot be read now: what is in it is unknown, not damaged."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from latentwire.distributed.groups import Group
from latentwire.distributed.messages import broadcast_json, gather_json

_SHOWN = 5
"""Ranks that a message names."""


class UnreadableError(OSError):
    """A file of a run cannot be read, on every rank alike; it stays where it is."""


def agreed(work: Callable[[], Any], world: Group, *, what: Path) -> list[Any]:
    """Runs ``work`` on every rank. All must call.

    Args:
        what: named where the system does not name a file.

    Returns:
        Each rank's result as JSON has it, on every rank.

    Raises:
        UnreadableError: on every rank alike, where any rank had an ``OSError``.
    """
    value, trouble = None, ""
    try:
        value = work()
    except OSError as error:
        words = error.strerror or str(error)
        trouble = f"rank {world.rank} cannot read {error.filename or what}: {words}"
    gathered = gather_json([value, trouble], world)
    outcomes = broadcast_json(gathered, world)
    if found := [trouble for _, trouble in outcomes if trouble]:
        text = "; ".join(found[:_SHOWN])
        raise UnreadableError(f"{text}; it may be whole, so nothing was put aside")
    return [value for value, _ in outcomes]


def agreed_first(work: Callable[[], Any], world: Group, *, what: Path) -> Any:
    """What ``work`` gives on rank 0, on every rank; as ``agreed``. All must call."""
    return agreed(lambda: work() if world.rank == 0 else None, world, what=what)[0]
