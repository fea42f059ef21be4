"""What distillation asks of the student."""

import math

import pytest
import torch
import torch.nn.functional as F

from latentwire.decoders.teacher import Form
from latentwire.objectives.distillation import kd, kd_cached, kd_rows, state

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


# --- distributions that were kept in short


def cached(student: torch.Tensor, form: Form, teacher: torch.Tensor = TEACHER) -> torch.Tensor:
    kept = form.of(teacher)
    return kd_cached(student, kept.ids, kept.log_probs, kept.log_tail, temperature=form.temperature)


@pytest.mark.parametrize(("bits", "tolerance"), [(16, 1e-4), (32, 1e-6)])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_whole_vocabulary_is_the_live_teacher(
    bits: int, tolerance: float, temperature: float
) -> None:
    generator = torch.Generator().manual_seed(1)
    logits, taught = torch.randn(2, 40, 300, generator=generator) * 3
    found = []
    for top_k in (None, 0, 300, 999):
        student = logits.clone().requires_grad_()
        if top_k is None:
            rows = kd_rows(student, taught, temperature=temperature)
        else:
            form = Form(top_k=top_k, bits=bits, temperature=temperature)
            rows = cached(student, form, taught)
        rows.mean().backward()
        assert student.grad is not None
        found.append((rows.detach(), student.grad))
    live = found[0]
    for rows, grad in found[1:]:
        scale = live[0].mean()
        torch.testing.assert_close(rows / scale, live[0] / scale, atol=tolerance * 10, rtol=0)
        assert abs(rows.mean() - live[0].mean()) < tolerance * scale
        assert (grad - live[1]).norm() < 10 * tolerance * live[1].norm()


def test_more_tokens_come_nearer_and_never_above() -> None:
    logits, taught = torch.randn(2, 64, 50, generator=torch.Generator().manual_seed(2)) * 3
    whole = kd_rows(logits, taught, temperature=2.0)
    before = torch.zeros(64)
    for top_k in (1, 2, 4, 8, 16, 32, 49, 50):
        rows = cached(logits, Form(top_k=top_k, bits=32, temperature=2.0), taught)
        assert (rows >= before - 1e-5).all() and (rows <= whole + 1e-5).all()
        before = rows
    torch.testing.assert_close(before, whole, atol=1e-5, rtol=1e-5)


def test_a_short_distribution_is_one_over_the_kept_tokens_and_the_rest() -> None:
    rows = cached(LOGITS, Form(top_k=2, bits=32, temperature=2.0))
    for own, log_teacher, log_student in zip(
        rows, (TEACHER / 2).log_softmax(-1), (LOGITS / 2).log_softmax(-1), strict=True
    ):
        ids = log_teacher.topk(2).indices.tolist()
        total = 0.0
        for p, q in [
            *((float(log_teacher[i].exp()), float(log_student[i].exp())) for i in ids),
            (
                sum(float(log_teacher[i].exp()) for i in range(7) if i not in ids),
                sum(float(log_student[i].exp()) for i in range(7) if i not in ids),
            ),
        ]:
            total += p * math.log(p / q)
        assert float(own) == pytest.approx(4 * total, rel=1e-4)


@pytest.mark.parametrize("top_k", [1, 2, 5, 0])
@pytest.mark.parametrize("bits", [16, 32])
def test_it_pulls_the_student_only_and_not_where_it_agrees(top_k: int, bits: int) -> None:
    form = Form(top_k=top_k, bits=bits, temperature=2.0)
    student = TEACHER.clone().requires_grad_()
    rows = cached(student, form)
    rows.sum().backward()
    assert student.grad is not None
    assert (rows > -1e-6).all(), "what was rounded is made a distribution again"
    assert rows.abs().max() < 1e-4 and student.grad.abs().max() < 2e-3


def test_a_teacher_that_is_sure_leaves_no_tail() -> None:
    """Neither a mass of 0 nor a kept distribution over everything is a NaN anywhere."""
    sure = torch.tensor([[200.0, 0.0, -200.0, -200.0]])
    student = torch.zeros(1, 4, requires_grad=True)
    ids = torch.tensor([[0, 1, 2, 3]], dtype=torch.int32)
    none = torch.tensor([-torch.inf])
    for args in [
        (ids, sure.log_softmax(-1), none),
        (ids[:, :2], torch.tensor([[0.0, -torch.inf]]), none),
        (ids[:, :1], torch.zeros(1, 1), none),
        (None, torch.tensor([[0.0, -torch.inf, -torch.inf, -torch.inf]]), None),
    ]:
        (rows,) = kd_cached(student, *args, temperature=1.0)
        (grad,) = torch.autograd.grad(rows, student)
        assert float(rows.detach()) == pytest.approx(math.log(4), abs=1e-5)
        torch.testing.assert_close(grad, torch.tensor([[-0.75, 0.25, 0.25, 0.25]]))


def test_half_precision_students_are_measured_in_single() -> None:
    form = Form(top_k=3, bits=16, temperature=1.0)
    rows = cached(LOGITS.bfloat16(), form)
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows, cached(LOGITS.bfloat16().float(), form))
