"""Which of a decoder's tokens each latent stands for, by the characters both cover.

A latent is the mean of a contiguous span of encoder tokens. Through the text itself that span is
also a run of every decoder's own tokens, whatever its tokenizer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentwire.data.encoder_texts import EncoderTokenizer, WireText
from latentwire.data.moving import moved
from latentwire.data.prompts import DecoderPrompts

NO_LATENT = -1


@dataclass(frozen=True, kw_only=True)
class Spans:
    """Some texts in a decoder's tokens, padded on the right, each token with its latent."""

    ids: Tensor
    """[texts, length], opened by BOS where the decoder's prompts are."""
    mask: Tensor
    """[texts, length]: True at real tokens."""
    latent: Tensor
    """[texts, length]: the latent a token belongs to; ``NO_LATENT`` for BOS, padding, and text
    that the encoder's window cut off."""
    is_full: bool | None = None
    """Whether ``mask`` is True everywhere, known without asking the device; None where it is not
    known."""

    def to(self, device: torch.device) -> "Spans":
        return moved(self, device)


def decoder_spans(
    wires: Sequence[WireText],
    tokenizer: EncoderTokenizer,
    prompts: DecoderPrompts,
    *,
    num_spans: int | None = None,
) -> Spans:
    """The texts of ``wires`` for one decoder, cut to its window.

    A token belongs to the latent whose span holds its last character, unless that is dropped.

    Args:
        num_spans: belongs to one of so many equal spans of its text instead.
    """
    rows = [_row(wire, tokenizer, prompts, num_spans) for wire in wires]
    length = max(1, *(len(row) for row in rows))
    ids = torch.full((len(rows), length), prompts.pad)
    latent = torch.full((len(rows), length), NO_LATENT)
    mask = torch.zeros((len(rows), length), dtype=torch.bool)
    for index, row in enumerate(rows):
        if row:
            ids[index, : len(row)], latent[index, : len(row)] = torch.tensor(row).T
            mask[index, : len(row)] = True
    is_full = all(len(row) == length for row in rows)
    return Spans(ids=ids, mask=mask, latent=latent, is_full=is_full)


def _row(
    wire: WireText, tokenizer: EncoderTokenizer, prompts: DecoderPrompts, num_spans: int | None
) -> list[tuple[int, int]]:
    """(token, latent) of one wire's text."""
    ends = tokenizer.latent_ends(wire.text, wire.ratio, num_spans=num_spans)
    keep = wire.keep if wire.keep and num_spans is None else (True,) * len(ends)
    row = [(token, NO_LATENT) for token in prompts.lead]
    place = 0
    for token, end in prompts.slot_ends(wire.text):
        while place < len(ends) and ends[place] < end:
            place += 1
        row.append((token, place if place < len(ends) and keep[place] else NO_LATENT))
    return row[: prompts.window]
