"""What a well-typed configuration may say: every bad value, all of them at once."""

import dataclasses
import re
from pathlib import Path

import pytest
import yaml
from config_cases import only_problem, refused

from latentwire import config as config_module
from latentwire import config_file
from latentwire.config import ConfigError, flatten

# --- every problem at once


def test_all_wrong_keys_and_types_come_together(recipe: str) -> None:
    found = refused(
        recipe, "run.sed=1", "train.batch_size=x", "precision=fp8", "decoders.a.modle=q", "oops"
    )
    starts = sorted(problem.split(":")[0] for problem in found)
    assert starts == ["'oops'", "decoders.a.modle", "precision", "run.sed", "train.batch_size"]


def test_all_bad_values_come_together(recipe: str) -> None:
    overrides = ["wire.ratio=0", "run.tag=a/b", "optim.min_lr=2", "data.samples=-1", "run.seed=-1"]
    found = refused(recipe, *overrides, "decoders.b.ranks=0")
    keys = {override.split("=")[0] for override in overrides} | {"decoders.b.ranks"}
    assert {problem.split(":")[0] for problem in found} == keys


def test_a_wrong_type_does_not_hide_a_bad_value(recipe: str) -> None:
    found = refused(recipe, "run.tag=a/b", "train.batch_size=many")
    assert {problem.split(":")[0] for problem in found} == {"run.tag", "train.batch_size"}


# --- values


@pytest.mark.parametrize(
    "override",
    [
        "wire.ratio=0",
        "wire.d_z=-4",
        "optim.encoder_lr=0",
        "distributed.timeout=0",
        "objectives.kd_temperature=0",
        "eval.batch_size=0",
        "run.seed=-1",
        "checkpoint.interval=-1",
        "objectives.kd=-0.1",
        "optim.beta2=1.5",
        "train.stage_b.warmup_text_latent_prob=-0.1",
        "train.stage_b.steps=-1",
        "decoders.a.ranks=0",
        "decoders.Big={model: m}",
    ],
)
def test_value_out_of_range_is_named(recipe: str, override: str) -> None:
    assert only_problem(recipe, override).startswith(override.split("=")[0] + ":")


@pytest.mark.parametrize(
    "override",
    [
        "optim.encoder_lr=inf",
        "optim.weight_decay=nan",
        "objectives.kd=nan",
        "decoders.a.share=nan",
        "decoders.a.weight=.inf",
        "train.stage_b.lr_scale=.inf",
    ],
)
def test_number_that_is_not_finite_is_refused(recipe: str, override: str) -> None:
    key = override.split("=")[0]
    assert only_problem(recipe, override).startswith((f"{key}:", "decoders.a:"))


@pytest.mark.parametrize(
    "override",
    [
        "train.stage_a.steps=10000000000000000000000",
        "data.samples=1000000001",
        "wire.d_z=1000000000",
        "adapter.hidden_mult=1e300",
        "train.batch_size=1200000000",
        "distributed.timeout=1e300",
        "distributed.step_timeout=2592001",
        "wire.num_latents=1048577",
        "train.stage_b.ratios=[4, 5000000000]",
        "decoders.a.shard=2000000000",
    ],
)
def test_a_number_that_nothing_could_hold_is_refused(recipe: str, override: str) -> None:
    (problem,) = (p for p in refused(recipe, override) if " at most" in p)
    assert problem.startswith(f"{override.partition('=')[0]}: ")


def test_large_numbers_that_make_sense_stay(recipe: str) -> None:
    """A cluster's batch, a day's patience, a seed of a clock."""
    overrides = ["train.batch_size=49152", "distributed.timeout=86400", "run.seed=1764280000000"]
    config = config_file.load(recipe, [*overrides, "train.stage_b.steps=1000000000"])
    assert config.train.stage_b.steps == 10**9


def test_a_number_too_large_for_a_float_is_refused(recipe: str) -> None:
    assert "optim.encoder_lr" in only_problem(recipe, "optim.encoder_lr=" + "9" * 320)


def test_a_gist_that_has_no_head_to_train_is_refused(recipe: str) -> None:
    off = "gist.use_gist_head=false"
    assert only_problem(recipe, off, "objectives.gist=0.5").startswith("objectives.gist: 0.5, but")
    assert config_file.load(recipe, [off]).objectives.gist > 0, "the default is no one's wish"
    assert config_file.load(recipe, [off, "objectives.gist=0"])
    assert config_file.load(recipe, ["objectives.gist=0.5"])


