"""Frozen decoders that ranks hold together: they read, write and pass gradients as whole ones."""

import json
from pathlib import Path
from typing import Any

import jobs
import pytest
from conftest import REPOSITORY, small_overrides
from jobs import BACKENDS, SingleProcess

from latentwire import config_file
from latentwire.config import ConfigError
from latentwire.data.loader import global_batch
from latentwire.data.rewriting import continued
from latentwire.testing import run_distributed
from latentwire.training import run
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


def test_gradients_through_shards_equal_those_of_one_process(pair: Path, tmp_path: Path) -> None:
    """Two ranks hold each decoder, for either backend of what is trained."""
    overrides = small_overrides(
        pair, tmp_path, "optim.max_grad_norm=0", "placement=colocated", "objectives.span=1", *SHARD
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


def curve_on_rank(rank: int, world_size: int, overrides: list[str]) -> dict[str, Any]:
    """Rows of a few steps, and how many tokens this rank's decoders had to go on with."""
    config = config_file.load("smoke", overrides)
    job = jobs.make_job(config, world_size)
    trainer, stage = jobs.make_trainer(job), jobs.make_stage(config)
    rows, written = [], []
    for number in range(1, stage.num_steps + 1):
        plan = stage.plan(number)
        batch = global_batch(plan.examples, job.any_prompts, draws=plan.draws)
        for name, own in job.parts(batch):
            texts = [continued(batch, t, job.prompts[name], job.tokenizer) for t in own.texts]
            written.append(sum(len(text.answer) for text in texts))
        rows += [
            {k: row[k] for k in ("tf", "kd", "state", "ae", "continuation", "gist", "grad_norm")}
            for row in trainer.step(plan).rows()
        ]
    return {"rows": rows, "written": written}


def test_ranks_with_nothing_to_write_keep_up(pair: Path, tmp_path: Path) -> None:
    overrides = small_overrides(
        pair,
        tmp_path,
        "placement=colocated",
        "train.batch_size=2",
        "train.stage_a.steps=6",
        "train.stage_a.warmup_text_latent_prob=1",
        "train.stage_a.warmup_text_latent_share=0.05",
        "train.stage_a.warmup_text_latent_share_end=0.05",
        "objectives.ae=0.2",
        "objectives.ae_tokens=4",
        "objectives.continuation=0.2",
        "objectives.state=0.1",
        "objectives.gist=0.1",
        *BACKENDS["fsdp"],
    )
    whole = run_distributed(curve_on_rank, 2, overrides)
    sharded = run_distributed(curve_on_rank, 2, [*overrides, *SHARD])
    pairs = list(zip(whole[0]["written"], whole[1]["written"], strict=True))
    assert any((first == 0) != (second == 0) for first, second in pairs), "only one has something"
    for found, expected in zip(sharded, whole, strict=True):
        for row, wanted in zip(found["rows"], expected["rows"], strict=True):
            assert row == pytest.approx(wanted, abs=1e-4)


def train_on_rank(rank: int, world_size: int, overrides: list[str]) -> str:
    config = config_file.load("smoke", overrides)
    return run.train(preflight(config, world_size=world_size)).state


def metrics_of(folder: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((folder / "runs" / "test" / "metrics.json").read_text())
    return metrics


def numbers(tree: Any, path: str = "") -> dict[str, Any]:
    """Every leaf of a tree by its path."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    found: dict[str, Any] = {}
    for key, value in items:
        at = f"{path}/{key}"
        found |= numbers(value, at) if isinstance(value, dict | list) else {at: value}
    return found


def test_a_run_over_shards_ends_as_one_over_whole_decoders(pair: Path, tmp_path: Path) -> None:
    """Training, validation, health, generation and every arm; resumed on whole decoders."""
    more = (
        "placement=separate",
        "train.stage_a.steps=2",
        "train.stage_b.steps=1",
        "checkpoint.interval=1",
        "validation.interval=2",
        "validation.samples=8",
        "diagnostics.health_interval=2",
        "diagnostics.grad_diag_units=encoder,adapter",
        "objectives.ae=0.1",
        "eval.samples=10",
        "eval.batch_size=4",
        "eval.ratios=[8]",
        "data.max_answer_tokens=6",
    )
    for folder, own in (("whole", []), ("sharded", SHARD)):
        overrides = small_overrides(pair, tmp_path / folder, *more, *own)
        states = run_distributed(train_on_rank, 4, overrides)
        assert states == ["finished"] * 4
    whole, sharded = metrics_of(tmp_path / "whole"), metrics_of(tmp_path / "sharded")
    assert whole.pop("decoder_hashes").keys() == sharded.pop("decoder_hashes").keys()
    assert numbers(sharded) == pytest.approx(numbers(whole), abs=1e-4, nan_ok=True)

    # More steps of the sharded run, on decoders of which every rank holds all.
    longer = [item for item in more if "stage_b" not in item] + ["train.stage_b.steps=2"]
    for folder, own in (("whole", SHARD), ("sharded", [])):
        overrides = small_overrides(pair, tmp_path / folder, *longer, *own)
        assert run_distributed(train_on_rank, 4, overrides) == ["finished"] * 4
    whole, sharded = metrics_of(tmp_path / "whole"), metrics_of(tmp_path / "sharded")
    assert whole["checkpoint"]["step"] == 2
    for metrics in (whole, sharded):
        del metrics["decoder_hashes"]
    assert numbers(sharded) == pytest.approx(numbers(whole), abs=1e-4, nan_ok=True)


@pytest.mark.parametrize(
    ("more", "world_size", "message"),
    [
        (["decoders.llama.shard=0"], 2, "decoders.llama.shard: 0 must be 1 or more"),
        (
            ["decoders.qwen.shard=2", "placement=separate"],
            2,
            "decoders.qwen.shard: 2 does not divide the 1 ranks of its group; use one of 1, or "
            "decoders.qwen.ranks in multiples of 2",
        ),
        (
            ["decoders.qwen.shard=2", "decoders.qwen.quantization=int8"],
            2,
            "decoders.qwen.quantization: 'int8' with decoders.qwen.shard 2",
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
