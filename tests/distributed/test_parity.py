"""Gate 5: every layout and every backend gives the gradients and the curve of one process."""

import json
from pathlib import Path
from typing import Any

import jobs
import pytest
from conftest import small_overrides
from jobs import BACKENDS, BF16_BACKENDS, ENCODERS, LAYOUTS, SingleProcess

from latentwire import config_file
from latentwire.distributed.topology import plan
from latentwire.testing import run_distributed

SHARDED = ("fsdp", "zero1", "zero2", "zero3", "zero3_sharded")
COMBINATIONS = {f"{b}/{e}": [*BACKENDS[b], *ENCODERS[e]] for b in SHARDED for e in ENCODERS}
SOME = ("fsdp/full", "zero2/lora", "zero3_sharded/full")


def gradients_on_rank(
    rank: int,
    world_size: int,
    overrides: list[str],
    combinations: dict[str, list[str]],
    ranks_per_node: int | None,
) -> dict[str, Any]:
    """Whole gradients of one step for every combination, one after the other."""
    found = {}
    for name, more in combinations.items():
        config = config_file.load("smoke", [*overrides, *more])
        job = jobs.make_job(config, world_size, ranks_per_node=ranks_per_node)
        gradients = jobs.job_gradients(job, jobs.make_stage(config).plan(1))
        found |= {f"{name}:{key}": grad for key, grad in gradients.items()}
    return found


def of_combination(results: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    prefix = f"{name}:"
    return [
        {key.removeprefix(prefix): value for key, value in rank.items() if key.startswith(prefix)}
        for rank in results
    ]


def check_gradients(
    overrides: list[str],
    world_size: int,
    combinations: dict[str, list[str]],
    *,
    tolerance: float = 1e-5,
    ranks_per_node: int | None = None,
) -> None:
    references = {
        encoder: SingleProcess([*overrides, *more]).gradients(first_step([*overrides, *more]))
        for encoder, more in ENCODERS.items()
    }
    results = run_distributed(
        gradients_on_rank, world_size, overrides, combinations, ranks_per_node
    )
    for name in combinations:
        reference = references[name.split("/")[1]]
        error = jobs.largest_gradient_difference(reference, of_combination(results, name))
        print(f"gradients, world {world_size}, {name}: {error:.1e}")
        assert error < tolerance, f"{name}: relative error {error:.2e}"


def first_step(overrides: list[str]) -> Any:
    return jobs.make_stage(config_file.load("smoke", overrides)).plan(1)


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_gradients_equal_the_single_process(layout: str, pair: Path, tmp_path: Path) -> None:
    world_size, more = LAYOUTS[layout]
    overrides = small_overrides(pair, tmp_path, "optim.max_grad_norm=0", *more)
    chosen = {
        name: more
        for name, more in COMBINATIONS.items()
        if layout == "1 + 3" or (name.endswith("/full") and "sharded" not in name)
    }
    check_gradients(overrides, world_size, chosen)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["2 colocated", "3", "1 + 3"])
def test_lora_gradients_equal_the_single_process(layout: str, pair: Path, tmp_path: Path) -> None:
    world_size, more = LAYOUTS[layout]
    overrides = small_overrides(pair, tmp_path, "optim.max_grad_norm=0", *more)
    chosen = {name: more for name, more in COMBINATIONS.items() if name.endswith("/lora")}
    check_gradients(overrides, world_size, chosen)


def test_accumulated_gradients_equal_the_single_process(pair: Path, tmp_path: Path) -> None:
    """Micro-batches, and with them offload, in groups of two ranks and of one."""
    overrides = small_overrides(
        pair,
        tmp_path,
        "optim.max_grad_norm=0",
        "placement=separate",
        "train.batch_size=18",
        "train.accumulation=3",
    )
    combinations = {f"{backend}/full": more for backend, more in BACKENDS.items()}
    # Other sums are rounded than in the whole batch: all backends differ from it alike, by 1e-5.
    check_gradients(overrides, 3, combinations, tolerance=3e-5)


SETTINGS: list[dict[str, Any]] = [
    {"stage": 1, "overlap_comm": True},
    {"stage": 2, "contiguous_gradients": False},
    {"stage": 2, "reduce_scatter": False},
    {"stage": 2, "use_multi_rank_bucket_allreduce": False},
    {"stage": 2, "overlap_comm": True, "reduce_bucket_size": 2000, "allgather_bucket_size": 2000},
    {"stage": 2, "offload_optimizer": {"device": "none"}},
    {"stage": 3, "reduce_scatter": False},
    {"stage": 3, "contiguous_gradients": False},
    {"stage": 3, "overlap_comm": True, "reduce_bucket_size": 2000},
    {"stage": 3, "sub_group_size": 2000, "offload_optimizer": {"device": "cpu"}},
]
"""Of what a DeepSpeed file may hold: what could change the result."""


