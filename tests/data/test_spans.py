"""Which decoder tokens a latent stands for: the text of a span is the text of its latent."""

from pathlib import Path

import pytest

from latentwire.config import DecoderConfig, EncoderConfig, WireConfig
from latentwire.data.encoder_texts import EncoderTokenizer
from latentwire.data.prompts import DecoderPrompts
from latentwire.data.spans import decoder_spans
from latentwire.data.tokenizers import load_tokenizer

TEXTS = ["Ada lives in Tarn. The door of Bela is red.", "Zoe has two cousins; café \U0001f600 ok."]


def encoder(pair: Path, wire: WireConfig, *, max_tokens: int = 0) -> EncoderTokenizer:
    settings = EncoderConfig(model=str(pair / "llama"), max_tokens=max_tokens)
    return EncoderTokenizer(settings, wire, window=1024)


def prompts(pair: Path, name: str) -> DecoderPrompts:
    return DecoderPrompts(load_tokenizer(DecoderConfig(model=str(pair / name))))


@pytest.mark.parametrize("wire", [WireConfig(ratio=5), WireConfig(num_latents=4)])
@pytest.mark.parametrize("name", ["llama", "qwen"])
def test_every_token_has_one_latent_in_order(pair: Path, name: str, wire: WireConfig) -> None:
    tokenizer, decoder = encoder(pair, wire), prompts(pair, name)
    spans = decoder_spans(TEXTS, tokenizer, decoder)
    for row, text in enumerate(TEXTS):
        own = spans.row == row
        assert tuple(spans.ids[own].tolist()) == decoder.plain_ids(" " + text)
        latents = spans.latent[own].tolist()
        assert latents == sorted(latents)
        assert latents[-1] == tokenizer.num_latents(text) - 1


def test_same_tokenizer_gives_the_pooled_spans(pair: Path) -> None:
    """Where encoder and decoder split a text alike, a latent stands for the tokens it pools."""
    tokenizer = encoder(pair, WireConfig(ratio=3))
    decoder = DecoderPrompts(
        load_tokenizer(DecoderConfig(model=str(pair / "llama"))), template="{context}{question}"
    )
    spans = decoder_spans(TEXTS[:1], tokenizer, decoder)
    assert spans.ids.tolist() == tokenizer.ids(TEXTS[0])
    assert spans.latent.tolist() == [place // 3 for place in range(len(spans.ids))]


def test_text_beyond_the_encoders_window_stands_nowhere(pair: Path) -> None:
    tokenizer = encoder(pair, WireConfig(ratio=3), max_tokens=10)
    decoder = prompts(pair, "qwen")
    spans = decoder_spans(TEXTS[:1], tokenizer, decoder)
    assert 0 < len(spans.ids) < len(decoder.plain_ids(" " + TEXTS[0]))
    assert spans.latent.max() == tokenizer.num_latents(TEXTS[0]) - 1


def test_an_empty_text_has_no_tokens(pair: Path) -> None:
    assert decoder_spans([""], encoder(pair, WireConfig()), prompts(pair, "qwen")).ids.numel() == 0
