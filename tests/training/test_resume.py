"""Gates 3 and 5 over a whole run: the wire is connected, and a resume changes nothing."""

import json
import shutil
from pathlib import Path
from typing import Any

import jobs
import pytest
import torch
from conftest import small_overrides
from jsonschema import Draft202012Validator

from latentwire import config_file
from latentwire.checkpointing.commit import newest, published
from latentwire.diagnostics.schema import load_schema
from latentwire.distributed.assembly import assemble
from latentwire.distributed.groups import ProcessGroups
from latentwire.evaluation.runner import held_out
from latentwire.testing import run_distributed
from latentwire.training import run
from latentwire.training.preflight import preflight
from latentwire.training.stage_c import open_source_for

STEPS = 4


def train_on_rank(rank: int, world_size: int, overrides: list[str]) -> str:
    config = config_file.load("smoke", overrides)
    return run.train(preflight(config, world_size=world_size)).state


def rows_of(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "diagnostics.jsonl").read_text().splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if not _is_of_time(key)}
        for line in lines
    ]


def _is_of_time(key: str) -> bool:
    """Of what differs from run to run whatever they compute."""
    names = ("time", "sec_per_step", "peak_memory_bytes", "slowest_ranks")
    return key in names or "_seconds" in key


def wire_gradient_on_rank(rank: int, world_size: int, overrides: list[str]) -> dict[str, float]:
    """Norm of d(sum of logits)/d(wire) in a reloaded evaluation, per decoder."""
    config = config_file.load("smoke", overrides)
    plan = preflight(config, world_size=world_size)
    groups = ProcessGroups(plan.topology, device=torch.device("cpu"), timeout=60)
    job = assemble(config, groups)
    jobs.load_job(job, newest(plan.checkpoint_folder), with_optimizer=False)
    examples = held_out(open_source_for(plan, "test"), seed=0, samples=12)
    return jobs.wire_reach(job, examples)


def test_a_resumed_run_equals_an_uninterrupted_one(pair: Path, tmp_path: Path) -> None:
    overrides = small_overrides(
        pair,
        tmp_path,
        f"train.stage_a.steps={STEPS}",
        "train.stage_a.warmup_text_latent_prob=0.5",
        "train.stage_b.steps=2",
        f"checkpoint.interval={STEPS // 2}",
        "diagnostics.health_interval=1",
        f"diagnostics.health_warmup={STEPS - 1}",
    )
    run_folder, checkpoints = tmp_path / "runs" / "test", tmp_path / "checkpoints" / "test"
    assert run_distributed(train_on_rank, 2, overrides) == ["finished", "finished"]
    steps = [(step.stage, step.number) for step in published(checkpoints)]
    assert steps == [("A", STEPS // 2), ("A", STEPS), ("B", 2)]
    rows, metrics = rows_of(run_folder), (run_folder / "metrics.json").read_text()
    weights = {step.name: jobs.stored(step.path) for step in published(checkpoints)}
    # Gate 3: every objective reaches the wire, for every decoder, on every step.
    schema = Draft202012Validator(load_schema())
    for line in (run_folder / "diagnostics.jsonl").read_text().splitlines():
        schema.validate(json.loads(line))
    health = [row for row in rows if row["kind"] == "health"]
    # These go back to the run's beginning, which is before the kill.
    assert all(row["weight_growth/adapter"] != 1 for row in health if row["stage"] == "B")
    rows_of_steps = [row for row in rows if row["kind"] == "step"]
    for row in rows_of_steps:
        for name in ("tf", "first", "kce", "kd", "span"):
            assert row[f"grad_{name}"] > 0, (name, row)
    assert {(row["rank"], row["decoder"]) for row in rows_of_steps} == {(0, "llama"), (1, "qwen")}

    # Back to the middle of Stage A, as if the job had been killed after its first checkpoint.
    shutil.rmtree(checkpoints / "stageB")
    shutil.rmtree(checkpoints / "stageA" / f"step-{STEPS:08d}")
    (run_folder / "metrics.json").unlink()
    with (run_folder / "diagnostics.jsonl").open("a") as file:
        file.write('{"stage": "A", "st')  # a torn last line
    assert run_distributed(train_on_rank, 2, overrides) == ["finished", "finished"]
    assert rows_of(run_folder) == rows
    assert (run_folder / "metrics.json").read_text() == metrics
    for place, expected in weights.items():
        again = jobs.stored(checkpoints / place)
        assert again.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(again[name], tensor), f"{place}: {name}"

    # Another backend reads the same checkpoint.
    for result in run_distributed(wire_gradient_on_rank, 1, [*overrides, "sharding.backend=fsdp"]):
        assert result.keys() == {"llama", "qwen"}
        assert all(norm > 0 for norm in result.values())

    status = json.loads((run_folder / "status.json").read_text())
    assert (status["state"], status["code"], status["stage"]) == ("finished", 0, "B")
    assert (run_folder / "ckpt").resolve() == checkpoints.resolve()


def test_bf16_trains_over_fp32_master_weights(pair: Path, tmp_path: Path) -> None:
    overrides = small_overrides(
        pair, tmp_path, "precision=bf16", "train.stage_b.steps=0", "encoder.lora.rank=4"
    )
    assert run_distributed(train_on_rank, 2, overrides) == ["finished", "finished"]
    step = newest(tmp_path / "checkpoints" / "test")
    assert step is not None
    saved = {name: t for name, t in jobs.stored(step.path).items() if ".weights." in name}
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    # LoRA: only its own weights and the projection are trained and saved.
    encoder = [name for name in saved if name.startswith("encoder.")]
    assert encoder and all("lora_" in name or "pooling" in name for name in encoder)
    fraction = saved["adapter_qwen.weights.adapter.expand.weight"].flatten()
    assert not torch.equal(fraction, fraction.bfloat16().float()), "steps below bf16's precision"


def test_a_prompt_wire_trains_and_evaluates(pair: Path, tmp_path: Path) -> None:
    """``wire.carries: prompt``, causal attention and a fixed number of latents."""
    overrides = small_overrides(
        pair,
        tmp_path,
        "wire.carries=prompt",
        "wire.num_latents=8",
        "encoder.attention=causal",
        "decoders.qwen=null",
    )
    assert run_distributed(train_on_rank, 1, overrides) == ["finished"]
    metrics = json.loads((tmp_path / "runs" / "test" / "metrics.json").read_text())
    assert list(metrics["decoders"]) == ["llama"]
    assert metrics["wire_bytes"] == pytest.approx(8 * 32 * 2)
