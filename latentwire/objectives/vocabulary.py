"""Cosines with every row of a frozen embedding table, a chunk of the vocabulary at a time.

Neither the table in fp32 nor the scores [n, vocabulary] are ever whole in memory, forward or
backward: each chunk is cast, used, and computed again where its gradient is needed.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from latentwire.objectives.precision import unit

CHUNK = 4096
"""Rows of the table at a time."""


def _cosines(directions: Tensor, embeddings: Tensor) -> Tensor:
    """Of unit vectors [n, hidden] with a part of the table [chunk, hidden]: [n, chunk]."""
    return directions @ unit(embeddings).to(directions.dtype).T


@torch.no_grad()
def nearest(vectors: Tensor, embeddings: Tensor, *, chunk: int = CHUNK) -> Tensor:
    """Index of the embedding with the largest cosine: [n, hidden], [vocabulary, hidden] -> [n]."""
    directions = unit(vectors)
    best = directions.new_full(directions.shape[:1], -torch.inf)
    index = torch.zeros_like(best, dtype=torch.long)
    for start in range(0, len(embeddings), chunk):
        found, place = _cosines(directions, embeddings[start : start + chunk]).max(-1)
        better = found > best
        best, index = torch.where(better, found, best), torch.where(better, start + place, index)
    return index


class _Part(NamedTuple):
    """What one chunk of the vocabulary says of each of n vectors, each [n]."""

    normaliser: Tensor
    """Logarithm of the chunk's summed exponentials."""
    target: Tensor
    """The target's logit; 0 where the target is in another chunk."""
    best: Tensor
    """The chunk's largest logit."""
    token: Tensor
    """Whose it is."""


def _part(
    directions: Tensor, targets: Tensor, embeddings: Tensor, scale: Tensor, start: int
) -> _Part:
    logits = scale * _cosines(directions, embeddings)  # [n, chunk]
    place = targets - start
    here = (place >= 0) & (place < len(embeddings))
    target = logits.gather(1, place.clamp(0, len(embeddings) - 1)[:, None])[:, 0]
    best, token = logits.detach().max(-1)
    return _Part(logits.logsumexp(-1), target * here, best, token + start)


def cosine_cross_entropy(
    vectors: Tensor, targets: Tensor, embeddings: Tensor, scale: Tensor, *, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of softmax(scale * cosine(vector, embedding)) at each target.

    Args:
        vectors: [n, hidden].
        targets: [n] token ids.
        embeddings: [vocabulary, hidden], constant.
        scale: scalar tensor.

    Returns:
        [n] in nats, and [n] whether the target has the largest cosine.
    """
    directions, frozen = unit(vectors), embeddings.detach()
    parts = [
        checkpoint(
            _part,
            directions,
            targets,
            frozen[start : start + chunk],
            scale,
            start,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        for start in range(0, len(frozen), chunk)
    ]
    normaliser = torch.stack([part.normaliser for part in parts]).logsumexp(0)
    target = torch.stack([part.target for part in parts]).sum(0)
    chosen = torch.stack([part.best for part in parts]).argmax(0)
    token = torch.stack([part.token for part in parts]).gather(0, chosen[None])[0]
    return normaliser - target, token == targets
