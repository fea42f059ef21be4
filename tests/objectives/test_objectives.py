"""Gate 1 on a table of logits: every objective against plain arithmetic, and the schedules."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from latentwire.objectives import alignment, schedules
from latentwire.objectives.distillation import kd
from latentwire.objectives.tokens import first, kce, num_first_right, tf, token_losses

# Two answers, of 3 and 2 tokens, over a vocabulary of 4.
LOGITS = [
    [2.0, 0.5, -1.0, 0.0],
    [0.0, 0.0, 0.0, 0.0],
    [1.0, 3.0, -2.0, 0.5],
    [-1.0, 0.0, 4.0, 1.5],
    [0.3, 0.2, 0.1, 0.0],
]
TARGETS = [0, 3, 2, 1, 0]
PLACE = [0, 1, 2, 0, 1]
TEACHER = [
    [1.0, 1.5, -1.0, 0.0],
    [2.0, 0.0, -1.0, 0.5],
    [1.0, 0.0, -2.0, 0.5],
    [-1.0, 1.0, 2.0, 1.5],
    [0.3, 0.2, 2.1, 0.0],
]


def log_softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    scaled = [value / temperature for value in row]
    total = math.log(sum(math.exp(value) for value in scaled))
    return [value - total for value in scaled]


LOSSES = [-log_softmax(row)[target] for row, target in zip(LOGITS, TARGETS, strict=True)]


@pytest.fixture
def losses() -> Tensor:
    return token_losses(torch.tensor(LOGITS), torch.tensor(TARGETS))


def test_cross_entropy_by_hand(losses: Tensor) -> None:
    assert losses.tolist() == pytest.approx(LOSSES)
    assert losses[1].item() == pytest.approx(math.log(4)), "uniform over four tokens"


def test_selections_are_sums_over_their_places(losses: Tensor) -> None:
    place = torch.tensor(PLACE)
    assert tf(losses).item() == pytest.approx(sum(LOSSES))
    assert first(losses, place).item() == pytest.approx(LOSSES[0] + LOSSES[3])
    assert kce(losses, place, k=1).item() == pytest.approx(LOSSES[0] + LOSSES[3])
    assert kce(losses, place, k=2).item() == pytest.approx(sum(LOSSES) - LOSSES[2])
    assert kce(losses, place, k=9).item() == pytest.approx(sum(LOSSES))


def test_first_right_counts_answers() -> None:
    logits, place = torch.tensor(LOGITS), torch.tensor(PLACE)
    # The best tokens are 0, (tie), 1, 2, 0: of the first places only the first is right.
    assert num_first_right(logits, torch.tensor(TARGETS), place) == 1
    assert num_first_right(logits, torch.tensor([0, 3, 1, 2, 0]), place) == 2
    assert num_first_right(logits, torch.tensor([1, 0, 1, 1, 0]), place) == 0


def test_losses_of_half_precision_logits_are_taken_in_float() -> None:
    logits = torch.tensor(LOGITS, dtype=torch.bfloat16)
    exact = token_losses(logits.float(), torch.tensor(TARGETS))
    assert torch.equal(token_losses(logits, torch.tensor(TARGETS)), exact)
    teacher = torch.tensor(TEACHER, dtype=torch.bfloat16)
    half = kd(logits, teacher, temperature=1.0)
    assert torch.equal(half, kd(logits.float(), teacher.float(), temperature=1.0))


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
def test_kd_is_the_divergence_from_the_teacher_by_hand(temperature: float) -> None:
    expected = 0.0
    for student_row, teacher_row in zip(LOGITS, TEACHER, strict=True):
        student, teacher = (log_softmax(row, temperature) for row in (student_row, teacher_row))
        expected += sum(math.exp(t) * (t - s) for s, t in zip(student, teacher, strict=True))
    found = kd(torch.tensor(LOGITS), torch.tensor(TEACHER), temperature=temperature)
    assert found.item() == pytest.approx(expected * temperature**2, rel=1e-5)


def test_kd_is_zero_for_equal_distributions_only() -> None:
    logits = torch.tensor(LOGITS)
    assert kd(logits, logits + 7.0, temperature=2.0).item() == pytest.approx(0.0, abs=1e-5)
    assert kd(logits, torch.tensor(TEACHER), temperature=2.0).item() > 0.1


def test_kd_asks_the_student_to_cover_the_teacher() -> None:
    sure, unsure = torch.tensor([[6.0, 0.0, 0.0]]), torch.zeros(1, 3)
    # KL(uniform || sure) is much larger than KL(sure || uniform), which is at most log 3.
    assert kd(sure, unsure, temperature=1.0) > 2 * kd(unsure, sure, temperature=1.0)
    assert kd(unsure, sure, temperature=1.0) < math.log(3)


def test_kd_gradient_pulls_the_student_only() -> None:
    student = torch.tensor(LOGITS, requires_grad=True)
    teacher = torch.tensor(TEACHER)
    kd(student, teacher, temperature=1.0).backward()
    expected = F.softmax(torch.tensor(LOGITS), -1) - F.softmax(teacher, -1)
    torch.testing.assert_close(student.grad, expected)


def test_kd_gradient_keeps_its_size_over_temperatures() -> None:
    norms = []
    for temperature in (4.0, 8.0):
        student = torch.tensor(LOGITS, requires_grad=True)
        kd(student, torch.tensor(TEACHER), temperature=temperature).backward()
        assert student.grad is not None
        norms.append(student.grad.norm().item())
    assert norms[1] == pytest.approx(norms[0], rel=0.15)


def test_empty_parts_are_zero() -> None:
    nothing = token_losses(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    place = torch.zeros(0, dtype=torch.long)
    assert tf(nothing) == first(nothing, place) == kce(nothing, place, k=2) == 0


# --- schedules


def test_warm_up_is_linear_and_ends_at_the_peak() -> None:
    rates = [schedules.learning_rate(s, steps=100, warmup=4, floor=0.1) for s in range(1, 5)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_cosine_falls_from_the_peak_to_the_floor() -> None:
    rates = [schedules.learning_rate(s, steps=104, warmup=4, floor=0.1) for s in range(4, 105)]
    assert rates[0] == 1.0
    assert rates[50] == pytest.approx(0.55), "half way between peak and floor"
    assert rates[25] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.sqrt(0.5)))
    assert rates[-1] == pytest.approx(0.1)
    assert all(later < earlier for earlier, later in zip(rates, rates[1:], strict=False))


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (3, 0), (3, 3), (3, 20), (50, 7)])
def test_rate_stays_between_nothing_and_the_peak(steps: int, warmup: int) -> None:
    for step in range(1, steps + 1):
        rate = schedules.learning_rate(step, steps=steps, warmup=warmup, floor=0.05)
        assert 0 < rate <= 1


def test_encoder_waits_then_warms_up() -> None:
    rates = [
        schedules.encoder_learning_rate(step, steps=100, warmup=5, floor=0.1, start=10)
        for step in range(1, 101)
    ]
    assert rates[:10] == [0.0] * 10
    plain = [schedules.learning_rate(s, steps=100, warmup=0, floor=0.1) for s in range(1, 101)]
    assert rates[10:15] == pytest.approx([plain[9 + i] * i / 5 for i in range(1, 6)])
    assert rates[15:] == pytest.approx(plain[15:]), "then the common cosine"


def test_encoder_without_wait_or_warm_up_follows_the_cosine() -> None:
    for step in range(1, 11):
        alone = schedules.encoder_learning_rate(step, steps=10, warmup=0, floor=0.0, start=0)
        assert alone == schedules.learning_rate(step, steps=10, warmup=0, floor=0.0)


def test_mixed_share_falls_linearly() -> None:
    shares = [schedules.linear(step, steps=10, start=0.5, end=0) for step in range(1, 12)]
    assert shares == pytest.approx([0.5 * (1 - i / 10) for i in range(11)])
    assert shares[10] == schedules.linear(50, steps=10, start=0.5, end=0) == 0
    assert schedules.linear(1, steps=10, start=0.0, end=0) == 0


def test_span_is_one_minus_the_cosine_with_the_mean_state() -> None:
    vectors = torch.tensor([[[2.0, 0.0], [0.0, 3.0]], [[1.0, 1.0], [5.0, 5.0]]])
    states = torch.tensor(
        [
            [[9.0, 9.0], [1.0, 0.0], [0.0, 1.0], [0.0, -3.0]],
            [[0.5, 0.0], [0.0, 0.5], [7, 1], [1, 7]],
        ]
    )
    # Latent 0 of row 0 agrees, the mean of latent 1's tokens points away; row 1 has one latent.
    latent = torch.tensor([[-1, 0, 1, 1], [0, 0, -1, -1]])
    torch.testing.assert_close(alignment.span(vectors, states, latent), torch.tensor([1.0, 0.0]))


def test_span_draws_a_vector_towards_its_tokens_only() -> None:
    vectors = torch.randn(1, 3, 4, requires_grad=True)
    found = alignment.span(vectors, torch.randn(1, 2, 4), torch.tensor([[1, 1]]))
    found.sum().backward()
    assert vectors.grad is not None
    assert vectors.grad[0, 1].norm() > 0
    assert vectors.grad[0, [0, 2]].norm() == 0


def test_span_of_no_tokens_is_zero() -> None:
    found = alignment.span(torch.randn(2, 3, 4), torch.randn(2, 5, 4), torch.full((2, 5), -1))
    assert found.tolist() == [0.0, 0.0]


def test_geometric_goes_from_start_to_end_by_equal_factors() -> None:
    values = [schedules.geometric(step, steps=4, start=8.0, end=1.0) for step in (1, 2, 3, 4)]
    assert values == pytest.approx([8.0, 4.0, 2.0, 1.0])
    assert schedules.geometric(1, steps=1, start=3.0, end=1.0) == 3.0
