"""Reconstruction: what of a text can be got back from its wire.

``gist`` asks a small head beside the decoder to name the text's first tokens; ``ae`` and
``continuation`` ask the frozen decoder itself to repeat the text, or to go on with it, the two
objectives that in-context autoencoders are pretrained with (arXiv 2307.06945, sec. 2.2). The head
is only as good as it is better than knowing no text at all, which the baselines measure in the
same unit on the same targets.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from latentwire.objectives.precision import in_float, unit
from latentwire.objectives.vocabulary import CHUNK, cosine_cross_entropy


def gist(
    predicted: Tensor,
    targets: Tensor,
    mask: Tensor,
    embeddings: Tensor,
    scale: Tensor,
    *,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the tokens that a head's vectors name by their nearest embedding.

    Logits are scale * cosine(vector, embedding): lengths, in which embeddings differ by how common
    a token is, say nothing, and a learned scale is the softmax's inverse temperature.

    Args:
        predicted: [rows, gist_len, hidden], in the space of the decoder's input embeddings.
        targets: [rows, gist_len] token ids; any valid id where not masked.
        mask: [rows, gist_len], True at positions that count.
        embeddings: [vocabulary, hidden] of the frozen decoder, constant.
        scale: positive scalar tensor.
        chunk: how many embeddings are scored at a time.

    Returns:
        [rows] nats and [rows] tokens right, each summed over a row's masked positions; their sums
        divide by ``mask.sum()``.
    """
    losses, right = cosine_cross_entropy(
        predicted.flatten(0, 1), targets.flatten(), embeddings, scale, chunk=chunk
    )
    return (losses.view(mask.shape) * mask).sum(1), (right.view(mask.shape) & mask).sum(1)


def ae(losses: Tensor) -> Tensor:
    """Cross-entropy summed over the text's own tokens, repeated by the decoder from the wire.

    Args:
        losses: [n] of ``tokens.token_losses``, at every repeated token of every text; n is what
            the sum divides by.
    """
    return losses.sum()


def continuation(losses: Tensor) -> Tensor:
    """Cross-entropy summed over the text that follows what the wire stands for.

    Args:
        losses: [n] of ``tokens.token_losses``, at every token of the rest of every text; n is what
            the sum divides by.
    """
    return losses.sum()


# --- baselines of the gist


def count_tokens(targets: Tensor, mask: Tensor, *, vocabulary: int) -> Tensor:
    """How often each token is a masked target: [vocabulary], integers.

    Counts of batches and of ranks add up to those of the whole.
    """
    counts = torch.zeros(vocabulary, dtype=torch.long, device=targets.device)
    return counts.scatter_add_(0, targets.flatten(), mask.flatten().long())


def _score(log_probs: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Nats of one distribution [vocabulary] for every position: [rows]."""
    return -torch.where(mask, log_probs[targets], 0).sum(1)


def unigram_nll(counts: Tensor, targets: Tensor, mask: Tensor, *, smoothing: float = 1.0) -> Tensor:
    """Nats of ``gist``'s targets for whoever knows how common each token is, and no text.

    Args:
        counts: [vocabulary] of ``count_tokens`` on training texts.
        targets: [rows, gist_len], with ``mask`` as in ``gist``.
        smoothing: added to every count, so that an unseen token is possible.

    Returns:
        [rows], summed over masked positions.
    """
    weights = counts.double() + smoothing
    return _score((weights / weights.sum()).log(), targets, mask)


@torch.no_grad()
def mean_embedding_nll(
    counts: Tensor, targets: Tensor, mask: Tensor, embeddings: Tensor, scale: Tensor
) -> Tensor:
    """Nats of a gist head that always says the mean embedding of the training targets.

    Args:
        counts: [vocabulary] of ``count_tokens`` on training texts, not all 0.
        targets: [rows, gist_len], with ``mask``, ``embeddings`` and ``scale`` as in ``gist``.

    Returns:
        [rows], summed over masked positions.
    """
    assert counts.sum() > 0, "a mean of no embeddings"
    shares = counts.double() / counts.sum()
    mean = sum(
        share @ part.double()
        for share, part in zip(shares.split(CHUNK), embeddings.split(CHUNK), strict=True)
    )
    direction = unit(mean)
    cosines = torch.cat([unit(part).to(mean.dtype) @ direction for part in embeddings.split(CHUNK)])
    return _score(F.log_softmax(in_float(scale) * cosines, dim=-1), targets, mask)
