"""The inside of DeepSpeed's ZeRO optimizers, as far as a unit must know it.

ZeRO offers no public way to read this rank's part of the gradient between backward and step, nor to
drop it, and its public ways to write its state leave the weights of the forward as they were. Each
optimizer it may choose keeps these things elsewhere; here is one class for each.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class ZeroOptimizer(Protocol):
    """One of ZeRO's optimizers."""

    def masters(self) -> list[Tensor]:
        """This rank's flat partitions of the fp32 master weights."""

    def group_of(self, index: int) -> int:
        """The optimizer's parameter group of a flat partition."""

    def gradients(self) -> list[list[Tensor]]:
        """This rank's part of the reduced gradient of each flat partition, between backward and
        step."""

    def whole(self, parameters: list[nn.Parameter]) -> AbstractContextManager[Any]:
        """Within it, parameters are whole. All members must enter and leave."""

    def drop_gradients(self) -> None:
        """Forgets the gradient in every buffer, as if no backward had run since the last step."""

    def link_moments(self) -> None:
        """Has every parameter find its moments in the base optimizer's state."""

    def write(self, parameter: nn.Parameter, whole: Tensor, moment: str | None) -> None:
        """Writes this rank's part of a master weight, or of a moment."""

    def refresh_weights(self) -> None:
        """Makes the weights of the forward equal to the master weights. All members must call."""


def inside(optimizer: Any) -> ZeroOptimizer:
    """The class for an engine's optimizer."""
    from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        return _Stage3(optimizer)
    if isinstance(optimizer, BF16_Optimizer):
        return _Stage1Bf16(optimizer)
    assert isinstance(optimizer, DeepSpeedZeroOptimizer), type(optimizer)
    return _Stage1And2(optimizer)


class _Fragments:
    """Stages 1 and 2: parameters are fragments of flat partitions, one a parameter group."""

    def __init__(self, optimizer: Any) -> None:
        self._zero = optimizer

    def group_of(self, index: int) -> int:
        return index

    def whole(self, parameters: list[nn.Parameter]) -> AbstractContextManager[Any]:
        return nullcontext()

    def link_moments(self) -> None:
        # The library does it once, after the step of the first parameter group, when the others
        # have no state yet.
        self._zero._hp_optimizer_states_linked = False
        self._zero._lazy_init_hp_params_optimizer_state()

    def write(self, parameter: nn.Parameter, whole: Tensor, moment: str | None) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        if moment is None:
            safe_set_full_fp32_param(parameter, whole)
        else:
            safe_set_full_optimizer_state(parameter, whole, moment)

    def refresh_weights(self) -> None:
        self._zero.update_lp_params()


class _Stage1And2(_Fragments):
    def masters(self) -> list[Tensor]:
        return list(self._zero.single_partition_of_fp32_groups)

    def gradients(self) -> list[list[Tensor]]:
        if self._zero.cpu_offload:
            return _offloaded_gradients(self.masters())
        return _averaged(self._zero.averaged_gradients, len(self.masters()))

    def drop_gradients(self) -> None:
        from deepspeed.runtime.zero.stage_1_and_2 import INITIAL_MICRO_STEP_ID

        self._zero.zero_grad()
        # Emptied in place: the fragments refer to this dictionary.
        for key in self._zero.averaged_gradients:
            self._zero.averaged_gradients[key] = None
        self._zero.micro_step_id = INITIAL_MICRO_STEP_ID
        if self._zero.cpu_offload:
            self._zero.reset_cpu_buffers()


class _Stage1Bf16(_Fragments):
    """What ZeRO makes of stage 1 with bf16 weights and fp32 accumulation."""

    def __init__(self, optimizer: Any) -> None:
        super().__init__(optimizer)
        # Its norm would be summed over the ranks of a model-parallel group, which is not there.
        optimizer.mpu = None

    def masters(self) -> list[Tensor]:
        return list(self._zero.fp32_groups_flat_partition)

    def gradients(self) -> list[list[Tensor]]:
        return [[flat] for flat in self._zero.fp32_groups_gradient_flat_partition]

    def drop_gradients(self) -> None:
        self._zero.zero_grad()


class _Stage3:
    """Every parameter is cut into equal parts, the last of them padded."""

    def __init__(self, optimizer: Any) -> None:
        self._zero = optimizer

    def masters(self) -> list[Tensor]:
        return list(self._zero.fp32_partitioned_groups_flat)

    def group_of(self, index: int) -> int:
        return int(self._zero.sub_group_to_group_id[index])

    def gradients(self) -> list[list[Tensor]]:
        if self._zero.offload_optimizer:
            return _offloaded_gradients(self.masters())
        return _averaged(self._zero.averaged_gradients, len(self.masters()))

    def whole(self, parameters: list[nn.Parameter]) -> AbstractContextManager[Any]:
        from deepspeed.runtime.zero import GatheredParameters

        gathered: AbstractContextManager[Any] = GatheredParameters(parameters)
        return gathered

    def drop_gradients(self) -> None:
        self._zero.zero_grad()
        self._zero.averaged_gradients.clear()

    def link_moments(self) -> None:
        pass

    def write(self, parameter: nn.Parameter, whole: Tensor, moment: str | None) -> None:
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        rank = self._zero._get_param_partition_rank(parameter)
        flat = whole.flatten()
        missing = max(0, size * (rank + 1) - flat.numel())
        part = nn.functional.pad(flat, (0, missing))[size * rank :][:size]
        if moment is None:
            safe_set_local_fp32_param(parameter, part)
        else:
            safe_set_local_optimizer_state(parameter, part, moment)

    def refresh_weights(self) -> None:
        # A forward without a backward leaves whole weights, which the next would read.
        self._zero.empty_partition_cache()
        for index in range(len(self.masters())):
            self._zero._reassign_or_swap_out_partitioned_parameters(index)
        # Small parameters stay whole on every rank.
        if self._zero.persistent_parameters:
            self._zero.persistent_parameters[0].all_gather(self._zero.persistent_parameters)


def _averaged(gradients: Mapping[int, list[Tensor] | None], number: int) -> list[list[Tensor]]:
    return [list(gradients.get(index) or ()) for index in range(number)]


def _offloaded_gradients(masters: list[Tensor]) -> list[list[Tensor]]:
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # the copies to the CPU are asynchronous
    grads = [master.grad for master in masters]
    assert all(grad is not None for grad in grads)
    return [[grad] for grad in grads if grad is not None]