@pytest.mark.parametrize(
    ("given", "is_refused"),
    [
        (["train.stage_a.warmup_text_latent_prob=0.5", "train.stage_a.steps=0"], True),
        (["train.stage_a.warmup_text_latent_prob=0.5", "train.stage_a.steps=2"], False),
        (["train.stage_b.warmup_text_latent_prob=0.5"], False),
        (
            ["train.stage_b.warmup_text_latent_prob=0.5", "train.stage_b.steps=null"]
            + ["train.stage_b.epochs=0.5"],
            False,
        ),
        ([], True),
    ],
)
def test_continuation_needs_a_mixed_step(recipe: str, given: list[str], is_refused: bool) -> None:
    overrides = ["objectives.continuation=1", *given]
    if is_refused:
        assert only_problem(recipe, *overrides).startswith("objectives.continuation: 1.0, but no")
    else:
        assert config_file.load(recipe, overrides).objectives.continuation == 1


@pytest.mark.parametrize("key", ["optim.beta1", "optim.beta2"])
def test_decay_of_one_is_refused(recipe: str, key: str) -> None:
    """AdamW itself raises at 1.0, long after the configuration was accepted."""
    assert only_problem(recipe, f"{key}=1.0").startswith(key)


@pytest.mark.parametrize("key", ["decoders.a.share", "decoders.a.weight"])
@pytest.mark.parametrize("number", ["0", "-1"])
def test_share_and_weight_are_above_zero(recipe: str, key: str, number: str) -> None:
    assert only_problem(recipe, f"{key}={number}").startswith("decoders.a")


def test_models_are_required(tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    path.write_text("decoders: {a: null}\ntrain: {stage_b: {steps: 1}}\n")
    keys = [problem.split(":")[0] for problem in refused(str(path))]
    assert sorted(keys) == ["decoders.a.model", "encoder.model"]


@pytest.mark.parametrize(
    ("given", "valid"),
    [
        (["steps=2"], True),
        (["steps=0"], True),
        (["steps=null", "epochs=0.5"], True),
        (["steps=2", "epochs=1"], False),
        (["steps=null"], False),
    ],
)
def test_stage_has_either_steps_or_epochs(recipe: str, given: list[str], valid: bool) -> None:
    overrides = [f"train.stage_b.{item}" for item in given]
    if valid:
        config_file.load(recipe, overrides)
    else:
        assert "either steps or epochs" in only_problem(recipe, *overrides)


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "nearest"),
    [(10, 4, {8, 12}), (13, 5, {10, 15}), (7, 10, {10})],
)
def test_batch_that_accumulation_cannot_split_names_the_nearest(
    recipe: str, batch_size: int, accumulation: int, nearest: set[int]
) -> None:
    problem = only_problem(
        recipe, f"train.batch_size={batch_size}", f"train.accumulation={accumulation}"
    )
    assert problem.startswith("train.batch_size:")
    numbers = [int(number) for number in re.findall(r"\d+", problem.split("use ")[1])]
    assert set(numbers) == nearest
    assert len(numbers) == len(nearest), "no number twice"


@pytest.mark.parametrize(
    ("template", "bad_slots"),
    [
        ("{context} {question}", []),
        ("{question} then {context}", []),
        ("{context}", ["{question}"]),
        ("{context} {context} {question}", ["{context}"]),
        ("nothing", ["{context}", "{question}"]),
    ],
)
def test_template_has_each_slot_once(recipe: str, template: str, bad_slots: list[str]) -> None:
    override = f"data.template={template}"
    if not bad_slots:
        assert config_file.load(recipe, [override]).data.template == template
        return
    found = refused(recipe, override)
    assert len(found) == len(bad_slots)
    for problem, slot in zip(found, bad_slots, strict=True):
        assert problem.startswith("data.template:")
        assert slot in problem


@pytest.mark.parametrize("tag", ["", "..", "../x", "a/b", ".hidden", "-x", "a b", "a\n", "x" * 101])
def test_tag_that_is_no_folder_name_is_refused(recipe: str, tag: str) -> None:
    assert only_problem(recipe, f"run.tag={tag}").startswith("run.tag:")


def test_nothing_to_train_is_refused(recipe: str) -> None:
    zero = [f"objectives.{name}=0" for name in ("tf", "first", "kce", "kd", "span", "gist")]
    assert only_problem(recipe, *zero).startswith("objectives:")


@pytest.mark.parametrize(
    ("key", "mode"),
    [("eval.ratios", ()), ("train.stage_b.ratios", ("train.stage_b.ratio_mode=summed",))],
)
def test_a_ratio_that_would_be_read_twice_is_named_once(
    recipe: str, key: str, mode: tuple[str, ...]
) -> None:
    problem = only_problem(recipe, f"{key}=[2,4,2]", *mode)
    assert problem == f"{key}: [2, 4, 2] must hold each ratio once"
    config_file.load(recipe, [f"{key}=[2,4]", *mode])
    assert only_problem(recipe, f"{key}=[0]", *mode) == f"{key}: [0] must be 1 or more"


