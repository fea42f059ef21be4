"""Losses of rows in chunks: equal to those of whole logits, with their gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentwire.objectives.distillation import kd, kd_rows
from latentwire.objectives.row_chunks import by_rows
from latentwire.objectives.tokens import is_right, token_losses

ROWS, HIDDEN, VOCABULARY = 11, 6, 17


class Head:
    """Counts the rows of logits that are there at a time."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.weight = torch.randn(VOCABULARY, HIDDEN, dtype=dtype)
        self.rows: list[int] = []

    def __call__(self, states: Tensor) -> Tensor:
        self.rows.append(len(states))
        return nn.functional.linear(states, self.weight)


def case(dtype: torch.dtype) -> tuple[Tensor, Head, Any]:
    torch.manual_seed(0)
    states, head = torch.randn(ROWS, HIDDEN, dtype=dtype).requires_grad_(), Head(dtype)
    teacher, targets = torch.randn(ROWS, VOCABULARY), torch.randint(VOCABULARY, (ROWS,))

    def per_row(logits: Tensor, rows: slice) -> dict[str, Tensor]:
        return {
            "right": is_right(logits.detach(), targets[rows]),
            "losses": token_losses(logits, targets[rows]),
            "kd": kd_rows(logits, teacher[rows], temperature=2.0),
        }

    return states, head, per_row


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 2e-2)]
)
@pytest.mark.parametrize("rows_per_chunk", [1, 4, 10])
def test_chunks_equal_the_whole(rows_per_chunk: int, dtype: torch.dtype, tolerance: float) -> None:
    states, head, per_row = case(dtype)
    whole = by_rows(states, head, per_row, rows_per_chunk=ROWS)
    assert head.rows == [ROWS]
    found = by_rows(states, head, per_row, rows_per_chunk=rows_per_chunk)
    assert max(head.rows[1:]) == rows_per_chunk
    assert list(found) == list(whole) and torch.equal(found["right"], whole["right"])
    assert not found["right"].requires_grad
    weights = torch.linspace(-1, 2, ROWS)

    def gradient(values: dict[str, Tensor], losses: float, kd: float) -> Tensor:
        total = losses * (values["losses"] * weights).sum() + kd * values["kd"].mean()
        return torch.autograd.grad(total, states, retain_graph=True)[0]

    for name in ("losses", "kd"):
        torch.testing.assert_close(found[name], whole[name], atol=tolerance, rtol=tolerance)
    for mix in ((1, 0), (0, 1), (0.3, 5.0), (0.3, 5.0)):  # and as often as it is asked
        of_chunks, of_whole = gradient(found, *mix), gradient(whole, *mix)
        assert of_whole.abs().sum() > 0 and of_chunks.dtype == dtype
        torch.testing.assert_close(of_chunks, of_whole, atol=tolerance, rtol=tolerance)
    (alone,) = torch.autograd.grad(found["kd"].sum(), states, retain_graph=True)
    (same,) = torch.autograd.grad(found["kd"].sum(), states)
    assert torch.equal(alone, same)


def test_where_no_gradient_is_asked_for_none_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    states, head, per_row = case(torch.float32)
    expected = by_rows(states, head, per_row, rows_per_chunk=ROWS)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a gradient was taken")

    monkeypatch.setattr(torch.autograd, "grad", refuse)
    with torch.no_grad():
        quiet = by_rows(states, head, per_row, rows_per_chunk=3)
    constant = by_rows(states.detach(), head, per_row, rows_per_chunk=3)
    for found in (quiet, constant):
        assert not any(value.requires_grad for value in found.values())
        torch.testing.assert_close(found["losses"], expected["losses"].detach())


def test_kd_is_the_sum_of_its_rows() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(5, VOCABULARY), torch.randn(5, VOCABULARY)
    rows = kd_rows(student, teacher, temperature=2.0)
    whole = kd(student, teacher, temperature=2.0)
    torch.testing.assert_close(rows.sum(), whole)
    place = torch.tensor([0, 1, 2, 0, 1])
    some = kd(student, teacher, temperature=2.0, place=place, positions=1)
    torch.testing.assert_close(rows[place == 0].sum(), some)
