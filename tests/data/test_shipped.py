"""The pairs that are shipped: small, of their families, and they read."""

from pathlib import Path

import pytest
from conftest import shipped
from test_tiny import FAMILIES, MODEL_CLASSES, lost
from transformers import AutoModelForCausalLM

from latentwire.config import DecoderConfig
from latentwire.data import tiny
from latentwire.data.tokenizers import load_tokenizer


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module", params=["tiny", "tiny_hard"])
def shipped_pair(request: pytest.FixtureRequest) -> Path:
    return shipped(request.param)


def test_shipped_model_is_small_and_loads_as_its_family(shipped_pair: Path, family: str) -> None:
    folder = shipped_pair / family
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


def test_shipped_tokenizer_loses_nothing(shipped_pair: Path, family: str) -> None:
    tokenizer = load_tokenizer(DecoderConfig(model=str(shipped_pair / family)))
    assert lost(tokenizer) == []


def test_shipped_model_reads(shipped_pair: Path, family: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(shipped_pair / family).eval()
    tokenizer = load_tokenizer(DecoderConfig(model=str(shipped_pair / family)))
    accuracy = tiny.reading_accuracy(model, tokenizer, seed=0)
    assert accuracy["em"] >= 0.95, accuracy


def test_the_pair_for_the_harder_profiles_reads_them(family: str) -> None:
    folder = shipped("tiny_hard") / family
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = load_tokenizer(DecoderConfig(model=str(folder)))
    accuracy = tiny.reading_accuracy(model, tokenizer, seed=0, num_documents=100, hard=True)
    assert accuracy["em"] >= 0.5, accuracy
    guessed = 0.3
    assert min(accuracy[f"em_{kind}"] for kind in ("direct", "paraphrased")) > 2 * guessed, accuracy
