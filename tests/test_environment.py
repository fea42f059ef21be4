"""The runners' variables: each one's value arrives in the configuration, or is refused by name."""

from pathlib import Path

import pytest
from conftest import REPOSITORY

from latentwire import config_file, environment, from_env
from latentwire.config import ConfigError, flatten

PAIR = ("llama", "qwen")
ONE_LENGTH = {"train.stage_a.ratios": (), "train.stage_b.ratios": (), "eval.ratios": ()}
RESETS = [f"{key}=[]" for key in ONE_LENGTH]
"""Who names one length does not train the recipe's several ratios."""
CASES: dict[str, tuple[str, dict[str, object]]] = {
    "RUN_TAG": ("mine", {"run.tag": "mine"}),
    "DATASET": ("squad", {"data.source": "squad", "data.path": None}),
    "SAMPLES": ("120", {"eval.samples": 120}),
    "MAX_NEW_TOKENS": ("9", {"eval.max_new_tokens": 9}),
    "TRAIN_SAMPLES_STAGEA": ("640", {"train.stage_a.samples": 640}),
    "TRAIN_SAMPLES_STAGEB": ("0", {"train.stage_b.samples": 0}),
    "EPOCHS_STAGEA": ("4", {"train.stage_a.epochs": 4.0, "train.stage_a.steps": None}),
    "EPOCHS_STAGEB": ("0.5", {"train.stage_b.epochs": 0.5, "train.stage_b.steps": None}),
    "BATCH_SIZE": ("36", {"train.batch_size": 36}),
    "BATCH_SIZE_A": ("12", {"train.stage_a.batch_size": 12, "train.batch_size": 24}),
    "BATCH_SIZE_B": ("36", {"train.stage_b.batch_size": 36, "train.batch_size": 24}),
    "LATENT_LEN": ("8", {"wire.num_latents": 8, "wire.pooling": "queries", **ONE_LENGTH}),
    "LATENT_RATIO": ("6", {"wire.ratio": 6, "wire.num_latents": 0, **ONE_LENGTH}),
    "D_Z": ("64", {"wire.d_z": 64}),
    "REFINER_LAYERS": ("2", {"wire.refiner.layers": 2}),
    "REFINER_HEADS": ("8", {"wire.refiner.heads": 8}),
    "USE_DEEP_PREFIX": ("0", {"adapter.use_deep_prefix": False}),
    "DEEP_PREFIX_LEN": ("24", {"adapter.deep_prefix_len": 24}),
    "USE_GIST_HEAD": ("0", {"gist.use_gist_head": False}),
    "GIST_WEIGHT": ("0.25", {"objectives.gist": 0.25}),
    "GIST_LEN": ("32", {"gist.gist_len": 32}),
    "GIST_HIDDEN": ("128", {"gist.hidden": 128}),
    "GIST_LAYERS": ("2", {"gist.layers": 2}),
    "LLAMA_ID": ("some dir/with = sign", {"decoders.llama.model": "some dir/with = sign"}),
    "QWEN_ID": ("org/name", {"decoders.qwen.model": "org/name"}),
    "LLAMA_RANKS": ("1", {"decoders.llama.ranks": 1}),
    "QWEN_RANKS": ("3", {"decoders.qwen.ranks": 3}),
}
"""By variable: a value, and what the configuration then holds."""
LISTS = {
    "LATENT_LEN_LIST": ("48, 64,80", "wire.num_latents=48,64,80"),
    "D_Z_LIST": ("192,256", "wire.d_z=192,256"),
    "REFINER_LAYERS_LIST": ("0,2", "wire.refiner.layers=0,2"),
    "REFINER_HEADS_LIST": ("4", "wire.refiner.heads=4"),
}


