"""Which objectives a step measures, and what its schedules do to it."""

import dataclasses
from pathlib import Path
from typing import Any

import jobs
import pytest
import torch
from conftest import small_overrides

from latentwire import config_file
from latentwire.config import OBJECTIVES, Config
from latentwire.testing import run_distributed
from latentwire.training.objectives import OF_THE_ANSWER, wanted
from latentwire.training.stages import Stage

ANSWER = set(OF_THE_ANSWER)
FURTHER_FORWARD = {"ae", "continuation"}


def load(pair: Path, tmp_path: Path, *overrides: str) -> Config:
    return config_file.load("smoke", small_overrides(pair, tmp_path, *overrides))


def measured(pair: Path, tmp_path: Path, *overrides: str, with_norms: bool = False) -> set[str]:
    return wanted(load(pair, tmp_path, *overrides), with_norms=with_norms)


def test_a_plain_step_measures_what_it_trains(pair: Path, tmp_path: Path) -> None:
    found = measured(pair, tmp_path, "objectives.kd=0", "objectives.span=0")
    assert found == ANSWER
    found = measured(pair, tmp_path, "objectives.state=1", "objectives.ae=1")
    assert found == ANSWER | {"kd", "span", "state", "ae"}


def test_a_norm_step_measures_all_that_cost_no_forward(pair: Path, tmp_path: Path) -> None:
    head = "gist.use_gist_head=true"
    found = measured(pair, tmp_path, head, "objectives.kd=0", with_norms=True)
    assert found == set(OBJECTIVES) - FURTHER_FORWARD, "span is trained in this recipe"
    found = measured(pair, tmp_path, head, "objectives.span=0", with_norms=True)
    assert found == set(OBJECTIVES) - FURTHER_FORWARD - {"span"}
    found = measured(pair, tmp_path, head, "objectives.ae=1", with_norms=True)
    assert found == set(OBJECTIVES) - {"continuation"}


def test_named_components_are_measured_instead(pair: Path, tmp_path: Path) -> None:
    named = "diagnostics.grad_diag_components=[manifold,ae]"
    found = measured(pair, tmp_path, named, "objectives.kd=0", with_norms=True)
    assert found == ANSWER | {"span", "manifold", "ae"}
    assert measured(pair, tmp_path, named, "objectives.kd=0") == ANSWER | {"span"}


def test_what_the_wire_has_not_is_not_measured(pair: Path, tmp_path: Path) -> None:
    overrides = ("adapter.use_soft_prompt=false", "adapter.use_deep_prefix=true")
    found = measured(pair, tmp_path, *overrides, "gist.use_gist_head=false", with_norms=True)
    assert not found & {"latent_align", "manifold", "scale_l2", "gist"}


def test_schedules_reach_every_step(pair: Path, tmp_path: Path) -> None:
    config = load(
        pair,
        tmp_path,
        "objectives.k=8",
        "objectives.k_start=2",
        "objectives.first=0.5",
        "objectives.first_peak=4",
        "objectives.first_hold=0.25",
        "train.stage_a.steps=21",
        "train.stage_a.latent_keep_start=0.5",
        "train.stage_a.latent_keep_end=0.9",
        "train.stage_a.latent_keep_power=2",
        "train.stage_a.warmup_text_latent_prob=1",
        "train.stage_a.warmup_text_latent_steps=11",
        "train.stage_a.warmup_text_latent_share=0.8",
        "train.stage_a.warmup_text_latent_share_end=0.3",
        "train.stage_a.ratios=2,4",
        "train.stage_a.ratio_mode=summed",
    )
    stage = jobs.make_stage(config)
    plans = {step: stage.plan(step) for step in range(1, 22)}
    assert [plans[step].k for step in (1, 11, 21)] == [2, 5, 8]
    first = {step: plan.weights["first"] for step, plan in plans.items()}
    assert [first[step] for step in (1, 6, 21)] == pytest.approx([4, 4, 0.5])
    assert sorted(first.values(), reverse=True) == list(first.values())
    keep = [plans[step].draws.keep_prob for step in (1, 11, 21)]
    assert keep == pytest.approx([0.5, 0.5 + 0.4 / 4, 0.9])
    assert plans[1].mode == "mixed" and plans[1].draws.text_share == pytest.approx(0.8)
    modes = [plans[step].mode for step in range(1, 12)]
    assert 2 < modes.count("mixed") < 10
    for step in range(1, 12):
        share = plans[step].draws.text_share
        if plans[step].mode == "mixed":
            assert share == pytest.approx(0.8 - 0.5 * (step - 1) / 10)
    assert {plans[step].mode for step in range(11, 22)} == {"latent"}, "the warm-up is over"
    for step, plan in plans.items():
        told = stage.schedules(step)
        assert told["rates"] == plan.rates and told["k"] == plan.k
        assert told["weights"] == {key: value for key, value in plan.weights.items() if value}
        assert told["keep_prob"] == plan.draws.keep_prob
        assert told["text_share"] == plan.draws.text_share
    draws = {(p.draws.ratios, p.draws.ratio_mode) for p in plans.values()}
    assert draws == {((2, 4), "summed")}
    assert len({plan.draws.seed for plan in plans.values()}) == len(plans)
    second = jobs.make_stage(config, "B").plan(1)
    assert (second.draws.keep_prob, second.mode, second.draws.ratios) == (1.0, "latent", ())


