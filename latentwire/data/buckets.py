"""Batches of alike lengths: chunks within reach of each other, sorted and dealt into batches.

As in the samplers that group by length, only neighbours in the shuffled order are sorted, so that
which texts meet in a batch, and which batches follow each other, stay random. Batches are filled
exactly where chunks allow it, so that their limits are those of the global batches.
"""

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T", bound=Sequence[object])


def windows(chunks: Sequence[T], size: int) -> list[list[T]]:
    """``chunks`` in their order, cut into runs of ``size`` examples or a few more."""
    found: list[list[T]] = []
    left = 0
    for chunk in chunks:
        if left <= 0:
            found.append([])
            # What the run before had too much is not missing in this one.
            left += size
        found[-1].append(chunk)
        left -= len(chunk)
    return found


def dealt(
    chunks: Sequence[T],
    length: Callable[[T], int],
    *,
    batch_size: int,
    offset: int,
    rng: random.Random,
) -> list[T]:
    """The chunks of a window, in batches of alike lengths.

    Args:
        length: of a chunk's text, in any unit.
        batch_size: examples of a global batch.
        offset: examples in front of the window, from the first global batch on.
    """
    # Chunks of one length keep their shuffled order.
    waiting = sorted(chunks, key=length)
    head = -offset % batch_size
    # What completes the batch that the window before has begun comes from anywhere.
    first = _filled(waiting, head, batch_size, rng.randrange(len(waiting))) if head else []
    batches = []
    while waiting:
        batches.append(_filled(waiting, batch_size, batch_size, 0))
    # What is too little for a batch is gone on with by the next window.
    last = [batches.pop()] if batches and _size(batches[-1]) % batch_size else []
    rng.shuffle(batches)
    return [chunk for batch in [first, *batches, *last] for chunk in batch]


def _filled(waiting: list[T], room: int, batch_size: int, place: int) -> list[T]:
    """Takes from ``waiting``, from ``place`` on, what fills ``room`` and, where no chunk fits the
    rest of it, as many whole batches behind it as it takes to end with one."""
    taken: list[T] = []
    while room and waiting:
        place = min(place, len(waiting) - 1)
        fitting = (i for i in range(place, len(waiting)) if len(waiting[i]) <= room)
        place = next(fitting, place)
        taken.append(waiting.pop(place))
        room = (room - len(taken[-1])) % batch_size
    return taken


def _size(batch: Sequence[T]) -> int:
    return sum(len(chunk) for chunk in batch)
