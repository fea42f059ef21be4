"""Frozen decoders that ranks hold together: they read, write and pass gradients as whole ones."""

import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import jobs
import pytest
import torch
from conftest import REPOSITORY, small_overrides
from jobs import BACKENDS, SingleProcess
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor

from latentwire import config_file
from latentwire.config import ConfigError
from latentwire.data import part_texts
from latentwire.data.rewriting import Written, continued
from latentwire.testing import run_distributed
from latentwire.training import run
from latentwire.training.frozen_check import FrozenCheck
from latentwire.training.identity import identities
from latentwire.training.preflight import preflight

SHARD = ["decoders.llama.shard=2", "decoders.qwen.shard=2"]
DEEP = ["adapter.use_deep_prefix=true"]
ONLY_DEEP = [*DEEP, "adapter.use_soft_prompt=false"]
LORA = [f"decoders.{name}.lora.rank=2" for name in ("llama", "qwen")]
LARGE = {
    name: [
        "sharding.backend=deepspeed",
        f"sharding.ds_config={REPOSITORY / 'ds_configs' / name}.json",
    ]
    for name in ("zero3_large", "zero3_large_offload")
}
"""Backends for an encoder of a billion parameters."""
RECOMPUTED = [f"decoders.{name}.gradient_checkpointing=true" for name in ("llama", "qwen")]
KEPT = [f"decoders.{name}.reshard=false" for name in ("llama", "qwen")]


def gradients_on_rank(
    rank: int, world_size: int, overrides: list[str], cases: dict[str, list[str]]
) -> dict[str, Any]:
    """Whole gradients of one step for every case, one after the other."""
    found = {}
    for name, more in cases.items():
        config = config_file.load("smoke", [*overrides, *more])
        job = jobs.make_job(config, world_size)
        gradients = jobs.job_gradients(job, jobs.make_stage(config).plan(1))
        found |= {f"{name}:{key}": grad for key, grad in gradients.items()}
    return found


def check(
    overrides: list[str], world_size: int, cases: dict[str, list[str]], references: list[list[str]]
) -> None:
    """Each case against one process that holds everything, by what they have in common."""
    results = run_distributed(gradients_on_rank, world_size, overrides, cases)
    for more in references:
        single = SingleProcess([*overrides, *more])
        reference = single.gradients(jobs.make_stage(single.config).plan(1))
        for name in [n for n, case in cases.items() if _common(case) == more]:
            ranks = [
                {
                    key.removeprefix(f"{name}:"): grad
                    for key, grad in rank.items()
                    if key.startswith(f"{name}:")
                }
                for rank in results
            ]
            error = jobs.largest_gradient_difference(reference, ranks)
            print(f"gradients, world {world_size}, {name}: {error:.1e}")
            assert error < 1e-5, f"{name}: relative error {error:.2e}"


def _common(case: list[str]) -> list[str]:
    """The overrides of a case that change what is computed."""
    return [item for item in case if item.startswith("adapter.") or ".lora." in item]


def untied(model: Path, folder: Path) -> Path:
    """The model with an output layer of its own."""
    shutil.copytree(model, folder)
    weights = load_file(model / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] * 1.5
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    return folder


def test_gradients_through_shards_equal_those_of_one_process(pair: Path, tmp_path: Path) -> None:
    """Two ranks hold each decoder, for either backend of what is trained; one decoder has tied
    embeddings and the other has not."""
    overrides = small_overrides(
        pair,
        tmp_path,
        "optim.max_grad_norm=0",
        "placement=colocated",
        "objectives.span=1",
        f"decoders.llama.model={untied(pair / 'llama', tmp_path / 'untied')}",
        *SHARD,
    )
    cases = {
        "fsdp": BACKENDS["fsdp"],
        "fsdp, kept": [*BACKENDS["fsdp"], *KEPT],
        "zero3, recomputed": [*BACKENDS["zero3_sharded"], *RECOMPUTED],
        "zero3_large_offload, deep prefix": [*LARGE["zero3_large_offload"], *DEEP],
        "fsdp, deep prefix, recomputed": [*BACKENDS["fsdp"], *DEEP, *RECOMPUTED],
    }
    check(overrides, 2, cases, [[], DEEP])


