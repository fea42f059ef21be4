"""Objectives on the answer's tokens, from the logits of one teacher-forced forward.

Each is a sum over this rank's positions; dividing by the positions of the whole batch is the
caller's, so that the objective is the same in every layout.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from latentwire.objectives.precision import in_float


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each supervised position in nats: [n, vocabulary], [n] -> [n]."""
    return F.cross_entropy(in_float(logits), targets, reduction="none")


def tf(losses: Tensor) -> Tensor:
    """Teacher-forced cross-entropy, summed over every answer token and its EOS."""
    return losses.sum()


def first(losses: Tensor, place: Tensor) -> Tensor:
    """Cross-entropy summed over first answer tokens; ``place`` [n] counts within the answer."""
    return (losses * (place == 0)).sum()


def kce(losses: Tensor, place: Tensor, *, k: int) -> Tensor:
    """Cross-entropy summed over the first ``k`` tokens of each answer."""
    return (losses * (place < k)).sum()


def within(place: Tensor, positions: int) -> Tensor:
    """Which positions [n] are among the first ``positions`` of their answer; 0 takes all."""
    return place < positions if positions else torch.ones_like(place, dtype=torch.bool)


def is_right(logits: Tensor, targets: Tensor) -> Tensor:
    """Which targets [n] are the model's own choice: [n], True or False."""
    return logits.argmax(-1) == targets
