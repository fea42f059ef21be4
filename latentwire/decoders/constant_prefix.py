"""A decoder that comes with a constant prefix of its own, trained by peft.

peft's prefix tuning puts its constants in place of whatever cache it is given, at every step: a
wire in the cache would never be read. The constants are therefore taken out of peft's hands once
and stand in front of the wire, in the same cache.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache


class ConstantPrefix:
    """Keys and values that stand before everything a decoder reads.

    Args:
        keys, values: for each layer [1, kv_heads, length, head_dim].
    """

    def __init__(self, keys: list[Tensor], values: list[Tensor]) -> None:
        self._keys, self._values = keys, values
        self.length = int(keys[0].shape[2])

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All of it, by name."""
        keys = {f"keys.{layer}": keys for layer, keys in enumerate(self._keys)}
        return keys | {f"values.{layer}": values for layer, values in enumerate(self._values)}

    def cache(self, rows: int) -> Any:
        """A fresh cache of ``rows`` rows that holds the prefix."""
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(zip(self._keys, self._values, strict=True)):
            cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), layer)
        return cache


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
