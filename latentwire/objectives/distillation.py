"""Distillation from the text teacher: the same frozen decoder reading the text itself."""

import torch.nn.functional as F
from torch import Tensor


def kd(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """KL(teacher || student) in nats, summed over positions and scaled by temperature squared.

    The scale keeps the gradient's size independent of the temperature (arXiv 1503.02531, eq. 4).

    Args:
        student: logits [n, vocabulary] after the wire.
        teacher: logits [n, vocabulary] after the text, at the same answer positions.
    """
    student_log = F.log_softmax(student.float() / temperature, dim=-1)
    teacher_log = F.log_softmax(teacher.float() / temperature, dim=-1)
    divergence = F.kl_div(student_log, teacher_log, reduction="sum", log_target=True)
    return divergence * temperature**2
