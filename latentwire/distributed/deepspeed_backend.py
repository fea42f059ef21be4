"""DeepSpeed's ZeRO: one engine a unit, each over its own process group.

Stages 1 and 2 keep whole weights on every rank and shard the fp32 master weights and the moments
(2 also the gradients); stage 3 shards the weights too (Rajbhandari et al., arXiv 1910.02054). Two
engines share a process: which ranks an engine reduces over is told to it by ``mpu``, and the
trainer's one ``loss.backward()`` runs through both. A gradient query (``autograd.grad``) must stop
at an engine's output: its hooks take every backward that enters it for a training step's.
"""

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from latentwire.config import OptimConfig
from latentwire.distributed.adamw import MOMENTS, ScaledAdamW, num_bytes
from latentwire.distributed.deepspeed_library import start_deepspeed
from latentwire.distributed.groups import Group
from latentwire.distributed.sharding import UnitState, check_fits, export_parts
from latentwire.distributed.state_tensors import HostBuffers, own_rows, whole_tensor
from latentwire.distributed.zero_optimizers import inside


class ZeroUnit:
    """A module trained by a ZeRO engine over a group.

    Args:
        settings: the user's DeepSpeed file, checked by ``ds_config``.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        group: Group,
        optim: OptimConfig,
        settings: Mapping[str, Any],
        *,
        bf16: bool,
    ) -> None:
        groups = module.parameter_groups()  # type: ignore[operator]
        self._named: dict[str, nn.Parameter] = {n: p for named in groups.values() for n, p in named}
        self._name = name
        self._group = group
        self._ranks = _DataParallel(group)
        self.can_skip = False
        self.num_parameters = sum(p.numel() for p in self._named.values())
        self._adamw = ScaledAdamW(groups, optim, module.part_of)  # type: ignore[arg-type]
        self._parts = [str(group["part"]) for group in self._adamw.optimizer.param_groups]
        deepspeed = start_deepspeed(group.mesh.device_type)
        # The engine rounds the weights to bf16 before it makes the master weights of them.
        unrounded = {n: p.detach().cpu().clone() for n, p in self._named.items()} if bf16 else {}
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
        self.module: nn.Module = engine
        self._engine = engine
        self._zero = inside(engine.optimizer)
        for key, weight in unrounded.items():
            self._zero.write(self._named[key], weight, None)

    def set_sync(self, enabled: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(enabled)

    def local_grad_squares(self) -> dict[str, Tensor]:
        return {
            part: torch.stack(torch._foreach_norm([g.float() for g in grads]))
            .square()
            .sum()
            .to(self._engine.device)
            for part, grads in self._by_part(self._zero.gradients()).items()
        }

    def local_weights(self) -> dict[str, list[Tensor]]:
        return self._by_part([[flat.detach()] for flat in self._zero.masters()])

    def put_away(self) -> None:
        pass  # ZeRO 3 parts a layer's weights again right after its forward.

    @contextlib.contextmanager
    def whole_weights(self) -> Iterator[dict[str, Tensor]]:
        named = dict(self._engine.module.named_parameters())
        with self._zero.whole(list(named.values())):
            yield {name: parameter.detach() for name, parameter in named.items()}

    def _by_part(self, tensors: Sequence[list[Tensor]]) -> dict[str, list[Tensor]]:
        """What the optimizer holds, flat partition by flat partition, by part of the unit."""
        by_part: dict[str, list[Tensor]] = {}
        for index, own in enumerate(tensors):
            if own:
                by_part.setdefault(self._parts[self._zero.group_of(index)], []).extend(own)
        return by_part

    def step(
        self, rates: Mapping[str, float], grad_scale: Tensor, finite: Tensor | None = None
    ) -> None:
        assert finite is None, "the engine's own step asks the device anyway"
        self._adamw.prepare(rates, grad_scale)
        self._engine.step()

    def zero_grad(self) -> None:
        self._zero.drop_gradients()

    def state_bytes(self) -> int:
        state = self._adamw.optimizer.state
        moments = sum(num_bytes(state[flat][key]) for flat in state for key in MOMENTS)
        return moments + sum(num_bytes(flat) for flat in self._zero.masters())

    def export_state(self, buffers: HostBuffers | None = None) -> UnitState:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        num_steps = self._adamw.num_steps
        if num_steps:
            self._zero.link_moments()

        def read(name: str, moment: str | None) -> Tensor:
            # One tensor at a time is whole, on every rank; each keeps its rows.
            parameter = self._named[name]
            if moment is None:
                whole: Tensor = safe_get_full_fp32_param(parameter)
            else:
                whole = safe_get_full_optimizer_state(parameter, moment)
            return own_rows(whole, self._group)

        return export_parts(read, self._shapes(), self._group, num_steps=num_steps, buffers=buffers)

    def import_state(self, state: UnitState) -> None:
        check_fits(state, self._shapes(), unit=self._name)
        for name, parameter in self._named.items():
            self._zero.write(parameter, whole_tensor(state.weights[name]), None)
        self._zero.refresh_weights()
        if not state.first_moments:
            return
        for flat in self._zero.masters():
            self._adamw.state_of(flat, num_steps=state.num_steps)
        self._zero.link_moments()
        for moment, tensors in state.moments.items():
            for name, parameter in self._named.items():
                self._zero.write(parameter, whole_tensor(tensors[name]), moment)

    def _shapes(self) -> dict[str, torch.Size]:
        # A parameter of stage 3 is empty outside the forward and keeps its shape beside it.
        return {name: getattr(p, "ds_shape", p.shape) for name, p in self._named.items()}

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

    def wrap(self, name: str, module: nn.Module, group: Group) -> ZeroUnit:
        return ZeroUnit(name, module, group, self._optim, self._settings, bf16=self._bf16)


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
        # Its timer waits for the device at every forward and step.
        "timers": {"throughput": {"enabled": False}},
        # AdamW on the CPU is torch's own fused one, which needs no compiler.
        "zero_force_ds_cpu_optimizer": False,
    }
    if not bf16:
        return {**settings, **own}
    own |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    return {"communication_data_type": "fp32", **settings, **own}
