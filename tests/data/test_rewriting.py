"""What a decoder writes out from a wire: the text's own tokens, once for every reader."""

from pathlib import Path

import pytest
import torch
from conftest import small_overrides
from torch import Tensor

from latentwire import config_file
from latentwire.config import DecoderConfig
from latentwire.data.batch import PromptBatch
from latentwire.data.draws import StepDraws
from latentwire.data.encoder_texts import EncoderTokenizer
from latentwire.data.example import Example
from latentwire.data.loader import DecoderBatch, GlobalBatch, decoder_batch, global_batch
from latentwire.data.prompts import DecoderPrompts
from latentwire.data.rewriting import (
    REPEAT_CUE,
    continued,
    gist_targets,
    repeated,
    supervised_counts,
    written_batch,
)
from latentwire.data.tokenizers import load_tokenizer

ORSA = "Mira lives in Orsa. Mira drinks tea every single morning."
FLUTE = "Tovan plays the flute on the hill."
EXAMPLES = [
    Example(context=ORSA, question="Where does Mira live?", answers=("Orsa",)),
    Example(context=ORSA, question="What does Mira drink?", answers=("tea",)),
    Example(context=FLUTE, question="What does Tovan play?", answers=("the old flute",)),
    Example(context=ORSA, question="Who lives in Orsa?", answers=("Mira",)),
]
MIXED = StepDraws(seed="7", text_share=0.8)
SUMMED = StepDraws(seed="7", text_share=0.8, ratios=(2, 4), ratio_mode="summed")


@pytest.fixture(params=["llama", "qwen"])
def prompts(pair: Path, request: pytest.FixtureRequest) -> DecoderPrompts:
    settings = DecoderConfig(model=str(pair / request.param))
    return DecoderPrompts(load_tokenizer(settings), window=1024)


@pytest.fixture
def tokenizer(pair: Path, tmp_path: Path) -> EncoderTokenizer:
    config = config_file.load("smoke", small_overrides(pair, tmp_path, "wire.ratio=4"))
    return EncoderTokenizer(config, window=1024)


def whole(
    prompts: DecoderPrompts, tokenizer: EncoderTokenizer, draws: StepDraws | None = None
) -> tuple[GlobalBatch, DecoderBatch]:
    batch = global_batch(EXAMPLES, prompts, draws=draws)
    return batch, decoder_batch(batch, prompts, tokenizer, part=0, num_parts=1)


def repeat_batch(
    batch: GlobalBatch,
    own: DecoderBatch,
    prompts: DecoderPrompts,
    tokenizer: EncoderTokenizer,
    *,
    num_tokens: int,
) -> tuple[PromptBatch, Tensor] | None:
    texts = [repeated(batch, t, prompts, tokenizer, num_tokens=num_tokens) for t in own.texts]
    return written_batch(batch, own, prompts, tokenizer, texts)


def continue_batch(
    batch: GlobalBatch, own: DecoderBatch, prompts: DecoderPrompts, tokenizer: EncoderTokenizer
) -> tuple[PromptBatch, Tensor] | None:
    texts = [continued(batch, t, prompts, tokenizer) for t in own.texts]
    return written_batch(batch, own, prompts, tokenizer, texts)


def test_a_text_is_repeated_from_its_wire(
    prompts: DecoderPrompts, tokenizer: EncoderTokenizer
) -> None:
    batch, own = whole(prompts, tokenizer)
    laid_out = repeat_batch(batch, own, prompts, tokenizer, num_tokens=0)
    assert laid_out is not None
    prompt, weights = laid_out
    orsa, flute = prompts.plain_ids(ORSA), prompts.plain_ids(FLUTE)
    assert prompt.targets.tolist() == [*orsa, *flute]
    assert weights.tolist() == [3] * len(orsa) + [1] * len(flute), "three ask about Orsa"
    cue = prompts.plain_ids(REPEAT_CUE)
    for row, (text, ids) in enumerate(((ORSA, orsa), (FLUTE, flute))):
        real = prompt.suffix_mask[row]
        assert prompt.suffix_ids[row][real].tolist() == [*cue, *ids[:-1]]
        num_soft = tokenizer.num_positions(text)
        soft = prompt.prefix_soft[row][prompt.prefix_mask[row]].tolist()
        assert soft == [-1] * len(prompts.lead) + list(range(num_soft))
        assert prompt.prefix_ids[row, : len(prompts.lead)].tolist() == list(prompts.lead)
        first = len(prompts.lead) + num_soft
        positions = prompt.suffix_positions[row][real].tolist()
        assert positions == list(range(first, first + len(cue) + len(ids) - 1))
    assert prompt.prefix_soft_row.tolist() == [0, 1]


def test_only_the_first_tokens_are_repeated(
    prompts: DecoderPrompts, tokenizer: EncoderTokenizer
) -> None:
    batch, own = whole(prompts, tokenizer)
    laid_out = repeat_batch(batch, own, prompts, tokenizer, num_tokens=3)
    assert laid_out is not None
    expected = [*prompts.plain_ids(ORSA)[:3], *prompts.plain_ids(FLUTE)[:3]]
    assert laid_out[0].targets.tolist() == expected
    assert laid_out[1].tolist() == [3] * 3 + [1] * 3