def test_gradients_of_several_copies_equal_those_of_one_process(pair: Path, tmp_path: Path) -> None:
    """Four ranks hold two copies of one decoder and one of the other, in parts that are uneven."""
    overrides = small_overrides(
        pair,
        tmp_path,
        "optim.max_grad_norm=0",
        "placement=colocated",
        "objectives.span=1",
        "decoders.llama.shard=2",
        "decoders.qwen.shard=4",
    )
    cases = {
        "zero3_large": LARGE["zero3_large"],
        "fsdp, deep prefix alone": [*BACKENDS["fsdp"], *ONLY_DEEP],
        "fsdp, lora": [*BACKENDS["fsdp"], *LORA],
    }
    check(overrides, 4, cases, [[], ONLY_DEEP, LORA])


def curve_on_rank(rank: int, world_size: int, overrides: list[str]) -> list[dict[str, float]]:
    """Rows of a few steps in which now this rank and now another has nothing to go on with."""
    config = config_file.load("smoke", overrides)
    job = jobs.make_job(config, world_size)
    trainer, stage = jobs.make_trainer(job), jobs.make_stage(config)
    rows = []
    for number in range(1, stage.num_steps + 1):
        part_texts.continued = Mock(side_effect=continued)
        if number % world_size == rank:
            part_texts.continued = Mock(return_value=Written())
        found = trainer.step(stage.plan(number)).rows()
        assert part_texts.continued.called
        for row in found:
            assert (row["continuation_part"] > 0) == (number % world_size != rank)
        names = ("tf", "kd", "state", "ae", "continuation", "gist", "grad_norm")
        rows += [{key: row[key] for key in names} for row in found]
    return rows


def test_ranks_with_nothing_to_write_keep_up(pair: Path, tmp_path: Path) -> None:
    overrides = small_overrides(
        pair,
        tmp_path,
        "placement=colocated",
        "train.batch_size=4",
        "train.stage_a.steps=3",
        "train.stage_a.warmup_text_latent_prob=1",
        "train.stage_a.warmup_text_latent_steps=1000000",
        "objectives.ae=0.2",
        "objectives.ae_tokens=4",
        "objectives.continuation=0.2",
        "objectives.state=0.1",
        "objectives.gist=0.1",
        *BACKENDS["fsdp"],
    )
    whole = run_distributed(curve_on_rank, 2, overrides)
    sharded = run_distributed(curve_on_rank, 2, [*overrides, *SHARD])
    for rows, expected in zip(sharded, whole, strict=True):
        for row, wanted in zip(rows, expected, strict=True):
            assert row == pytest.approx(wanted, abs=1e-4)


def test_ranks_with_nothing_to_write_reduce_the_same_gradients(pair: Path, tmp_path: Path) -> None:
    """Where all that is trained is what one rank has nothing of."""
    overrides = small_overrides(
        pair,
        tmp_path,
        "placement=colocated",
        "train.batch_size=4",
        "train.stage_a.steps=3",
        "train.stage_a.warmup_text_latent_prob=1",
        "train.stage_a.warmup_text_latent_steps=1000000",
        *(f"objectives.{name}=0" for name in ("tf", "first", "kd", "span")),
        "objectives.continuation=1",
        *BACKENDS["fsdp"],
        *ONLY_DEEP,
    )
    first, second = run_distributed(curve_on_rank, 2, overrides)
    assert [row["grad_norm"] for row in first] == [row["grad_norm"] for row in second]
    assert all(row["grad_norm"] > 0 for row in first)


def train_on_rank(
    rank: int, world_size: int, overrides: list[str], resume_from: str | None = None
) -> str:
    plan = preflight(config_file.load("smoke", overrides), world_size=world_size)
    return run.train(plan, resume_from=resume_from).state


