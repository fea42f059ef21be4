"""An answer's tokens are those that follow the anchor when the whole prompt is one string."""

from pathlib import Path
from typing import Any

import pytest
from tokenizer_cases import merging
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from latentwire.config import DecoderConfig
from latentwire.data.example import Example
from latentwire.data.profiles import document
from latentwire.data.prompts import Carries, DecoderPrompts
from latentwire.data.tokenizers import load_tokenizer

ANCHORS = ["\nAnswer:", "\n->", " Answer", '\nThe answer is "', "\nA 3", "\n\u7b54\uff1a"]
ANSWERS = [
    *("5", "1984", "3.14 m", "007 agents", "-1", "50%", ".5", "(c) 5", "'s", '"quoted"', "$ 12"),
    *("...", "?", "\u201cZ\u201d", "\u00e0 l'\u00e9t\u00e9", "\u6771\u4eac", "\U0001f600 yes"),
    *("yes", "no", "a", "New York City", "Answer: 4", "two  spaces", "line\nline", ": colon"),
]
SHORT = [
    Example(context="34 apples cost 5.", question="How much?", answers=(answer,))
    for answer in ANSWERS
]
EXAMPLES = SHORT + [e for i in range(8) for e in document(0, "train", i).examples]


@pytest.fixture(params=["pair", "embedded_pair"])
def folder(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("carries", ["context", "prompt"])
@pytest.mark.parametrize("anchor", ANCHORS)
@pytest.mark.parametrize("name", ["llama", "qwen"])
def test_pieces_are_one_tokenization(
    folder: Path, name: str, anchor: str, carries: Carries
) -> None:
    tokenizer = load_tokenizer(DecoderConfig(model=str(folder / name)))
    prompts = DecoderPrompts(tokenizer, anchor=anchor, carries=carries, max_answer_tokens=1000)
    for example in EXAMPLES:
        asked = f"Context: {example.context}\nQuestion: {example.question}{anchor}"
        tokens = prompts.text(example)
        before = [*tokens.before, *tokens.slot, *tokens.after]
        assert before == tokenizer(asked)["input_ids"]
        assert [*before, *tokens.answer] == (
            tokenizer(f"{asked} {example.answers[0]}")["input_ids"] + [tokenizer.eos_token_id]
        )
    assert not prompts.merged_answers


@pytest.mark.parametrize("name", ["llama", "qwen"])
def test_an_answer_that_would_merge_is_counted(pair: Path, tmp_path: Path, name: str) -> None:
    tokenizer = load_tokenizer(DecoderConfig(model=str(merging(pair / name, tmp_path / name))))
    merged = tokenizer("\nAnswer: 5", add_special_tokens=False)["input_ids"]
    assert (
        merged[:-2] + tokenizer(":", add_special_tokens=False)["input_ids"]
        == (tokenizer("\nAnswer:", add_special_tokens=False)["input_ids"])
    ), "the colon's token is another one with a space after it"
    prompts = DecoderPrompts(tokenizer)
    for example in SHORT:
        answer = prompts.wire(example).answer
        assert answer[:-1] == prompts.plain_ids(f" {example.answers[0]}")
    assert prompts.merged_answers == {hash(answer) for answer in ANSWERS}
    apart = DecoderPrompts(tokenizer, anchor="\nAnswer")
    for example in SHORT:
        apart.wire(example)
    assert not apart.merged_answers


def test_a_tokenizer_that_opens_every_text_with_a_space(tmp_path: Path) -> None:
    """As SentencePiece's do: by itself an answer would have two."""
    letters = sorted({c for e in SHORT for c in f"{e.answers[0]}{e.question}Answer:\u2581"})
    vocab = {token: index for index, token in enumerate(["<s>", "</s>", *letters, "\u2581y"])}
    inner = Tokenizer(models.BPE(vocab, [("\u2581", "y")]))
    inner.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    inner.decoder = decoders.Metaspace()
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>"
    )
    prompts = DecoderPrompts(tokenizer)
    assert prompts.plain_ids(" yes")[:2] == (vocab["\u2581"], vocab["\u2581y"])
    for example in SHORT:
        prompts.wire(example)
    assert not prompts.merged_answers
    yes = next(example for example in SHORT if example.answers == ("yes",))
    assert prompts.wire(yes).answer == tuple(
        vocab[token] for token in ("\u2581y", "e", "s", "</s>")
    )
