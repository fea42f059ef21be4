"""Stages with their own number of examples and batch size."""

from pathlib import Path

import pytest
from config_cases import only_problem, refused
from conftest import small_overrides

from latentwire import config_file
from latentwire.config import Config, ConfigError
from latentwire.data.sources import open_source
from latentwire.training.preflight import preflight
from latentwire.training.stages import Stage


def stage(name: str, *overrides: str) -> Stage:
    config = config_file.load("smoke", overrides)
    data = config.data
    source = open_source(
        source=data.source, path=data.path, setting=data.setting, split="train", seed=0
    )
    return Stage(config, name, source)


def seen(stage: Stage) -> set[tuple[str, str]]:
    """Every (context, question) of the stage's steps."""
    plans = [stage.plan(step) for step in range(1, stage.num_steps + 1)]
    return {(example.context, example.question) for plan in plans for example in plan.examples}


EPOCH = ("train.stage_a.steps=null", "train.stage_a.epochs=1", "train.stage_b.steps=null")
EPOCHS = (*EPOCH, "train.stage_b.epochs=2", "train.batch_size=12")


def test_a_stage_has_its_own_samples_and_the_smaller_choice_is_in_the_larger() -> None:
    own = (*EPOCHS, "data.samples=120", "train.stage_a.samples=48")
    first, second = stage("A", *own), stage("B", *own)
    assert (first.num_steps, second.num_steps) == (48 // 12, 2 * 120 // 12)
    assert (len(seen(first)), len(seen(second))) == (48, 120)
    assert seen(first) < seen(second)


def test_zero_samples_are_all_of_them_in_spite_of_the_runs_own() -> None:
    whole = stage("A", *EPOCHS)
    assert stage("A", *EPOCHS, "data.samples=48").num_steps == 4
    assert stage("A", *EPOCHS, "data.samples=48", "train.stage_a.samples=0").num_steps == (
        whole.num_steps
    )


def test_a_stage_has_its_own_batch_size() -> None:
    own = (*EPOCHS, "data.samples=120", "train.stage_b.batch_size=24")
    first, second = stage("A", *own), stage("B", *own)
    assert (first.num_steps, second.num_steps) == (10, 10)
    assert (len(first.plan(3).examples), len(second.plan(3).examples)) == (12, 24)
    assert len(seen(second)) == 120, "steps follow each other without a gap"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.stage_b.samples=-1", "train.stage_b.samples: -1 must be 0 or more, or null"),
        ("train.stage_b.batch_size=0", "train.stage_b.batch_size: 0 must be 1 or more, or null"),
        ("train.stage_b.batch_size=2.5", "train.stage_b.batch_size: '2.5' should be a whole"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(recipe: str, override: str, expected: str) -> None:
    assert only_problem(recipe, override).startswith(expected)


def test_every_batch_size_is_a_multiple_of_the_accumulation() -> None:
    found = refused("smoke", "train.accumulation=5", "train.stage_a.batch_size=12")
    assert [problem.split(":")[0] for problem in found] == [
        "train.batch_size",
        "train.stage_a.batch_size",
    ]
    # Where both stages have their own, the common one is not used.
    both = ["train.stage_a.batch_size=10", "train.stage_b.batch_size=15"]
    assert config_file.load("smoke", ["train.accumulation=5", *both]).train.batch_size == 24


def test_a_stages_batch_must_divide_too(pair: Path, tmp_path: Path) -> None:
    def load(*overrides: str) -> Config:
        return config_file.load("smoke", small_overrides(pair, tmp_path, *overrides))

    with pytest.raises(ConfigError) as caught:
        preflight(load("train.stage_b.batch_size=13"), world_size=2)
    (problem,) = caught.value.problems
    assert problem.startswith("train.stage_b.batch_size: a micro-batch of 13")
    assert preflight(load("train.stage_b.batch_size=14"), world_size=2)