def test_what_stayed_text_is_gone_on_with(
    prompts: DecoderPrompts, tokenizer: EncoderTokenizer
) -> None:
    batch, own = whole(prompts, tokenizer, MIXED)
    laid_out = continue_batch(batch, own, prompts, tokenizer)
    assert laid_out is not None
    prompt, weights = laid_out
    rests = [prompts.plain_ids(kept) for kept in batch.kept]
    assert all(len(rest) > 2 for rest in rests)
    # The first token of the rest is read, every later one is written.
    assert prompt.targets.tolist() == [token for rest in rests for token in rest[1:]]
    for row, rest in enumerate(rests):
        assert prompt.suffix_ids[row][prompt.suffix_mask[row]].tolist() == list(rest[:-1])
    expected = [n for n, rest in zip(own.readers, rests, strict=True) for _ in rest[1:]]
    assert weights.tolist() == expected


def test_nothing_to_write_is_no_batch(prompts: DecoderPrompts, tokenizer: EncoderTokenizer) -> None:
    batch, own = whole(prompts, tokenizer)
    assert continue_batch(batch, own, prompts, tokenizer) is None, "nothing stayed text"
    empty = [Example(context="", question="Who?", answers=("Mira",))]
    batch = global_batch(empty, prompts)
    own = decoder_batch(batch, prompts, tokenizer, part=0, num_parts=1)
    assert repeat_batch(batch, own, prompts, tokenizer, num_tokens=0) is None


def test_gist_targets_are_the_first_tokens(prompts: DecoderPrompts) -> None:
    ids, mask = gist_targets([ORSA, "", "Mira"], prompts, gist_len=6)
    assert ids[0].tolist() == list(prompts.plain_ids(ORSA)[:6])
    mira = prompts.plain_ids("Mira")
    assert len(mira) < 6
    assert mask.sum(1).tolist() == [6, 0, len(mira)]
    assert ids[2, : len(mira)].tolist() == list(mira)
    assert mask[2, : len(mira)].all()
    assert (ids[~mask] == prompts.pad).all()


def counts_of(
    batch: GlobalBatch, prompts: DecoderPrompts, tokenizer: EncoderTokenizer
) -> dict[str, int]:
    return supervised_counts(
        batch, prompts, tokenizer, k=2, kd_positions=1, gist_len=5, ae_tokens=7
    )


def test_counts_by_hand(prompts: DecoderPrompts, tokenizer: EncoderTokenizer) -> None:
    batch, _ = whole(prompts, tokenizer, SUMMED)
    # Two ratios: every example twice. An answer is closed by EOS.
    answers = [len(prompts.plain_ids(" " + example.answers[0])) + 1 for example in EXAMPLES]
    texts = {ORSA: 3, FLUTE: 1}
    parts = {text: (text[: MIXED.cut(text)], text[MIXED.cut(text) :]) for text in texts}
    lengths = {
        text: [len(prompts.plain_ids(part)) for part in both] for text, both in parts.items()
    }
    assert counts_of(batch, prompts, tokenizer) == {
        "tf": 2 * sum(answers),
        "first": 8,
        "kce": 2 * sum(min(number, 2) for number in answers),
        "kd": 8,
        "state": 2 * sum(answers),
        **dict.fromkeys(("span", "latent_align", "manifold", "scale_l2"), 8),
        "gist": 2 * sum(n * min(lengths[text][0], 5) for text, n in texts.items()),
        "ae": 2 * sum(n * min(lengths[text][0], 7) for text, n in texts.items()),
        "continuation": 2 * sum(n * (lengths[text][1] - 1) for text, n in texts.items()),
    }


@pytest.mark.parametrize("window", [1024, 24])
@pytest.mark.parametrize("num_parts", [1, 2, 4])
def test_weights_of_all_parts_add_up_to_the_counts(
    num_parts: int, window: int, prompts: DecoderPrompts, tokenizer: EncoderTokenizer
) -> None:
    """Also where the decoder's window cuts what is written."""
    prompts = DecoderPrompts(prompts.tokenizer, window=window)
    batch, _ = whole(prompts, tokenizer, SUMMED)
    expected = counts_of(batch, prompts, tokenizer)
    summed = {"ae": 0, "continuation": 0, "tf": 0, "gist": 0}
    for part in range(num_parts):
        own = decoder_batch(batch, prompts, tokenizer, part=part, num_parts=num_parts)
        _, mask = gist_targets([batch.texts[t] for t in own.texts], prompts, gist_len=5)
        summed["gist"] += int((mask.sum(1) * torch.tensor(own.readers)).sum())
        summed["tf"] += len(own.latents_prompt.targets)
        for name, laid_out in (
            ("ae", repeat_batch(batch, own, prompts, tokenizer, num_tokens=7)),
            ("continuation", continue_batch(batch, own, prompts, tokenizer)),
        ):
            if laid_out is not None:
                summed[name] += int(laid_out[1].sum())
                last = int(laid_out[0].suffix_positions.max())
                assert last < window
    assert summed == {name: expected[name] for name in summed}
    if window < 1024:
        wide = counts_of(batch, DecoderPrompts(prompts.tokenizer, window=1024), tokenizer)
        assert expected["continuation"] < wide["continuation"], "the window does cut"
