"""Controls on a wire: one that reads as well as the real wire shows that nothing is carried."""

import random
from collections.abc import Sequence

from torch import Tensor


def zero(latents: Tensor) -> Tensor:
    """The wire with every latent zero; adapters and lengths stay as they are."""
    return latents * 0


def wrong_texts(texts: Sequence[str], *, seed: int) -> dict[str, str]:
    """For each distinct text another one, by a seeded permutation without a fixed point.

    Raises:
        ValueError: with fewer than two distinct texts there is no other one.
    """
    distinct = list(dict.fromkeys(texts))
    if len(distinct) < 2:
        raise ValueError("the wrong-wire control needs at least two different texts")
    order = list(distinct)
    random.Random(seed).shuffle(order)
    # A cycle through the shuffled texts has no fixed point.
    return dict(zip(order, order[1:] + order[:1], strict=True))