def refused(**variables: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        environment.read(variables, decoders=PAIR)
    return caught.value.problems


def test_every_variable_has_a_case() -> None:
    names = {variable.name for variable in environment.variables(PAIR)}
    assert names == CASES.keys() | LISTS.keys()


@pytest.mark.parametrize("name", CASES)
def test_a_value_arrives_in_the_configuration(name: str) -> None:
    text, expected = CASES[name]
    settings = environment.read({name: text, "HOME": "/x"}, decoders=PAIR)
    # A weight is refused where its part is left out.
    own = [*environment.RUNNER_DEFAULTS, *(["gist.use_gist_head=true"] * (name == "GIST_WEIGHT"))]
    config = config_file.load("smoke", [*own, *settings.overrides])
    found = flatten(config)
    assert {key: found[key] for key in expected} == expected
    assert not settings.lists
    assert set(settings.sources.values()) == {f"{name}={text}"}
    before = flatten(config_file.load("smoke", own))
    changed = {key for key in found if found[key] != before[key]}
    assert changed and changed <= expected.keys(), "and nothing else does"


@pytest.mark.parametrize("name", LISTS)
def test_a_list_is_an_axis_of_a_sweep(name: str) -> None:
    text, expected = LISTS[name]
    settings = environment.read({name: text}, decoders=PAIR)
    assert settings.lists == [expected]
    with_it = ["wire.pooling=queries", *RESETS] if name == "LATENT_LEN_LIST" else []
    assert settings.overrides == with_it


@pytest.mark.parametrize(
    ("file", "source"), [("a b.jsonl", "jsonl"), ("x.json", "squad"), ("x.parquet", "squad")]
)
def test_a_dataset_can_be_a_file(tmp_path: Path, file: str, source: str) -> None:
    path = tmp_path / file
    path.touch()
    settings = environment.read({"DATASET": str(path)}, decoders=PAIR)
    config = config_file.load("squad_8b", settings.overrides)
    assert (config.data.source, config.data.path) == (source, str(path))


@pytest.mark.parametrize("name", environment.DATASETS)
def test_a_dataset_leaves_no_path_of_the_recipe(name: str) -> None:
    assert config_file.load("squad_8b").data.path is not None
    settings = environment.read({"DATASET": name}, decoders=PAIR)
    assert settings.overrides == [f"data.source={name}", "data.path=null"]


def test_empty_variables_count_as_not_given() -> None:
    blank = dict.fromkeys([*CASES, *LISTS], " ")
    assert environment.read(blank, decoders=PAIR) == environment.Settings()


def test_a_decoder_that_is_not_there_has_no_variable() -> None:
    assert environment.read({"QWEN_ID": "x"}, decoders=["llama"]).overrides == []


@pytest.mark.parametrize(
    ("name", "text", "fix"),
    [
        ("LATENT_LEN", "abc", "give a whole number, 1 or more"),
        ("LATENT_LEN", "0", "give a whole number, 1 or more"),
        ("D_Z", "-4", "give a whole number, 1 or more"),
        ("SAMPLES", "1.5", "give a whole number, 0 or more"),
        ("EPOCHS_STAGEB", "many", "give a number, 0 or more"),
        ("GIST_WEIGHT", "nan", "give a number, 0 or more"),
        ("USE_GIST_HEAD", "maybe", "give 1 or 0"),
        ("D_Z_LIST", "64,,128", "give whole numbers, 1 or more, as 8,16"),
        ("D_Z_LIST", "64,64", "give each value once"),
        ("DATASET", "squadd", "give profiles, squad, hotpot or jsonl, or the path of a .json, "),
        ("RUN_TAG", "two\nlines", "give a text of one line"),
    ],
)
def test_a_bad_value_names_variable_value_and_fix(name: str, text: str, fix: str) -> None:
    (problem,) = refused(**{name: text})
    assert problem.startswith(f"{name}={text}: {fix}")


def test_every_problem_is_said_at_once() -> None:
    found = refused(LATENT_LEN="8", LATENT_RATIO="4", D_Z="x", D_Z_LIST="y", BATCH_SIZE="0")
    assert [problem.split(":")[0] for problem in found] == [
        "BATCH_SIZE=0",
        "LATENT_LEN=8 and LATENT_RATIO=4",
        "D_Z=x and D_Z_LIST=y",
        "D_Z=x",
        "D_Z_LIST=y",
    ]


# --- the command


def resolve(monkeypatch: pytest.MonkeyPatch, *arguments: str, **variables: str) -> list[str]:
    for name in [*CASES, *LISTS, "BASE_TAG"]:
        monkeypatch.delenv(name, raising=False)
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    return from_env.resolve(["--recipe", "smoke", *arguments])


def test_the_command_prints_overrides_lists_and_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = resolve(
        monkeypatch,
        *("decoders.qwen=null", "--", "encoder.lora.rank=4", "decoders.llama.quantization=nf4"),
        LATENT_LEN_LIST="8,16",
        LLAMA_ID="a b",
    )
    assert lines == [
        *environment.RUNNER_DEFAULTS,
        "decoders.qwen=null",
        "wire.pooling=queries",
        *RESETS,
        "decoders.llama.model=a b",
        "--list=wire.num_latents=8,16",
        *("--needs=peft", "--needs=accelerate", "--needs=bitsandbytes"),
    ]


def test_a_configuration_problem_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(monkeypatch, RUN_TAG="a/b", D_Z="30", LATENT_LEN="8")
    tag, heads = caught.value.problems
    assert tag.endswith("(from RUN_TAG=a/b)")
    assert heads.startswith("wire.heads: 4 must divide the width 30")
    assert resolve(monkeypatch, "--", "wire.heads=5", D_Z="30", LATENT_LEN="8")


def test_flags_behind_the_dashes_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--gist_weigth"):
        resolve(monkeypatch, "--", "--gist_weigth", "1")
    assert resolve(monkeypatch, "--", "--use_gist_head", "--gist_weight", "1", "--dry-run")


def test_a_weight_that_trains_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="use_gist_head is false.*from GIST_WEIGHT=0.5"):
        resolve(monkeypatch, USE_GIST_HEAD="0", GIST_WEIGHT="0.5")
    with pytest.raises(ConfigError, match=r"objectives\.gist: 1\.0, but gist\.use_gist_head"):
        resolve(monkeypatch, "--", "--gist_weight", "1", USE_GIST_HEAD="0")
    assert resolve(monkeypatch, USE_GIST_HEAD="0", GIST_WEIGHT="0")


