"""From files and overrides to the configuration: strict, and the same after a round trip."""

from pathlib import Path

import pytest
from config_cases import MINIMAL, only_problem, refused, value, write

from latentwire import config_file
from latentwire.config import ConfigError

# --- packaged recipes


def test_smoke_is_a_recipe_and_other_packaged_files_are_none() -> None:
    assert "smoke" in config_file.recipe_names()
    assert not {"tiny", "small", "ablations"} & set(config_file.recipe_names())
    assert "smoke" in only_problem("tiny"), "the message lists what there is"


@pytest.mark.parametrize("name", config_file.recipe_names())
def test_packaged_recipe_loads(name: str) -> None:
    config = config_file.load(name)
    assert config.train.batch_size % 12 == 0, "splits over 1, 2, 3, 4 and 6 ranks"
    assert config_file.from_tree(config_file.to_tree(config)) == config


def test_model_folders_of_a_packaged_recipe_are_the_repositorys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    repository, elsewhere = tmp_path / "repository", tmp_path / "elsewhere"
    (repository / "checkpoints" / "tiny" / "llama").mkdir(parents=True)
    (repository / "some" / "a").mkdir(parents=True)
    elsewhere.mkdir()
    monkeypatch.setattr(config_file, "REPOSITORY", repository)
    monkeypatch.chdir(elsewhere)
    config = config_file.load("smoke")
    folder = str(repository / "checkpoints" / "tiny" / "llama")
    assert config.encoder.model == config.decoders["llama"].model == folder
    assert config.decoders["qwen"].model == "checkpoints/tiny/qwen", "no such folder: left as it is"
    typed = config_file.load("smoke", ["encoder.model=checkpoints/tiny/llama"])
    assert typed.encoder.model == "checkpoints/tiny/llama", "the user's own path is the user's"
    assert config_file.load(recipe).decoders["a"].model == "some/a"


def test_packaged_recipe_without_a_model_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = MINIMAL.replace("{model: some/encoder}", "{max_tokens: 64}")
    (tmp_path / "bare.yaml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(config_file, "PACKAGED", tmp_path)
    assert only_problem("bare").startswith("encoder.model: missing")


# --- unknown keys


@pytest.mark.parametrize(
    ("override", "key", "meant"),
    [
        ("precison=fp32", "precison", "precision"),
        ("trian.batch_size=3", "trian", "train"),
        ("train.batch_sise=3", "train.batch_sise", "train.batch_size"),
        ("train.stage_a.step=3", "train.stage_a.step", "train.stage_a.steps"),
        ("encoder.lora.ranks=3", "encoder.lora.ranks", "encoder.lora.rank"),
        ("decoders.a.modle=x", "decoders.a.modle", "decoders.a.model"),
        ("decoders.c={model: x, quantisation: nf4}", "decoders.c.quantisation", "quantization"),
    ],
)
def test_unknown_key_is_named_with_the_nearest(
    recipe: str, override: str, key: str, meant: str
) -> None:
    problem = only_problem(recipe, override)
    assert problem.startswith(f"{key}: unknown key; did you mean '")
    assert problem.endswith(f"{meant}'?")


def test_unknown_key_without_a_neighbour_suggests_nothing(recipe: str) -> None:
    assert only_problem(recipe, "zzzzzzzz=1") == "zzzzzzzz: unknown key"


def test_unknown_keys_of_a_file_are_found_at_every_depth(tmp_path: Path) -> None:
    path = tmp_path / "deep.yaml"
    path.write_text(
        "encoder: {model: m, lora: {dropout: 0}}\nrunn: {}\n7: seven\n"
        "decoders: {a: {model: m, colour: red}}\ntrain: {stage_b: {steps: 1, lr: 2}}\n"
    )
    keys = {problem.split(":")[0] for problem in refused(str(path))}
    assert keys == {"encoder.lora.dropout", "runn", "7", "decoders.a.colour", "train.stage_b.lr"}


# --- types


@pytest.mark.parametrize(
    ("override", "fix"),
    [
        ("train.batch_size=many", "a whole number"),
        ("train.batch_size=2.5", "a whole number"),
        ("train.batch_size=true", "a whole number"),
        ("train.batch_size=", "a whole number"),
        ("train.batch_size=[4]", "a whole number"),
        ("decoders.a.ranks=2.0", "a whole number"),
        ("optim.encoder_lr=fast", "a number"),
        ("optim.encoder_lr=true", "a number"),
        ("optim.encoder_lr=null", "a number"),
        ("decoders.a.chat=1", "true or false"),
        ("encoder.trust_remote_code=certainly", "true or false"),
        ("run=3", "a mapping"),
        ("train.stage_a=[]", "a mapping"),
        ("decoders.a=5", "a mapping"),
        ("decoders=[a]", "should map a name"),
        ("decoders=null", "should map a name"),
    ],
)
def test_wrong_type_names_key_and_fix(recipe: str, override: str, fix: str) -> None:
    problem = only_problem(recipe, override)
    assert problem.startswith(override.split("=")[0] + ":")
    assert fix in problem


def test_text_field_of_a_file_takes_no_list(tmp_path: Path) -> None:
    assert "a text" in only_problem(write(tmp_path, "run: {tag: [a]}"))
    assert "a text" in only_problem(write(tmp_path, "run: {tag: yes}"))


@pytest.mark.parametrize("text", ["1.10", "0123456", "1_000"])
def test_number_like_text_of_a_file_is_never_changed(tmp_path: Path, text: str) -> None:
    """YAML reads these as 1.1, 42798 (octal) and 1000: a git revision would name another one."""
    path = write(tmp_path, f"data: {{path: {text}}}")
    try:
        config = config_file.load(path)
    except ConfigError as error:
        assert "data.path" in str(error)
    else:
        assert config.data.path == text


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("precision", "fp32, bf16"),
        ("placement", "separate, colocated, auto"),
        ("sharding.backend", "fsdp, deepspeed"),
        ("encoder.attention", "bidirectional, causal"),
        ("decoders.a.quantization", "none, nf4, int8"),
        ("decoders.a.bos", "auto, always, never"),
        ("data.setting", "distractor, gold, plain, hard"),
    ],
)
def test_bad_option_lists_the_options(recipe: str, key: str, options: str) -> None:
    file = "sharding.ds_config=x.json"
    assert only_problem(recipe, f"{key}=other") == f"{key}: 'other' is not one of {options}"
    for option in options.split(", "):
        assert value(config_file.load(recipe, [file, f"{key}={option}"]), key) == option
    assert "is not one of" in only_problem(recipe, f"{key}=[{options.split(', ')[0]}]")


