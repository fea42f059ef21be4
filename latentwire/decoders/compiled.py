"""Decoder layers compiled by ``torch.compile``, beside a live KV cache.

All layers of a model run the same code, so that they can share what is compiled. A cache stands in
the way of it: a layer finds its part of the cache by its number, and a number is compiled in. Each
layer is therefore given its own part alone, as tensors that come in and go out.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from latentwire.config import ConfigError
from latentwire.wire.backbones import transformer_layers

_VARIANTS = 64
"""Of one layer that may be compiled. Reading prefixes and going on from them, with and without
gradients and masks, alone and in a batch: lengths and batch sizes make no more of them."""


def compile_layers(
    name: str, model: nn.Module, *, device: torch.device, backend: str | Any = "inductor"
) -> None:
    """Has every transformer layer of a frozen model run compiled, at whatever length.

    Caches must be of keys and values that grow by concatenation (``DynamicLayer``). To be called
    before ``recompute_layers``, which may then run a compiled layer again.

    Args:
        name: the decoder's name, for messages.
        backend: as ``torch.compile`` takes it.

    Raises:
        ConfigError: the machine has nothing to compile with.
    """
    _try(name, device, backend)
    # They take a second or more to import, which nobody else needs to wait for.
    import torch._dynamo.config
    import torch._functorch.config

    # Beyond the limit torch would go back to what is not compiled without a word.
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(limit, _VARIANTS)
    # A graph may be passed backward more than once, for each objective's gradient by itself.
    torch._functorch.config.donated_buffer = False
    compiled = torch.compile(_layer, backend=backend, dynamic=True)
    for index, layer in enumerate(transformer_layers(model)):
        # In place of ``forward``, so that hooks on the layer stay outside.
        layer.forward = partial(_run, name, compiled, index, layer.forward)  # type: ignore[method-assign]


def _try(name: str, device: torch.device, backend: str | Any) -> None:
    """Compiles something small, so that a machine without a compiler says so at the start."""

    def twice(values: Tensor) -> Tensor:
        return values.sin() * 2

    try:
        torch.compile(twice, backend=backend, dynamic=True)(torch.ones(3, device=device))
    except Exception as error:
        what = "a C++ compiler (g++ or clang)" if device.type == "cpu" else "Triton"
        raise ConfigError(
            [
                f"decoders.{name}.compile: true, but nothing can be compiled here for "
                f"{device.type}: {str(error).strip().splitlines()[0]}; install {what}, or use false"
            ]
        ) from error


class _Own:
    """In place of a cache, for one layer."""

    def __init__(self, keys: Tensor | None, values: Tensor | None) -> None:
        self.keys, self.values = keys, values

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if self.keys is not None and self.values is not None:
            keys = torch.cat([self.keys, keys], dim=-2)
            values = torch.cat([self.values, values], dim=-2)
        self.keys, self.values = keys, values
        return keys, values


def _layer(
    forward: Any,
    key: str | None,
    keys: Tensor | None,
    values: Tensor | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[Any, Tensor | None, Tensor | None]:
    """What a layer makes of its inputs, and its keys and values after it."""
    if key is None:
        return forward(*args, **kwargs), None, None
    own = _Own(keys, values)
    return forward(*args, **kwargs, **{key: own}), own.keys, own.values


def _run(name: str, compiled: Any, index: int, forward: Any, *args: Any, **kwargs: Any) -> Any:
    key = next((key for key, value in kwargs.items() if isinstance(value, Cache)), None)
    if key is None:
        return compiled(forward, None, None, None, args, kwargs)[0]
    cache = kwargs.pop(key)
    while len(cache.layers) <= index and cache.layer_class_to_replicate is not None:
        cache.layers.append(cache.layer_class_to_replicate())
    part = cache.layers[index]
    if type(part) is not DynamicLayer:
        raise ConfigError(
            [
                f"decoders.{name}.compile: true, but the model's cache holds "
                f"{type(part).__name__}, which is more than keys and values that grow; use false"
            ]
        )
    is_filled = part.is_initialized and part.get_seq_length() > 0
    past = (part.keys, part.values) if is_filled else (None, None)
    output, keys, values = compiled(forward, key, *past, args, kwargs)
    if not part.is_initialized:
        part.lazy_initialization(keys, values)
    part.keys, part.values = keys, values
    return output
