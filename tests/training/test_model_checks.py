"""Settings that only the models can say are wrong."""

import shutil
from pathlib import Path

import pytest
from conftest import small_overrides
from transformers import GemmaConfig, GemmaForCausalLM

from latentwire import config_file
from latentwire.config import ConfigError
from latentwire.training.preflight import preflight

STQ = "encoder.kind=stq"
INDEX = "model.safetensors.index.json"


def load_and_check(pair: Path, tmp_path: Path, *overrides: str) -> None:
    config = config_file.load("smoke", small_overrides(pair, tmp_path, *overrides))
    preflight(config, world_size=2)


@pytest.mark.parametrize("key", ["encoder", "decoders.qwen"])
@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("model.safetensors", None, "model.safetensors is damaged: "),
        (INDEX, b'{"weight_map": {"a": "gone.safetensors"}}', "gone.safetensors is missing; "),
        (INDEX, b"[]", "model.safetensors.index.json cannot be read: "),
        ("config.json", b'{"model_type": "llama", "hidden_size": "x"}', "cannot be loaded: "),
        ("config.json", b'{"model_type": "llama", "num_hidden_layers": -1}', "has -1 layers"),
    ],
)
def test_a_model_that_is_not_whole_is_refused(
    key: str, file: str, content: bytes | None, expected: str, pair: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(pair / "qwen", folder)
    path = folder / file
    # An interrupted copy.
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    with pytest.raises(ConfigError) as caught:
        load_and_check(pair, tmp_path, f"{key}.model={folder}")
    (problem,) = caught.value.problems
    assert problem.startswith(f"{key}.model: ") and expected in problem


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((STQ, "encoder.layers=[0,3]"), ["encoder.layers: [0, 3], but encoder.model has 2 layers"]),
        (
            # Norms are measured whatever the weight.
            ("objectives.state=0", "objectives.state_layers=[3]"),
            [
                f"objectives.state_layers: 3, but decoders.{name}.model has 2 layers"
                for name in ("llama", "qwen")
            ],
        ),
        (
            ("objectives.span_layer=3",),
            [
                f"objectives.span_layer: 3, but decoders.{name}.model has 2 layers"
                for name in ("llama", "qwen")
            ],
        ),
    ],
)
def test_a_layer_that_a_model_has_not_is_refused(
    overrides: tuple[str, ...], expected: list[str], pair: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_and_check(pair, tmp_path, *overrides)
    assert caught.value.problems == [f"{problem}; use at most 2" for problem in expected]


@pytest.mark.parametrize(
    "overrides",
    [
        (STQ, "encoder.layers=[0,2]"),
        ("objectives.state_layers=[1,2]",),
        ("objectives.span=0", "objectives.span_layer=3"),
        ("encoder.kind=byte", "encoder.model="),
    ],
)
def test_what_the_models_have_is_accepted(
    overrides: tuple[str, ...], pair: Path, tmp_path: Path
) -> None:
    load_and_check(pair, tmp_path, *overrides)


def test_a_decoder_that_scales_its_embeddings_may_be_sharded(pair: Path, tmp_path: Path) -> None:
    settings = {"vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "head_dim": 8}
    settings |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    folder = tmp_path / "scaled"
    GemmaForCausalLM(GemmaConfig(**settings)).save_pretrained(folder)
    for file in (pair / "llama").glob("tokenizer*"):
        shutil.copy(file, folder / file.name)
    more = (f"decoders.qwen.model={folder}", "decoders.qwen.shard=2", "placement=colocated")
    load_and_check(pair, tmp_path, *more)
