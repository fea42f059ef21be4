"""Masks of the tokens that a decoder reads, as its model is given them."""

from typing import Any

import torch
from torch import Tensor, nn


def takes_masks(model: nn.Module) -> bool:
    """Whether every layer of a decoder would use the same mask of queries and keys, and as it is:
    not where some attend to a window or to a chunk."""
    config: Any = model.config
    config = config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        kinds = ["full_attention" if getattr(config, "sliding_window", None) is None else "other"]
    return set(kinds) == {"full_attention"} and config._attn_implementation == "sdpa"


def token_mask(
    mask: Tensor, is_full: bool | None, *, first: int = 0, takes_masks: bool
) -> Tensor | None:
    """A mask [rows, length] of tokens that are read, as the model is given it.

    From a mask of this form the model makes one of queries and keys, for which it looks, on the
    host, whether anything is padding. Where that is known here, it gets the very mask that it
    would have made; for no padding, none.

    Args:
        is_full: whether the mask is True everywhere; None where the host does not know.
        first: positions in the cache before them, which all may look at.
        takes_masks: of the model, as the function of this name says.
    """
    if is_full is None or not takes_masks:
        return nn.functional.pad(mask, (first, 0), value=True).long()
    if is_full and not first:
        return None
    length = mask.shape[1]
    causal = torch.ones(length, first + length, dtype=torch.bool, device=mask.device)
    seen = nn.functional.pad(mask, (first, 0), value=True)
    return causal.tril(first) & seen[:, None, None, :]
