"""Decoder layers whose activations are recomputed in backward, beside a live KV cache.

Hugging Face's own gradient checkpointing runs in training mode only and takes the cache away, since
a layer that runs again would append its keys and values again. A decoder here reads every prefix
once into a cache and continues from it, with gradients through both.
"""

import copy
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import Cache, DynamicLayer

from latentwire.config import ConfigError
from latentwire.decoders.lora import LoraSlots
from latentwire.wire.backbones import transformer_layers


def recompute_layers(name: str, model: nn.Module, lora: LoraSlots | None = None) -> None:
    """Has every transformer layer of a frozen model keep its input and its part of the cache only.

    All else is computed again in backward. Covered are caches that grow by concatenation
    (``DynamicLayer`` and what derives from it), filled or empty. The model must have no dropout in
    use, as one in evaluation mode.

    Args:
        name: the decoder's name, for messages.
        lora: its updates; a layer runs again with those it ran with.
    """
    for layer in transformer_layers(model):
        # In place of ``forward``, so that hooks on the layer do not run twice.
        layer.forward = partial(_recomputed, name, lora, layer.forward)  # type: ignore[method-assign]


def _recomputed(name: str, lora: LoraSlots | None, forward: Any, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    caches = [value for value in (*args, *kwargs.values()) if isinstance(value, Cache)]
    if not caches:
        return _checkpoint(lora, forward, *args, **kwargs)
    cache = caches[0]
    for part in cache.layers:
        if not isinstance(part, DynamicLayer):
            raise ConfigError(
                [
                    f"decoders.{name}.gradient_checkpointing: true, but the model's cache holds "
                    f"{type(part).__name__}, which is changed in place and so cannot be computed "
                    "again; use false"
                ]
            )
    # A layer of the cache never changes a tensor, it takes a new one: shallow copies are the state.
    before = _copied(cache)
    found: list[Cache] = []

    def run(*args: Any, **kwargs: Any) -> Any:
        own = _copied(before)
        found.append(own)
        args = tuple(own if value is cache else value for value in args)
        kwargs = {key: own if value is cache else value for key, value in kwargs.items()}
        return forward(*args, **kwargs)

    output = _checkpoint(lora, run, *args, **kwargs)
    # What the first run appended is part of the graph like its output.
    cache.layers = found.pop().layers
    return output


def _checkpoint(lora: LoraSlots | None, function: Any, *args: Any, **kwargs: Any) -> Any:
    again = nullcontext() if lora is None else lora.using(lora.active)
    return checkpoint(
        function,
        *args,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), again),
        **kwargs,
    )


def _copied(cache: Cache) -> Cache:
    copied = copy.copy(cache)
    copied.layers = [copy.copy(layer) for layer in cache.layers]
    return copied
