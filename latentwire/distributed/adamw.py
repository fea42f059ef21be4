"""The AdamW that every sharding backend steps: parameter groups, learning rates, one scale."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from latentwire.config import OptimConfig

NamedParameters = list[tuple[str, nn.Parameter]]
MOMENTS = ("exp_avg", "exp_avg_sq")
"""torch's names of the first and second moment."""


def _whole(name: str) -> str:
    return ""


def parameter_groups(
    groups: Mapping[str, NamedParameters],
    optim: OptimConfig,
    part_of: Callable[[str], str] = _whole,
) -> list[dict[str, Any]]:
    """An optimizer's groups, from parameters by the learning rate they follow.

    Matrices decay, vectors do not.

    Args:
        part_of: the part of the unit that a parameter belongs to, by its name; no group mixes
            parts, so that a backend which flattens groups can still tell them apart.
    """
    members = [
        {
            "name": name,
            "part": part,
            "params": [p for key, p in named if (p.ndim >= 2) == matrices and part_of(key) == part],
            "weight_decay": optim.weight_decay if matrices else 0.0,
        }
        for name, named in groups.items()
        for part in dict.fromkeys(part_of(key) for key, _ in named)
        for matrices in (True, False)
    ]
    return [group for group in members if group["params"]]


class ScaledAdamW:
    """AdamW over a unit's parameter groups, with gradients scaled as they are spent.

    The scale is applied by a hook in front of the optimizer's own step, wherever a backend has
    put the gradients by then: in sharded parameters, or in its flat partitions.

    Args:
        groups: parameters by the learning rate they follow.
        part_of: see ``parameter_groups``.
    """

    def __init__(
        self,
        groups: Mapping[str, NamedParameters],
        optim: OptimConfig,
        part_of: Callable[[str], str] = _whole,
    ) -> None:
        self.optimizer = torch.optim.AdamW(
            parameter_groups(groups, optim, part_of),
            betas=(optim.beta1, optim.beta2),
            lr=0.0,
            fused=True,
        )
        self._scale = torch.ones(())
        self.optimizer.register_step_pre_hook(self._scale_gradients)

    def prepare(self, rates: Mapping[str, float], grad_scale: Tensor) -> None:
        """Sets what the next step uses.

        Args:
            rates: learning rate by parameter group.
            grad_scale: scalar that multiplies every gradient.
        """
        self._scale = grad_scale
        for group in self.optimizer.param_groups:
            group["lr"] = rates[group["name"]]

    def skip_unless(self, finite: Tensor | None) -> None:
        """Has the next step change nothing where ``finite`` is False; None always steps.

        The fused kernel looks itself, as it does for loss scaling, so the host need not.
        """
        found = None if finite is None else (~finite).float()
        self.optimizer.found_inf = found  # type: ignore[attr-defined]

    def _scale_gradients(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    grad = local(parameter.grad)
                    grad.mul_(self._scale.to(grad.device))

    def state_of(self, parameter: Tensor, *, num_steps: int) -> dict[str, Tensor]:
        """The state of a parameter after ``num_steps`` steps; new moments are zero."""
        state: dict[str, Tensor] = self.optimizer.state[parameter]
        # The fused step counts on the parameter's own device.
        state["step"] = torch.tensor(float(num_steps), device=parameter.device)
        for key in MOMENTS:
            state.setdefault(key, torch.zeros_like(parameter))
        return state

    @property
    def num_steps(self) -> int:
        """Steps taken."""
        return max((int(state["step"]) for state in self.optimizer.state.values()), default=0)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def num_bytes(tensor: Tensor) -> int:
    """Bytes of this rank's part of a tensor."""
    part = local(tensor)
    return part.numel() * part.element_size()


def shard_like(whole: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, which every rank has read from the same file, sharded as ``like`` is."""
    assert isinstance(like, DTensor)
    # No rank sends anything.
    return distribute_tensor(
        whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None
    )
