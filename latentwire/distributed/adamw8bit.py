"""AdamW with moments in 8 bits, by bitsandbytes, over FSDP2's shards.

Moments are quantised in blocks of 256 numbers of a shard, each block with a scale of its own
(arXiv 2110.02861). Vectors and small matrices keep them in fp32. Weights are fp32 as ever.
"""

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from latentwire.config import OptimConfig
from latentwire.distributed.adamw import (
    MOMENTS,
    NamedParameters,
    local,
    parameter_groups,
    shard_like,
)
from latentwire.distributed.state_tensors import whole_tensor

log = logging.getLogger(__name__)

_BLOCK = 256
"""Numbers that share a scale; bitsandbytes' kernels know no other."""
_SMALLEST = 4096
"""Numbers of a whole parameter from which its moments are quantised. bitsandbytes asks this of what
it is given, a shard: then ranks, and layouts, would treat one parameter differently."""


class ScaledAdamW8bit:
    """What ``ScaledAdamW`` is, with 8-bit moments, for parameters that are DTensors.

    bitsandbytes knows plain tensors only, so it steps one for each shard, in the same memory.
    """

    def __init__(self, groups: Mapping[str, NamedParameters], optim: OptimConfig) -> None:
        from bitsandbytes.optim import AdamW8bit

        members = parameter_groups(groups, optim)
        self._shards = {
            p: nn.Parameter(local(p).detach()) for group in members for p in group["params"]
        }
        for group in members:
            group["params"] = [self._shards[p] for p in group["params"]]
        self.optimizer: torch.optim.Optimizer = AdamW8bit(
            members, betas=(optim.beta1, optim.beta2), lr=0.0
        )
        self.num_steps = 0
        """Steps taken."""
        self.optimizer.register_step_post_hook(self._stepped)

    def prepare(self, rates: Mapping[str, float], grad_scale: Tensor) -> None:
        """Sets what the next step uses; see ``ScaledAdamW.prepare``. Gradients are scaled here."""
        for group in self.optimizer.param_groups:
            group["lr"] = rates[group["name"]]
        for parameter, shard in self._shards.items():
            # FSDP2 may have moved its shards, as it does to pad them.
            shard.data = local(parameter).detach()
            # A rank beyond a small parameter's rows has nothing of it to step.
            if parameter.grad is not None and shard.numel():
                shard.grad = local(parameter.grad).mul_(grad_scale.to(shard.device))
                self._state_of(parameter)

    def _stepped(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self.num_steps += 1
        for shard in self._shards.values():
            shard.grad = None

    def moment(self, parameter: Tensor, key: str) -> Tensor:
        """A moment, sharded like its parameter: codes (uint8), or fp32 where it is not quantised.

        A parameter that no example ever reached has zeros.
        """
        own = self._state_of(parameter)[_STATE[key]]
        assert isinstance(parameter, DTensor)
        return DTensor.from_local(
            own,
            parameter.device_mesh,
            parameter.placements,
            run_check=False,
            shape=parameter.shape,
            stride=parameter.stride(),
        )

    def scales(self, parameter: Tensor, key: str) -> Tensor | None:
        """Scales of this rank's part of a quantised moment: [1, blocks].

        None where the moment is not quantised. The row is padded to the largest shard's blocks.
        """
        if not _is_quantised(parameter):
            return None
        assert isinstance(parameter, DTensor)
        own = self._state_of(parameter)[_SCALES[key]]
        largest = math.ceil(parameter.shape[0] / parameter.device_mesh.size())
        padded = own.new_zeros(1, _num_blocks(largest * parameter.shape[1:].numel()))
        padded[0, : len(own)] = own
        return padded

    def set_moment(
        self, parameter: Tensor, key: str, moment: Tensor, *, scales: Tensor | None, num_steps: int
    ) -> None:
        """Takes over a moment: codes with the scales of the ranks that made them, or fp32.

        As many ranks as gave it take it over bit by bit. Others have other blocks: for them it is
        quantised anew.

        Args:
            moment: cut as the parameter is.
            scales: [ranks that made them, blocks], cut by rows.
        """
        self.num_steps = num_steps
        assert isinstance(parameter, DTensor)
        state = self._state_of(parameter)
        state["step"] = num_steps
        own = local(moment).to(parameter.device)
        is_same = scales is not None and len(scales) == parameter.device_mesh.size()
        if scales is not None and not is_same:
            log.debug("moments of %d ranks quantised anew", len(scales))
            whole = whole_tensor(moment).to(parameter.device)
            every = whole_tensor(scales).to(parameter.device)
            own = local(shard_like(self._dequantised(whole, every, key), parameter)).contiguous()
        if not _is_quantised(parameter):
            state[_STATE[key]] = own.float()
        elif scales is not None and is_same:
            state[_STATE[key]] = own
            row = local(scales)[0].to(own.device)
            state[_SCALES[key]] = row[: _num_blocks(own.numel())].clone()
        else:
            from bitsandbytes.functional import quantize_blockwise

            if own.numel():
                codes, quant = quantize_blockwise(own, code=state[_MAPS[key]], blocksize=_BLOCK)
                state[_STATE[key]], state[_SCALES[key]] = codes, quant.absmax

    def moment_bytes(self) -> int:
        """Bytes of both moments on this rank, scales included."""
        keys = (*_STATE.values(), *_SCALES.values())
        tensors = [s[key] for s in self.optimizer.state.values() for key in keys if key in s]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def _state_of(self, parameter: Tensor) -> dict[str, Any]:
        """bitsandbytes' state of a parameter's shard; zeros where there is none yet."""
        shard = self._shards[parameter]  # type: ignore[index]
        state: dict[str, Any] = self.optimizer.state[shard]
        if state:
            return state
        state["step"] = 0
        for key in MOMENTS:
            if not _is_quantised(parameter):
                state[_STATE[key]] = torch.zeros_like(shard)
                continue
            state[_STATE[key]] = torch.zeros_like(shard, dtype=torch.uint8)
            state[_SCALES[key]] = shard.new_zeros(_num_blocks(shard.numel()))
            state[_MAPS[key]] = self._map(key, shard.device)
        return state

    def _map(self, key: str, device: torch.device) -> Tensor:
        """What each code stands for, for moments of either sign or of none: [256]."""
        maps: Any = self.optimizer.name2qmap  # type: ignore[attr-defined]
        name = {"exp_avg": "dynamic", "exp_avg_sq": "udynamic"}[key]
        maps[name] = maps[name].to(device)
        found: Tensor = maps[name]
        return found

    def _dequantised(self, codes: Tensor, scales: Tensor, key: str) -> Tensor:
        """A whole moment in fp32, whatever ranks it was quantised on."""
        from bitsandbytes.functional import dequantize_blockwise

        table = self._map(key, codes.device)
        # FSDP2 shards by rows, as ``chunk`` does; ranks beyond the rows have none.
        parts = [
            dequantize_blockwise(
                part.contiguous(),
                absmax=row[: _num_blocks(part.numel())].contiguous(),
                code=table,
                blocksize=_BLOCK,
            )
            for part, row in zip(codes.chunk(len(scales)), scales, strict=False)
        ]
        return torch.cat(parts).float()


_STATE = dict(zip(MOMENTS, ("state1", "state2"), strict=True))
_SCALES = dict(zip(MOMENTS, ("absmax1", "absmax2"), strict=True))
_MAPS = dict(zip(MOMENTS, ("qmap1", "qmap2"), strict=True))
"""bitsandbytes' names of what belongs to each moment."""


def _is_quantised(parameter: Tensor) -> bool:
    return parameter.ndim >= 2 and parameter.numel() >= _SMALLEST


def _num_blocks(num: int) -> int:
    return math.ceil(num / _BLOCK)
