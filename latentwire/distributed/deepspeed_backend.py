"""DeepSpeed's ZeRO: one engine a unit, each over its own process group.

Stages 1 and 2 keep whole weights on every rank and shard the fp32 master weights and the moments
(2 also the gradients); stage 3 shards the weights too (Rajbhandari et al., arXiv 1910.02054). Two
engines share a process: which ranks an engine reduces over is told to it by ``mpu``, and the
trainer's one ``loss.backward()`` runs through both.

ZeRO offers no public way to read this rank's part of the gradient before the step, nor to drop
it. The few attributes used for that are gathered at the end of this file.
"""

import contextlib
import io
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from latentwire.config import OptimConfig
from latentwire.distributed.adamw import MOMENTS, ScaledAdamW, num_bytes
from latentwire.distributed.deepspeed_library import start_deepspeed
from latentwire.distributed.groups import Group
from latentwire.distributed.sharding import UnitState, check_fits


class ZeroUnit:
    """A module trained by a ZeRO engine over a group.

    Args:
        settings: the user's DeepSpeed file, checked by ``ds_config``.
    """

    def __init__(
        self,
        module: nn.Module,
        group: Group,
        optim: OptimConfig,
        settings: Mapping[str, Any],
        *,
        bf16: bool,
    ) -> None:
        groups = module.parameter_groups()  # type: ignore[operator]
        self._named: dict[str, nn.Parameter] = {n: p for named in groups.values() for n, p in named}
        self._group = group
        self._ranks = _DataParallel(group)
        self.num_parameters = sum(p.numel() for p in self._named.values())
        self._adamw = ScaledAdamW(groups, optim)
        deepspeed = start_deepspeed()
        # One of its optimizers prints the memory in use a dozen times.
        with contextlib.redirect_stdout(io.StringIO()):
            engine, *_ = deepspeed.initialize(
                model=module,
                optimizer=self._adamw.optimizer,
                config=_engine_settings(settings, bf16=bf16),
                mpu=self._ranks,
                dist_init_required=False,
            )
        engine.allreduce_gradients = self._in_own_groups(engine.allreduce_gradients)
        if hasattr(engine.optimizer, "fp32_groups_flat_partition"):
            # There is no model parallelism whose ranks this optimizer should sum its norm over.
            engine.optimizer.mpu = None
        self.module: nn.Module = engine
        self._engine = engine
        self._zero = engine.optimizer

    def set_sync(self, enabled: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(enabled)

    def local_grad_square(self) -> Tensor:
        grads = [grad.float() for grad in _partitioned_gradients(self._zero)]
        square = torch.stack(torch._foreach_norm(grads)).square().sum()
        return square.to(self._engine.device)

    def step(self, rates: Mapping[str, float], grad_scale: Tensor) -> None:
        self._adamw.prepare(rates, grad_scale)
        self._engine.step()

    def zero_grad(self) -> None:
        _drop_gradients(self._zero)

    def state_bytes(self) -> int:
        state = self._adamw.optimizer.state
        moments = sum(num_bytes(state[flat][key]) for flat in state for key in MOMENTS)
        return moments + sum(num_bytes(flat) for flat in _masters(self._zero))

    def export_state(self) -> UnitState | None:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        num_steps = self._adamw.num_steps
        if num_steps:
            _link_moments(self._zero)
        weights: dict[str, Tensor] = {}
        moments: dict[str, dict[str, Tensor]] = {key: {} for key in MOMENTS}
        # One tensor at a time is whole; only the group's first rank keeps it.
        for name, parameter in self._named.items():
            self._keep(weights, name, safe_get_full_fp32_param(parameter))
            for key in MOMENTS if num_steps else ():
                self._keep(moments[key], name, safe_get_full_optimizer_state(parameter, key))
        if self._group.rank != 0:
            return None
        return UnitState(
            weights=weights,
            first_moments=moments["exp_avg"],
            second_moments=moments["exp_avg_sq"],
            num_steps=num_steps,
        )

    def import_state(self, state: UnitState) -> None:
        check_fits(state, self._shapes(), unit=self._group.name)
        for name, parameter in self._named.items():
            self._set(parameter, state.weights[name])
        _weights_from_masters(self._zero)
        if not state.first_moments:
            return
        for flat in _masters(self._zero):
            self._adamw.state_of(flat, num_steps=state.num_steps)
        _link_moments(self._zero)
        for key, tensors in zip(MOMENTS, (state.first_moments, state.second_moments), strict=True):
            for name, parameter in self._named.items():
                self._set(parameter, tensors[name], key)

    def _keep(self, tensors: dict[str, Tensor], name: str, whole: Tensor) -> None:
        if self._group.rank == 0:
            tensors[name] = whole.detach().cpu().contiguous().clone()

    def _shapes(self) -> dict[str, torch.Size]:
        # A parameter of stage 3 is empty outside the forward and keeps its shape beside it.
        return {name: getattr(p, "ds_shape", p.shape) for name, p in self._named.items()}

    def _set(self, parameter: nn.Parameter, whole: Tensor, moment: str | None = None) -> None:
        """Writes this rank's part of a master weight or of a moment."""
        from deepspeed.utils import (
            safe_set_full_fp32_param,
            safe_set_full_optimizer_state,
            safe_set_local_fp32_param,
            safe_set_local_optimizer_state,
        )

        if hasattr(parameter, "ds_tensor"):
            part = self._part(whole, parameter.ds_tensor.numel())
            if moment is None:
                safe_set_local_fp32_param(parameter, part)
            else:
                safe_set_local_optimizer_state(parameter, part, moment)
        elif moment is None:
            safe_set_full_fp32_param(parameter, whole)
        else:
            safe_set_full_optimizer_state(parameter, whole, moment)

    def _part(self, whole: Tensor, size: int) -> Tensor:
        """This rank's ``size`` elements; the last ranks' are padded with zeros."""
        flat = whole.flatten()
        flat = nn.functional.pad(flat, (0, size * self._group.size - flat.numel()))
        return flat[self._group.rank * size :][:size]

    def _in_own_groups(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """``method``, with the library's global ``groups.mpu`` set to this engine's ranks.

        The engine made last leaves its own there, and one path (ZeRO 1 in bf16) looks it up as it
        reduces: with two engines the other one's gradient would go to the wrong ranks.
        """
        from deepspeed.utils import groups

        def call(*args: Any, **kwargs: Any) -> Any:
            groups.mpu = self._ranks
            return method(*args, **kwargs)

        return call


class DeepspeedBackend:
    """Shards with ZeRO; bf16 computes in bfloat16 over fp32 master weights and reductions.

    Args:
        settings: the user's DeepSpeed file, checked by ``ds_config``.
    """

    def __init__(self, optim: OptimConfig, settings: Mapping[str, Any], *, bf16: bool) -> None:
        self._optim = optim
        self._settings = settings
        self._bf16 = bf16

    def wrap(self, module: nn.Module, group: Group) -> ZeroUnit:
        return ZeroUnit(module, group, self._optim, self._settings, bf16=self._bf16)


class _DataParallel:
    """What DeepSpeed asks an ``mpu`` for: the ranks of the data-parallel group, and no others."""

    def __init__(self, group: Group) -> None:
        self._group = group

    def get_data_parallel_group(self) -> Any:
        return self._group.handle

    def get_data_parallel_group_ranks(self) -> list[int]:
        return list(self._group.ranks)

    def get_data_parallel_rank(self) -> int:
        return self._group.rank

    def get_data_parallel_world_size(self) -> int:
        return self._group.size

    def get_model_parallel_group(self) -> None:
        return None

    def get_model_parallel_rank(self) -> int:
        return 0

    def get_model_parallel_world_size(self) -> int:
        return 1


def _engine_settings(settings: Mapping[str, Any], *, bf16: bool) -> dict[str, Any]:
    """The user's file, and beside it what the trainer decides.

    Batches and accumulation are the trainer's: to the engine each backward is one whole batch.
    The loss is normalised over the global batch already, so nothing may divide it again.
    """
    own: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "steps_per_print": None,
        # AdamW on the CPU is torch's own fused one, which needs no compiler.
        "zero_force_ds_cpu_optimizer": False,
    }
    if not bf16:
        return {**settings, **own}
    own |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    return {"communication_data_type": "fp32", **settings, **own}


# What follows knows the inside of ZeRO's three optimizers: stages 1 and 2 ("bit16_groups"), stage
# 1 in bf16 ("fp32_groups_flat_partition"), and stage 3 ("fp32_partitioned_groups_flat").


def _masters(zero: Any) -> list[Tensor]:
    """This rank's flat partitions of the fp32 master weights."""
    names = (
        "fp32_partitioned_groups_flat",
        "fp32_groups_flat_partition",
        "single_partition_of_fp32_groups",
    )
    masters: list[Tensor] = next(getattr(zero, name) for name in names if hasattr(zero, name))
    return masters


def _partitioned_gradients(zero: Any) -> list[Tensor]:
    """This rank's part of the reduced gradient, between backward and step."""
    if hasattr(zero, "fp32_groups_gradient_flat_partition"):
        return list(zero.fp32_groups_gradient_flat_partition)
    if getattr(zero, "cpu_offload", False) or getattr(zero, "offload_optimizer", False):
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # the copies to the CPU are asynchronous
        return [master.grad for master in _masters(zero) if master.grad is not None]
    return [grad for grads in zero.averaged_gradients.values() for grad in grads or ()]


def _drop_gradients(zero: Any) -> None:
    """Forgets the gradient in every buffer, as if no backward had run since the last step."""
    zero.zero_grad()
    if hasattr(zero, "fp32_groups_flat_partition"):
        return
    # Emptied in place: the fragments of stages 1 and 2 refer to this dictionary.
    for key in zero.averaged_gradients:
        zero.averaged_gradients[key] = None
    if hasattr(zero, "bit16_groups"):
        from deepspeed.runtime.zero.stage_1_and_2 import INITIAL_MICRO_STEP_ID

        zero.micro_step_id = INITIAL_MICRO_STEP_ID
    if getattr(zero, "cpu_offload", False) or getattr(zero, "offload_optimizer", False):
        zero.reset_cpu_buffers()


def _weights_from_masters(zero: Any) -> None:
    """Makes the weights of the forward equal to the master weights. All members must call."""
    if not hasattr(zero, "fp32_partitioned_groups_flat"):
        zero.update_lp_params()
        return
    for index in range(len(zero.fp32_partitioned_groups_flat)):
        zero._reassign_or_swap_out_partitioned_parameters(index)
    if zero.persistent_parameters:
        zero.persistent_parameters[0].all_gather(zero.persistent_parameters)


def _link_moments(zero: Any) -> None:
    """Has the parameters of stages 1 and 2 find their moments in the optimizer's state.

    The library does it once, after the step of the first parameter group, when the others have
    no state yet.
    """
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()
