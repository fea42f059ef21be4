"""The embedded pair and its builder: lossless tokenizers, honest packing, the same build twice."""

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2ForCausalLM,
)

from latentwire import config_file
from latentwire.config import DecoderConfig
from latentwire.data import tiny
from latentwire.data.profiles import Document, document
from latentwire.data.prompts import DecoderPrompts
from latentwire.data.tokenizers import load_tokenizer

FAMILIES = ["llama", "qwen"]
MODEL_CLASSES = {"llama": LlamaForCausalLM, "qwen": Qwen2ForCausalLM}
SPECS = tiny.load_specs(config_file.PACKAGED / "tiny.yaml")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def loaded(pair: Path, family: str) -> Any:
    """The tokenizer as a user gets it, from the saved folder."""
    return load_tokenizer(DecoderConfig(model=str(pair / family)))


@pytest.fixture(scope="module")
def built(family: str) -> PreTrainedTokenizerFast:
    """The tokenizer as the builder makes it, never saved."""
    return tiny.build_tokenizer(SPECS[family], seed=0)


# --- tokenizers


def texts() -> list[str]:
    rng = random.Random(0)
    latin = "".join(map(chr, range(256)))
    found = [latin, latin[::-1], *latin, "\0", "a\0\0b", "\r\n\t \x0b\x0c\x1b[0m"]
    found += [" ", "  lead", "trail  ", "\n\n\n", "a  b   c", "\u00a0\u2003\u200b\u2028\ufeff"]
    found += ["don't I'LL we've", " , . ! 's", "1234567890 3.14 1e-4 \u0663\u00b2\u2167"]
    found += [
        "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1eb\U0001f1f7 e\u0301 \u00e9"
    ]
    found += ["<|begin_of_text|> <|end_of_text|><|pad|> <|im_end|>x<|endoftext|>", "\U0010ffff"]
    # Every byte that UTF-8 can hold: leading bytes of two, three and four.
    found.append("".join(map(chr, [*range(0x80, 0x800, 0x3F), *range(0x800, 0xD800, 0x3FF)])))
    found.append("".join(map(chr, range(0x10000, 0x110000, 0xFFF))))
    for length in (1, 2, 3, 10, 200):
        for _ in range(30):
            points = [rng.choice([0x80, 0x800, 0x10000, 0x110000]) for _ in range(length)]
            codes = [rng.randrange(limit) for limit in points]
            found.append("".join(chr(c) for c in codes if not 0xD800 <= c < 0xE000))
    return found


def test_samples_hold_every_byte_of_utf8() -> None:
    never = {0xC0, 0xC1, *range(0xF5, 0x100)}
    assert {byte for text in texts() for byte in text.encode()} == set(range(256)) - never


def lost(tokenizer: Any) -> list[str]:
    """The texts that do not come back as they were."""
    every = texts()
    tokens = tokenizer(every, add_special_tokens=False)["input_ids"]
    return [text for text, ids in zip(every, tokens, strict=True) if tokenizer.decode(ids) != text]


def test_built_tokenizer_loses_nothing(built: PreTrainedTokenizerFast) -> None:
    assert lost(built) == []


def test_loaded_tokenizer_loses_nothing(loaded: Any) -> None:
    assert lost(loaded) == []


def test_saving_changes_no_token(built: PreTrainedTokenizerFast, loaded: Any) -> None:
    every = texts() + [document(0, "test", i).context for i in range(50)]
    assert loaded(every)["input_ids"] == built(every)["input_ids"]
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "model_max_length"):
        assert getattr(loaded, name) == getattr(built, name), name


def test_building_twice_gives_the_same_tokenizer(
    pair: Path, family: str, built: PreTrainedTokenizerFast
) -> None:
    """``pair`` built its own, earlier in this process."""
    saved = json.loads((pair / family / "tokenizer.json").read_text(encoding="utf-8"))
    again = json.loads(built.backend_tokenizer.to_str())
    assert again["model"] == saved["model"], "vocabulary and merges"
    assert len(built) == SPECS[family].tokenizer["vocab_size"]


def test_families_cut_text_differently(pair: Path) -> None:
    first, second = (load_tokenizer(DecoderConfig(model=str(pair / name))) for name in FAMILIES)
    contexts = [document(0, "test", index).context for index in range(300)]
    totals = [
        sum(len(ids) for ids in tokenizer(contexts, add_special_tokens=False)["input_ids"])
        for tokenizer in (first, second)
    ]
    assert max(totals) >= 1.1 * min(totals), totals
    assert set(first.get_vocab()) != set(second.get_vocab())
    assert first.bos_token_id is not None
    assert second.bos_token_id is None


# --- packing


@pytest.fixture(scope="module")
def docs() -> list[Document]:
    """Of different lengths, so that one is padded."""
    return [document(0, "test", 0, min_facts=2, max_facts=2), document(0, "test", 1, min_facts=8)]


