"""Which of a decoder's tokens each latent stands for, by the characters both cover.

A latent is the mean of a contiguous span of encoder tokens. Through the text itself that span is
also a run of every decoder's own tokens, whatever its tokenizer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from latentwire.data.encoder_texts import EncoderTokenizer
from latentwire.data.prompts import DecoderPrompts


@dataclass(frozen=True, kw_only=True)
class Spans:
    """A decoder's tokens of some texts, each with its latent; texts and tokens are flattened."""

    ids: Tensor
    """[tokens] in the decoder's vocabulary."""
    row: Tensor
    """[tokens]: the text."""
    latent: Tensor
    """[tokens]: the latent of that text, from 0."""

    def to(self, device: torch.device) -> "Spans":
        return replace(
            self, ids=self.ids.to(device), row=self.row.to(device), latent=self.latent.to(device)
        )


def decoder_spans(
    texts: Sequence[str], tokenizer: EncoderTokenizer, prompts: DecoderPrompts
) -> Spans:
    """The tokens of ``texts`` for one decoder; what the encoder's window cut is left out.

    A token belongs to the latent whose span holds its last character.
    """
    ids: list[int] = []
    row: list[int] = []
    latent: list[int] = []
    for index, text in enumerate(texts):
        ends = tokenizer.latent_ends(text)
        place = 0
        for token, end in prompts.slot_ends(text):
            while place < len(ends) and ends[place] < end:
                place += 1
            if place == len(ends):
                break
            ids.append(token)
            row.append(index)
            latent.append(place)
    return Spans(ids=torch.tensor(ids), row=torch.tensor(row), latent=torch.tensor(latent))
