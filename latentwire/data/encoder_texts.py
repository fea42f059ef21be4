"""Texts as the encoder sees them: its tokens, and how many latents each text gets."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, overload

import torch
from torch import Tensor

from latentwire.config import AdapterConfig, Config, EncoderConfig, WireConfig
from latentwire.data.moving import moved
from latentwire.data.token_cache import TokenCache, open_cache
from latentwire.data.tokenizers import (
    Remembered,
    decoded,
    literal_ends,
    literal_ids,
    load_tokenizer,
)

BYTE_WINDOW = 4096
"""Longest text of the byte encoder, where ``encoder.max_tokens`` says nothing else."""


def num_latents(num_tokens: int, *, ratio: int, fixed: int = 0) -> int:
    """Latents of a text of ``num_tokens`` encoder tokens: by ratio, or ``fixed`` at most."""
    if fixed:
        return min(fixed, num_tokens)
    return -(-num_tokens // ratio)


@overload
def latent_of(place: int, *, counts: int, num_tokens: int) -> int: ...


@overload
def latent_of(place: Tensor, *, counts: Tensor | int, num_tokens: Tensor | int) -> Tensor: ...


def latent_of(place: Any, *, counts: Any, num_tokens: Any) -> Any:
    """The latent whose span holds the token at ``place``; all arguments broadcast.

    ``counts`` all but equal spans share out ``num_tokens``: no latent stands for the few tokens
    that a ratio leaves over while the others are full.
    """
    return place * counts // num_tokens


def num_positions(num_latents: int, wire: WireConfig, adapter: AdapterConfig) -> int:
    """Positions a decoder reads for a wire of ``num_latents`` shared latents.

    Begin and end vectors, where there are any, are counted, and so are the decoder's private
    latents. A deep prefix with a length of its own stands in front of the soft prompt, or in its
    place.
    """
    body = num_latents + wire.latent_private_len
    if adapter.deep_prefix_len:
        body = adapter.deep_prefix_len + (body if adapter.use_soft_prompt else 0)
    return body + (2 if adapter.use_frame else 0)


@dataclass(frozen=True, kw_only=True)
class EncoderTexts:
    """What one encoder call reads and which wires it makes of it, padded on the right.

    A text is read once, whatever the number of ratios at which it becomes a wire.
    """

    ids: Tensor
    """[texts, tokens] with the leading token (BOS) where the tokenizer has one."""
    num_tokens: Tensor
    """[texts] text tokens, the leading one not counted."""
    text_of: Tensor
    """[rows] the text each wire is made of."""
    counts: Tensor
    """[rows] latents of each wire."""
    keep: Tensor
    """[rows, max_latents] False where a latent is dropped for this step."""
    max_latents: int
    """Latents of the result, the same on every rank of the world."""

    def to(self, device: torch.device) -> "EncoderTexts":
        return moved(self, device)


@dataclass(frozen=True, kw_only=True)
class WireText:
    """One wire to be made: a text, its ratio, and which of its latents are kept."""

    text: str
    ratio: int | None = None
    """Encoder tokens per latent at most; None is the configuration's own."""
    keep: tuple[bool, ...] | None = None
    """None keeps all."""


class _Pieces(Protocol):
    """Cuts texts into what the encoder embeds."""

    lead: list[int]
    """What opens every text."""

    def ids(self, text: str) -> list[int]: ...

    def ends(self, text: str) -> list[int]:
        """For each piece, the character after its last."""

    def num_chars(self, text: str, num: int) -> int:
        """Characters of which the first ``num`` pieces are made."""


class _Tokens:
    """A language model's own tokens."""

    def __init__(self, config: EncoderConfig) -> None:
        self.tokenizer = load_tokenizer(config)
        bos = self.tokenizer.bos_token_id
        self.lead = [bos] if self.tokenizer("a")["input_ids"][:1] == [bos] else []

    def ids(self, text: str) -> list[int]:
        return list(literal_ids(self.tokenizer, text))

    def ends(self, text: str) -> list[int]:
        return list(literal_ends(self.tokenizer, text))

    def num_chars(self, text: str, num: int) -> int:
        if self.tokenizer.is_fast:
            return max(self.ends(text)[:num], default=0)
        # Without offsets: as many as the tokens are written with.
        return min(len(text), len(decoded(self.tokenizer, self.ids(text)[:num])))


class _Bytes:
    """UTF-8 bytes."""

    lead: list[int] = []

    def ids(self, text: str) -> list[int]:
        return list(text.encode())

    def ends(self, text: str) -> list[int]:
        return [end for end, char in enumerate(text, start=1) for _ in char.encode()]

    def num_chars(self, text: str, num: int) -> int:
        return max(self.ends(text)[:num], default=0)


