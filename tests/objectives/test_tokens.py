"""What the answer's objectives select and count, on a table of logits."""

import math

import pytest
import torch

from latentwire.objectives.tokens import (
    first,
    is_right,
    kce,
    tf,
    token_losses,
    within,
)

# Two answers, of 3 and 2 tokens, over a vocabulary of 4.
LOGITS = torch.tensor(
    [
        [2.0, 0.5, -1.0, 0.0],
        [0.0, 0.0, 0.0, 0.0],
        [1.0, 3.0, -2.0, 0.5],
        [-1.0, 0.0, 4.0, 1.5],
        [0.3, 0.2, 0.1, 0.0],
    ]
)
TARGETS = torch.tensor([0, 3, 2, 1, 0])
PLACE = torch.tensor([0, 1, 2, 0, 1])


def test_uniform_logits_cost_the_vocabulary() -> None:
    assert token_losses(LOGITS, TARGETS)[1].item() == pytest.approx(math.log(4))


@pytest.mark.parametrize(("positions", "count"), [(0, 5), (1, 2), (2, 4), (3, 5), (9, 5)])
def test_counts_are_of_the_positions_summed(positions: int, count: int) -> None:
    assert within(PLACE, positions).sum() == count
    assert within(PLACE, positions).tolist() == [p < (positions or 9) for p in PLACE.tolist()]
    if positions:
        assert kce(torch.ones(5), PLACE, k=positions) == count


def test_first_right_counts_answers() -> None:
    # The best tokens are 0, (tie), 1, 2, 0: of the first places only the first is right.
    assert (is_right(LOGITS, TARGETS) & (PLACE == 0)).sum() == 1
    assert (is_right(LOGITS, torch.tensor([0, 3, 1, 2, 0])) & (PLACE == 0)).sum() == 2
    assert (is_right(LOGITS, torch.tensor([1, 0, 1, 1, 0])) & (PLACE == 0)).sum() == 0


def test_empty_parts_are_zero() -> None:
    nothing = token_losses(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    place = torch.zeros(0, dtype=torch.long)
    assert tf(nothing) == first(nothing, place) == kce(nothing, place, k=2) == 0
    assert within(place, 0).sum() == within(place, 2).sum() == 0
