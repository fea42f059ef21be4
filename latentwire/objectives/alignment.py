"""Alignment of the wire with what it stands for, among the decoder's own states.

Answers alone give a fresh wire almost no direction: the decoder does not attend to vectors it
cannot recognise, so their gradient is mostly noise. Drawing each soft-prompt vector towards the
decoder's own states of the very tokens it stands for keeps it among what the decoder knows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def span(vectors: Tensor, states: Tensor, latent: Tensor) -> Tensor:
    """One minus the cosine of each vector and the mean state of its span's tokens.

    Args:
        vectors: [texts, num_latents, hidden], begin and end left out.
        states: [texts, length, hidden], the decoder's states of the texts' own tokens.
        latent: [texts, length], the latent each token belongs to; negative for none.

    Returns:
        [texts]: the mean over the latents that stand for at least one token; 0 where none does.
    """
    slots = torch.arange(vectors.shape[1], device=vectors.device)
    member = (latent[:, None, :] == slots[None, :, None]).float()  # [texts, num_latents, length]
    # The cosine does not see the difference between a sum and a mean.
    distance = 1 - F.cosine_similarity(vectors.float(), member @ states.float(), dim=-1)
    stands = member.any(-1)
    mean: Tensor = (distance * stands).sum(1) / stands.sum(1).clamp(min=1)
    return mean
