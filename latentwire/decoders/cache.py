"""A decoder's cache of keys and values, as far as a deep prefix reaches into it."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from latentwire.config import ConfigError
from latentwire.decoders.rotation import Rotation
from latentwire.wire.backbones import longest_text
from latentwire.wire.deep_prefix import CacheShape

_OF_TOKENS = (DynamicLayer, DynamicSlidingWindowLayer)
"""Kinds of layers whose state is keys and values of tokens, which can be parted and masked."""


def unfit_layers(config: Any) -> list[str]:
    """Kinds of layers of a model whose state cannot be gone on from in parts: a recurrent or
    convolutional one has taken in what is masked later, and rows of it cannot be chosen."""
    kinds = {type(layer) for layer in DynamicCache(config=config).layers}
    return sorted(kind.__name__ for kind in kinds if kind not in _OF_TOKENS)


def sliding_window(config: Any) -> int | None:
    """Tokens that the layer with the shortest memory keeps; None where all keep every token."""
    layers = DynamicCache(config=config).layers
    sizes = [layer.sliding_window for layer in layers if type(layer) is DynamicSlidingWindowLayer]
    return min(sizes, default=None)


def context_window(config: Any) -> int:
    """Longest prompt in tokens.

    Of a model with a sliding window half of that: the rows of a batch share columns, padding
    between a short prefix and what follows it takes its part of the window, and so neither
    prefixes nor what follows may be longer.
    """
    longest = longest_text(config)
    sliding = sliding_window(config)
    return longest if sliding is None else min(longest, sliding // 2)


class Filled(Exception):  # noqa: N818
    """A cache is full, and what a model would go on to compute is not asked for."""


class Filling(DynamicCache):
    """A cache that ends the forward which fills it: nobody reads what the last layer makes of its
    keys and values.

    Args:
        layers: of the cache, empty or filled so far; none for a model's own, as they come.
        num_layers: of the model's cache.
    """

    def __init__(self, layers: list[Any], num_layers: int) -> None:
        super().__init__()
        self.layers, self._last = layers, num_layers - 1

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = super().update(keys, values, layer_idx, *args, **kwargs)
        if layer_idx == self._last:
            raise Filled
        return found

    def __copy__(self) -> DynamicCache:
        """One that only fills: a layer that is to run again must run to its end."""
        return self.plain()

    def plain(self) -> DynamicCache:
        """The same keys and values, to go on from."""
        cache = DynamicCache()
        cache.layers = self.layers
        return cache


def cache_shape(name: str, cache: Any, *, num_tokens: int) -> CacheShape:
    """The shape of a cache that holds ``num_tokens`` tokens of one row.

    Raises:
        ConfigError: naming the decoder, where layers have no keys and values of one shape for
            every token.
    """
    layers = getattr(cache, "layers", [])
    keys = [getattr(layer, "keys", None) for layer in layers]
    values = [getattr(layer, "values", None) for layer in layers]
    shapes = {None if part is None else tuple(part.shape) for part in [*keys, *values]}
    shape = shapes.pop() if len(shapes) == 1 else None
    is_sliding = any(getattr(layer, "is_sliding", False) for layer in layers)
    if shape is None or len(shape) != 4 or shape[2] != num_tokens or is_sliding:
        raise ConfigError(
            [
                f"adapter.use_deep_prefix: the cache of decoder '{name}' is not one of keys and "
                "values of one shape in every layer (a sliding window or a recurrent state has "
                "none); set it to false for this decoder"
            ]
        )
    return CacheShape(
        num_layers=len(layers),
        num_kv_heads=shape[1],
        head_dim=shape[3],
        key_rms=tuple(_rms(part) for part in keys),
        value_rms=tuple(_rms(part) for part in values),
    )


def _rms(part: Any) -> float:
    return float(part.float().pow(2).mean().sqrt())


def add_to_cache(
    cache: Any,
    added: Tensor,
    *,
    rows: Tensor,
    slots: Tensor,
    first: int,
    rotate: Rotation | None,
) -> None:
    """Adds a deep prefix to the keys and values of the positions where its wires were read.

    Args:
        added: [wires, vectors, layers, 2, kv_heads, head_dim]
        rows: [prefixes] the wire of each prefix.
        slots: [prefixes, length] which vector stands at a position; -1 for a token.
        first: positions of the cache before those of ``slots``.
        rotate: turns what is added to keys by its position, as the decoder turned the keys.
    """
    own = added[rows[:, None], slots.clamp(min=0)]  # [prefixes, length, layers, 2, heads, dim]
    own = own * (slots >= 0)[..., None, None, None, None]
    own = own.permute(2, 3, 0, 4, 1, 5)  # [layers, 2, prefixes, heads, length, dim]
    place = torch.arange(first, first + slots.shape[1], device=slots.device)
    keys, values = own[:, 0], own[:, 1]
    if rotate is not None:
        keys = rotate(keys, place)
    if first:
        keys, values = (nn.functional.pad(part, (0, 0, first, 0)) for part in (keys, values))
    for layer, more_keys, more_values in zip(cache.layers, keys, values, strict=True):
        layer.keys = layer.keys + more_keys.to(layer.keys.dtype)
        layer.values = layer.values + more_values.to(layer.values.dtype)


def at_rest(cache: Any, *, first: int, rotate: Rotation | None) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of every layer [rows, length, kv_heads * head_dim], keys turned back.

    So turned, what two positions say can be compared wherever they stand.

    Args:
        first: positions of the cache that are left out at its front.
    """
    found = []
    for index, layer in enumerate(cache.layers):
        keys, values = layer.keys[:, :, first:], layer.values[:, :, first:]
        if rotate is not None:
            place = torch.arange(first, first + keys.shape[2], device=keys.device)
            keys = rotate.of_layer(index, keys, -place)
        found.append((keys.transpose(1, 2).flatten(2), values.transpose(1, 2).flatten(2)))
    return found
