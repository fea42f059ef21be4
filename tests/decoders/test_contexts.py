"""A context continued more than once, and leading parts of what has been read."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from latentwire.config import DecoderConfig
from latentwire.data.example import Example
from latentwire.data.loader import text_batch
from latentwire.data.prompts import DecoderPrompts, PromptTokens
from latentwire.decoders.answered import Context
from latentwire.decoders.constant_prefix import ConstantPrefix, Openings
from latentwire.decoders.contexts import has_leading_parts, selected
from latentwire.decoders.frozen import FrozenDecoder
from latentwire.decoders.generation import Writers, go_on, greedy
from latentwire.decoders.loading import load_decoder

CPU = torch.device("cpu")
EXAMPLES = [
    Example(context="Mira lives in Orsa. Mira drinks tea.", question="Where?", answers=("Orsa",)),
    Example(context="Mira lives in Orsa. Mira drinks tea.", question="What drink?", answers=("a",)),
    Example(context="Tovan plays the flute.", question="Who?", answers=("Tovan",)),
]
CUTS = (5, 0, 3)
"""Tokens of each context that a shorter prompt keeps."""


@pytest.fixture(params=["llama", "qwen"])
def decoder(pair: Path, request: pytest.FixtureRequest) -> FrozenDecoder:
    config = DecoderConfig(model=str(pair / request.param))
    return load_decoder(request.param, config, dtype=torch.float32, device=CPU)


@pytest.fixture
def prompts(decoder: FrozenDecoder) -> DecoderPrompts:
    return DecoderPrompts(decoder.tokenizer)


def cut(tokens: PromptTokens, length: int) -> PromptTokens:
    return PromptTokens(
        before=tokens.before, slot=tokens.slot[:length], after=tokens.after, answer=tokens.answer
    )


@torch.no_grad()
def said(decoder: FrozenDecoder, context: Context, batch: Any) -> Tensor:
    """Logits at the answers that follow ``context``."""
    logits, _ = decoder.continue_from(
        context, batch.suffix_ids, batch.suffix_mask, batch.suffix_positions, batch.columns
    )
    return logits.flatten(0, 1)[batch.target_index]


@torch.no_grad()
def test_a_continuation_leaves_the_next_one_alone(
    decoder: FrozenDecoder, prompts: DecoderPrompts
) -> None:
    batch = text_batch([prompts.text(example) for example in EXAMPLES], pad=prompts.pad)
    expected = decoder.answer(batch).logits
    prefixes = decoder.read_prefixes(batch, None)
    rows = batch.prefix_of.tolist()
    for _ in range(2):
        torch.testing.assert_close(said(decoder, selected(prefixes, rows), batch), expected)
    # All rows as they are: the same tensors, which a continuation must not write into either.
    whole = decoder.read(batch, None)
    for _ in range(2):
        torch.testing.assert_close(said(decoder, selected(whole, range(3)), batch), expected)


class _Written(DynamicLayer):
    """Of a kind that writes into the tensors it has."""

    def update(self, keys: Tensor, values: Tensor, *more: Any, **others: Any) -> Any:
        self.keys.add_(1)
        return super().update(keys, values, *more, **others)


def test_a_layer_that_writes_in_place_is_copied() -> None:
    cache = DynamicCache()
    cache.update(torch.zeros(2, 1, 3, 4), torch.zeros(2, 1, 3, 4), 0)
    layer = _Written()
    layer.__dict__ |= vars(cache.layers[0])
    cache.layers[0] = layer
    context = Context(cache=cache, mask=torch.ones(2, 3, dtype=torch.bool), lora={})
    own = selected(context, [0, 1])
    own.cache.update(torch.ones(2, 1, 1, 4), torch.ones(2, 1, 1, 4), 0)
    assert own.cache.layers[0].keys.sum() > 0 and layer.keys.sum() == 0


class _OfAnotherKind(DynamicLayer):
    """Of which nothing is known."""


@pytest.mark.parametrize("with_constant", [False, True])
@torch.no_grad()
def test_a_leading_part_is_what_would_have_been_read_of_it(
    with_constant: bool, decoder: FrozenDecoder, prompts: DecoderPrompts
) -> None:
    if with_constant:
        torch.manual_seed(0)
        cache = decoder.shape(with_cache=True).cache
        assert cache is not None
        keys, values = torch.randn(
            2, cache.num_layers, 1, cache.num_kv_heads, 2, cache.head_dim
        ).unbind()
        decoder.constant = ConstantPrefix(list(keys), list(values))
        decoder._openings = Openings(decoder._opening, decoder.constant)
    first = 2 if with_constant else 0
    full = [prompts.text(example) for example in EXAMPLES]
    short = [cut(tokens, length) for tokens, length in zip(full, CUTS, strict=True)]
    whole, part = (text_batch(tokens, pad=prompts.pad) for tokens in (full, short))
    assert len(part.prefix_ids) == 3 > len(whole.prefix_ids), "one text, cut in two places"
    lengths = [len(tokens.before) + len(tokens.slot) for tokens in short]
    context = selected(
        decoder.read_prefixes(whole, None), whole.prefix_of.tolist(), lengths=lengths, first=first
    )
    assert context.cache.get_seq_length() == context.mask.shape[1] == first + max(lengths)
    found, expected = said(decoder, context, part), decoder.answer(part).logits
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(expected, decoder.answer(whole).logits, atol=1e-2), "it is shorter"


@torch.no_grad()
def test_nothing_of_a_context_is_a_leading_part_too(
    decoder: FrozenDecoder, prompts: DecoderPrompts
) -> None:
    """As of a prompt that begins with its context, where there is no context and no BOS."""
    full = [prompts.text(example) for example in EXAMPLES]
    whole = text_batch(full, pad=prompts.pad)
    none = text_batch([replace(tokens, before=(), slot=()) for tokens in full], pad=prompts.pad)
    rows = whole.prefix_of.tolist()
    context = selected(decoder.read_prefixes(whole, None), rows, lengths=[0] * len(rows))
    assert len(rows) > len(whole.prefix_ids), "or rows are as they were"
    expected = decoder.answer(none).logits
    torch.testing.assert_close(said(decoder, context, none), expected, atol=2e-5, rtol=1e-4)


def test_parts_are_not_shared_where_they_are_not_the_same(decoder: FrozenDecoder) -> None:
    def context(*layers: Any) -> Context:
        cache = DynamicCache()
        cache.layers = list(layers)
        return Context(cache=cache, mask=torch.ones(1, 1), lora={})

    assert has_leading_parts(decoder, context(DynamicLayer(), DynamicLayer()))
    sliding = DynamicSlidingWindowLayer(sliding_window=4)
    assert not has_leading_parts(decoder, context(DynamicLayer(), sliding))
    rotary = decoder.model.model.rotary_emb
    for kind, expected in {"dynamic": False, "longrope": False, "llama3": True}.items():
        rotary.rope_type = kind
        assert has_leading_parts(decoder, context(DynamicLayer())) == expected, kind


@torch.no_grad()
def test_rows_that_end_are_dropped_and_change_nothing(
    decoder: FrozenDecoder, prompts: DecoderPrompts
) -> None:
    """Each row alone writes what it writes beside rows that end before it, or write nothing."""
    tokens = [prompts.text(example) for example in EXAMPLES]
    room = [2, 6, 9]

    def written(rows: list[int], writing: list[int], sizes: list[int]) -> list[list[int]]:
        own = text_batch([tokens[row] for row in rows], pad=prompts.pad, answers=False)
        context = decoder.read(own, None)
        logits, _ = decoder.continue_from(
            context, own.suffix_ids, own.suffix_mask, own.suffix_positions, own.columns
        )
        widths.clear()
        decoder.continue_from = counted  # type: ignore[method-assign]
        found = go_on(
            decoder,
            context,
            logits[:, -1].argmax(-1),
            own.suffix_positions[:, -1] + 1,
            rows=writing,
            room=sizes,
            ends=[-1],
        )
        decoder.continue_from = plain  # type: ignore[method-assign]
        return found

    widths: list[int] = []
    plain = decoder.continue_from

    def counted(context: Context, ids: Tensor, *more: Any, **others: Any) -> Any:
        widths.append(len(ids))
        return plain(context, ids, *more, **others)

    alone = [written([row], [0], [room[row]])[0] for row in range(3)]
    assert [len(row) for row in alone] == room
    assert written([0, 1, 2], [0, 1, 2], room) == alone
    assert widths == [3] + [2] * 4 + [1] * 3
    assert written([0, 1, 2], [2], room) == [[], [], alone[2]]
    assert widths == [1] * 8


@pytest.mark.parametrize("is_plain", [True, False])
@torch.no_grad()
def test_contexts_of_several_lengths_are_written_on_together(
    is_plain: bool, decoder: FrozenDecoder, prompts: DecoderPrompts
) -> None:
    full = [prompts.text(example) for example in EXAMPLES]
    short = [cut(tokens, length) for tokens, length in zip(full, CUTS, strict=True)]
    steps: list[int] = []
    plain = decoder.continue_from

    def counted(context: Context, ids: Tensor, *more: Any, **others: Any) -> Any:
        if ids.shape[1] == 1:
            steps.append(len(ids))
        return plain(context, ids, *more, **others)

    decoder.continue_from = counted  # type: ignore[method-assign]
    writers = Writers(decoder, ends=[-1])
    found, expected = [], []
    # Largest first: the contexts after it wait for each other as long as they are no larger.
    for tokens, writing, room in ((full, [1], 3), (short, [0, 2], 5), (short, [], 5)):
        own = text_batch(tokens, pad=prompts.pad, answers=False)
        expected += [
            greedy(decoder, own, ends=[-1], max_new_tokens=room)[row].tolist() for row in writing
        ]
        context = decoder.read(own, None)
        logits, _ = decoder.continue_from(
            context, own.suffix_ids, own.suffix_mask, own.suffix_positions, own.columns
        )
        if not is_plain:
            for layer in context.cache.layers:
                layer.__class__ = _OfAnotherKind
        steps.clear()
        first, place = logits[:, -1].argmax(-1), own.suffix_positions[:, -1] + 1
        written = writers.add(context, first, place, rows=writing, room=[room] * 3)
        assert [len(row) > 0 for row in written] == [
            not is_plain and r in writing for r in range(3)
        ]
        found.append((written, writing))
    assert not is_plain or not steps
    writers.finish()
    assert [written[row] for written, writing in found for row in writing] == expected
    assert not is_plain or steps == [3, 3, 2, 2]
    writers.finish()
    assert [written[row] for written, writing in found for row in writing] == expected


@torch.no_grad()
def test_what_waits_is_no_larger_than_the_largest_context(
    decoder: FrozenDecoder, prompts: DecoderPrompts
) -> None:
    own = text_batch([prompts.text(example) for example in EXAMPLES], pad=prompts.pad)
    writers = Writers(decoder, ends=[-1])
    found = []
    for _ in range(3):
        context = decoder.read(own, None)
        tokens, place = torch.tensor([5, 6, 7]), own.suffix_positions[:, 0]
        found.append(writers.add(context, tokens, place, rows=[0, 1], room=[2, 2, 2]))
    # Two rows of three wait; two more are too many for the place of three.
    assert [[len(row) for row in written] for written in found] == [[2, 2, 0], [2, 2, 0], [0, 0, 0]]
    writers.finish()
    assert found[0] == found[1] == found[2]
