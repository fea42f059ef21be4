"""The text teacher: what the frozen decoder itself says after reading the text."""

from collections.abc import Sequence

import torch
from torch import Tensor

from latentwire.data.example import Example
from latentwire.data.loader import text_batch
from latentwire.data.prompts import DecoderPrompts
from latentwire.decoders.frozen import FrozenDecoder


@torch.no_grad()
def teacher_logits(
    decoder: FrozenDecoder, prompts: DecoderPrompts, examples: Sequence[Example]
) -> Tensor:
    """Logits at the answer positions after the text prompt: [supervised, vocabulary]."""
    batch = text_batch([prompts.text(example) for example in examples], pad=prompts.pad)
    return decoder.answer_logits(batch.to(decoder.device))
