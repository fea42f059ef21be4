"""A causal LM taken apart into its body and its output head.

The logits of a long text over a large vocabulary are the largest tensor of a step. Who has the
states that the head is given can make them a few rows at a time, and where nobody asks for logits
none are made at all.
"""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

log = logging.getLogger(__name__)

_PROBED = 8
"""Tokens on which the parts are compared with the whole."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """The layer that turns a decoder's last states into logits."""

    layer: nn.Module
    body: nn.Module
    """What comes before it; its output has the states as ``last_hidden_state``."""
    vocabulary: int
    """Logits of a position."""
    num_cached: int | None
    """Layers of a cache that holds keys and values of all positions; None for any other cache."""

    def __call__(self, states: Tensor) -> Tensor:
        """[..., hidden] -> [..., vocabulary]"""
        logits: Tensor = self.layer(states)
        return logits


def _num_cached(cache: Any) -> int | None:
    layers = cache.layers if type(cache) is DynamicCache else []
    is_plain = all(type(layer) is DynamicLayer and layer.keys is not None for layer in layers)
    return len(layers) if layers and is_plain else None


@torch.no_grad()
def taken_apart(name: str, model: Any, embeds: Tensor) -> Head | None:
    """The model's body and head, if its logits are exactly what the one makes of the other.

    They are not where logits are changed after the head (capped, scaled); it is logged then.

    Args:
        name: the decoder's name, for the log.
        embeds: [tokens, hidden], input embeddings to try it on.
    """
    layer, body = model.get_output_embeddings(), model.base_model
    whole = model(inputs_embeds=embeds[None, :_PROBED], use_cache=True).logits
    if layer is not None and body is not model:
        output = body(inputs_embeds=embeds[None, :_PROBED], use_cache=True)
        states = getattr(output, "last_hidden_state", None)
        if states is not None and torch.equal(layer(states), whole):
            return Head(
                layer=layer,
                body=body,
                vocabulary=whole.shape[-1],
                num_cached=_num_cached(output.past_key_values),
            )
    log.info(
        "decoder %s: its logits are more than its output layer makes of its last states, so they "
        "are always made whole",
        name,
    )
    return None
