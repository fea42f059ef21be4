"""The deep prefix: what the wire adds to the keys and values of every layer of one decoder.

Prefix tuning (arXiv 2110.07602) puts vectors of its own into every layer's cache. Here they are
added to the keys and values that the decoder itself computed at the same positions: from a start
near zero the decoder then reads what it would have read without them, at its own positions and
under its own masks, and nothing of the wire is cut away to make room.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

START = 0.02
"""First size of what is added, over the size of what is there. Not zero: the wire's gradient comes
through it."""


@dataclass(frozen=True, kw_only=True)
class CacheShape:
    """A decoder's keys and values, as far as a deep prefix must know them."""

    num_layers: int
    num_kv_heads: int
    """Heads of keys and values: under grouped queries fewer than those of the queries."""
    head_dim: int
    key_rms: tuple[float, ...]
    """[layers] root mean square of the decoder's own keys."""
    value_rms: tuple[float, ...]


class DeepPrefix(nn.Module):
    """Slots to additions to keys and values, at the size of the decoder's own.

    Args:
        d_z: width of a slot.
        dropout: in front of the last layer.
    """

    def __init__(self, d_z: int, cache: CacheShape, *, dropout: float) -> None:
        super().__init__()
        self._cache = cache
        width = cache.num_layers * 2 * cache.num_kv_heads * cache.head_dim
        self.norm = nn.LayerNorm(d_z)
        self.expand = nn.Linear(d_z, 4 * d_z)
        self.dropout = nn.Dropout(dropout)
        self.contract = nn.Linear(4 * d_z, width)
        nn.init.normal_(self.contract.weight, std=START / (4 * d_z) ** 0.5)
        nn.init.zeros_(self.contract.bias)
        self._sizes: Sequence[tuple[float, float]] = list(
            zip(cache.key_rms, cache.value_rms, strict=True)
        )

    def forward(self, slots: Tensor) -> Tensor:
        """[rows, slots, d_z] -> [rows, slots, layers, 2, kv_heads, head_dim]: keys, then values."""
        hidden = self.dropout(nn.functional.gelu(self.expand(self.norm(slots))))
        cache = self._cache
        added = self.contract(hidden).unflatten(
            -1, (cache.num_layers, 2, cache.num_kv_heads, cache.head_dim)
        )
        sizes = torch.tensor(self._sizes, dtype=added.dtype, device=added.device)
        scaled: Tensor = added * sizes[:, :, None, None]
        return scaled