def test_a_ratio_may_be_drawn_twice_as_often(recipe: str) -> None:
    config = config_file.load(recipe, ["train.stage_b.ratios=[2,4,4]"])
    assert config.train.stage_b.ratios == (2, 4, 4)


def test_the_gist_heads_width_is_a_multiple_of_its_heads(recipe: str) -> None:
    assert only_problem(recipe, "gist.hidden=30") == "gist.heads: 4 must divide the width 30"
    config_file.load(recipe, ["gist.hidden=30", "gist.use_gist_head=false"])


def test_deepspeed_needs_its_file_and_fsdp_ignores_it(recipe: str) -> None:
    problem = only_problem(recipe, "sharding.backend=deepspeed")
    assert problem == "sharding.ds_config: missing; give a file, e.g. ds_configs/zero2.json"
    config_file.load(recipe, ["sharding.ds_config=x.json", "sharding.backend=deepspeed"])
    config_file.load(recipe, ["sharding.ds_config=x.json"])


# --- the tree


def test_round_trip_through_yaml_keeps_every_value(recipe: str) -> None:
    config = config_file.load(
        recipe,
        [
            "run.tag=007",
            "encoder.revision=1e10",
            "data.template=a: {context}\t# b\n'{question}' \u00e9",
            "optim.encoder_lr=1e-5",
            "decoders.a.ranks=2",
            "decoders.third.model=x",
            "train.stage_b.steps=null",
            "train.stage_b.epochs=0.1",
        ],
    )
    tree = config_file.to_tree(config)
    again = config_file.from_tree(yaml.safe_load(yaml.safe_dump(tree, sort_keys=False)))
    assert again == config
    assert list(again.decoders) == list(config.decoders), "order decides who gets leftover ranks"
    assert flatten(again) == flatten(config)


def test_recorded_tree_is_read_as_strictly(recipe: str) -> None:
    tree = config_file.to_tree(config_file.load(recipe))
    tree["wire"]["ratios"] = 3
    tree["run"]["seed"] = "one"
    with pytest.raises(ConfigError) as caught:
        config_file.from_tree(tree)
    assert {problem.split(":")[0] for problem in caught.value.problems} == {
        "wire.ratios",
        "run.seed",
    }


def test_flatten_names_every_leaf(recipe: str) -> None:
    flat = flatten(config_file.load(recipe))
    assert flat["decoders.b.model"] == "some/b"
    assert flat["train.stage_b.steps"] == 1
    assert flat["encoder.lora.rank"] == 0
    assert not any(
        dataclasses.is_dataclass(leaf) or isinstance(leaf, dict) for leaf in flat.values()
    )


def test_configuration_classes_are_frozen_and_keyword_only() -> None:
    kinds = [
        kind
        for kind in vars(config_module).values()
        if isinstance(kind, type) and dataclasses.is_dataclass(kind)
    ]
    assert len(kinds) > 10
    for kind in kinds:
        assert all(item.kw_only for item in dataclasses.fields(kind)), kind
        instance, name = kind(), dataclasses.fields(kind)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(instance, name, getattr(instance, name))


# --- the teacher cache


def test_a_teacher_cache_may_be_asked_for_in_these_ways(recipe: str) -> None:
    config = config_file.load(recipe, ["teacher.cache=true", "teacher.top_k=0", "teacher.bits=32"])
    assert (config.teacher.top_k, config.teacher.bits, config.teacher.folder) == (0, 32, "")
    assert config_file.load(recipe).teacher.cache is False


def test_what_is_wrong_with_a_teacher_cache_comes_together(recipe: str) -> None:
    found = refused(
        recipe,
        "teacher.cache=true",
        "teacher.bits=8",
        "teacher.top_k=-1",
        "teacher.folder=3",
        "teacher.tokens=4",
        "objectives.state=1",
    )
    assert {problem.split(":")[0] for problem in found} == {
        *("teacher.bits", "teacher.top_k", "teacher.tokens", "teacher.cache"),
    }
    assert "teacher.bits: '8' is not one of 16, 32" in found


def test_a_teacher_cache_goes_with_objectives_that_read_no_text(recipe: str) -> None:
    config_file.load(recipe, ["teacher.cache=true", "objectives.kd=0"])
    config_file.load(recipe, ["objectives.state=1"])
    assert "objectives.state" in only_problem(recipe, "teacher.cache=true", "objectives.state=1")