class _Known:
    """Pieces of texts that were cut before; of others, as they are needed."""

    def __init__(self, pieces: _Pieces, known: TokenCache) -> None:
        self._pieces, self._known = pieces, known
        self.lead = pieces.lead

    def ids(self, text: str) -> list[int]:
        found = self._known.ids(text)
        return self._pieces.ids(text) if found is None else found

    def ends(self, text: str) -> list[int]:
        found = self._known.ends(text)
        return self._pieces.ends(text) if found is None else found

    def num_chars(self, text: str, num: int) -> int:
        return self._pieces.num_chars(text, num)


class EncoderTokenizer:
    """Texts to encoder tokens, cut to the encoder's window; counts what was cut.

    Args:
        window: longest text of the encoder's model, in its tokens.
    """

    def __init__(self, config: Config, *, window: int) -> None:
        encoder = config.encoder
        self._pieces: _Pieces = _Bytes() if encoder.kind == "byte" else _Tokens(encoder)
        self.lead = self._pieces.lead
        self.max_tokens = min(encoder.max_tokens or window, window) - len(self.lead)
        self._wire = config.wire
        self._adapter = config.adapter
        self._remember()
        self.cut_texts: set[int] = set()
        """Hashes of the texts that did not fit."""

    @property
    def has_deep_prefix(self) -> bool:
        """Whether decoders read the wire in their keys and values."""
        return self._adapter.use_deep_prefix

    def keep(self, root: Path, texts: Iterable[str]) -> int:
        """Takes the tokens of ``texts`` from a file under ``root``, which is made if need be.

        Returns:
            How many texts it holds.

        Raises:
            OSError: the files cannot be read or written.
        """
        assert isinstance(self._pieces, _Tokens), "validated with the configuration"
        known = open_cache(root, texts, self._pieces.tokenizer)
        self._pieces = _Known(self._pieces, known)
        self._remember()
        return len(known)

    def ids(self, text: str) -> list[int]:
        """The text's tokens, at most ``max_tokens`` of them."""
        ids = self._ids(text)
        if len(ids) > self.max_tokens:
            self.cut_texts.add(hash(text))
        return ids[: self.max_tokens]

    def num_read(self, text: str) -> int:
        """Characters of ``text`` that the encoder reads: all, where it fits the window."""
        if len(self._ids(text)) <= self.max_tokens:
            return len(text)
        return self._pieces.num_chars(text, self.max_tokens)

    def _remember(self) -> None:
        self._ids = Remembered(self._pieces.ids)
        self._ends_of = Remembered(self._pieces.ends)

    def num_latents(self, text: str, ratio: int | None = None) -> int:
        """Shared latents of a text."""
        return num_latents(
            len(self.ids(text)), ratio=ratio or self._wire.ratio, fixed=self._wire.num_latents
        )

    def num_positions(self, text: str, ratio: int | None = None) -> int:
        """Positions a decoder reads for the wire of a text, begin and end included."""
        return num_positions(self.num_latents(text, ratio), self._wire, self._adapter)

    def latent_ends(
        self, text: str, ratio: int | None = None, *, num_spans: int | None = None
    ) -> list[int]:
        """For each shared latent of ``text``, where its span ends: characters from its start.

        Args:
            num_spans: of this many equal spans instead, or as many as there are tokens.
        """
        ends = self._ends_of(text)[: self.max_tokens]
        count = self.num_latents(text, ratio)
        if num_spans is not None:
            count = min(num_spans, len(ends))
        found = [0] * count
        for place, end in enumerate(ends):
            latent = latent_of(place, counts=count, num_tokens=len(ends))
            found[latent] = max(found[latent], end)
        return found

    def batch(self, wires: Sequence[WireText], *, rows: int, max_latents: int) -> EncoderTexts:
        """Lays out ``wires`` in ``rows`` rows; rows without a wire have no latent.

        Every rank of the world makes the same number of rows, whatever the number of wires.
        """
        texts = list(dict.fromkeys(wire.text for wire in wires)) or [""]
        tokens = [self.ids(text) for text in texts]
        padded = [self.lead + ids for ids in tokens]
        # At least one place for a text's own tokens: over none, attention has no gradient, and a
        # rank whose weights have none breaks the reduction over all ranks.
        length = max(len(self.lead) + 1, *(len(ids) for ids in padded))
        missing = rows - len(wires)
        counts = [self.num_latents(wire.text, wire.ratio) for wire in wires] + [0] * missing
        keep = torch.ones(rows, max_latents, dtype=torch.bool)
        for row, wire in enumerate(wires):
            if wire.keep is not None:
                keep[row, : len(wire.keep)] = torch.tensor(wire.keep, dtype=torch.bool)
        return EncoderTexts(
            ids=torch.tensor([ids + [0] * (length - len(ids)) for ids in padded]),
            num_tokens=torch.tensor([len(ids) for ids in tokens]),
            text_of=torch.tensor([texts.index(wire.text) for wire in wires] + [0] * missing),
            counts=torch.tensor(counts),
            keep=keep,
            max_latents=max_latents,
        )
