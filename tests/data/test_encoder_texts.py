"""Texts as the encoder reads them: its pieces, how long wires are, and how a batch is laid out."""

from pathlib import Path

import pytest
import torch
from config_cases import MINIMAL

from latentwire import config_file
from latentwire.config import AdapterConfig, Config, WireConfig
from latentwire.data.encoder_texts import (
    BYTE_WINDOW,
    EncoderTexts,
    EncoderTokenizer,
    WireText,
    num_positions,
)

TEXTS = ["", "é", "naïve café", "日本語 text", "plain words only", "🙂🙂"]


def config(tmp_path: Path, *overrides: str) -> Config:
    path = tmp_path / "recipe.yaml"
    path.write_text(MINIMAL, encoding="utf-8")
    return config_file.load(str(path), ["objectives.span=0", *overrides])


def of_bytes(tmp_path: Path, *overrides: str) -> EncoderTokenizer:
    settings = config(tmp_path, "encoder.kind=byte", *overrides)
    return EncoderTokenizer(settings, window=settings.encoder.max_tokens or BYTE_WINDOW)


@pytest.fixture
def of_tokens(pair: Path, tmp_path: Path) -> EncoderTokenizer:
    return EncoderTokenizer(config(tmp_path, f"encoder.model={pair / 'llama'}"), window=1024)


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_are_those_of_utf8_and_nothing_leads_them(text: str, tmp_path: Path) -> None:
    tokenizer = of_bytes(tmp_path)
    assert tokenizer.lead == []
    assert bytes(tokenizer.ids(text)).decode() == text
    # At a ratio of one there is a latent for each byte, which ends where its character does.
    expected = [end for end in range(1, len(text) + 1) for _ in text[end - 1].encode()]
    assert tokenizer.latent_ends(text, 1) == expected


def test_spans_of_bytes_end_at_whole_characters(tmp_path: Path) -> None:
    tokenizer = of_bytes(tmp_path, "wire.ratio=2")
    # é is bytes 1 and 2, so the second span begins inside of it; the last one is a lone byte.
    assert tokenizer.latent_ends("aéb") == [2, 3]
    assert tokenizer.latent_ends("日a") == [1, 2]
    assert tokenizer.latent_ends("") == []


def test_what_is_longer_than_the_window_is_cut_and_counted(tmp_path: Path) -> None:
    tokenizer = of_bytes(tmp_path, "encoder.max_tokens=5", "wire.ratio=2")
    assert tokenizer.ids("abcde") == list(b"abcde")
    assert not tokenizer.cut_texts
    assert tokenizer.ids("日本") == list("日本".encode()[:5]), "a cut may fall inside a character"
    assert tokenizer.ids("abcdef") == list(b"abcde")
    tokenizer.ids("abcdef")
    assert len(tokenizer.cut_texts) == 2, "each text once"
    assert tokenizer.num_latents("abcdef") == 3
    assert tokenizer.latent_ends("abcdefgh") == [2, 4, 5]
    assert [tokenizer.num_read(text) for text in ("", "abcd", "abcde")] == [0, 4, 5]
    assert [tokenizer.num_read(text) for text in ("abcdefgh", "日本x")] == [5, 2]


def test_the_leading_token_takes_a_place_of_the_window(
    of_tokens: EncoderTokenizer, pair: Path, tmp_path: Path
) -> None:
    assert len(of_tokens.lead) == 1, "llama opens with BOS"
    assert of_tokens.max_tokens == 1023
    short = config(tmp_path, f"encoder.model={pair / 'llama'}", "encoder.max_tokens=4")
    tokenizer = EncoderTokenizer(short, window=1024)
    assert len(tokenizer.ids("Mira lives in Orsa and drinks tea.")) == 3


