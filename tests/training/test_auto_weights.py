"""Automatic weights in a run: agreed by all ranks, towards the wanted shares, kept in a resume."""

import json
import shutil
from pathlib import Path
from typing import Any

import jobs
import pytest
from conftest import small_overrides
from test_resume import rows_of, train_on_rank

from latentwire import config_file
from latentwire.testing import run_distributed

# Wanted shares that equal weights are far from, and no multiplier reaches its limit for.
WEIGHTS = {"tf": 1.0, "first": 0.5, "kce": 0.25, "kd": 2.0}
BALANCED = [
    "objectives.auto_weight=true",
    "objectives.auto_interval=1",
    *(f"objectives.{name}={weight}" for name, weight in WEIGHTS.items()),
    "objectives.span=0",
    "placement=separate",
    "sharding.backend=fsdp",
    "train.batch_size=6",
    "train.stage_a.steps=5",
    "train.stage_a.warmup_text_latent_prob=0",
    "diagnostics.grad_diag_interval=1",
    # Small steps: the gradients of one step are much like those of the one before.
    "optim.encoder_lr=1e-6",
    "optim.adapter_lr=1e-6",
    "optim.prefix_lr=1e-6",
]


def balanced_on_rank(rank: int, world_size: int, overrides: list[str]) -> dict[str, Any]:
    """The multipliers after each step, and the own gradients' squares of each."""
    job = jobs.make_job(config_file.load("smoke", overrides), world_size)
    stage, trainer = jobs.make_stage(job.config), jobs.make_trainer(job)
    multipliers, squares, plans = [], [], []
    for step in range(1, stage.num_steps + 1):
        plan = stage.plan(step)
        plans.append(trainer.auto_weights.applied(plan).weights)
        squares.append(trainer.step(plan).balanced_squares())
        multipliers.append(dict(trainer.auto_weights.balance.multipliers))
    return {"multipliers": multipliers, "squares": squares, "weights": plans}


def test_shares_approach_the_weights_on_all_ranks_alike(pair: Path, tmp_path: Path) -> None:
    overrides = small_overrides(pair, tmp_path, *BALANCED)
    first, second = run_distributed(balanced_on_rank, 2, overrides)
    assert first["multipliers"] == second["multipliers"], "bit by bit"
    assert first["squares"] != second["squares"], "each rank has measured its own decoder"
    assert all(found.keys() == WEIGHTS.keys() for found in first["multipliers"])
    assert {name: first["weights"][0][name] for name in WEIGHTS} == WEIGHTS, "not yet measured"
    wanted = {name: weight / sum(WEIGHTS.values()) for name, weight in WEIGHTS.items()}

    def largest_error(step: int) -> float:
        sizes = {
            name: first["weights"][step][name]
            * sum(rank["squares"][step][name] for rank in (first, second)) ** 0.5
            for name in WEIGHTS
        }
        total = sum(sizes.values())
        return max(abs(sizes[name] / total - wanted[name]) for name in WEIGHTS)

    assert largest_error(0) > 0.2
    # The next batch's gradients are others; what was measured on one is near on the next.
    assert all(largest_error(step) < 0.5 * largest_error(0) for step in range(1, 5))


@pytest.mark.parametrize(
    ("world_size", "more"),
    [(1, ["train.accumulation=3"]), (2, []), (3, ["placement=separate"])],
    ids=["three micro-batches", "two ranks", "a group of two"],
)
def test_weights_do_not_depend_on_how_a_batch_is_split(
    pair: Path, tmp_path: Path, world_size: int, more: list[str]
) -> None:
    # Twelve questions on two texts: every split parts questions that share a wire.
    few = ["train.batch_size=12", "train.stage_a.steps=1", "data.questions_per_context=6"]
    ends = ["objectives.scale_l2=0.5", "objectives.span=0.5"]
    overrides = small_overrides(pair, tmp_path, *BALANCED, *few, *ends, "placement=colocated")
    (whole,) = run_distributed(balanced_on_rank, 1, overrides)
    expected = whole["multipliers"][0]
    assert len(expected) == 6
    split = run_distributed(balanced_on_rank, world_size, [*overrides, *more])
    for rank in split:
        assert rank["multipliers"][0] == pytest.approx(expected, rel=1e-3)


def test_a_resume_goes_on_with_the_same_balance(pair: Path, tmp_path: Path) -> None:
    overrides = small_overrides(
        pair,
        tmp_path,
        *BALANCED,
        "objectives.auto_interval=3",
        "train.stage_a.steps=4",
        "train.stage_b.steps=0",
        "checkpoint.interval=2",
        "optim.encoder_lr=1e-3",
        "optim.adapter_lr=1e-3",
    )
    run_folder, stage = tmp_path / "runs" / "test", tmp_path / "checkpoints" / "test" / "stageA"
    assert run_distributed(train_on_rank, 2, overrides) == ["finished", "finished"]
    rows = rows_of(run_folder)
    last = stage / "step-00000004"
    balances = [
        json.loads((stage / f"step-0000000{step}" / "trainer.json").read_text())["balance"]
        for step in (2, 4)
    ]
    assert balances[0].keys() == balances[1].keys() == WEIGHTS.keys()
    assert balances[0] != balances[1], "measured at steps 1 and 4"
    weights = jobs.stored(last)
    shutil.rmtree(last)
    (run_folder / "metrics.json").unlink()
    assert run_distributed(train_on_rank, 2, overrides) == ["finished", "finished"]
    assert rows_of(run_folder) == rows
    assert json.loads((last / "trainer.json").read_text())["balance"] == balances[1]
    again = jobs.stored(last)
    assert all(again[key].equal(value) for key, value in weights.items())


def test_without_it_nothing_is_weighted(pair: Path, tmp_path: Path) -> None:
    overrides = small_overrides(
        pair, tmp_path, *BALANCED, "objectives.auto_weight=false", "train.stage_a.steps=1"
    )
    found = run_distributed(balanced_on_rank, 2, overrides)
    assert all(rank["multipliers"] == [{}] for rank in found)
    weights = found[0]["weights"][0]
    assert {name: weights[name] for name in WEIGHTS} == pytest.approx(WEIGHTS)