def test_numbers_are_floats_however_written(tmp_path: Path, recipe: str) -> None:
    # YAML 1.1 reads 1e-4, without a dot, as a text.
    config = config_file.load(write(tmp_path, "optim: {encoder_lr: 1e-4, adapter_lr: 1}"))
    assert (config.optim.encoder_lr, config.optim.adapter_lr) == (1e-4, 1.0)
    config = config_file.load(recipe, ["optim.encoder_lr=1e-4", "optim.beta1=0"])
    assert (config.optim.encoder_lr, config.optim.beta1) == (1e-4, 0.0)
    assert isinstance(config.optim.beta1, float)


# --- overrides


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("run.seed=3", 3),
        ("decoders.a.ranks=2", 2),
        ("decoders.a.chat=true", True),
        ("decoders.a.precision=bf16", "bf16"),
        ("optim.weight_decay=0", 0.0),
        ("train.stage_b.steps=0", 0),
        ("data.path=null", None),
        ("data.path=12", "12"),
        ("data.path=dir/a=b:c d.json", "dir/a=b:c d.json"),
        (
            "data.template=Q: {question} = [{context}] # all: ",
            "Q: {question} = [{context}] # all: ",
        ),
        ("encoder.revision=0123456", "0123456"),
        ("encoder.revision=1e10", "1e10"),
        ("decoders.a.revision=0123456", "0123456"),
        ("decoders.a.model=10", "10"),
        ("run.tag=007", "007"),
        ("run.tag=1e3", "1e3"),
        ("run.tag=true", "true"),
        ("run.tag=2024-01-31", "2024-01-31"),
    ],
)
def test_override_takes_the_fields_type(recipe: str, override: str, expected: object) -> None:
    found = value(config_file.load(recipe, [override]), override.split("=")[0])
    assert found == expected
    assert type(found) is type(expected)


