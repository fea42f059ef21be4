"""From examples to wires and parts: whatever the draws, parts of all ranks are the whole."""

from pathlib import Path

import pytest
import torch
from conftest import small_overrides

from latentwire import config_file
from latentwire.config import DecoderConfig
from latentwire.data.draws import StepDraws
from latentwire.data.encoder_texts import EncoderTokenizer
from latentwire.data.example import Example
from latentwire.data.loader import GlobalBatch, decoder_batch, encoder_batch, global_batch
from latentwire.data.prompts import DecoderPrompts
from latentwire.data.tokenizers import load_tokenizer

ORSA = "Mira lives in Orsa. Mira drinks tea every single morning."
FLUTE = "Tovan plays the flute."
EXAMPLES = [
    Example(context=context, question=question, answers=(answer,))
    for context, question, answer in (
        (ORSA, "Where does Mira live?", "Orsa"),
        (ORSA, "What does Mira drink?", "tea"),
        (FLUTE, "What does Tovan play?", "the flute"),
        (ORSA, "Who lives in Orsa?", "Mira"),
    )
]


@pytest.fixture
def prompts(pair: Path) -> DecoderPrompts:
    return DecoderPrompts(load_tokenizer(DecoderConfig(model=str(pair / "qwen"))))


@pytest.fixture
def tokenizer(pair: Path, tmp_path: Path) -> EncoderTokenizer:
    # With a deep prefix the text behind a wire is read after it, not beside it.
    more = ("wire.ratio=4", "adapter.use_deep_prefix=false")
    config = config_file.load("smoke", small_overrides(pair, tmp_path, *more))
    return EncoderTokenizer(config, window=1024)


def test_questions_on_one_text_share_its_wire(prompts: DecoderPrompts) -> None:
    batch = global_batch(EXAMPLES, prompts)
    assert batch.texts == (ORSA, FLUTE)
    assert (batch.ratios, batch.kept) == ((None, None), ("", ""))
    assert batch.text_of == (0, 0, 1, 0)
    assert batch.examples == tuple(EXAMPLES)


def test_summed_ratios_repeat_every_example(prompts: DecoderPrompts) -> None:
    draws = StepDraws(seed="0", ratios=(2, 4), ratio_mode="summed")
    batch = global_batch(EXAMPLES, prompts, draws=draws)
    assert batch.texts == (ORSA, ORSA, FLUTE, FLUTE)
    assert batch.ratios == (2, 4, 2, 4)
    assert batch.examples == tuple(example for example in EXAMPLES for _ in range(2))
    assert batch.text_of == (0, 1, 0, 1, 2, 3, 0, 1)


def test_a_sampled_ratio_is_that_of_the_text(prompts: DecoderPrompts) -> None:
    for seed in range(20):
        draws = StepDraws(seed=str(seed), ratios=(2, 4, 8))
        batch = global_batch(EXAMPLES, prompts, draws=draws)
        assert batch.texts == (ORSA, FLUTE), "one wire a text, whoever reads it"
        assert batch.ratios == (*draws.ratios_of(ORSA), *draws.ratios_of(FLUTE))


def test_one_ratio_and_another_text_without_draws(prompts: DecoderPrompts) -> None:
    batch = global_batch(EXAMPLES, prompts, ratio=8, replace={ORSA: FLUTE, FLUTE: ORSA})
    assert batch.texts == (FLUTE, ORSA)
    assert batch.ratios == (8, 8)
    assert batch.text_of == (0, 0, 1, 0)


def test_a_mixed_step_keeps_the_rest_as_text(
    prompts: DecoderPrompts, tokenizer: EncoderTokenizer
) -> None:
    draws = StepDraws(seed="3", text_share=0.8)
    batch = global_batch(EXAMPLES, prompts, draws=draws)
    assert [t + k for t, k in zip(batch.texts, batch.kept, strict=True)] == [ORSA, FLUTE]
    assert batch.kept[0].startswith(" ")
    own = decoder_batch(batch, prompts, tokenizer, part=0, num_parts=1)
    prompt = own.latents_prompt
    for row, wire in enumerate(own.texts):
        (prefix,) = {int(prompt.prefix_of[i]) for i in own.examples if batch.text_of[i] == wire}
        assert int(prompt.prefix_soft_row[prefix]) == row
        soft, real = prompt.prefix_soft[prefix], prompt.prefix_mask[prefix]
        last = int((soft >= 0).nonzero().max())
        assert int(soft.max()) + 1 == tokenizer.num_positions(batch.texts[wire])
        # Right behind the wire, and to the prefix's end.
        assert tuple(prompt.prefix_ids[prefix, last + 1 :][real[last + 1 :]].tolist()) == (
            prompts.plain_ids(batch.kept[wire])
        )


