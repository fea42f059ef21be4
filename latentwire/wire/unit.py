"""One decoder's unit: from the shared wire to what that decoder reads."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from latentwire.config import Config, LoraConfig
from latentwire.wire.adapter import Adapter, Frame
from latentwire.wire.backbones import NamedParameters, named_trainable
from latentwire.wire.deep_prefix import CacheShape, DeepPrefix
from latentwire.wire.gist import GistHead
from latentwire.wire.lora import LoraUpdates, Updates
from latentwire.wire.parts import part_of_decoder
from latentwire.wire.pooling import QueryPooling


@dataclass(frozen=True, kw_only=True)
class DecoderShape:
    """What a decoder's unit must know of its decoder."""

    hidden_size: int
    embedding_rms: float
    mean_embedding: Tensor
    """[hidden_size]"""
    cache: CacheShape | None = None
    """Where it has a deep prefix."""
    linears: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """(in, out) features of the linear layers that get LoRA updates."""


@dataclass(frozen=True, kw_only=True)
class Injection:
    """What one decoder reads for its wires."""

    vectors: Tensor
    """[rows, positions, hidden_size]: the soft prompt, begin and end included."""
    added: Tensor | None = None
    """[rows, positions, layers, 2, kv_heads, head_dim]: added to the keys and values that the
    decoder computes at those positions."""
    lora: Updates = field(default_factory=dict)
    """Updates of its linear layers."""
    gist: Tensor | None = None
    """[rows, gist_len, hidden_size]: guesses at the text's first tokens."""
    gist_scale: Tensor | None = None
    """[1]: of their cosines with input embeddings."""

    def apart(self) -> "Injection":
        """The same, as views: a gradient query that stops at them stays clear of the hooks that
        sharding hangs on a unit's own outputs."""
        names = ("vectors", "added", "gist", "gist_scale")
        parts = {name: getattr(self, name) for name in names}
        views = {name: part.view_as(part) for name, part in parts.items() if part is not None}
        lora = {
            name: (down.view_as(down), up.view_as(up)) for name, (down, up) in self.lora.items()
        }
        return replace(self, lora=lora, **views)

    @property
    def ends(self) -> list[Tensor]:
        """Where the objectives' gradients enter the wire: what the decoder reads, and the gist."""
        return [part for part in (self.vectors, self.added, self.gist) if part is not None]

    @property
    def outputs(self) -> list[Tensor]:
        """Everything the unit hands on: the ends, and then what does not come of the wire."""
        scale = [] if self.gist_scale is None else [self.gist_scale]
        return [*self.ends, *scale, *(part for update in self.lora.values() for part in update)]


class DecoderUnit(nn.Module):
    """Latents to everything one decoder reads of them; its own weights, trained over its group.

    Args:
        lora: of the decoder; rank 0 leaves it frozen.
    """

    def __init__(self, shape: DecoderShape, config: Config, *, lora: LoraConfig) -> None:
        super().__init__()
        settings, d_z = config.adapter, config.wire.d_z
        self.frame = (
            Frame(shape.hidden_size, embedding_rms=shape.embedding_rms)
            if settings.use_frame
            else None
        )
        self.adapter = (
            Adapter(
                d_z,
                shape.hidden_size,
                hidden_mult=settings.hidden_mult,
                embedding_rms=shape.embedding_rms,
                init_scale=settings.init_scale,
                dropout=settings.dropout,
            )
            if settings.use_soft_prompt
            else None
        )
        self.prefix = None
        self.prefix_slots = None
        self.filler = None
        if settings.use_deep_prefix:
            assert shape.cache is not None
            self.prefix = DeepPrefix(d_z, shape.cache, dropout=settings.deep_prefix_dropout)
            if settings.deep_prefix_len:
                self.prefix_slots = QueryPooling(
                    d_z, d_z, config.wire.heads, num_queries=settings.deep_prefix_len
                )
            if settings.deep_prefix_len or self.adapter is None:
                # Like an input, and like none in particular. Not zero, where a norm's own gradient
                # explodes.
                mean = shape.mean_embedding
                size = mean.square().mean().sqrt().clamp(min=1e-12)
                self.filler = nn.Parameter(mean / size * shape.embedding_rms)
        self.gist = (
            GistHead(d_z, shape.hidden_size, config.gist) if config.gist.use_gist_head else None
        )
        self.lora = (
            LoraUpdates(shape.linears, rank=lora.rank, scale=lora.alpha / lora.rank)
            if lora.rank
            else None
        )

    def forward(self, latents: Tensor, counts: Tensor) -> dict[str, Any]:
        """What the decoder reads, as the fields of an ``Injection``: sharding hooks look for
        tensors in plain containers only.

        Args:
            latents: [rows, num_latents, d_z], the decoder's private ones first.
            counts: [rows] latents of each row.
        """
        vectors, added = self._read(latents, counts)
        found: dict[str, Any] = {"vectors": vectors}
        if added is not None:
            found["added"] = added
        if self.gist is not None:
            found["gist"], found["gist_scale"] = self.gist(latents, counts)
        if self.lora is not None:
            found["lora"] = self.lora()
        return found

    def _read(self, latents: Tensor, counts: Tensor) -> tuple[Tensor, Tensor | None]:
        """Vectors, and what is added to keys and values at their positions."""
        rows, num_latents, _ = latents.shape
        body = self._vectors(rows, num_latents) if self.adapter is None else self.adapter(latents)
        if self.prefix is None:
            return self._framed(body, counts), None
        if self.prefix_slots is None:
            added = self.prefix(latents)
            place = torch.arange(num_latents, device=latents.device)
            added = added * (place < counts[:, None])[..., None, None, None, None]
        else:
            # Slots of its own stand in front of the soft prompt, or in its place.
            slots = self.prefix_slots(latents, counts)
            added = self.prefix(slots)
            own = self._vectors(rows, slots.shape[1])
            if self.adapter is None:
                body, counts = own, torch.full_like(counts, slots.shape[1])
            else:
                body = torch.cat([own, body], dim=1)
                counts = counts + slots.shape[1]
        vectors = self._framed(body, counts)
        first = 0 if self.frame is None else 1
        behind = vectors.shape[1] - first - added.shape[1]
        return vectors, nn.functional.pad(added, (0, 0) * 4 + (first, behind))

    def _framed(self, body: Tensor, counts: Tensor) -> Tensor:
        """``body`` with its begin and end, where it has them."""
        return body if self.frame is None else self.frame(body, counts)

    def _vectors(self, rows: int, number: int) -> Tensor:
        """[rows, number, hidden_size]: what stands where only the deep prefix differs."""
        assert self.filler is not None
        return self.filler.expand(rows, number, -1)

    def part_of(self, name: str) -> str:
        """The part (``wire.parts``) that a parameter belongs to."""
        return part_of_decoder(name)

    def parameter_groups(self) -> dict[str, NamedParameters]:
        groups: dict[str, NamedParameters] = {"adapter": [], "prefix": []}
        for name, parameter in named_trainable(self):
            is_prefix = self.part_of(name) == "deep_prefix"
            groups["prefix" if is_prefix else "adapter"].append((name, parameter))
        return groups
