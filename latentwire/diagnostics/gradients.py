"""Per-objective gradient norms where they enter the wire: does a loss reach it at all?"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from latentwire.wire.unit import Injection

Gradients = list[Tensor | None]
"""At each of an injection's outputs; None where an objective does not depend on one."""


def objective_gradients(objectives: Mapping[str, Tensor], wire: Injection) -> dict[str, Gradients]:
    """Each unweighted objective's gradient at everything the decoder's unit handed on.

    One backward through the frozen decoder per objective; the graph is kept for the step's own.
    """
    outputs = wire.outputs
    return {
        name: list(torch.autograd.grad(value, outputs, retain_graph=True, allow_unused=True))
        for name, value in objectives.items()
    }


def norm_at(gradients: Sequence[Tensor | None]) -> Tensor | None:
    """Norm of them all together; None where there is none."""
    squares = [grad.float().square().sum() for grad in gradients if grad is not None]
    return torch.stack(squares).sum().sqrt() if squares else None


def objective_norms(objectives: Mapping[str, Tensor], ends: Sequence[Tensor]) -> dict[str, Tensor]:
    """Norm of each unweighted objective's gradient at all of ``ends`` together.

    An objective that does not depend on the wire has norm 0.
    """
    norms = {}
    for name, value in objectives.items():
        grads = torch.autograd.grad(value, ends, retain_graph=True, allow_unused=True)
        norm = norm_at(grads)
        norms[name] = ends[0].new_zeros(()) if norm is None else norm
    return norms
