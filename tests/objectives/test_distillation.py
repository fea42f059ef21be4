"""What distillation asks of the student."""

import math

import pytest
import torch
import torch.nn.functional as F

from latentwire.objectives.distillation import kd, state

LOGITS, TEACHER = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0)) * 2


def test_kd_is_zero_for_equal_distributions_only() -> None:
    assert kd(LOGITS, LOGITS + 7.0, temperature=2.0).item() == pytest.approx(0.0, abs=1e-5)
    assert kd(LOGITS, TEACHER, temperature=2.0).item() > 0.1


def test_kd_asks_the_student_to_cover_the_teacher() -> None:
    sure, unsure = torch.tensor([[6.0, 0.0, 0.0]]), torch.zeros(1, 3)
    # KL(uniform || sure) is much larger than KL(sure || uniform), which is at most log 3.
    assert kd(sure, unsure, temperature=1.0) > 2 * kd(unsure, sure, temperature=1.0)
    assert kd(unsure, sure, temperature=1.0) < math.log(3)


def test_kd_gradient_pulls_the_student_only() -> None:
    student, teacher = LOGITS.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    kd(student, teacher, temperature=1.0).backward()
    torch.testing.assert_close(student.grad, F.softmax(LOGITS, -1) - F.softmax(TEACHER, -1))
    assert teacher.grad is None


def test_kd_gradient_keeps_its_size_over_temperatures() -> None:
    norms = []
    for temperature in (8.0, 16.0):
        student = LOGITS.clone().requires_grad_()
        kd(student, TEACHER, temperature=temperature).backward()
        assert student.grad is not None
        norms.append(student.grad.norm().item())
    assert norms[1] == pytest.approx(norms[0], rel=0.15)


def test_kd_of_first_positions_leaves_the_others_alone() -> None:
    student = LOGITS.clone().requires_grad_()
    place = torch.tensor([0, 1, 2, 0, 1])
    kd(student, TEACHER, temperature=1.0, place=place, positions=1).backward()
    assert student.grad is not None
    assert (student.grad.norm(dim=-1) > 0).tolist() == [True, False, False, True, False]


def test_state_sees_directions_only() -> None:
    teacher = torch.randn(3, 4, 6)
    lengths = torch.tensor([0.01, 1.0, 1000.0])[:, None, None]
    assert state(lengths * teacher, teacher).item() == pytest.approx(0.0, abs=1e-5)
    assert state(-lengths * teacher, teacher).item() == pytest.approx(2 * 4)


def test_state_is_half_the_squared_error_of_states_at_unit_rms() -> None:
    student, teacher = torch.randn(2, 3, 4, 6)
    unit = [states / states.square().mean(-1, keepdim=True).sqrt() for states in (student, teacher)]
    expected = (unit[0] - unit[1]).square().mean(-1).mean(0).sum() / 2
    torch.testing.assert_close(state(student, teacher), expected)