@pytest.mark.slow
def test_no_allowed_setting_changes_the_result(pair: Path, tmp_path: Path) -> None:
    """Gradients of accumulated micro-batches, then a few steps of training."""
    combinations = {}
    for number, zero in enumerate(SETTINGS):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps({"zero_optimization": zero}), encoding="utf-8")
        combinations[f"{json.dumps(zero)}/full"] = [f"sharding.ds_config={path}"]
    overrides = curve_overrides(pair, tmp_path, 4, "placement=separate", "train.accumulation=2")
    check_gradients([*overrides, "optim.max_grad_norm=0"], 2, combinations, tolerance=3e-5)
    results = run_distributed(curves_on_rank, 2, overrides, combinations)
    single = SingleProcess(overrides)
    reference = single.curve(curve_steps(single.config))
    for name in combinations:
        error = jobs.largest_curve_difference(reference, [r[name] for r in results])
        assert error < 1e-4, f"{name}: {error:.2e}"


def test_bf16_gradients_are_near_those_of_fp32(pair: Path, tmp_path: Path) -> None:
    """On uneven groups, so that a gradient reduced over the wrong ranks shows."""
    world_size, more = LAYOUTS["3"]
    overrides = small_overrides(pair, tmp_path, "optim.max_grad_norm=0", *more)
    combinations = {f"{backend}/full": more for backend, more in BF16_BACKENDS.items()}
    check_gradients(overrides, world_size, combinations, tolerance=0.25)


def test_three_decoders_on_five_ranks(pair: Path, tmp_path: Path) -> None:
    """Groups of 2, 2 and 1 ranks, activation checkpointing, and a batch that five ranks split."""
    overrides = small_overrides(
        pair,
        tmp_path,
        "optim.max_grad_norm=0",
        "placement=separate",
        "train.batch_size=10",
        "encoder.activation_checkpointing=true",
        f"decoders.third.model={pair / 'llama'}",
    )
    chosen = {name: COMBINATIONS[name] for name in ("zero2/full", "zero3_sharded/lora")}
    check_gradients(overrides, 5, chosen)


def test_groups_that_are_moved_to_keep_to_their_nodes(pair: Path, tmp_path: Path) -> None:
    """Groups of 1, 2 and 1 ranks on nodes of two: the second goes first, the third to the first."""
    overrides = small_overrides(
        pair,
        tmp_path,
        "optim.max_grad_norm=0",
        "placement=separate",
        "decoders.llama.ranks=1",
        "decoders.qwen.ranks=2",
        f"decoders.third.model={pair / 'llama'}",
    )
    layout = config_file.load("smoke", overrides)
    groups = plan(layout.decoders, placement="separate", world_size=4, ranks_per_node=2).groups
    assert [group.ranks for group in groups] == [(2,), (0, 1), (3,)]
    chosen = {name: COMBINATIONS[name] for name in ("fsdp/full", "zero2/full")}
    check_gradients(overrides, 4, chosen, ranks_per_node=2)


def curves_on_rank(
    rank: int, world_size: int, overrides: list[str], combinations: dict[str, list[str]]
) -> dict[str, list[dict[str, float]]]:
    found = {}
    for name, more in combinations.items():
        config = config_file.load("smoke", [*overrides, *more])
        found[name] = jobs.job_curve(jobs.make_job(config, world_size), curve_steps(config))
    return found


def curve_steps(config: Any) -> list[Any]:
    stage = jobs.make_stage(config)
    return [stage.plan(step) for step in range(1, stage.num_steps + 1)]


def check_curves(overrides: list[str], world_size: int, combinations: dict[str, list[str]]) -> None:
    results = run_distributed(curves_on_rank, world_size, overrides, combinations, timeout=900)
    for encoder, more in ENCODERS.items():
        single = SingleProcess([*overrides, *more])
        steps = curve_steps(single.config)
        assert {step.mode for step in steps} == {"latent", "mixed"}, "the curve covers both modes"
        reference = single.curve(steps)
        assert reference[-1]["llama/span"] < reference[0]["llama/span"] - 0.05, "it trains"
        for name in combinations:
            if name.endswith(f"/{encoder}"):
                error = jobs.largest_curve_difference(reference, [r[name] for r in results])
                print(f"curve, world {world_size}, {name}: {error:.1e}")
                assert error < 1e-4, f"{name}: {error:.2e}"


def curve_overrides(pair: Path, tmp_path: Path, steps: int, *more: str) -> list[str]:
    return small_overrides(
        pair,
        tmp_path,
        f"train.stage_a.steps={steps}",
        "diagnostics.grad_diag_interval=0",
        *more,
    )


def test_short_curves_equal_the_single_process(pair: Path, tmp_path: Path) -> None:
    world_size, more = LAYOUTS["1 + 3"]
    overrides = curve_overrides(pair, tmp_path, 12, *more)
    chosen = {name: COMBINATIONS[name] for name in SOME}
    check_curves(overrides, world_size, chosen)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("layout", ["2 colocated", "3"])
def test_long_curves_equal_the_single_process(layout: str, pair: Path, tmp_path: Path) -> None:
    """Every backend with every encoder where groups differ."""
    world_size, more = LAYOUTS[layout]
    chosen = COMBINATIONS if layout == "3" else {name: COMBINATIONS[name] for name in SOME}
    check_curves(curve_overrides(pair, tmp_path, 16, *more), world_size, chosen)
