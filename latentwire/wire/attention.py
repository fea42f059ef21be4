"""Attention as the wire's own modules use it: every weight is used by the module that holds it,
which is what sharding hooks rely on."""

import math

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention from queries to a source of its own width.

    Args:
        width: of queries and results; a multiple of ``heads``.
        source_width: of what is attended to; None is ``width``.
    """

    def __init__(self, width: int, heads: int, *, source_width: int | None = None) -> None:
        super().__init__()
        self._heads = heads
        source_width = width if source_width is None else source_width
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(source_width, width)
        self.value = nn.Linear(source_width, width)
        self.out = nn.Linear(width, width)

    def forward(self, queries: Tensor, source: Tensor, bias: Tensor | None) -> Tensor:
        """[batch, n, width], [batch, m, source_width] -> [batch, n, width].

        Args:
            bias: broadcastable to [batch, heads, n, m], added to the attention's logits.
        """
        attended = nn.functional.scaled_dot_product_attention(
            self._split(self.query(queries)),
            self._split(self.key(source)),
            self._split(self.value(source)),
            attn_mask=None if bias is None else bias.to(queries.dtype),
        )  # [batch, heads, n, width / heads]
        attended = self.out(attended.transpose(1, 2).flatten(2))
        return attended

    def _split(self, states: Tensor) -> Tensor:
        """[batch, n, width] -> [batch, heads, n, width / heads]"""
        return states.unflatten(-1, (self._heads, -1)).transpose(1, 2)


class Block(nn.Module):
    """A pre-norm transformer layer, optionally with attention to a source (arXiv 2002.04745).

    Args:
        source_width: attend to a source of this width instead of to the states themselves.
        identity: start as the identity, with both branches' last weights zero.
    """

    def __init__(
        self, width: int, heads: int, *, source_width: int | None = None, identity: bool = False
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads, source_width=source_width)
        self.mlp_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)
        if identity:
            for last in (self.attention.out, self.contract):
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)

    def forward(self, states: Tensor, bias: Tensor | None, source: Tensor | None = None) -> Tensor:
        """[batch, n, width] -> [batch, n, width]; ``source`` is [batch, m, source_width]."""
        normed = self.attention_norm(states)
        states = states + self.attention(normed, normed if source is None else source, bias)
        hidden = nn.functional.gelu(self.expand(self.mlp_norm(states)))
        refined: Tensor = states + self.contract(hidden)
        return refined


def hidden_from(visible: Tensor) -> Tensor:
    """[...] True where attention may look -> the bias that keeps it away elsewhere.

    A row that may look nowhere looks everywhere alike, which is finite; its result is not used.
    """
    return torch.zeros(visible.shape, device=visible.device).masked_fill_(~visible, -1e9)


def sinusoid(place: Tensor, width: int) -> Tensor:
    """[...] positions -> [..., width] (arXiv 1706.03762, section 3.5)."""
    half = width // 2
    steps = torch.arange(half, device=place.device) / max(1, half - 1)
    angles = place[..., None].float() * torch.exp(-math.log(10_000.0) * steps)
    waves = torch.cat([angles.sin(), angles.cos()], dim=-1)
    return nn.functional.pad(waves, (0, width - 2 * half))
