"""Bytes of a trained unit on one rank: weights, optimizer state, gradients, gathered weights.

One class of numbers for every sharding backend; what each backend holds when was read from its
source (FSDP2 of torch 2.13, DeepSpeed 0.19) and is compared with measured peaks by a test.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentwire.config import Config, ConfigError
from latentwire.planning.parts import UnitSize

FP32 = 4
_BUCKET = 500_000_000
"""DeepSpeed's own default for its buckets, in numbers."""
_LIVE = 1_000_000_000
"""DeepSpeed's own default for each of these."""
_KEPT_BY = ("live_parameters", "reuse_distance")


@dataclass(frozen=True, kw_only=True)
class UnitBytes:
    """A unit's bytes on one rank."""

    weights: int
    """All the time: weights as the backend holds them, and fp32 master weights."""
    moments: int
    gradients: int
    """From the end of the backward to the step, and from micro-batch to micro-batch."""
    gathered: int
    """Whole weights, from the unit's forward to its backward."""
    forward: int
    """More whole weights and buffers for a moment in the forward."""
    backward: int
    """More gradients and buffers for a moment at the backward's end, beside ``gradients``."""
    accumulated: int
    """Whole gradients that wait between the micro-batches of a step."""
    diagnosed: int
    """Whole weights and gradients for a moment, where a step measures gradient norms by part."""
    loading: int
    """While the unit is there whole, before it is sharded."""
    host: int = 0
    """Of all this, on the host: what a file offloads."""


@dataclass(frozen=True, kw_only=True)
class Backend:
    """What shards the units."""

    stage: int
    """ZeRO's; 0 is FSDP2."""
    bucket: int = 0
    offload: bool = False
    """Optimizer state on the host."""
    offload_weights: bool = False
    live: int = 0
    """Numbers that stage 3 keeps whole from the forward to the backward."""
    eight_bit: bool = False

    @property
    def name(self) -> str:
        return f"ZeRO {self.stage}" if self.stage else "FSDP2"


def backend_of(config: Config) -> Backend:
    """The backend a configuration names.

    Raises:
        ConfigError: its DeepSpeed file cannot be read.
    """
    sharding = config.sharding
    if sharding.backend == "fsdp":
        return Backend(stage=0, eight_bit=config.optim.optimizer == "adamw8bit")
    path = Path(sharding.ds_config or "")
    try:
        zero: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["zero_optimization"]
        stage = int(zero["stage"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            [f"sharding.ds_config: {path} gives no stage of ZeRO ({error}); see ds_configs/"]
        ) from None
    return Backend(
        stage=stage,
        bucket=int(zero.get("reduce_bucket_size", _BUCKET)),
        offload=(zero.get("offload_optimizer") or {}).get("device") == "cpu",
        offload_weights=(zero.get("offload_param") or {}).get("device") == "cpu",
        live=min(int(zero.get(f"stage3_max_{key}", _LIVE)) for key in _KEPT_BY),
    )


def unit_bytes(backend: Backend, unit: UnitSize, *, ranks: int, bf16: bool) -> UnitBytes:
    """A unit sharded over ``ranks`` ranks."""
    if backend.stage == 0:
        return _fsdp(backend, unit, ranks=ranks, size=2 if bf16 else FP32)
    if backend.stage == 3:
        return _zero3(backend, unit, ranks=ranks, size=2 if bf16 else FP32)
    return _zero12(backend, unit, ranks=ranks, bf16=bf16)


def _fsdp(backend: Backend, unit: UnitSize, *, ranks: int, size: int) -> UnitBytes:
    """Weights are gathered for the forward: layers one by one, the rest at once and kept."""
    rest, layer = unit.rest * size, unit.layer * size
    # A collective has a buffer of its own beside the weights; one rank alone copies.
    buffered = 2 if ranks > 1 else 1
    forward = max((buffered - 1) * rest, (2 * buffered - 1) * layer)
    if size != FP32:
        forward += max(unit.rest, unit.layer) * size // ranks  # the shard, rounded
    # The result comes when the gradients themselves are gone.
    last = _reduced(unit.rest_trained, size) - math.ceil(unit.rest_trained * FP32 / ranks)
    in_layers = (2 * buffered - 1) * layer + _reduced(unit.layer_trained, size)
    if unit.layer:
        # The buffer of the layer before is still there when the rest is reduced.
        last += FP32 * unit.layer_trained
        in_layers += FP32 * unit.layer_trained
    moments = 2 * unit.trained * (1 if backend.eight_bit else FP32)
    return UnitBytes(
        weights=math.ceil(unit.total * FP32 / ranks),
        moments=math.ceil(moments / ranks),
        gradients=math.ceil(unit.trained * FP32 / ranks),
        gathered=rest,
        forward=forward,
        # When the rest is reduced its weights are gone, while those of a layer come beside it.
        backward=max(last - rest, in_layers),
        accumulated=unit.trained * FP32,
        diagnosed=unit.total * size + _diagnosed(unit, size),
        loading=unit.total * FP32,
    )


def _diagnosed(unit: UnitSize, size: int) -> int:
    """One objective's gradients as they come, and the fp32 buffer that they are summed in."""
    return unit.trained * (FP32 + size)


def _reduced(numbers: int, size: int) -> int:
    """Whole gradients and the fp32 buffer that they are reduced from, or that and its result."""
    return numbers * (size + FP32)


def _zero12(backend: Backend, unit: UnitSize, *, ranks: int, bf16: bool) -> UnitBytes:
    """Whole weights on every rank beside shards of fp32 master weights and moments."""
    size = 2 if bf16 else FP32
    master = math.ceil(unit.trained * FP32 / ranks)
    weights = unit.total * size
    moments = 2 * master
    bucket = min(backend.bucket, unit.trained)
    if backend.stage == 1 and bf16:
        # Its optimizer adds up whole fp32 gradients, from the start on.
        weights += unit.trained * FP32
        gradients, backward = 0, unit.trained * size
    elif backend.stage == 1:
        gradients, backward = master, unit.trained * FP32
    else:
        gradients, backward = master, 2 * bucket * FP32
    # Weights, moments, gradients, and the new weights on their way back.
    host = 4 * master + math.ceil(unit.trained * size / ranks) if backend.offload else 0
    return UnitBytes(
        weights=weights + master - (master if backend.offload else 0),
        moments=0 if backend.offload else moments,
        gradients=0 if backend.offload else gradients,
        gathered=0,
        forward=0,
        backward=backward,
        accumulated=0,
        diagnosed=_diagnosed(unit, size),
        loading=unit.total * FP32 + weights,
        host=host,
    )


def _zero3(backend: Backend, unit: UnitSize, *, ranks: int, size: int) -> UnitBytes:
    """Weights are sharded parameter by parameter, and gathered around each module's use."""
    master = math.ceil(unit.trained * FP32 / ranks)
    shard = math.ceil(unit.total * size / ranks)
    whole = min(unit.total, backend.live) * size
    bucket = min(backend.bucket, unit.trained) * FP32
    # Its gradients' shard and the bucket that they are reduced from are there all the time.
    weights = bucket + (0 if backend.offload_weights else shard)
    weights += 0 if backend.offload else 2 * master
    return UnitBytes(
        weights=weights,
        moments=0 if backend.offload else 2 * master,
        gradients=0,
        gathered=whole,
        forward=2 * unit.layer * size,
        backward=bucket,
        accumulated=0,
        diagnosed=unit.total * size + _diagnosed(unit, size),
        loading=unit.total * (FP32 + size),
        host=(4 * master if backend.offload else 0) + (shard if backend.offload_weights else 0),
    )