def test_texts_that_begin_alike_keep_their_own_rest(prompts: DecoderPrompts) -> None:
    """The wire's parts of two texts may be equal though the texts are not."""
    texts = [f"Mira lives in Orsa and drinks {drink}." for drink in ("tea", "milk", "water")]
    examples = [Example(context=text, question="What?", answers=("tea",)) for text in texts]
    met = 0
    for seed in range(60):
        draws = StepDraws(seed=str(seed), text_share=0.8)
        batch = global_batch(examples, prompts, draws=draws)
        for text, wire in zip(texts, batch.text_of, strict=True):
            assert batch.texts[wire] + batch.kept[wire] == text
        met += len(set(batch.texts)) < len(batch.texts)
    assert met, "equal parts did occur"


def test_counts_and_readers_of_a_part(prompts: DecoderPrompts, tokenizer: EncoderTokenizer) -> None:
    draws = StepDraws(seed="0", ratios=(2, 4), ratio_mode="summed")
    batch = global_batch(EXAMPLES, prompts, draws=draws)
    own = decoder_batch(batch, prompts, tokenizer, part=1, num_parts=2)
    # Examples 4 to 7: the flute at both ratios, then Orsa at both.
    assert own.examples == (4, 5, 6, 7)
    assert own.texts == (2, 3, 0, 1)
    assert own.readers == (1, 1, 1, 1)
    expected = [tokenizer.num_latents(*pair) for pair in ((FLUTE, 2), (FLUTE, 4), (ORSA, 2))]
    assert own.counts[:3] == tuple(expected)


def step(prompts: DecoderPrompts) -> GlobalBatch:
    draws = StepDraws(seed="1", text_share=0.5, ratios=(2, 4), ratio_mode="summed", keep_prob=0.5)
    return global_batch(EXAMPLES, prompts, draws=draws)


@pytest.mark.parametrize("num_parts", [2, 4])
def test_parts_add_up_to_the_whole(
    num_parts: int, prompts: DecoderPrompts, tokenizer: EncoderTokenizer
) -> None:
    batch = step(prompts)
    parts = [
        decoder_batch(batch, prompts, tokenizer, part=part, num_parts=num_parts)
        for part in range(num_parts)
    ]
    whole = decoder_batch(batch, prompts, tokenizer, part=0, num_parts=1)
    assert sum((part.examples for part in parts), ()) == whole.examples == tuple(range(8))
    targets = torch.cat([part.latents_prompt.targets for part in parts])
    assert torch.equal(targets, whole.latents_prompt.targets)
    readers = dict.fromkeys(whole.texts, 0)
    for part in parts:
        assert len(part.texts) == len(part.counts) == len(part.readers)
        assert sum(part.readers) == len(part.examples)
        for wire, number in zip(part.texts, part.readers, strict=True):
            readers[wire] += number
    assert readers == dict(zip(whole.texts, whole.readers, strict=True))


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 6])
def test_every_wire_is_made_once_in_order(
    world_size: int, prompts: DecoderPrompts, tokenizer: EncoderTokenizer
) -> None:
    batch = step(prompts)
    whole = encoder_batch(batch, tokenizer, rank=0, world_size=1)
    slices = [
        encoder_batch(batch, tokenizer, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    rows = -(-len(batch.texts) // world_size)
    assert {(len(s.counts), s.max_latents) for s in slices} == {(rows, whole.max_latents)}
    for name in ("counts", "keep"):
        joined = torch.cat([getattr(s, name) for s in slices])[: len(batch.texts)]
        assert torch.equal(joined, getattr(whole, name)), name
    assert not whole.keep.all(), "some latents are dropped"
    ids = [s.ids[s.text_of[row]] for s in slices for row in range(rows)][: len(batch.texts)]
    for text, found in zip(batch.texts, ids, strict=True):
        expected = [*tokenizer.lead, *tokenizer.ids(text)]
        assert found[: len(expected)].tolist() == expected
