"""The DeepSpeed file: what ships is valid, and what the run decides is refused with the reason."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, small_overrides

from latentwire import config_file
from latentwire.config import ConfigError
from latentwire.distributed.ds_config import read_ds_config
from latentwire.training.preflight import preflight

SHIPPED = {
    "zero1": (1, None),
    "zero2": (2, None),
    "zero3": (3, None),
    "zero2_offload": (2, {"offload_optimizer"}),
    "zero3_offload": (3, {"offload_optimizer", "offload_param"}),
    "zero3_large": (3, None),
    "zero3_large_offload": (3, {"offload_optimizer", "offload_param"}),
}


@pytest.mark.parametrize("name", list(SHIPPED))
def test_shipped_files_are_valid(name: str) -> None:
    stage, offload = SHIPPED[name]
    zero = read_ds_config(str(REPOSITORY / "ds_configs" / f"{name}.json"))["zero_optimization"]
    assert zero["stage"] == stage
    assert {key for key in zero if key.startswith("offload")} == (offload or set())
    # Two engines on one GPU must not have their communication run side by side by default.
    assert zero["overlap_comm"] is False


def test_all_shipped_files_are_looked_at() -> None:
    assert {path.stem for path in (REPOSITORY / "ds_configs").glob("*")} == SHIPPED.keys()


def problems(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "ds.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_ds_config(str(path))
    start = f"sharding.ds_config: {path}"
    assert all(problem.startswith(start) for problem in caught.value.problems)
    return [problem.removeprefix(start).lstrip(": ") for problem in caught.value.problems]


def zero(**more: Any) -> str:
    return json.dumps({"zero_optimization": {"stage": 2, **more}})


@pytest.mark.parametrize(
    ("key", "value", "ours"),
    [
        ("train_batch_size", 8, "train.batch_size"),
        ("train_micro_batch_size_per_gpu", 8, "train.batch_size"),
        ("gradient_accumulation_steps", 2, "train.accumulation"),
        ("optimizer", {"type": "Adam"}, "optim"),
        ("scheduler", {"type": "WarmupLR"}, "optim and train.stage_a, train.stage_b"),
        ("gradient_clipping", 1.0, "optim.max_grad_norm"),
        ("fp16", {"enabled": True}, "precision"),
        ("bf16", {"enabled": True}, "precision"),
        ("activation_checkpointing", {}, "encoder.activation_checkpointing"),
    ],
)
def test_what_the_run_decides_is_refused(key: str, value: Any, ours: str, tmp_path: Path) -> None:
    text = json.dumps({"zero_optimization": {"stage": 2}, key: value})
    assert problems(tmp_path, text) == [
        f"'{key}' is decided by {ours} of the run; remove it from the file"
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "is no valid JSON"),
        ("[1]", "must hold an object"),
        ("{}", "'zero_optimization' is missing; give it a stage, 1 to 3"),
        ('{"zero_optimization": 2}', "'zero_optimization' is missing"),
        ('{"zero_optimization": {}}', "'zero_optimization.stage' is null; use 1, 2 or 3"),
        (zero(stage=0), "'zero_optimization.stage' is 0; use 1, 2 or 3"),
        (zero(stage="2"), "'zero_optimization.stage' is \"2\"; use 1, 2 or 3"),
        (zero(stage=[2]), "'zero_optimization.stage' is [2]; use 1, 2 or 3"),
        (zero(zero_hpz_partition_size=8), "zero_hpz_partition_size' is not supported"),
        (zero(offload_optimizer={"device": "nvme"}), 'device\' is "nvme"; use cpu or none'),
        (zero(offload_optimizer={"device": "cpu", "ratio": 0.5}), "ratio' is not supported"),
        (zero(offload_optimizer="cpu"), "offload_optimizer' must be an object"),
        (zero(offload_param={"device": "cpu"}), "offload_param' is read by stage 3 only"),
        (zero(sub_group_size=8), "sub_group_size' is read by stage 3 only; remove it"),
        (zero(stage=3, allgather_bucket_size=8), "is read by stages 1 and 2 only; remove it"),
        (zero(allgather_bucket_size=7), "allgather_bucket_size' is 7; use an even number above 0"),
        (zero(allgather_bucket_size=3.0), "allgather_bucket_size' is 3.0; use an even number"),
        (zero(allgather_bucket_size=0), "allgather_bucket_size' is 0; use an even number above 0"),
        (zero(reduce_bucket_size=0), "reduce_bucket_size' is 0"),
        (zero(stage=3, sub_group_size=0), "sub_group_size' is 0; use a number above 0"),
        ("", "is no valid JSON"),
        # It would have ZeRO's own readers of its state address other parameters.
        (zero(round_robin_gradients=True), "round_robin_gradients' is not supported"),
        (zero(offload_optimizer={"device": "cpu", "buffer_count": 4}), "buffer_count' is not"),
        (
            '{"zero_optimization": {"stage": 2}, "communication_data_type": "int8"}',
            "'communication_data_type' is \"int8\"; use one of fp32, bf16, fp16",
        ),
        # Both would change the gradient, or end in an assertion, in one stage or another.
        ('{"zero_optimization": {"stage": 3}, "prescale_gradients": true}', "is not one of"),
        ('{"zero_optimization": {"stage": 3}, "gradient_predivide_factor": 2}', "is not one of"),
        (zero(reduce_bucket_size="auto"), 'reduce_bucket_size\' is "auto"'),
        (zero(overlap_comm="often"), 'overlap_comm\' is "often"'),
        ('{"zero_optimisation": {"stage": 2}}', "'zero_optimisation' is not one of"),
    ],
)
def test_bad_files_are_refused(text: str, problem: str, tmp_path: Path) -> None:
    assert any(problem in found for found in problems(tmp_path, text))


def test_every_problem_is_said_at_once(tmp_path: Path) -> None:
    text = json.dumps({"bf16": {}, "zero_optimization": {"stage": 7, "zenflow": {}}})
    assert len(problems(tmp_path, text)) == 3


def test_a_missing_file_is_refused_before_anything_starts(pair: Path, tmp_path: Path) -> None:
    overrides = small_overrides(pair, tmp_path, "sharding.ds_config=nowhere.json")
    with pytest.raises(ConfigError) as caught:
        preflight(config_file.load("smoke", overrides), world_size=1)
    assert caught.value.problems == [
        "sharding.ds_config: nowhere.json cannot be read: No such file or directory"
    ]


def test_nothing_is_compiled(pair: Path, tmp_path: Path) -> None:
    """A whole run, with offload, where there is no compiler and a fresh build folder."""
    tools, built = tmp_path / "bin", tmp_path / "extensions"
    tools.mkdir()
    overrides = small_overrides(
        pair,
        tmp_path,
        "train.stage_b.steps=0",
        f"sharding.ds_config={REPOSITORY / 'ds_configs' / 'zero2_offload.json'}",
    )
    result = subprocess.run(
        [sys.executable, "-m", "latentwire.train", "--recipe", "smoke", *overrides],
        env=os.environ
        | {"PATH": str(tools), "TORCH_EXTENSIONS_DIR": str(built), "OMP_NUM_THREADS": "1"},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert not built.exists()
    assert "deepspeed" not in (result.stdout + result.stderr).lower().replace("deepspeed_", "")
