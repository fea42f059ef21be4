"""Which decoder tokens a latent stands for: the text of a span is the text of its latent."""

from pathlib import Path

import pytest

from latentwire.config import Config, DecoderConfig, EncoderConfig, WireConfig
from latentwire.data.encoder_texts import EncoderTokenizer, WireText
from latentwire.data.prompts import DecoderPrompts
from latentwire.data.spans import NO_LATENT, decoder_spans
from latentwire.data.tokenizers import load_tokenizer

TEXTS = ["Ada lives in Tarn. The door of Bela is red.", "Zoe has two cousins; café \U0001f600 ok."]
WIRES = [WireText(text=text) for text in TEXTS]


def encoder(pair: Path, wire: WireConfig, *, max_tokens: int = 0) -> EncoderTokenizer:
    settings = EncoderConfig(model=str(pair / "llama"), max_tokens=max_tokens)
    return EncoderTokenizer(Config(encoder=settings, wire=wire), window=1024)


def prompts(pair: Path, name: str) -> DecoderPrompts:
    return DecoderPrompts(load_tokenizer(DecoderConfig(model=str(pair / name))))


@pytest.mark.parametrize("wire", [WireConfig(ratio=5), WireConfig(num_latents=4)])
@pytest.mark.parametrize("name", ["llama", "qwen"])
def test_every_token_has_one_latent_in_order(pair: Path, name: str, wire: WireConfig) -> None:
    tokenizer, decoder = encoder(pair, wire), prompts(pair, name)
    spans = decoder_spans(WIRES, tokenizer, decoder)
    for row, text in enumerate(TEXTS):
        ids = spans.ids[row][spans.mask[row]].tolist()
        assert tuple(ids) == decoder.lead + decoder.plain_ids(" " + text)
        latents = spans.latent[row][spans.mask[row]].tolist()
        assert latents[: len(decoder.lead)] == [NO_LATENT] * len(decoder.lead)
        latents = latents[len(decoder.lead) :]
        assert latents == sorted(latents)
        assert min(latents) == 0
        assert latents[-1] == tokenizer.num_latents(text) - 1
        assert (spans.latent[row][~spans.mask[row]] == NO_LATENT).all()


def test_same_tokenizer_gives_the_pooled_spans(pair: Path) -> None:
    """Where encoder and decoder split a text alike, a latent stands for the tokens it pools."""
    tokenizer = encoder(pair, WireConfig(ratio=3))
    decoder = DecoderPrompts(
        load_tokenizer(DecoderConfig(model=str(pair / "llama"))), template="{context}{question}"
    )
    spans = decoder_spans(WIRES[:1], tokenizer, decoder)
    assert spans.ids[0, 1:].tolist() == tokenizer.ids(TEXTS[0])
    num_tokens = spans.ids.shape[1] - 1
    count = tokenizer.num_latents(TEXTS[0])
    assert spans.latent[0, 1:].tolist() == [t * count // num_tokens for t in range(num_tokens)]


def test_text_beyond_the_encoders_window_stands_nowhere(pair: Path) -> None:
    tokenizer = encoder(pair, WireConfig(ratio=3), max_tokens=10)
    decoder = prompts(pair, "qwen")
    spans = decoder_spans(WIRES[:1], tokenizer, decoder)
    assert spans.mask.sum() == len(decoder.plain_ids(" " + TEXTS[0]))
    assert spans.latent.max() == tokenizer.num_latents(TEXTS[0]) - 1
    assert spans.latent[0, -1] == NO_LATENT


def test_a_text_longer_than_the_decoders_window_is_cut(pair: Path) -> None:
    tokenizer = load_tokenizer(DecoderConfig(model=str(pair / "llama")))
    decoder = DecoderPrompts(tokenizer, window=8)
    assert decoder_spans(WIRES, encoder(pair, WireConfig()), decoder).ids.shape == (2, 8)


def test_an_empty_text_stands_for_nothing(pair: Path) -> None:
    spans = decoder_spans([WireText(text="")], encoder(pair, WireConfig()), prompts(pair, "qwen"))
    assert not spans.mask.any()
    assert (spans.latent == NO_LATENT).all()