def rows_on_rank(rank: int, world_size: int, overrides: list[str]) -> list[dict[str, Any]]:
    job = jobs.make_job(config_file.load("smoke", overrides), world_size)
    stage, trainer = jobs.make_stage(job.config), jobs.make_trainer(job)
    rows = []
    for step in range(1, stage.num_steps + 1):
        rows += trainer.step(stage.plan(step)).rows()
    return rows


def test_rows_tell_what_was_measured(pair: Path, tmp_path: Path) -> None:
    overrides = small_overrides(
        pair,
        tmp_path,
        "placement=colocated",
        "sharding.backend=fsdp",
        "train.batch_size=4",
        "train.stage_a.steps=4",
        "train.stage_a.latent_keep_start=0.5",
        "train.stage_a.warmup_text_latent_prob=1",
        "train.stage_a.warmup_text_latent_steps=2",
        "objectives.kd=0",
        "objectives.span=0",
        "objectives.first_peak=2",
        "objectives.k_start=1",
        "objectives.continuation=0.5",
        "diagnostics.grad_diag_interval=2",
        "diagnostics.grad_diag_units=[]",
        "diagnostics.grad_diag_components=[tf,manifold]",
    )
    (rows,) = run_distributed(rows_on_rank, 1, overrides)
    plans = {
        step: jobs.make_stage(config_file.load("smoke", overrides)).plan(step)
        for step in range(1, 5)
    }
    assert [row["step"] for row in rows] == [1, 1, 2, 2, 3, 3, 4, 4], "a row a decoder"
    assert {row["mode"] for row in rows} == {"mixed", "latent"}
    for row in rows:
        step = plans[row["step"]]
        assert row["K"] == step.k
        assert row["keep_prob"] == step.draws.keep_prob
        assert row["text_share"] == step.draws.text_share
        assert row["mode"] == step.mode
        assert row["weight_first"] == step.weights["first"]
        # Of weight 0: only where its gradient's norm is asked for.
        with_norms = row["step"] % 2 == 0
        assert (row["manifold"] is not None) == with_norms
        norms = {key for key in row if key.startswith("grad_") and "grad_norm" not in key}
        parts = ("", "/adapter", "/encoder")
        named = {f"grad_{key}{part}" for key in ("tf", "manifold") for part in parts}
        assert {key for key in norms if not key.endswith("/deep_prefix")} == (
            named if with_norms else set()
        )
        assert (row["continuation"] is not None) == (row["mode"] == "mixed")
        unmeasured = set(OBJECTIVES) - ANSWER - {"manifold", "continuation"}
        assert all(row[name] is None for name in unmeasured)


def test_a_step_that_has_none_of_the_named_components_has_no_norms(
    pair: Path, tmp_path: Path
) -> None:
    overrides = small_overrides(
        pair,
        tmp_path,
        "placement=colocated",
        "sharding.backend=fsdp",
        "objectives.continuation=0.5",
        "diagnostics.grad_diag_interval=1",
        "diagnostics.grad_diag_units=[]",
        "diagnostics.grad_diag_components=[continuation]",
    )
    (rows,) = run_distributed(rows_on_rank, 1, overrides)
    assert {row["mode"] for row in rows} == {"latent"}, "nothing stays text to go on with"
    norms = {key for row in rows for key in row if key.startswith("grad_")}
    assert norms and all(key.startswith("grad_norm") for key in norms)


def resumed_on_rank(rank: int, world_size: int, overrides: list[str]) -> dict[str, Any]:
    """Which weights and moments a resume changes, and which the masks do."""
    config = config_file.load("smoke", overrides)
    stage: Stage = jobs.make_stage(config)
    straight, broken = jobs.make_job(config, world_size), jobs.make_job(config, world_size)
    without = dataclasses.replace(config, adapter=dataclasses.replace(config.adapter, dropout=0.0))
    plain = jobs.make_job(without, world_size)
    for job, steps in ((straight, (1, 2, 3)), (broken, (1,)), (plain, (1, 2, 3))):
        job.wire.train()
        trainer = jobs.make_trainer(job)
        for step in steps:
            trainer.step(stage.plan(step))
    resumed = jobs.make_job(config, world_size)
    resumed.wire.train()
    for key, unit in resumed.units.items():
        state = broken.units[key].export_state()
        unit.import_state(state)
    trainer = jobs.make_trainer(resumed)
    torch.rand(7)  # whatever else was drawn before
    for step in (2, 3):
        trainer.step(stage.plan(step))
    expected = jobs.exported(straight)

    def different(job: Any) -> list[str]:
        found = jobs.exported(job)
        return [key for key in expected if not torch.equal(expected[key], found[key])]

    return {"resumed": different(resumed), "plain": different(plain)}


def test_dropout_repeats_in_a_resume(pair: Path, tmp_path: Path) -> None:
    overrides = small_overrides(
        pair,
        tmp_path,
        "placement=colocated",
        "sharding.backend=fsdp",
        "train.batch_size=4",
        "train.stage_a.steps=3",
        "adapter.use_deep_prefix=true",
        "adapter.dropout=0.3",
        "adapter.deep_prefix_dropout=0.3",
        "objectives.kd=0",
        "diagnostics.grad_diag_interval=0",
    )
    (found,) = run_distributed(resumed_on_rank, 1, overrides)
    assert found["resumed"] == []
    assert found["plain"], "dropout does change training"