def metrics_of(folder: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((folder / "runs" / "test" / "metrics.json").read_text())
    return metrics


def health_of(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "runs" / "test" / "diagnostics.jsonl").read_text().splitlines()
    rows = [row for line in lines if (row := json.loads(line)).get("kind") == "health"]
    assert rows
    return [
        {k: v for k, v in row.items() if isinstance(v, int | float) and "seconds" not in k}
        for row in rows
    ]


def numbers(tree: Any, path: str = "") -> dict[str, Any]:
    """Every leaf of a tree by its path."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    found: dict[str, Any] = {}
    for key, value in items:
        at = f"{path}/{key}"
        found |= numbers(value, at) if isinstance(value, dict | list) else {at: value}
    return found


@pytest.mark.slow
def test_a_run_over_shards_ends_as_one_over_whole_decoders(pair: Path, tmp_path: Path) -> None:
    """Goes on from a step of that one: training, validation, health, generation, every arm."""
    overrides = small_overrides(
        pair,
        tmp_path,
        "placement=colocated",
        "train.stage_a.steps=2",
        "train.stage_b.steps=0",
        "checkpoint.interval=1",
        "validation.interval=2",
        "validation.samples=12",
        "diagnostics.health_interval=2",
        "diagnostics.grad_diag_units=encoder,adapter",
        "objectives.ae=0.1",
        "eval.samples=10",
        "eval.batch_size=6",
        "eval.max_new_tokens=4",
    )
    assert run_distributed(train_on_rank, 2, overrides) == ["finished"] * 2
    whole, health = metrics_of(tmp_path), health_of(tmp_path)
    sharded = [*overrides, *SHARD]
    assert run_distributed(train_on_rank, 2, sharded, "stageA/step-00000001") == ["finished"] * 2
    found = metrics_of(tmp_path)
    # A hash is over parts where there are parts.
    before, now = (metrics.pop("decoder_hashes") for metrics in (whole, found))
    assert before.keys() == now.keys() and before != now
    # Trained anew over parts, a step is close to the other, not the same.
    before, now = (metrics["checkpoint"].pop("manifest") for metrics in (whole, found))
    assert len(before) == len(now) == 64
    assert len(numbers(found)) > 100
    assert numbers(found) == pytest.approx(numbers(whole), abs=1e-4, nan_ok=True)
    assert numbers(health_of(tmp_path)) == pytest.approx(numbers(health), abs=1e-3)


def hashes_on_rank(rank: int, world_size: int, overrides: list[str]) -> dict[str, Any]:
    """The hash of each decoder, and what is said when one weight of one rank's part changes."""
    job = jobs.make_job(config_file.load("smoke", overrides), world_size)
    check = FrozenCheck(job)
    found = {"hashes": check.verify(), "identity": identities(job, check.before)}
    if rank == world_size - 1:
        for parameter in job.decoders["qwen"].model.parameters():
            local = parameter.data.to_local() if isinstance(parameter, DTensor) else parameter.data
        with torch.no_grad():
            local.view(-1)[0] += 1
    with pytest.raises(RuntimeError) as error:
        check.verify()
    return found | {"error": str(error.value)}


def test_a_change_in_one_part_of_a_decoder_is_found(pair: Path, tmp_path: Path) -> None:
    overrides = small_overrides(pair, tmp_path, "placement=colocated")
    (whole,) = run_distributed(hashes_on_rank, 1, overrides)
    two = run_distributed(hashes_on_rank, 2, [*overrides, *SHARD])
    four = run_distributed(hashes_on_rank, 4, [*overrides, *SHARD])
    assert all(rank["hashes"] == two[0]["hashes"] for rank in (*two, *four)), "of each copy alike"
    assert whole["hashes"].keys() == two[0]["hashes"].keys()
    for rank in four:
        assert rank["error"].startswith("a frozen decoder changed: 'qwen' on rank 3 (model.norm")
    for name, decoder in whole["identity"].items():
        sharded = two[0]["identity"][name]
        assert sharded["shapes"] == decoder["shapes"], "so a resume may shard otherwise"
        assert decoder["parameters"] and sharded["parameters"] is None


@pytest.mark.parametrize(
    ("more", "world_size", "message"),
    [
        (["decoders.llama.shard=0"], 2, "decoders.llama.shard: 0 must be 1 or more"),
        (
            ["decoders.qwen.shard=2", "placement=separate"],
            2,
            "decoders.qwen.shard: 2 does not divide the 1 ranks of its group; use one of 1, or "
            "give it a multiple of 2 ranks",
        ),
        (
            ["decoders.qwen.shard=2", "decoders.qwen.quantization=int8"],
            2,
            "decoders.qwen.quantization: 'int8' with decoders.qwen.shard 2",
        ),
        (
            ["decoders.qwen.shard=2", "decoders.qwen.quantization=nf4"],
            2,
            "decoders.qwen.quantization: 'nf4', but rows of self_attn.q_proj in ",
        ),
        (["decoders.qwen.reshard=false"], 2, "decoders.qwen.reshard: false, but"),
    ],
)
def test_what_cannot_be_sharded_is_refused(
    more: list[str], world_size: int, message: str, pair: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        overrides = small_overrides(pair, tmp_path, *more)
        preflight(config_file.load("smoke", overrides), world_size=world_size)
    assert any(message in problem for problem in error.value.problems), error.value.problems
