"""FSDP2: weights, gradients and AdamW state sharded parameter by parameter."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from latentwire.config import OptimConfig
from latentwire.distributed.adamw import (
    MOMENTS,
    NamedParameters,
    ScaledAdamW,
    local,
    num_bytes,
)
from latentwire.distributed.adamw8bit import ScaledAdamW8bit
from latentwire.distributed.groups import Group
from latentwire.distributed.pairwise import PairwiseAllGather, PairwiseReduceScatter
from latentwire.distributed.sharding import UnitState, check_fits, export_parts
from latentwire.distributed.sizes import GATHERED_ALONE
from latentwire.distributed.state_tensors import HostBuffers, cut_tensor

SCALES = ".scales"
"""Ends the name under which a checkpoint holds the scales of a quantised moment."""


class ShardedAdamW(ScaledAdamW):
    """``ScaledAdamW`` over DTensors, whose moments are DTensors too."""

    def moment(self, parameter: Tensor, key: str) -> Tensor:
        """A moment, sharded like its parameter; zeros if no example ever reached that."""
        state = self.optimizer.state.get(parameter, {})
        return state[key] if state else torch.zeros_like(parameter)

    def scales(self, parameter: Tensor, key: str) -> Tensor | None:
        """None: nothing is quantised; see ``ScaledAdamW8bit.scales``."""
        return None

    def set_moment(
        self, parameter: Tensor, key: str, moment: Tensor, *, scales: Tensor | None, num_steps: int
    ) -> None:
        """Takes over a moment that is cut as the parameter is."""
        assert scales is None, "a run keeps its optimizer"
        state = self.state_of(parameter, num_steps=num_steps)
        local(state[key]).copy_(local(moment))

    def moment_bytes(self) -> int:
        """Bytes of both moments on this rank."""
        state = self.optimizer.state
        return sum(num_bytes(state[p][key]) for p in state for key in MOMENTS)


class FsdpUnit:
    """A module sharded over a group, with its AdamW."""

    def __init__(
        self, name: str, module: nn.Module, group: Group, optim: OptimConfig, *, bf16: bool
    ) -> None:
        policy = (
            MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
            if bf16
            else MixedPrecisionPolicy()
        )
        for block in _blocks(module):
            fully_shard(block, mesh=group.mesh, mp_policy=policy)
        fully_shard(module, mesh=group.mesh, mp_policy=policy)
        if group.mesh.device_type == "cpu" and group.size > 1:
            _by_pairs(module)
        self.module = module
        self._name = name
        self._group = group
        groups: Mapping[str, NamedParameters] = module.parameter_groups()  # type: ignore[operator]
        self._named = {name: p for members in groups.values() for name, p in members}
        self.num_parameters = sum(p.numel() for p in self._named.values())
        kind = ScaledAdamW8bit if optim.optimizer == "adamw8bit" else ShardedAdamW
        self._part_of: Callable[[str], str] = module.part_of  # type: ignore[assignment]
        self._bf16 = bf16
        self._adamw: ScaledAdamW8bit | ShardedAdamW = kind(groups, optim)
        self.can_skip = isinstance(self._adamw, ShardedAdamW)

    def set_sync(self, enabled: bool) -> None:
        assert isinstance(self.module, FSDPModule)
        self.module.set_requires_gradient_sync(enabled)

    def local_grad_squares(self) -> dict[str, Tensor]:
        by_part: dict[str, list[Tensor]] = {}
        for name, parameter in self._named.items():
            if parameter.grad is not None:
                by_part.setdefault(self._part_of(name), []).append(local(parameter.grad).float())
        return {
            part: torch.stack(torch._foreach_norm(grads)).square().sum()
            for part, grads in by_part.items()
        }

    def local_weights(self) -> dict[str, list[Tensor]]:
        by_part: dict[str, list[Tensor]] = {}
        for name, parameter in self._named.items():
            by_part.setdefault(self._part_of(name), []).append(local(parameter).detach())
        return by_part

    def put_away(self) -> None:
        for part in self.module.modules():
            if isinstance(part, FSDPModule):
                part.reshard()

    @contextmanager
    def whole_weights(self) -> Iterator[dict[str, Tensor]]:
        # Those that a forward may have left in the module are not the shards'.
        self.put_away()
        whole = {}
        for name, parameter in self.module.named_parameters():
            tensor = parameter.detach()
            tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            is_rounded = self._bf16 and tensor.is_floating_point()
            whole[name] = tensor.to(torch.bfloat16) if is_rounded else tensor
        yield whole

    def step(
        self, rates: Mapping[str, float], grad_scale: Tensor, finite: Tensor | None = None
    ) -> None:
        self._adamw.prepare(rates, grad_scale)
        if isinstance(self._adamw, ShardedAdamW):
            self._adamw.skip_unless(finite)
        self._adamw.optimizer.step()

    def zero_grad(self) -> None:
        for parameter in self._named.values():
            parameter.grad = None

    def state_bytes(self) -> int:
        return self._adamw.moment_bytes() + sum(num_bytes(p) for p in self._named.values())

    def export_state(self, buffers: HostBuffers | None = None) -> UnitState:
        def read(name: str, moment: str | None) -> Tensor:
            parameter = self._named[name]
            return local(parameter if moment is None else self._adamw.moment(parameter, moment))

        num_steps, host = self._adamw.num_steps, buffers or HostBuffers()
        state = export_parts(read, self._shapes(), self._group, num_steps=num_steps, buffers=host)
        for name, parameter in self._named.items() if num_steps else ():
            for moment in MOMENTS:
                scales = self._adamw.scales(parameter, moment)
                if scales is not None:
                    own = host.copy(f"{moment}/{name}{SCALES}", scales)
                    shape = (self._group.size, scales.shape[1])
                    state.moments[moment][name + SCALES] = cut_tensor(own, shape, self._group)
        return state

    def import_state(self, state: UnitState) -> None:
        check_fits(state, self._shapes(), unit=self._name)
        self.put_away()
        with torch.no_grad():
            for name, parameter in self._named.items():
                local(parameter).copy_(local(state.weights[name]))
        for moment, tensors in state.moments.items():
            for name, parameter in self._named.items():
                if name in tensors:
                    self._adamw.set_moment(
                        parameter,
                        moment,
                        tensors[name],
                        scales=tensors.get(name + SCALES),
                        num_steps=state.num_steps,
                    )

    def _shapes(self) -> dict[str, torch.Size]:
        return {name: parameter.shape for name, parameter in self._named.items()}


def _blocks(module: nn.Module) -> list[nn.Module]:
    """Transformer blocks of ``module`` that are large enough to be gathered one by one."""
    encoder = getattr(module, "encoder", None)
    blocks: list[nn.Module] = encoder.layers() if encoder is not None else []
    return [
        block for block in blocks if sum(p.numel() for p in block.parameters()) >= GATHERED_ALONE
    ]


def _by_pairs(module: nn.Module) -> None:
    """Lets the shards of ``module`` travel from rank to rank, not by gloo's collectives.

    What torch takes here are protocols in all but name; their classes are private.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_custom_all_gather(PairwiseAllGather())  # type: ignore[arg-type]
            part.set_custom_reduce_scatter(PairwiseReduceScatter())  # type: ignore[arg-type]


class FsdpBackend:
    """Shards with FSDP2; bf16 computes in bfloat16 over fp32 weights and reductions."""

    def __init__(self, optim: OptimConfig, *, bf16: bool) -> None:
        self._optim = optim
        self._bf16 = bf16

    def wrap(self, name: str, module: nn.Module, group: Group) -> FsdpUnit:
        return FsdpUnit(name, module, group, self._optim, bf16=self._bf16)
