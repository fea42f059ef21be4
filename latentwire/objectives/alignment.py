"""Alignment of the wire with what it stands for, in the decoder's own input space.

Answers alone give a fresh wire almost no direction: the decoder does not attend to vectors it
cannot recognise, so their gradient is mostly noise. Drawing each soft-prompt vector towards the
embeddings of the very tokens it stands for keeps it among inputs that the decoder knows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def span(vectors: Tensor, embeddings: Tensor, row: Tensor, latent: Tensor) -> Tensor:
    """One minus the cosine of each vector and the mean embedding of its span's tokens.

    Args:
        vectors: [rows, num_latents, hidden], begin and end left out.
        embeddings: [tokens, hidden], the decoder's input embeddings of the texts' own tokens.
        row: [tokens], the text each token belongs to.
        latent: [tokens], the latent of that text.

    Returns:
        [rows]: the mean over the latents that stand for at least one token; 0 where none does.
    """
    rows, num_latents, hidden = vectors.shape
    place = row * num_latents + latent
    # The cosine does not see the difference between a sum and a mean.
    target = vectors.new_zeros(rows * num_latents, hidden, dtype=torch.float32)
    target = target.index_add(0, place, embeddings.float()).view(rows, num_latents, hidden)
    stands = vectors.new_zeros(rows * num_latents, dtype=torch.float32)
    stands = stands.index_fill(0, place, 1.0).view(rows, num_latents)
    distance = 1 - F.cosine_similarity(vectors.float(), target, dim=-1)
    mean: Tensor = (distance * stands).sum(1) / stands.sum(1).clamp(min=1)
    return mean
