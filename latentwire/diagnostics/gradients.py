"""Per-objective gradient norms where they enter the wire: does a loss reach it at all?"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def objective_norms(objectives: Mapping[str, Tensor], ends: Sequence[Tensor]) -> dict[str, Tensor]:
    """Norm of each unweighted objective's gradient at all of ``ends`` together.

    One backward through the frozen decoder per objective; the graph is kept for the step's own.
    An objective that does not depend on the wire has norm 0.
    """
    norms = {}
    for name, value in objectives.items():
        grads = torch.autograd.grad(value, ends, retain_graph=True, allow_unused=True)
        squares = [grad.float().square().sum() for grad in grads if grad is not None]
        norms[name] = torch.stack(squares).sum().sqrt() if squares else ends[0].new_zeros(())
    return norms
