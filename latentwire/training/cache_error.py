"""What ends a run that cannot keep, or read, what it computes once."""

from latentwire.distributed.groups import Group
from latentwire.distributed.messages import broadcast_json, gather_json


class CacheError(OSError):
    """A cache cannot be written or read, on every rank alike; what is published stays."""


def raise_agreed(problem: OSError | None, world: Group, *, what: str) -> None:
    """Raises one rank's problem on every rank. All must call.

    Args:
        what: the cache, as the message names it.

    Raises:
        CacheError: a rank has a problem.
    """
    own = None if problem is None else [problem.errno, str(problem)]
    every = gather_json(own, world)
    first = next((found for found in every or [] if found is not None), None)
    found = broadcast_json(first, world)
    if found is not None:
        raise CacheError(found[0], f"{what}: {found[1]}")