def test_packed_questions_read_as_they_would_alone(
    pair: Path, family: str, loaded: Any, docs: list[Document]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(pair / family).eval()
    prompts = DecoderPrompts(loaded)
    ids, positions, mask, _, _ = tiny._batch(prompts, docs)
    with torch.no_grad():
        packed = model(input_ids=ids, position_ids=positions, attention_mask=mask).logits
    for row, doc in enumerate(docs):
        place = 0
        for number, example in enumerate(doc.examples):
            tokens = prompts.text(example)
            context, asked = [*tokens.before, *tokens.slot], [*tokens.after, *tokens.answer]
            with torch.no_grad():
                alone = model(input_ids=torch.tensor([[*context, *asked]])).logits[0]
            if number == 0:
                place = len(context)
                torch.testing.assert_close(packed[row, :place], alone[:place], rtol=1e-5, atol=1e-5)
            found = packed[row, place : place + len(asked)]
            torch.testing.assert_close(found, alone[len(context) :], rtol=1e-5, atol=1e-5)
            place += len(asked)


def test_packed_positions_and_visibility(loaded: Any, docs: list[Document]) -> None:
    prompts = DecoderPrompts(loaded)
    ids, positions, mask, _, _ = tiny._batch(prompts, docs)
    assert mask.shape == (2, 1, ids.shape[1], ids.shape[1])
    for row, doc in enumerate(docs):
        first = prompts.text(doc.examples[0])
        start = len(first.before) + len(first.slot)
        blocks = [0] * start
        expected = list(range(start))
        for number, example in enumerate(doc.examples, start=1):
            tokens = prompts.text(example)
            size = len(tokens.after) + len(tokens.answer)
            blocks += [number] * size
            expected += range(start, start + size)
        size = len(blocks)
        assert positions[row, :size].tolist() == expected
        visible = (mask[row, 0, :size, :size] == 0).tolist()
        for query in range(size):
            seen = [key for key in range(size) if visible[query][key]]
            own = [k for k in range(query + 1) if blocks[k] in (0, blocks[query])]
            assert seen == own
        assert not (mask[row, 0, :size, size:] == 0).any(), "padding is seen by nobody"
        assert (ids[row, size:] == prompts.pad).all()


def test_labels_are_the_next_token_of_the_same_question(loaded: Any, docs: list[Document]) -> None:
    prompts = DecoderPrompts(loaded)
    _, _, _, labels, is_answer = tiny._batch(prompts, docs)
    for row, doc in enumerate(docs):
        first = prompts.text(doc.examples[0])
        context = [*first.before, *first.slot]
        expected, answers = [*context[1:], -100], [False] * len(context)
        for example in doc.examples:
            tokens = prompts.text(example)
            segment = [*tokens.after, *tokens.answer]
            expected += [*segment[1:], -100]
            # The last token before the answer predicts its first; EOS is predicted too.
            answers += [False] * (len(tokens.after) - 1) + [True] * len(tokens.answer) + [False]
        size = len(expected)
        assert labels[row, :size].tolist() == expected
        assert (labels[row, size:] == -100).all()
        assert is_answer[row, :size].tolist() == answers
        assert not is_answer[row, size:].any()


# --- pretraining


def test_building_twice_gives_the_same_weights(family: str) -> None:
    small = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    spec = dataclasses.replace(
        SPECS[family], architecture=SPECS[family].architecture | small | heads
    )
    states = []
    for _ in range(2):
        torch.rand(7)  # Whatever was drawn before must not matter.
        model, _ = tiny.pretrain(spec, seed=1, steps=3, batch_documents=2)
        states.append(model.state_dict())
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


# --- the pair that is shipped


def test_shipped_model_is_small_and_loads_as_its_family(embedded_pair: Path, family: str) -> None:
    folder = embedded_pair / family
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8 * 10**6
    assert not [path for path in files if path.suffix in {".bin", ".pt", ".pth", ".pkl"}]
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model) is MODEL_CLASSES[family]
    assert model.config.max_position_embeddings >= 512
    tokenizer = load_tokenizer(DecoderConfig(model=str(folder)))
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.config.bos_token_id == tokenizer.bos_token_id


def test_shipped_tokenizer_loses_nothing(embedded_pair: Path, family: str) -> None:
    tokenizer = load_tokenizer(DecoderConfig(model=str(embedded_pair / family)))
    assert lost(tokenizer) == []


def test_shipped_model_reads(embedded_pair: Path, family: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(embedded_pair / family).eval()
    tokenizer = load_tokenizer(DecoderConfig(model=str(embedded_pair / family)))
    accuracy = tiny.reading_accuracy(model, tokenizer, seed=0)
    assert accuracy["em"] >= 0.95, accuracy
