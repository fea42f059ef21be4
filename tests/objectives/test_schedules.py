"""Schedules: where they start, how they go and where they end."""

import math
from itertools import pairwise

import pytest

from latentwire.objectives import schedules


def test_warm_up_is_linear_and_ends_at_the_peak() -> None:
    rates = [schedules.learning_rate(s, steps=100, warmup=4, floor=0.1) for s in range(1, 5)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_cosine_falls_from_the_peak_to_the_floor() -> None:
    rates = [schedules.learning_rate(s, steps=104, warmup=4, floor=0.1) for s in range(4, 105)]
    assert rates[0] == 1.0
    assert rates[50] == pytest.approx(0.55), "half way between peak and floor"
    assert rates[25] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.sqrt(0.5)))
    assert rates[-1] == pytest.approx(0.1)
    assert all(later < earlier for earlier, later in pairwise(rates))


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


def test_linear_reaches_its_end_at_the_last_step() -> None:
    shares = [schedules.linear(step, steps=11, start=0.5, end=0) for step in range(1, 13)]
    assert shares == pytest.approx([0.5 * (1 - i / 10) for i in range(11)] + [0.0])
    assert shares[0] == 0.5
    assert shares[10] == schedules.linear(50, steps=11, start=0.5, end=0) == 0


def test_linear_with_a_power_changes_later() -> None:
    kept = [schedules.linear(s, steps=5, start=0.6, end=1.0, power=2.0) for s in range(1, 7)]
    assert kept == pytest.approx([0.6 + 0.4 * (i / 4) ** 2 for i in range(5)] + [1.0])


def test_geometric_goes_from_start_to_end_by_equal_factors() -> None:
    values = [schedules.geometric(step, steps=4, start=8.0, end=1.0) for step in range(1, 6)]
    assert values == pytest.approx([8.0, 4.0, 2.0, 1.0, 1.0])


def test_first_weight_holds_its_peak_then_falls_on_a_cosine() -> None:
    values = [
        schedules.first_weight(step, steps=11, peak=6.0, hold=0.2, base=2.0)
        for step in range(1, 13)
    ]
    assert values[:3] == [6.0] * 3, "steps at 0, 0.1 and 0.2 of the way"
    assert values[6] == pytest.approx(4.0), "half way down"
    assert values[4] == pytest.approx(4.0 + 2.0 * math.sqrt(0.5))
    assert values[10:] == pytest.approx([2.0, 2.0])
    assert all(later < earlier for earlier, later in pairwise(values[2:11]))


@pytest.mark.parametrize(("hold", "last"), [(1.0, 6.0), (0.0, 2.0)])
def test_first_weight_at_the_ends_of_hold(hold: float, last: float) -> None:
    values = [
        schedules.first_weight(step, steps=5, peak=6.0, hold=hold, base=2.0) for step in (1, 5)
    ]
    assert values == pytest.approx([6.0, last])


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (1, 4, [1, 2, 2, 3, 3, 4, 4, 4]),
        (8, 4, [8, 7, 7, 6, 5, 5, 4, 4]),
        (3, 3, [3] * 8),
        (0, 1, [1] * 8),
    ],
)
def test_k_goes_in_whole_tokens(start: int, end: int, expected: list[int]) -> None:
    found = [schedules.k_at(step, steps=7, start=start, end=end) for step in range(1, 9)]
    assert found == expected


def test_a_single_step_does_what_a_schedule_starts_with() -> None:
    assert schedules.linear(1, steps=1, start=0.5, end=0) == 0.5
    assert schedules.geometric(1, steps=1, start=3.0, end=1.0) == 3.0
    assert schedules.k_at(1, steps=1, start=2, end=4) == 2
    assert schedules.first_weight(1, steps=1, peak=6.0, hold=0.0, base=2.0) == 6.0
    assert schedules.linear(2, steps=1, start=0.5, end=0) == 0
