"""One reading of a prefix for all that continues it: contexts that are copied, cut and shared.

In a causal decoder the keys and values of a position depend on the tokens up to it alone. Whatever
is a leading part of a prefix that has been read need not be read again: it has the same keys and
values under a shorter mask (prefixes are padded on the right, and positions are counted by real
length, so that nothing else differs).
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from latentwire.decoders.answered import Context
from latentwire.decoders.frozen import FrozenDecoder

_LENGTH_DEPENDENT = ("dynamic", "longrope")
"""Rotary embeddings whose angles depend on how long the text is that is read."""


def selected(
    context: Context,
    rows: Sequence[int],
    *,
    lengths: Sequence[int] | None = None,
    first: int = 0,
) -> Context:
    """Rows of a context, which itself stays as it is, however the new one is continued.

    Args:
        rows: a row may come more than once, or not at all.
        lengths: positions of each row that are kept, beside the ``first``; what none of the rows
            keeps is cut off. None keeps what there is.
        first: positions at the front that every row keeps.
    """
    mask = context.mask
    whole = list(rows) == list(range(len(mask)))
    index = torch.tensor(rows, dtype=torch.long, device=mask.device)
    if not whole:
        mask = mask[index]
    end = mask.shape[1]
    if lengths is not None:
        end = first + max(lengths, default=0)
        place = torch.arange(end, device=mask.device)
        kept = torch.tensor(lengths, dtype=torch.long, device=mask.device)
        mask = mask[:, :end] & (place < first + kept[:, None])
    cache = copy.copy(context.cache)
    cache.layers = [
        _layer(layer, None if whole else index, end=end if end < context.mask.shape[1] else None)
        for layer in context.cache.layers
    ]
    return Context(cache=cache, mask=mask, lora=context.lora)


def _layer(layer: Any, index: Tensor | None, *, end: int | None) -> Any:
    # A growing layer binds new tensors as it grows; others may write into those they have.
    grows = type(layer) in (DynamicLayer, DynamicSlidingWindowLayer)
    own = copy.copy(layer) if grows else copy.deepcopy(layer)
    if end is not None:
        assert type(layer) is DynamicLayer, "only full attention can be cut to a leading part"
        # Cut before rows are copied, so that nothing is copied that nobody reads.
        own.keys, own.values = own.keys[:, :, :end], own.values[:, :, :end]
    if index is not None and end == 0:
        # A cache of no length takes itself for one that is not filled yet, and chooses no rows.
        own.keys, own.values = own.keys[index], own.values[index]
    elif index is not None:
        own.batch_select_indices(index)
    return own


def joined(contexts: Sequence[Context]) -> Context:
    """One context of all their rows; every layer must be of full attention.

    A shorter one gets positions at its front that nobody attends to.

    Raises:
        AssertionError: they are read with updates of linear layers, which may differ.
    """
    assert not any(context.lora for context in contexts)
    if len(contexts) == 1:
        return contexts[0]
    length = max(context.mask.shape[1] for context in contexts)
    missing = [length - context.mask.shape[1] for context in contexts]
    masks = [pad(c.mask, (more, 0), value=False) for c, more in zip(contexts, missing, strict=True)]
    cache = copy.copy(contexts[0].cache)
    cache.layers = []
    for layers in zip(*(context.cache.layers for context in contexts), strict=True):
        own = copy.copy(layers[0])
        parts = list(zip(layers, missing, strict=True))
        own.keys = torch.cat([pad(layer.keys, (0, 0, more, 0)) for layer, more in parts])
        own.values = torch.cat([pad(layer.values, (0, 0, more, 0)) for layer, more in parts])
        cache.layers.append(own)
    return Context(cache=cache, mask=torch.cat(masks), lora={})


def is_plain(context: Context) -> bool:
    """Whether every layer's memory is a row of positions, as full attention has it."""
    return all(type(layer) is DynamicLayer for layer in context.cache.layers)


def has_leading_parts(decoder: FrozenDecoder, context: Context) -> bool:
    """Whether a leading part of ``context`` is what the decoder would have read of it alone.

    Not so where a layer's memory is no row of positions (a sliding window, a recurrent state), or
    where the length of a text turns its keys.
    """
    kinds = {getattr(module, "rope_type", "default") for module in decoder.model.modules()}
    return kinds.isdisjoint(_LENGTH_DEPENDENT) and is_plain(context)
