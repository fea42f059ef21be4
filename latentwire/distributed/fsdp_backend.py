"""FSDP2: weights, gradients and AdamW state sharded parameter by parameter."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from latentwire.config import ConfigError, OptimConfig
from latentwire.distributed.groups import Group
from latentwire.distributed.sharding import UnitState

_MOMENTS = ("exp_avg", "exp_avg_sq")


class FsdpUnit:
    """A module sharded over a group, with its AdamW."""

    def __init__(self, module: nn.Module, group: Group, optim: OptimConfig, *, bf16: bool) -> None:
        policy = (
            MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
            if bf16
            else MixedPrecisionPolicy()
        )
        for block in _blocks(module):
            fully_shard(block, mesh=group.mesh, mp_policy=policy)
        fully_shard(module, mesh=group.mesh, mp_policy=policy)
        self.module = module
        self._group = group
        groups: Mapping[str, list[tuple[str, nn.Parameter]]] = module.parameter_groups()  # type: ignore[operator]
        self._named = {name: p for members in groups.values() for name, p in members}
        self._optimizer = torch.optim.AdamW(
            [
                {
                    "name": name,
                    "params": [p for _, p in members if (p.ndim >= 2) == matrices],
                    "weight_decay": optim.weight_decay if matrices else 0.0,
                }
                for name, members in groups.items()
                for matrices in (True, False)
            ],
            betas=(optim.beta1, optim.beta2),
            lr=0.0,
            fused=True,
        )

    def set_sync(self, enabled: bool) -> None:
        assert isinstance(self.module, FSDPModule)
        self.module.set_requires_gradient_sync(enabled)

    def local_grad_square(self) -> Tensor:
        local = [grad.float() for grad in self._local_grads()]
        if not local:
            device = next(self.module.parameters()).device
            return torch.zeros((), device=device)
        return torch.stack(torch._foreach_norm(local)).square().sum()

    def step(self, rates: Mapping[str, float], grad_scale: Tensor) -> None:
        for grad in self._local_grads():
            grad.mul_(grad_scale)
        for group in self._optimizer.param_groups:
            group["lr"] = rates[group["name"]]
        self._optimizer.step()

    def zero_grad(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)

    def export_state(self) -> UnitState | None:
        state = self._optimizer.state
        moments: dict[str, dict[str, Tensor]] = {key: {} for key in _MOMENTS}
        weights: dict[str, Tensor] = {}
        steps = 0
        # One tensor at a time is whole; only the group's first rank keeps it.
        for name, parameter in self._named.items():
            self._keep(weights, name, parameter.detach())
            for key in _MOMENTS:
                if parameter in state:
                    self._keep(moments[key], name, state[parameter][key])
                    steps = int(state[parameter]["step"])
        if self._group.rank != 0:
            return None
        return UnitState(
            weights=weights,
            first_moments=moments["exp_avg"],
            second_moments=moments["exp_avg_sq"],
            num_steps=steps,
        )

    def import_state(self, state: UnitState) -> None:
        missing = self._named.keys() ^ state.weights.keys()
        if missing:
            raise ConfigError(
                [
                    f"the checkpoint of unit '{self._group.name}' does not fit the model: "
                    f"{sorted(missing)[:5]} differ"
                ]
            )
        with torch.no_grad():
            for name, parameter in self._named.items():
                parameter.copy_(self._shard_like(state.weights[name], parameter))
        for name in state.first_moments:
            parameter = self._named[name]
            self._optimizer.state[parameter] = {
                # The fused step counts on the parameter's own device.
                "step": torch.tensor(float(state.num_steps), device=parameter.device),
                "exp_avg": self._shard_like(state.first_moments[name], parameter),
                "exp_avg_sq": self._shard_like(state.second_moments[name], parameter),
            }

    def _local_grads(self) -> list[Tensor]:
        grads = [p.grad for p in self._named.values() if p.grad is not None]
        return [grad.to_local() if isinstance(grad, DTensor) else grad for grad in grads]

    def _keep(self, tensors: dict[str, Tensor], name: str, value: Tensor) -> None:
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        if self._group.rank == 0:
            tensors[name] = whole.cpu().contiguous()

    @staticmethod
    def _shard_like(whole: Tensor, like: nn.Parameter) -> Tensor:
        assert isinstance(like, DTensor)
        if whole.shape != like.shape:
            raise ConfigError(
                [
                    f"the checkpoint holds a tensor of shape {tuple(whole.shape)} where the model "
                    f"has {tuple(like.shape)}: was it trained with another model or width?"
                ]
            )
        # Every rank read the same file, so no rank sends anything.
        return distribute_tensor(
            whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None
        )


def _blocks(module: nn.Module) -> list[nn.Module]:
    """Transformer blocks of ``module`` that are large enough to be gathered one by one."""
    encoder = getattr(module, "encoder", None)
    blocks: list[nn.Module] = encoder.layers() if encoder is not None else []
    smallest = 10_000_000
    return [block for block in blocks if sum(p.numel() for p in block.parameters()) >= smallest]


class FsdpBackend:
    """Shards with FSDP2; bf16 computes in bfloat16 over fp32 weights and reductions."""

    def __init__(self, optim: OptimConfig, *, bf16: bool) -> None:
        self._optim = optim
        self._bf16 = bf16

    def wrap(self, module: nn.Module, group: Group) -> FsdpUnit:
        return FsdpUnit(module, group, self._optim, bf16=self._bf16)
