"""The contiguous mean pooling that turns token states into latents.

Means of contiguous spans of a language model's states carry more than learned queries at equal
length, and keep the wire's length proportional to the text (arXiv 2510.20797, arXiv 2510.20535).
"""

import torch
from torch import Tensor

from latentwire.data.encoder_texts import latent_of


def mean_pool(
    states: Tensor, num_tokens: Tensor, counts: Tensor, *, max_latents: int, ratio: int, fixed: int
) -> Tensor:
    """Means of contiguous spans of token states.

    Args:
        states: [batch, tokens, hidden], the text's tokens from position 0, padding after them.
        num_tokens: [batch], how many tokens each text has.
        counts: [batch], how many latents each text gets (``num_latents``).
        max_latents: latents of the result; shorter wires are zero after their own.
        ratio: tokens per latent, used where ``fixed`` is 0.
        fixed: equal spans instead, ``counts`` of them; see ``latent_of``.

    Returns:
        [batch, max_latents, hidden]
    """
    place = torch.arange(states.shape[1], device=states.device)[None, :]  # [1, tokens]
    span = latent_of(
        place.expand(states.shape[0], -1),
        counts=counts[:, None],
        num_tokens=num_tokens.clamp(min=1)[:, None],
        ratio=ratio,
        fixed=fixed,
    )  # [batch, tokens]
    slots = torch.arange(max_latents, device=states.device)
    member = span[:, None, :] == slots[None, :, None]  # [batch, max_latents, tokens]
    member &= place[:, None, :] < num_tokens[:, None, None]
    weights = member.to(states.dtype)
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1)
    return weights @ states