@pytest.mark.parametrize(
    ("adapter", "private", "expected"),
    [
        (AdapterConfig(), 0, 7 + 2),
        (AdapterConfig(), 3, 7 + 3 + 2),
        (AdapterConfig(use_deep_prefix=True), 3, 7 + 3 + 2),
        (AdapterConfig(use_deep_prefix=True, use_soft_prompt=False), 3, 7 + 3 + 2),
        (AdapterConfig(use_deep_prefix=True, deep_prefix_len=5), 3, 5 + 7 + 3 + 2),
        (
            AdapterConfig(use_deep_prefix=True, deep_prefix_len=5, use_soft_prompt=False),
            3,
            5 + 2,
        ),
        (AdapterConfig(use_frame=False), 3, 7 + 3),
        (AdapterConfig(use_frame=False, use_deep_prefix=True), 3, 7 + 3),
        (AdapterConfig(use_frame=False, use_deep_prefix=True, deep_prefix_len=5), 3, 5 + 7 + 3),
        (
            AdapterConfig(
                use_frame=False, use_deep_prefix=True, deep_prefix_len=5, use_soft_prompt=False
            ),
            3,
            5,
        ),
    ],
)
def test_positions_by_hand(adapter: AdapterConfig, private: int, expected: int) -> None:
    wire = WireConfig(latent_private_len=private)
    assert num_positions(7, wire, adapter) == expected


def test_a_text_at_several_ratios_is_read_once(of_tokens: EncoderTokenizer) -> None:
    long, short = "Mira lives in Orsa. Mira drinks tea.", "Tovan plays."
    wires = [
        WireText(text=long, ratio=2),
        WireText(text=short, ratio=4, keep=(False,) * of_tokens.num_latents(short, 4)),
        WireText(text=long, ratio=4),
        WireText(text=long),
    ]
    num_tokens = len(of_tokens.ids(long))
    most = of_tokens.num_latents(long, 2)
    texts = of_tokens.batch(wires, rows=5, max_latents=most)
    assert texts.num_tokens.tolist() == [num_tokens, len(of_tokens.ids(short))]
    assert texts.ids[0].tolist() == of_tokens.lead + of_tokens.ids(long)
    short_ids = of_tokens.lead + of_tokens.ids(short)
    assert texts.ids[1].tolist() == short_ids + [0] * (1 + num_tokens - len(short_ids))
    # The last row is no wire: it is of any text, and has no latent.
    assert texts.text_of.tolist() == [0, 1, 0, 0, 0]
    assert texts.counts.tolist() == [
        most,
        of_tokens.num_latents(short, 4),
        *[-(-num_tokens // 4)] * 2,
        0,
    ]
    dropped = torch.zeros(5, most, dtype=torch.bool)
    dropped[1, : of_tokens.num_latents(short, 4)] = True
    assert torch.equal(texts.keep, ~dropped)


def test_a_fixed_number_of_latents_asks_for_no_ratio(pair: Path, tmp_path: Path) -> None:
    settings = config(tmp_path, f"encoder.model={pair / 'llama'}", "wire.num_latents=3")
    tokenizer = EncoderTokenizer(settings, window=1024)
    texts = tokenizer.batch([WireText(text="Mira lives in Orsa.")], rows=1, max_latents=3)
    assert texts.counts.tolist() == [3]


def shapes(texts: EncoderTexts) -> tuple[int, ...]:
    return (len(texts.text_of), len(texts.counts), *texts.keep.shape)


def test_every_rank_has_equal_rows_and_a_place_to_look_at(of_tokens: EncoderTokenizer) -> None:
    for wires in ([], [WireText(text="")], [WireText(text="Mira lives in Orsa.")]):
        texts = of_tokens.batch(wires, rows=3, max_latents=8)
        assert shapes(texts) == (3, 3, 3, 8)
        assert texts.ids.shape[1] >= len(of_tokens.lead) + 1
        assert texts.counts[len(wires) :].tolist() == [0] * (3 - len(wires))
    assert of_tokens.batch([], rows=2, max_latents=1).num_tokens.tolist() == [0]


def test_spans_of_equal_size_cover_the_text(of_tokens: EncoderTokenizer) -> None:
    text = "Mira lives in Orsa. Mira drinks tea."
    ends = of_tokens.latent_ends(text, 1)
    assert ends == of_tokens.latent_ends(text, num_spans=1000), "one a token at most"
    assert of_tokens.latent_ends(text, num_spans=1) == [len(text)]
    # Token t of n is in span t * 3 // n, which ends with its last token.
    last = [max(t for t in range(len(ends)) if t * 3 // len(ends) == span) for span in range(3)]
    assert of_tokens.latent_ends(text, num_spans=3) == [ends[t] for t in last]
    assert of_tokens.latent_ends("", num_spans=3) == []
