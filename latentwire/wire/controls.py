"""Controls on a wire: one that reads as well as the real wire shows that nothing is carried."""

import random
from collections.abc import Sequence

from torch import Tensor

from latentwire.data.example import Example
from latentwire.data.prompts import DecoderPrompts


def zero(latents: Tensor) -> Tensor:
    """The wire with every latent zero; adapters and lengths stay as they are."""
    return latents * 0


def wrong_slots(
    examples: Sequence[Example], prompts: DecoderPrompts, *, seed: int
) -> dict[str, str]:
    """For what each example's wire stands for, the same with another document's context: where a
    wire carries the question, it is the same question.

    Args:
        prompts: any decoder's; what a slot stands for is the same for all.

    Raises:
        ValueError: all examples have the same context.
    """
    other = wrong_texts([example.context for example in examples], seed=seed)
    return {
        prompts.slot_text(example): prompts.slot_text(example, context=other[example.context])
        for example in examples
    }


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
