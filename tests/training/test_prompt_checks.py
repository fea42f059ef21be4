"""Prompt settings that a decoder's tokenizer cannot follow are refused before anything starts."""

from pathlib import Path

import pytest
from conftest import small_overrides
from tokenizer_cases import merging, with_chat
from transformers import AutoConfig

from latentwire import config_file
from latentwire.config import ConfigError
from latentwire.data.tokenizers import load_tokenizer
from latentwire.training.preflight import preflight
from latentwire.training.prompt_checks import prompt_problems, sample_examples


def refused(overrides: list[str]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        preflight(config_file.load("smoke", overrides), world_size=2)
    return caught.value.problems


def test_sampled_answers_are_of_the_training_split_each_once(pair: Path, tmp_path: Path) -> None:
    config = config_file.load("smoke", small_overrides(pair, tmp_path))
    examples = sample_examples(config)
    answers = [example.answers[0] for example in examples]
    assert 100 < len(answers) == len(set(answers))
    for name in config.decoders:
        assert prompt_problems(config, name, examples) == []


def test_an_anchor_that_merges_names_itself_and_the_decoder(pair: Path, tmp_path: Path) -> None:
    folder = merging(pair / "qwen", tmp_path / "merging")
    overrides = small_overrides(pair, tmp_path, f"decoders.qwen.model={folder}")
    (problem,) = refused(overrides)
    assert problem.startswith("data.anchor: '\\nAnswer:' and the answer '")
    assert "decoders.qwen" in problem
    other = config_file.load("smoke", [*overrides, "data.anchor= Answer"])
    assert preflight(other, world_size=2).config.data.anchor == " Answer"


@pytest.mark.parametrize("key", ["eval.max_new_tokens", "data.max_answer_tokens"])
def test_an_answer_that_leaves_no_room_for_a_context_is_refused(
    pair: Path, tmp_path: Path, key: str
) -> None:
    window = AutoConfig.from_pretrained(pair / "qwen").max_position_embeddings
    overrides = small_overrides(pair, tmp_path)
    found = refused([*overrides, f"{key}={window}"])
    assert [problem.split(":")[0] for problem in found] == [
        "decoders.llama.model",
        "decoders.qwen.model",
    ]
    assert f"its window of {window} tokens has no room for any context" in found[1]
    # Less of it is allowed.
    preflight(config_file.load("smoke", [*overrides, f"{key}={window // 2}"]), world_size=2)


def test_every_problem_of_the_prompts_comes_with_the_others(pair: Path, tmp_path: Path) -> None:
    broken = with_chat(pair / "llama", tmp_path / "broken", "{% for %}")
    (tmp_path / "bad.jsonl").write_text("oops")
    overrides = small_overrides(
        pair,
        tmp_path,
        f"decoders.llama.model={broken}",
        "decoders.qwen.bos=always",
        "objectives.span_layer=9",
        "data.source=hotpot",
        f"data.path={tmp_path / 'bad.jsonl'}",
    )
    found = refused(overrides)
    for key in ("decoders.llama.chat", "decoders.qwen.bos", "objectives.span_layer", "data.path"):
        assert any(problem.startswith(f"{key}: ") for problem in found), (key, found)


def test_a_decoders_chat_template_is_used_unless_it_is_switched_off(
    pair: Path, tmp_path: Path
) -> None:
    broken = with_chat(pair / "llama", tmp_path / "broken", "no content")
    overrides = small_overrides(pair, tmp_path, f"decoders.llama.model={broken}")
    (problem,) = refused(overrides)
    assert problem.startswith("decoders.llama.chat: the tokenizer's chat template does not show")
    off = config_file.load("smoke", [*overrides, "decoders.llama.chat=false"])
    assert load_tokenizer(off.decoders["llama"]).chat_template == "no content"
    preflight(off, world_size=2)
