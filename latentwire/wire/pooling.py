"""Pooling: token states of a text to its latents.

Means of contiguous spans of a language model's states carry more than learned queries at equal
length, and keep the wire's length proportional to the text (arXiv 2510.20797, arXiv 2510.20535).
Learned queries give a fixed length instead.
"""

import torch
from torch import Tensor, nn

from latentwire.config import WireConfig
from latentwire.data.encoder_texts import EncoderTexts, latent_of
from latentwire.wire.attention import Attention, hidden_from


def membership(texts: EncoderTexts, num_places: int) -> Tensor:
    """[rows, max_latents, num_places]: whether a latent's span holds a token of its text."""
    place = torch.arange(num_places, device=texts.counts.device)[None, :]
    num_tokens = texts.num_tokens[texts.text_of][:, None]  # [rows, 1]
    span = latent_of(
        place,
        counts=texts.counts[:, None],
        num_tokens=num_tokens.clamp(min=1),
    )  # [rows, num_places]
    slots = torch.arange(texts.max_latents, device=place.device)
    member = span[:, None, :] == slots[None, :, None]
    return member & (place < num_tokens)[:, None, :] & _is_latent(texts)[..., None]


def _is_latent(texts: EncoderTexts) -> Tensor:
    """[rows, max_latents]: False after a wire's own latents."""
    slots = torch.arange(texts.max_latents, device=texts.counts.device)
    return slots[None, :] < texts.counts[:, None]


class MeanPooling(nn.Module):
    """Means of contiguous spans, projected to latents."""

    def __init__(self, width: int, d_z: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, d_z)

    def forward(self, states: Tensor, texts: EncoderTexts) -> Tensor:
        """[texts, tokens, width] -> [rows, max_latents, d_z]"""
        weights = membership(texts, states.shape[1]).to(states.dtype)
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=1)
        latents: Tensor = self.project(weights @ states[texts.text_of])
        return latents


class BlockPooling(nn.Module):
    """One learned query attends within each contiguous span.

    The query starts at zero, where attention is the mean.
    """

    def __init__(self, width: int, d_z: int, heads: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(d_z))
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(d_z, heads, source_width=width)
        nn.init.zeros_(self.attention.query.bias)

    def forward(self, states: Tensor, texts: EncoderTexts) -> Tensor:
        """[texts, tokens, width] -> [rows, max_latents, d_z]"""
        source = self.norm(states)[texts.text_of]  # [rows, tokens, width]
        visible = membership(texts, states.shape[1])
        queries = self.query.expand(source.shape[0], texts.max_latents, -1)
        latents: Tensor = self.attention(queries, source, hidden_from(visible)[:, None])
        return latents


class QueryPooling(nn.Module):
    """Learned queries attend to the whole text, each from its own part of it.

    A head's logits fall linearly with the distance, in latents, between a query's place and a
    token's, as in arXiv 2108.12409 and by learned slopes; the first heads start out narrow and
    the last nearly blind to distance. Without it all queries begin alike.

    Args:
        num_queries: of each of ``num_sets`` sets.
        num_sets: sets of queries whose places run over the text, one set after the other.
    """

    def __init__(
        self, width: int, d_z: int, heads: int, *, num_queries: int, num_sets: int = 1
    ) -> None:
        super().__init__()
        self._num_queries, self._num_sets = num_queries, num_sets
        self.queries = nn.Parameter(torch.randn(num_sets * num_queries, d_z) * 0.02)
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(d_z, heads, source_width=width)
        self.log_slopes = nn.Parameter(torch.linspace(1.5, -3.0, heads))

    def forward(self, states: Tensor, num_tokens: Tensor, counts: Tensor | None = None) -> Tensor:
        """[rows, tokens, width] -> [rows, num_sets * num_queries, d_z].

        Args:
            num_tokens: [rows] tokens of each row's text.
            counts: [rows] how many of each set's queries share out the text; None: all of them.
        """
        rows, tokens = states.shape[:2]
        device = states.device
        number = torch.arange(self._num_queries, device=device).repeat(self._num_sets)
        if counts is None:
            counts = torch.full((rows,), self._num_queries, device=device)
        share = counts.clamp(min=1)[:, None, None]
        length = num_tokens.clamp(min=1)[:, None, None]
        place = torch.arange(tokens, device=device)[None, None, :]
        # Both in latents: [rows, queries, tokens]
        distance = (number[None, :, None] + 0.5) - (place + 0.5) * share / length
        bias = hidden_from(place < length)[:, None]
        bias = bias - self.log_slopes.exp()[None, :, None, None] * distance.abs()[:, None]
        latents: Tensor = self.attention(self.queries.expand(rows, -1, -1), self.norm(states), bias)
        return latents


class FixedPooling(nn.Module):
    """``QueryPooling`` as a pooling of wires."""

    def __init__(self, width: int, wire: WireConfig) -> None:
        super().__init__()
        self.pool = QueryPooling(width, wire.d_z, wire.heads, num_queries=wire.num_latents)

    def forward(self, states: Tensor, texts: EncoderTexts) -> Tensor:
        """[texts, tokens, width] -> [rows, max_latents, d_z]"""
        num_tokens = texts.num_tokens[texts.text_of]
        latents: Tensor = self.pool(states[texts.text_of], num_tokens, texts.counts)
        return latents[:, : texts.max_latents] * _is_latent(texts)[..., None]


def make_pooling(width: int, wire: WireConfig) -> nn.Module:
    """The pooling a configuration names: (states, texts) -> [rows, max_latents, d_z]."""
    if wire.pooling == "mean":
        return MeanPooling(width, wire.d_z)
    if wire.pooling == "block":
        return BlockPooling(width, wire.d_z, wire.heads)
    return FixedPooling(width, wire)