def test_null_resets_an_optional_number(recipe: str) -> None:
    config = config_file.load(
        recipe, ["decoders.a.ranks=2", "train.stage_b.epochs=1.5", "train.stage_b.steps=null"]
    )
    assert config.decoders["a"].ranks == 2
    assert (config.train.stage_b.steps, config.train.stage_b.epochs) == (None, 1.5)
    assert config_file.load(recipe, ["decoders.a.ranks=2", "decoders.a.ranks=null"]) == (
        config_file.load(recipe)
    )
    reset = ["decoders.a.chat=false", "decoders.a.precision=bf16"]
    reset += ["decoders.a.chat=null", "decoders.a.precision=null"]
    assert config_file.load(recipe, reset) == config_file.load(recipe)


def test_later_override_wins_and_the_file_stays(recipe: str) -> None:
    config = config_file.load(recipe, ["run.seed=1", "run.tag=x", "run.seed=2"])
    assert (config.run.seed, config.run.tag) == (2, "x")
    assert config_file.load(recipe).run.seed == 0


def test_decoders_are_added_and_removed_by_override(recipe: str) -> None:
    config = config_file.load(recipe, ["decoders.third.model=org/name", "decoders.third.weight=2"])
    assert list(config.decoders) == ["a", "b", "third"], "in the order given"
    assert (config.decoders["third"].model, config.decoders["third"].weight) == ("org/name", 2.0)
    assert list(config_file.load(recipe, ["decoders.a=null"]).decoders) == ["b"]
    none_left = only_problem(recipe, "decoders.a=null", "decoders.b=null")
    assert none_left.startswith("decoders: none given")


def test_removing_a_decoder_that_is_not_there_is_refused(recipe: str) -> None:
    assert "decoders.lama" in only_problem(recipe, "decoders.lama=null")


@pytest.mark.parametrize("override", ["train.batch_size", "=3", "", "--fresh"])
def test_override_without_key_or_value_is_quoted(recipe: str, override: str) -> None:
    problem = only_problem(recipe, override)
    assert problem.startswith(f"'{override}': ")
    assert "key=value" in problem


def test_override_that_is_no_yaml_is_quoted(recipe: str) -> None:
    assert only_problem(recipe, "run.seed=[1") == "run.seed: '[1' is no valid YAML value"


def test_override_below_a_value_is_refused(recipe: str) -> None:
    assert only_problem(recipe, "encoder.model.name=x").startswith("encoder.model.name: 'model'")


# --- files


@pytest.mark.parametrize(
    "content",
    [
        b"just a text",
        b"- a\n- b\n",
        b"",
        b"42",
        b"run: {tag: x",
        b"run:\n\ttag: x\n",
        b"run: \xff\xfe\n",
        b"{[a]: 1}",
        b"run: !!python/object/apply:os.getcwd []\n",
    ],
)
def test_file_that_holds_no_mapping_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    problem = only_problem(str(path))
    assert problem.startswith("--recipe:")
    assert str(path) in problem


def test_missing_recipe_lists_the_packaged_ones(tmp_path: Path) -> None:
    for recipe in ("smok", str(tmp_path / "none.yaml"), str(tmp_path)):
        problem = only_problem(recipe)
        assert problem.startswith(f"--recipe: '{recipe}'")
        assert "smoke" in problem


def test_packaged_name_wins_over_a_file_in_the_cwd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "smoke").write_text("not a recipe")
    monkeypatch.chdir(tmp_path)
    assert config_file.load("smoke").run.tag == "smoke"


# --- the run folder of a failing command


def test_run_folder_is_guessed_in_spite_of_other_problems(recipe: str) -> None:
    overrides = ["run.tag=mine", "run.root=out", "oops", "wire.ration=1", "train.batch_size=x"]
    assert config_file.guess_run_folder(recipe, overrides) == Path("out/mine")
    assert config_file.guess_run_folder("smoke", []) == Path("runs/smoke")


@pytest.mark.parametrize(
    "override", ["run.tag=../up", "run.tag=", "run.tag=.git", "run=3", "run.seed=x", "run.tga=x"]
)
def test_unclear_run_folder_is_not_guessed(recipe: str, override: str) -> None:
    assert config_file.guess_run_folder(recipe, [override]) is None


def test_missing_recipe_has_no_run_folder(tmp_path: Path) -> None:
    assert config_file.guess_run_folder(str(tmp_path / "none.yaml"), []) is None
