"""Alignment of the wire with what the decoder knows: its own states and input embeddings.

Answers alone give a fresh wire almost no direction: the decoder does not attend to vectors it
cannot recognise, so their gradient is mostly noise. Drawing each soft-prompt vector towards the
decoder's own states of the very tokens it stands for keeps it among what the decoder knows; the
other objectives ask less, only that it looks like an input at all.

Each gives one value a row (a text), so that a sum over examples, and with it the objective, is
the same however a batch is split over ranks.
"""

import torch
from torch import Tensor

from latentwire.objectives.precision import cosine, in_float
from latentwire.objectives.vocabulary import CHUNK, nearest


def _mean_over(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of values [rows, slots] where ``mask`` [rows, slots]: [rows], 0 where there is none."""
    mean: Tensor = (values * mask).sum(1) / mask.sum(1).clamp(min=1)
    return mean


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
    member = latent[:, None, :] == slots[None, :, None]  # [texts, num_latents, length]
    # The cosine does not see the difference between a sum and a mean.
    states = in_float(states)
    distance = 1 - cosine(vectors, member.to(states.dtype) @ states)
    return _mean_over(distance, member.any(-1))


def latent_align(
    vectors: Tensor, mask: Tensor, embeddings: Tensor, *, chunk: int = CHUNK
) -> Tensor:
    """One minus the cosine of each vector and the input embedding nearest to it by cosine.

    Args:
        vectors: [rows, slots, hidden].
        mask: [rows, slots], True at slots that count.
        embeddings: [vocabulary, hidden], constant.
        chunk: how many embeddings are compared at a time.

    Returns:
        [rows]: the mean over a row's real slots; 0 where it has none.
    """
    # The largest cosine has the gradient of the one embedding it is of.
    index = nearest(vectors.detach().flatten(0, 1), embeddings, chunk=chunk)
    chosen = embeddings.detach()[index].view(vectors.shape)
    return _mean_over(1 - cosine(vectors, chosen), mask)


def embedding_statistics(embeddings: Tensor, *, chunk: int = CHUNK) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every dimension: [vocabulary, hidden] -> two [hidden].

    Of the whole table (divided by its rows), constant, in fp32.
    """
    frozen = embeddings.detach()
    mean = frozen.sum(0, dtype=torch.float64) / len(frozen)
    squares = torch.zeros_like(mean)
    for part in frozen.split(chunk):
        squares += (in_float(part) - mean).square().sum(0)
    deviation = (squares / len(frozen)).sqrt()
    dtype = torch.promote_types(frozen.dtype, torch.float32)
    return mean.to(dtype), deviation.to(dtype)


def manifold(vectors: Tensor, mask: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Squared distance of each row's statistics over its slots from the input embeddings'.

    (|m - mean|^2 + |s - std|^2) / (|mean|^2 + |std|^2), with mean m and standard deviation s of
    every dimension over the row's real slots. The denominator is ``hidden`` times the embeddings'
    mean square, so the value depends on neither. Statistics of a batch would depend on which
    rows a rank holds; a row's own do not. Few slots cannot have the statistics of a whole table:
    n embeddings drawn at random have about 1 / n at least.

    Args:
        vectors: [rows, slots, hidden].
        mask: [rows, slots], True at slots that count.
        mean: [hidden], with ``std`` [hidden] from ``embedding_statistics``.

    Returns:
        [rows]; 0 where a row has no real slot.
    """
    real = mask[..., None]
    num = mask.sum(1).clamp(min=1)[:, None]
    values = torch.where(real, in_float(vectors), 0)
    own_mean = values.sum(1) / num  # [rows, hidden]
    # As a norm the deviation has a gradient, zero, where all slots are equal too.
    spread = torch.linalg.vector_norm(torch.where(real, values - own_mean[:, None], 0), dim=1)
    own_std = spread / num.sqrt()
    distance = (own_mean - mean).square().sum(-1) + (own_std - std).square().sum(-1)
    return distance / (mean.square() + std.square()).sum() * mask.any(1)


def scale_l2(log_scale: Tensor, initial: float) -> Tensor:
    """Squared drift of an adapter's scale from where it started: (scale / initial - 1)^2.

    Args:
        log_scale: one value, the learned scale's logarithm.
        initial: the scale (not its logarithm) that training began with.

    Returns:
        A scalar that is of no position; every example counts it once.
    """
    return (in_float(log_scale).exp() / initial - 1).square().sum()
