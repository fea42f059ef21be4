"""The text teacher: what the frozen decoder itself says after reading the text."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from latentwire.data.batch import PromptBatch
from latentwire.data.example import Example
from latentwire.data.loader import text_batch
from latentwire.data.prompts import DecoderPrompts, PromptTokens
from latentwire.decoders.answered import Answered
from latentwire.decoders.frozen import FrozenDecoder


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


def prompt_id(tokens: PromptTokens) -> bytes:
    """16 bytes that name a prompt by every token of it, and by which of them are the answer.

    What it stands for is all that a decoder's own distributions depend on: texts, template, chat
    frame, tokenizer, window and the answer's length show in nothing else.
    """
    segments = (tokens.before, tokens.slot, tokens.after, tokens.answer)
    found = hashlib.blake2b(repr([len(part) for part in segments]).encode(), digest_size=16)
    for part in segments:
        found.update(np.asarray(part, dtype="<i8").tobytes())
    return found.digest()


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Distributions over a vocabulary, in short."""

    ids: Tensor | None
    """int32 [n, k]: the likeliest tokens, likeliest first; None where all are kept, in order."""
    log_probs: Tensor
    """[n, k], in 16 or 32 bits."""
    log_tail: Tensor | None
    """fp32 [n]: the logarithm of what all other tokens have together; None where all are kept."""

    def rows(self, rows: slice) -> "Kept":
        """Those of some positions."""
        return Kept(
            ids=None if self.ids is None else self.ids[rows],
            log_probs=self.log_probs[rows],
            log_tail=None if self.log_tail is None else self.log_tail[rows],
        )

    def split(self, sizes: Sequence[int]) -> "Iterator[Kept]":
        """In runs of so many positions."""
        first = 0
        for size in sizes:
            yield self.rows(slice(first, first + size))
            first += size

    @staticmethod
    def joined(parts: "Sequence[Kept]") -> "Kept":
        """Some, all of one form, in one piece."""
        ids = [part.ids for part in parts if part.ids is not None]
        log_tail = [part.log_tail for part in parts if part.log_tail is not None]
        return Kept(
            ids=torch.cat(ids) if ids else None,
            log_probs=torch.cat([part.log_probs for part in parts]),
            log_tail=torch.cat(log_tail) if log_tail else None,
        )

    @property
    def num_bytes(self) -> int:
        tensors = (self.ids, self.log_probs, self.log_tail)
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)

    def pinned(self) -> "Kept":
        """In memory from which a GPU copies while the host goes on."""
        return Kept(
            ids=None if self.ids is None else self.ids.pin_memory(),
            log_probs=self.log_probs.pin_memory(),
            log_tail=None if self.log_tail is None else self.log_tail.pin_memory(),
        )

    def to(self, device: torch.device) -> "Kept":
        """From pinned memory to a GPU without waiting."""

        def moved(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=tensor.is_pinned())

        log_probs = moved(self.log_probs)
        assert log_probs is not None
        return Kept(ids=moved(self.ids), log_probs=log_probs, log_tail=moved(self.log_tail))


@dataclass(frozen=True, kw_only=True)
class Form:
    """In which form distributions are kept."""

    top_k: int
    """Likeliest tokens of each; 0 keeps the whole vocabulary, and so does more than it has."""
    bits: int
    """Of a log-probability: 16 or 32."""
    temperature: float
    """Of the distributions."""

    @property
    def dtype(self) -> torch.dtype:
        return torch.float16 if self.bits == 16 else torch.float32

    def num_kept(self, vocabulary: int) -> int:
        """Log-probabilities of a position."""
        return min(self.top_k, vocabulary) or vocabulary

    @torch.no_grad()
    def of(self, logits: Tensor) -> Kept:
        """Logits [n, vocabulary] in this form, on their device."""
        k = self.num_kept(logits.shape[-1])
        log_probs = (logits.float() / self.temperature).log_softmax(-1)
        if k == logits.shape[-1]:
            return Kept(ids=None, log_probs=log_probs.to(self.dtype), log_tail=None)
        kept, ids = log_probs.topk(k, dim=-1)
        log_tail = log_probs.scatter(-1, ids, -torch.inf).logsumexp(-1)
        return Kept(ids=ids.to(torch.int32), log_probs=kept.to(self.dtype), log_tail=log_tail)
