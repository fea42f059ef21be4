"""Controls on a wire: another document's, its neighbour's, and none."""

from pathlib import Path

import pytest
import torch

from latentwire.config import EncoderConfig
from latentwire.data.example import Example
from latentwire.data.prompts import Carries, DecoderPrompts
from latentwire.data.tokenizers import load_tokenizer
from latentwire.wire.controls import wrong_slots, wrong_texts, zero


@pytest.mark.parametrize("size", [2, 3, 4, 7, 50])
def test_wrong_text_is_never_the_own_one(size: int) -> None:
    distinct = [f"text {index}" for index in range(size)]
    for seed in range(30):
        wrong = wrong_texts(distinct, seed=seed)
        assert sorted(wrong) == sorted(wrong.values()) == sorted(distinct), "a permutation"
        assert all(text != other for text, other in wrong.items())


def test_repeated_texts_count_once() -> None:
    texts = ["a", "a", "b", "c", "b", "a"]
    for seed in range(20):
        wrong = wrong_texts(texts, seed=seed)
        assert set(wrong) == set(wrong.values()) == {"a", "b", "c"}
        assert all(wrong[text] != text for text in texts)


def test_wrong_texts_depend_on_the_seed_only() -> None:
    texts = [f"text {index}" for index in range(20)]
    first = wrong_texts(texts, seed=3)
    wrong_texts(texts, seed=4)
    assert wrong_texts(texts, seed=3) == first
    assert wrong_texts(texts, seed=4) != first
    # A neighbour in the file is often on the same subject; the order is not that of the file.
    assert any(first[texts[i]] != texts[(i + 1) % 20] for i in range(20))


@pytest.mark.parametrize("carries", ["context", "prompt"])
def test_wrong_wire_is_of_the_same_question(embedded_pair: Path, carries: Carries) -> None:
    tokenizer = load_tokenizer(EncoderConfig(model=str(embedded_pair / "llama")))
    prompts = DecoderPrompts(tokenizer, carries=carries)
    examples = [
        Example(context=f"{name} lives here.", question=question, answers=("a",))
        for name in ("Mira", "Tovan", "Ilse")
        for question in ("Who?", "Where?")
    ]
    wrong = wrong_slots(examples, prompts, seed=0)
    for example in examples:
        own, other = prompts.slot_text(example), wrong[prompts.slot_text(example)]
        assert example.context in own and example.context not in other
        assert (example.question in other) == (example.question in own) == (carries == "prompt")
    assert sorted(wrong) == sorted(wrong.values()), "a permutation"


@pytest.mark.parametrize("texts", [[], ["a"], ["a", "a", "a"]])
def test_fewer_than_two_texts_have_no_wrong_one(texts: list[str]) -> None:
    with pytest.raises(ValueError, match="at least two"):
        wrong_texts(texts, seed=0)


def test_zero_keeps_the_shape_and_leaves_the_wire_alone() -> None:
    latents = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(zero(latents), torch.zeros(2, 3, 4))
    assert latents.any()
