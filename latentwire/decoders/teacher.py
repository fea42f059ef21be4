"""The text teacher: what the frozen decoder itself says after reading the text."""

from collections.abc import Sequence

import torch

from latentwire.data.example import Example
from latentwire.data.loader import text_batch
from latentwire.data.prompts import DecoderPrompts
from latentwire.decoders.frozen import Answered, FrozenDecoder


@torch.no_grad()
def teacher(
    decoder: FrozenDecoder,
    prompts: DecoderPrompts,
    examples: Sequence[Example],
    *,
    layers: tuple[int, ...] = (),
) -> Answered:
    """What the decoder says at the answer positions after the text prompt.

    Args:
        layers: whose states are wanted beside the logits.
    """
    batch = text_batch([prompts.text(example) for example in examples], pad=prompts.pad)
    return decoder.answer(batch.to(decoder.device), layers=layers)
