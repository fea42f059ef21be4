"""Losses of logits that are never whole in memory: a few rows of states at a time.

The head is frozen, so a row's loss is a function of that row's state alone, and its gradient can be
taken while its logits are there: what is kept for the backward is [n, hidden] for each loss in
place of several [n, vocabulary], and logits are made once. The method is that of Liger Kernel's
fused linear cross-entropy (arXiv 2410.10989, sec. 3.2), here for any losses of rows, each with a
gradient of its own, so that they can be weighted and measured apart.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from latentwire.decoders.answered import Answered
from latentwire.objectives import budget, tokens

Head = Callable[[Tensor], Tensor]
"""States [rows, hidden] -> logits [rows, vocabulary]; has no gradient of its own."""
PerRow = Callable[[Tensor, slice], Mapping[str, Tensor]]
"""(logits [rows, vocabulary], which rows these are) -> values by name: [rows] where they are
differentiable, and then functions of the same row's logits; any others are constants."""


def of_answer(said: Answered, per_row: PerRow) -> dict[str, Tensor]:
    """What ``per_row`` makes of all supervised positions, as ``by_rows``.

    Where the decoder's head cannot be taken by itself, its logits are whole already.
    """
    if said.head is None:
        return dict(per_row(said.logits, slice(0, len(said.last))))
    rows_per_chunk = budget.rows_within(said.head.vocabulary)
    return by_rows(said.last, said.head, per_row, rows_per_chunk=rows_per_chunk)


def token_scores(said: Answered, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Of all supervised positions the loss in nats, and whether the target is the decoder's own
    choice: [supervised] each."""

    def per_row(logits: Tensor, rows: slice) -> dict[str, Tensor]:
        own = targets[rows]
        return {
            "losses": tokens.token_losses(logits, own),
            "right": tokens.is_right(logits.detach(), own),
        }

    found = of_answer(said, per_row)
    return found["losses"], found["right"]


def by_rows(
    states: Tensor, head: Head, per_row: PerRow, *, rows_per_chunk: int
) -> dict[str, Tensor]:
    """What ``per_row`` makes of the logits of all states, its values in one piece each.

    Args:
        states: [n, hidden], the only thing that a gradient goes to.
        rows_per_chunk: how many rows of logits there are at a time. Where that is all of them,
            autograd does the rest: one backward through the head then serves all losses.
    """
    if len(states) <= rows_per_chunk:
        return dict(per_row(head(states), slice(0, len(states))))
    chunks = [slice(i, i + rows_per_chunk) for i in range(0, len(states), rows_per_chunk)]
    if not (torch.is_grad_enabled() and states.requires_grad):
        return _joined([per_row(head(states[rows]), rows) for rows in chunks])
    names: list[str] = []
    values = _ByRows.apply(states, head, per_row, chunks, names)  # type: ignore[no-untyped-call]
    return dict(zip(names, values, strict=True))


def _joined(parts: list[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


class _ByRows(torch.autograd.Function):
    """Values of rows, with the gradient of each at its row's state taken in the forward."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        head: Head,
        per_row: PerRow,
        chunks: list[slice],
        names: list[str],
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        gradients: dict[str, Tensor] = {}
        parts: list[Mapping[str, Tensor]] = []
        for rows in chunks:
            own = states[rows].detach().requires_grad_()
            with torch.enable_grad():
                found = per_row(head(own), rows)
                # Rows are independent: the gradient of their sum is every row's own.
                sums = {key: value.sum() for key, value in found.items() if value.requires_grad}
            last = next(reversed(sums), None)
            for name, total in sums.items():
                (at,) = torch.autograd.grad(total, own, retain_graph=name != last)
                if name not in gradients:
                    gradients[name] = torch.empty_like(states)
                gradients[name][rows] = at
            parts.append({name: value.detach() for name, value in found.items()})
        joined = _joined(parts)
        names += joined
        ctx.mark_non_differentiable(*(v for k, v in joined.items() if k not in gradients))
        ctx.differentiable = [name in gradients for name in joined]
        ctx.save_for_backward(*(gradients[name] for name in joined if name in gradients))
        return tuple(joined.values())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *weights: Tensor | None) -> tuple[Tensor | None, ...]:
        asked = [weight for weight, there in zip(weights, ctx.differentiable, strict=True) if there]
        total: Tensor | None = None
        for weight, gradient in zip(asked, ctx.saved_tensors, strict=True):
            if weight is not None:
                # In the losses' precision, which is at least that of the states.
                part = weight[:, None] * gradient
                total = part if total is None else total + part
        at_states = None if total is None else total.to(ctx.saved_tensors[0].dtype)
        return at_states, None, None, None, None
