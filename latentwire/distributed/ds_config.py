"""DeepSpeed's JSON file: what it may hold, and why not the rest.

The file says how ZeRO shards, offloads and communicates. Everything that decides what is computed
has one place, the run's configuration; a file that sets such a thing too is refused.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentwire.config import ConfigError
from latentwire.distributed.deepspeed_library import load_deepspeed

_ALLOWED = {"zero_optimization", "communication_data_type"}
_COMMUNICATION_TYPES = ("fp32", "bf16", "fp16")
_OURS = {
    "train_batch_size": "train.batch_size",
    "train_micro_batch_size_per_gpu": "train.batch_size",
    "gradient_accumulation_steps": "train.accumulation",
    "optimizer": "optim",
    "scheduler": "optim and train.stage_a, train.stage_b",
    "gradient_clipping": "optim.max_grad_norm",
    "fp16": "precision",
    "bf16": "precision",
    "amp": "precision",
    "torch_autocast": "precision",
    "data_types": "precision",
    "activation_checkpointing": "encoder.activation_checkpointing",
    "checkpoint": "checkpoint",
    "steps_per_print": "diagnostics.log_interval",
    "tensorboard": "diagnostics",
    "wandb": "diagnostics",
    "csv_monitor": "diagnostics",
}
"""Keys of DeepSpeed that a key of the run's configuration decides."""
_ZERO_ALLOWED = {
    "stage",
    "reduce_bucket_size",
    "reduce_scatter",
    "overlap_comm",
    "contiguous_gradients",
    "offload_optimizer",
}
"""Under ``zero_optimization``, in every stage; then those that only some stages read."""
_STAGES_1_AND_2 = {"allgather_bucket_size", "use_multi_rank_bucket_allreduce"}
_STAGE_3 = {
    "offload_param",
    "sub_group_size",
    "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
    "stage3_prefetch_bucket_size",
    "stage3_param_persistence_threshold",
    "stage3_model_persistence_threshold",
}
_OFFLOAD_ALLOWED = {"device", "pin_memory"}


def read_ds_config(path: str | None) -> dict[str, Any]:
    """The settings of a DeepSpeed file.

    Raises:
        ConfigError: with every problem, each naming the file, the key and the fix.
    """
    assert path is not None, "validated with the configuration"
    where = f"sharding.ds_config: {path}"
    try:
        tree = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"{where} cannot be read: {error.strerror}"]) from None
    except ValueError as error:
        raise ConfigError([f"{where} is no valid JSON: {error}"]) from None
    if not isinstance(tree, dict):
        raise ConfigError([f"{where} must hold an object, e.g. ds_configs/zero2.json"])
    problems = [*_top_problems(tree), *_zero_problems(tree.get("zero_optimization"))]
    if problems:
        raise ConfigError([f"{where}: {problem}" for problem in problems])
    return tree


def _top_problems(tree: Mapping[str, Any]) -> list[str]:
    found = []
    for key in tree:
        if key in _OURS:
            found.append(f"'{key}' is decided by {_OURS[key]} of the run; remove it from the file")
        elif key not in _ALLOWED:
            found.append(f"'{key}' is not one of {', '.join(sorted(_ALLOWED))}; remove it")
    kind = tree.get("communication_data_type", "fp32")
    if kind not in _COMMUNICATION_TYPES:
        found.append(
            f"'communication_data_type' is {json.dumps(kind)}; "
            f"use one of {', '.join(_COMMUNICATION_TYPES)}"
        )
    return found


def _zero_problems(zero: Any) -> list[str]:
    if not isinstance(zero, dict):
        return ["'zero_optimization' is missing; give it a stage, 1 to 3"]
    stage = zero.get("stage")
    found = []
    for key in zero.keys() - _ZERO_ALLOWED:
        if key not in _STAGES_1_AND_2 | _STAGE_3:
            found.append(f"'zero_optimization.{key}' is not supported; remove it")
        elif stage in (1, 2) and key in _STAGE_3:
            found.append(f"'zero_optimization.{key}' is read by stage 3 only; remove it")
        elif stage == 3 and key in _STAGES_1_AND_2:
            found.append(f"'zero_optimization.{key}' is read by stages 1 and 2 only; remove it")
    found += [
        f"'zero_optimization.{key}' is \"auto\", which other tools fill in; give a value"
        for key, value in zero.items()
        if value == "auto"
    ]
    if stage not in (1, 2, 3) or isinstance(stage, bool):
        found.append(f"'zero_optimization.stage' is {json.dumps(stage)}; use 1, 2 or 3")
    for key in ("offload_optimizer", "offload_param"):
        found += _offload_problems(key, zero.get(key))
    # The library checks other sizes itself; these two it would fail on later.
    bucket, group = zero.get("allgather_bucket_size", 2), zero.get("sub_group_size", 1)
    if isinstance(bucket, int | float) and (bucket <= 0 or bucket % 2):
        found.append(
            f"'zero_optimization.allgather_bucket_size' is {bucket}; use an even number above 0"
        )
    if isinstance(group, int | float) and group <= 0:
        found.append(f"'zero_optimization.sub_group_size' is {group}; use a number above 0")
    return sorted(found) or _library_problems(zero)


def _offload_problems(key: str, offload: Any) -> list[str]:
    name = f"zero_optimization.{key}"
    if offload is None:
        return []
    if not isinstance(offload, dict):
        return [f'\'{name}\' must be an object such as {{"device": "cpu"}}']
    found = [
        f"'{name}.{item}' is not supported; remove it"
        for item in offload
        if item not in _OFFLOAD_ALLOWED
    ]
    if offload.get("device") not in ("cpu", "none"):
        found.append(f"'{name}.device' is {json.dumps(offload.get('device'))}; use cpu or none")
    return found


def _library_problems(zero: Mapping[str, Any]) -> list[str]:
    """What DeepSpeed itself says of the values."""
    from pydantic import ValidationError

    deepspeed = load_deepspeed()
    try:
        deepspeed.runtime.zero.config.DeepSpeedZeroConfig(**zero)
    except ValidationError as error:
        return [
            f"'{'.'.join(['zero_optimization', *map(str, item['loc'])])}' is "
            f"{json.dumps(item['input'], default=str)}: {item['msg']}"
            for item in error.errors()
        ]
    return []
