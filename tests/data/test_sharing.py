"""Questions on one context share its wire: a step encodes each of its contexts once."""

from pathlib import Path

import pytest
from hotpot_cases import official
from source_cases import squad, write_json, write_lines

from latentwire.config import DecoderConfig
from latentwire.data.example import Example
from latentwire.data.loader import global_batch
from latentwire.data.prompts import DecoderPrompts
from latentwire.data.sampler import Sampler
from latentwire.data.sources import DataSource, open_source
from latentwire.data.tokenizers import load_tokenizer


def step(source: DataSource, *, size: int, questions_per_context: int = 6) -> list[Example]:
    """The examples of the first step."""
    sampler = Sampler(
        source.counts(), seed=0, stage="A", questions_per_context=questions_per_context
    )
    return [source.examples(document)[place] for document, place in sampler.take(0, size)]


def opened(source: str, path: str) -> DataSource:
    return open_source(
        source=source,
        path=path,
        setting="gold" if source == "hotpot" else None,
        split="train",
        seed=0,
    )


@pytest.mark.parametrize("name", ["llama", "qwen"])
def test_a_step_of_squad_has_one_text_a_context(pair: Path, tmp_path: Path, name: str) -> None:
    prompts = DecoderPrompts(load_tokenizer(DecoderConfig(model=str(pair / name))))
    tree = squad(8)
    for entry in tree["data"]:
        for paragraph in entry["paragraphs"]:
            paragraph["qas"] *= 3
    source = opened("squad", write_json(tmp_path, tree))
    assert set(source.counts()) == {6}
    examples = step(source, size=24)
    batch = global_batch(examples, prompts)
    assert len(batch.texts) == len(set(batch.texts)) == 4, "24 questions, 6 on each context"
    for example, text in zip(examples, batch.text_of, strict=True):
        assert batch.texts[text] == example.context
    assert [batch.text_of.count(text) for text in range(4)] == [6] * 4
    apart = global_batch(step(source, size=24, questions_per_context=1), prompts)
    assert len(set(apart.texts)) == len(apart.texts) > 4, "still never one twice"


def test_questions_on_the_same_gold_paragraphs_share_them(pair: Path, tmp_path: Path) -> None:
    prompts = DecoderPrompts(load_tokenizer(DecoderConfig(model=str(pair / "llama"))))
    rows = [
        official(i, _id=f"{i}/{question}", question=f"Question {question} of {i}?")
        for i in range(8)
        for question in range(3)
    ]
    # Other paragraphs around the same two that hold the support.
    for row in rows[::3]:
        row["context"] = [["Other", ["Something."]], *row["context"]]
    source = opened("hotpot", write_lines(tmp_path, rows))
    batch = global_batch(step(source, size=12), prompts)
    assert [batch.text_of.count(text) for text in range(len(batch.texts))] == [3] * 4
