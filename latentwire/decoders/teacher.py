"""The text teacher: what the frozen decoder itself says after reading the text."""

from collections.abc import Sequence

import torch

from latentwire.data.batch import PromptBatch
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
    return read_text(decoder, batch, layers=layers)


@torch.no_grad()
def read_text(
    decoder: FrozenDecoder, batch: PromptBatch, *, layers: tuple[int, ...] = ()
) -> Answered:
    """``teacher`` of prompts that are laid out."""
    return decoder.answer(batch.to(decoder.device), layers=layers)
