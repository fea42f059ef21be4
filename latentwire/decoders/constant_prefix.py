"""Keys and values that stand before everything a decoder reads, and never change.

A decoder may come with such a prefix of its own, trained by peft. Prefix tuning puts its constants
in place of whatever cache it is given, at every step: a wire in the cache would never be read. The
constants are therefore taken out of peft's hands once and stand in front of the wire, in the same
cache.

The tokens that open every prompt (BOS, chat header, instruction) are such a prefix too: a frozen
decoder makes the same keys and values of them whenever it reads them.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

FEWEST = 8
"""Opening tokens that are worth a cache of their own."""
_KEPT = 8


class ConstantPrefix:
    """Keys and values that stand before everything a decoder reads.

    Args:
        keys, values: for each layer [1, kv_heads, length, head_dim].
    """

    def __init__(self, keys: list[Tensor], values: list[Tensor]) -> None:
        self._keys, self._values = keys, values
        self.length = int(keys[0].shape[2])

    @classmethod
    def of(cls, cache: Any) -> "ConstantPrefix | None":
        """What a cache of one row holds; None where it is not keys and values of all positions."""
        if any(type(layer) is not DynamicLayer or layer.keys is None for layer in cache.layers):
            return None
        keys = [layer.keys.detach() for layer in cache.layers]
        return cls(keys, [layer.values.detach() for layer in cache.layers])

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All of it, by name."""
        keys = {f"keys.{layer}": keys for layer, keys in enumerate(self._keys)}
        return keys | {f"values.{layer}": values for layer, values in enumerate(self._values)}

    def cache(self, rows: int) -> Any:
        """A fresh cache of ``rows`` rows that holds the prefix: views of it, until it grows."""
        cache = DynamicCache()
        for keys, values in zip(self._keys, self._values, strict=True):
            layer = DynamicLayer()
            layer.lazy_initialization(keys, values)
            layer.keys = keys.expand(rows, -1, -1, -1)
            layer.values = values.expand(rows, -1, -1, -1)
            cache.layers.append(layer)
        return cache


class Openings:
    """The keys and values of tokens that open prompts, each read once and kept for as long as it
    is among the last few that were asked for.

    Args:
        read: [tokens] ids to a cache of one row, what they make with ``own`` before them.
        own: the decoder's own prefix, which stands before every opening.
    """

    def __init__(self, read: Callable[[tuple[int, ...]], Any], own: ConstantPrefix | None) -> None:
        self._read, self._own = read, own
        self._kept: OrderedDict[tuple[int, ...], ConstantPrefix] = OrderedDict()
        self._is_of_use = True

    def of(self, tokens: tuple[int, ...]) -> tuple[ConstantPrefix | None, int]:
        """What stands before a prompt, and how many of ``tokens``, which it opens with, are in it:
        all or, where they are too few or the decoder keeps no such cache, none."""
        if len(tokens) < FEWEST or not self._is_of_use:
            return self._own, 0
        found = self._kept.pop(tokens, None)
        if found is None:
            found = ConstantPrefix.of(self._read(tokens))
        if found is None:
            self._is_of_use = False
            return self._own, 0
        self._kept[tokens] = found
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return found, len(tokens)


@torch.no_grad()
def without_prompt_learning(model: Any) -> tuple[Any, ConstantPrefix | None]:
    """The model under peft's prompt learning, and the prefix it would have put in.

    Any other model comes back as it is.

    Raises:
        ValueError: peft's prompt is one of input vectors, which has no place before a prefix.
    """
    config = getattr(model, "active_peft_config", None)
    if config is None or not config.is_prompt_learning:
        return model, None
    if config.peft_type != "PREFIX_TUNING":
        raise ValueError(f"a decoder with peft's {config.peft_type} is not supported")
    past = model.get_prompt(batch_size=1)
    layers = [(layer.keys, layer.values) for layer in past.layers]
    prefix = ConstantPrefix([k.detach() for k, _ in layers], [v.detach() for _, v in layers])
    return model.get_base_model(), prefix
