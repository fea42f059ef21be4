"""Per-objective gradient norms at the soft prompt: does a loss reach the wire at all?"""

from collections.abc import Mapping

import torch
from torch import Tensor


def objective_norms(objectives: Mapping[str, Tensor], soft: Tensor) -> dict[str, Tensor]:
    """Norm of each unweighted objective's gradient at this rank's soft prompt.

    One backward through the frozen decoder per objective; the graph is kept for the step's own.
    An objective that does not depend on the wire has norm 0.
    """
    norms = {}
    for name, value in objectives.items():
        (grad,) = torch.autograd.grad(value, soft, retain_graph=True, allow_unused=True)
        norms[name] = soft.new_zeros(()) if grad is None else grad.float().norm()
    return norms
