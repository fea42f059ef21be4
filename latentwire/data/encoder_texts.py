"""Texts as the encoder sees them: its tokens, and how many latents each text gets."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from latentwire.config import EncoderConfig, WireConfig
from latentwire.data.tokenizers import literal_ends, literal_ids, load_tokenizer


def num_latents(num_tokens: int, *, ratio: int, fixed: int = 0) -> int:
    """Latents of a text of ``num_tokens`` encoder tokens: by ratio, or ``fixed`` at most."""
    if fixed:
        return min(fixed, num_tokens)
    return -(-num_tokens // ratio)


def latent_of(
    place: Tensor, *, counts: Tensor | int, num_tokens: Tensor | int, ratio: int, fixed: int = 0
) -> Tensor:
    """The latent whose span holds the token at ``place``; all arguments broadcast.

    Spans are ``ratio`` tokens long, or with ``fixed`` all but equal: ``counts`` of them share out
    ``num_tokens``.
    """
    return place * counts // num_tokens if fixed else place // ratio


@dataclass(frozen=True, kw_only=True)
class EncoderTexts:
    """Tokenized texts of one encoder call, padded on the right."""

    ids: Tensor
    """[texts, tokens] with the leading token (BOS) where the tokenizer has one."""
    num_tokens: Tensor
    """[texts] text tokens, the leading one not counted."""
    counts: Tensor
    """[texts] latents of each text."""
    max_latents: int
    """Latents of the result, the same on every rank of the world."""

    def to(self, device: torch.device) -> "EncoderTexts":
        return replace(
            self,
            ids=self.ids.to(device),
            num_tokens=self.num_tokens.to(device),
            counts=self.counts.to(device),
        )


class EncoderTokenizer:
    """Texts to encoder tokens, cut to the encoder's window; counts what was cut."""

    def __init__(self, encoder: EncoderConfig, wire: WireConfig, *, window: int) -> None:
        self._tokenizer = load_tokenizer(encoder)
        bos = self._tokenizer.bos_token_id
        self.lead = [bos] if self._tokenizer("a")["input_ids"][:1] == [bos] else []
        self.max_tokens = min(encoder.max_tokens or window, window) - len(self.lead)
        self._wire = wire
        self._cache: dict[str, list[int]] = {}
        self.cut_texts: set[int] = set()
        """Hashes of the texts that did not fit."""

    def ids(self, text: str) -> list[int]:
        """The text's tokens, at most ``max_tokens`` of them."""
        if text not in self._cache:
            if len(self._cache) > 100_000:
                self._cache.clear()
            self._cache[text] = list(literal_ids(self._tokenizer, text))
        ids = self._cache[text]
        if len(ids) > self.max_tokens:
            self.cut_texts.add(hash(text))
        return ids[: self.max_tokens]

    def num_latents(self, text: str) -> int:
        return num_latents(
            len(self.ids(text)), ratio=self._wire.ratio, fixed=self._wire.num_latents
        )

    def latent_ends(self, text: str) -> list[int]:
        """For each latent of ``text``, where its span ends: characters from the text's start."""
        ends = literal_ends(self._tokenizer, text)[: self.max_tokens]
        count = self.num_latents(text)
        found = [0] * count
        latents = latent_of(
            torch.arange(len(ends)),
            counts=count,
            num_tokens=len(ends),
            ratio=self._wire.ratio,
            fixed=self._wire.num_latents,
        )
        for latent, end in zip(latents.tolist(), ends, strict=True):
            found[latent] = max(found[latent], end)
        return found

    def batch(self, texts: list[str], *, rows: int, max_latents: int) -> EncoderTexts:
        """Pads ``texts`` to ``rows`` rows; rows without a text hold one token and no latent.

        Every rank of the world makes the same number of rows, so that all run the encoder equally
        often, whatever the number of texts.
        """
        tokens = [self.ids(text) for text in texts] + [[]] * (rows - len(texts))
        counts = [self.num_latents(text) for text in texts] + [0] * (rows - len(texts))
        padded = [self.lead + ids for ids in tokens]
        length = max(1, *(len(ids) for ids in padded))
        return EncoderTexts(
            ids=torch.tensor([ids + [0] * (length - len(ids)) for ids in padded]),
            num_tokens=torch.tensor([len(ids) for ids in tokens]),
            counts=torch.tensor(counts),
            max_latents=max_latents,
        )
