"""Distillation from the text teacher: the same frozen decoder reading the text itself."""

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
    if positions:
        assert place is not None, "only places tell which positions come first"
        divergence = divergence * within(place, positions)
    return divergence.sum()


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
