"""Distillation from the text teacher: the same frozen decoder reading the text itself."""

import torch
import torch.nn.functional as F
from torch import Tensor

from latentwire.objectives.precision import cosine, in_float
from latentwire.objectives.tokens import within


def kd_rows(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """``kd`` of each position by itself: logits [n, vocabulary] twice -> [n]."""
    student_log = F.log_softmax(in_float(student) / temperature, dim=-1)
    teacher_log = F.log_softmax(in_float(teacher.detach()) / temperature, dim=-1)
    divergence = F.kl_div(student_log, teacher_log, reduction="none", log_target=True).sum(-1)
    return divergence * temperature**2


def kd(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float,
    place: Tensor | None = None,
    positions: int = 0,
) -> Tensor:
    """KL(teacher || student) in nats, summed over positions and scaled by temperature squared.

    The scale keeps the gradient's size independent of the temperature (arXiv 1503.02531, sec. 2).
    What it divides by is the number of positions that count.

    Args:
        student: logits [n, vocabulary] after the wire.
        teacher: logits [n, vocabulary] after the text, at the same answer positions; constant.
        place: [n], each position's place within its answer, from 0.
        positions: how many of an answer's first positions count; 0 for all, without ``place``.
    """
    divergence = kd_rows(student, teacher, temperature=temperature)
    return counted(divergence, place=place, positions=positions)


def counted(divergence: Tensor, *, place: Tensor | None = None, positions: int = 0) -> Tensor:
    """The sum of rows [n] of ``kd_rows`` or ``kd_cached``, of those that count; see ``kd``."""
    if positions:
        assert place is not None, "only places tell which positions come first"
        divergence = divergence * within(place, positions)
    return divergence.sum()


def kd_cached(
    student: Tensor,
    ids: Tensor | None,
    log_probs: Tensor,
    log_tail: Tensor | None = None,
    *,
    temperature: float,
) -> Tensor:
    """``kd_rows`` against a distribution that was kept in short: [n], in nats.

    Over k + 1 outcomes: the kept tokens, and all others as one. By the log-sum inequality (Cover &
    Thomas, Elements of Information Theory, th. 2.7.1) it is never above the divergence over the
    vocabulary, which it is where all of it was kept. What is kept is made to sum to one first, as
    numbers of few bits do not.

    Args:
        student: logits [n, vocabulary] after the wire.
        ids: [n, k] the kept tokens, each once a row; None: all of them, in order.
        log_probs: [n, k] the teacher's log-probabilities of those at ``temperature``; constant.
        log_tail: [n] the logarithm of what the others have together, -inf for nothing; None where
            there are no others.
    """
    logits = in_float(student) / temperature
    log_probs = in_float(log_probs.detach())
    if ids is None:
        assert log_tail is None and log_probs.shape == logits.shape
        target = F.log_softmax(log_probs, dim=-1)
        own = F.log_softmax(logits, dim=-1)
        return _kl(own, target) * temperature**2
    assert log_tail is not None
    target = F.log_softmax(torch.cat([log_probs, in_float(log_tail)[:, None]], dim=-1), dim=-1)
    ids = ids.long()
    kept = logits.gather(-1, ids)
    # One minus the kept ones' sum would be rounded away where they have nearly all.
    others = logits.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    own = F.log_softmax(torch.cat([kept, others], dim=-1), dim=-1)
    return _kl(own, target) * temperature**2


def _kl(own: Tensor, target: Tensor) -> Tensor:
    """Over the last axis; an outcome that the target excludes (-inf) adds nothing."""
    is_possible = target > -torch.inf
    parts = F.kl_div(own, target.where(is_possible, 0), reduction="none", log_target=True)
    return parts.where(is_possible, 0).sum(-1)


def state(student: Tensor, teacher: Tensor) -> Tensor:
    """One minus the cosine of hidden states after wire and text: mean over layers, sum over n.

    The last layer's states are those after the decoder's final norm.

    States are compared by direction, as their lengths differ by orders between layers and between
    positions, and the decoder's own normalisation removes them. One minus the cosine is half the
    squared distance of unit vectors, the distance of arXiv 1908.09355 (L_PT), and half the mean
    squared error of states at unit root mean square; arXiv 1910.01108 distils with it too.

    Args:
        student: [layers, n, hidden] at the answer's positions after the wire.
        teacher: [layers, n, hidden] at the same positions after the text; constant.

    Returns:
        A sum over n positions of values between 0 and 2, so n is what it divides by.
    """
    return (1 - cosine(student, teacher.detach())).mean(0).sum()