@pytest.mark.parametrize(
    ("tag", "default", "base"),
    [
        ("mine_hero", "single_hero", "mine"),
        ("mine-hero", "single_hero", "mine"),
        ("mine", "single_hero", "single"),
    ],
)
def test_a_hero_run_knows_its_base(tag: str, default: str, base: str) -> None:
    assert from_env.base_tag(tag, default) == base


@pytest.mark.parametrize("tag", ["mine", "mine_hero", "mine-hero"])
def test_a_hero_run_is_a_run_of_its_own(monkeypatch: pytest.MonkeyPatch, tag: str) -> None:
    own = "mine_hero" if tag == "mine" else tag
    lines = resolve(monkeypatch, "--hero", "run.tag=single_hero", RUN_TAG=tag)
    assert [line for line in lines if line.startswith("run.tag=")][-1] == f"run.tag={own}"
    plain = resolve(monkeypatch, "run.tag=single", RUN_TAG=tag)
    assert [line for line in plain if line.startswith("run.tag=")][-1] == f"run.tag={tag}"


def test_a_hero_run_on_no_accepted_run_warns_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = f"run.root={tmp_path}"
    arguments = ("--hero", "run.tag=a_hero", "--", root)
    assert resolve(monkeypatch, *arguments)
    assert f"{tmp_path / 'a'}/accept.json does not say" in capsys.readouterr().err
    for name, content in (
        ("accept.json", '{"accepted": true, "checkpoint": 1}'),
        ("metrics.json", '{"checkpoint": 1}'),
    ):
        for tag in ("a", "b"):
            (tmp_path / tag).mkdir(exist_ok=True)
            (tmp_path / tag / name).write_text(content)
    assert resolve(monkeypatch, *arguments)
    assert resolve(monkeypatch, *arguments, BASE_TAG="b")
    assert capsys.readouterr().err == ""
    (tmp_path / "a" / "metrics.json").write_text('{"checkpoint": 2}')
    assert resolve(monkeypatch, *arguments)
    assert "does not say" in capsys.readouterr().err, "accepted at another checkpoint"


def test_the_documented_table_is_the_mappings() -> None:
    text = (REPOSITORY / "launch" / "README.md").read_text(encoding="utf-8")
    assert from_env.default_table() in text
