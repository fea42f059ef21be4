"""Pooling: contiguous spans, worked out by hand, whatever the padding around them."""

import dataclasses

import pytest
import torch
from torch import Tensor

from latentwire.config import WireConfig
from latentwire.data.encoder_texts import EncoderTexts, num_latents
from latentwire.wire.pooling import BlockPooling, FixedPooling, MeanPooling


def wires_of(lengths: list[int], *, ratio: int = 4, fixed: int = 0) -> EncoderTexts:
    """Each text as one wire."""
    counts = [num_latents(length, ratio=ratio, fixed=fixed) for length in lengths]
    longest = max(1, *counts)
    return EncoderTexts(
        ids=torch.zeros(len(lengths), max(lengths), dtype=torch.long),
        num_tokens=torch.tensor(lengths),
        text_of=torch.arange(len(lengths)),
        counts=torch.tensor(counts),
        keep=torch.ones(len(lengths), longest, dtype=torch.bool),
        max_latents=longest,
    )


def pool(states: Tensor, lengths: list[int], *, ratio: int = 4, fixed: int = 0) -> Tensor:
    """The means themselves: with the identity as their projection."""
    width = states.shape[-1]
    pooling = MeanPooling(width, width)
    with torch.no_grad():
        pooling.project.weight.copy_(torch.eye(width))
        pooling.project.bias.zero_()
    pooled: Tensor = pooling(states, wires_of(lengths, ratio=ratio, fixed=fixed))
    return pooled


def column(values: list[list[float]]) -> Tensor:
    """[rows, tokens, 1]"""
    return torch.tensor(values, dtype=torch.float32)[..., None]


@pytest.mark.parametrize(
    ("num_tokens", "ratio", "expected"),
    [(0, 4, 0), (1, 4, 1), (4, 4, 1), (5, 4, 2), (8, 4, 2), (9, 4, 3), (7, 1, 7), (3, 100, 1)],
)
def test_latents_by_ratio_round_up(num_tokens: int, ratio: int, expected: int) -> None:
    assert num_latents(num_tokens, ratio=ratio) == expected


@pytest.mark.parametrize(("num_tokens", "expected"), [(0, 0), (1, 1), (5, 5), (6, 5), (900, 5)])
def test_fixed_latents_never_exceed_the_tokens(num_tokens: int, expected: int) -> None:
    assert num_latents(num_tokens, ratio=4, fixed=5) == expected


def test_means_by_ratio_by_hand() -> None:
    # Nine tokens at a ratio of four are three spans of three, not four, four and one.
    states = column([[1, 2, 3, 10, 20, 30, 6, 8, 7]])
    assert pool(states, [9]).flatten().tolist() == pytest.approx([2, 20, 7])
    assert pool(states, [9], ratio=2).flatten().tolist() == [1.5, 6.5, 25.0, 7.0, 7.0]
    assert torch.equal(pool(states, [9], ratio=1), states)


def test_ragged_texts_stay_apart() -> None:
    states = column([[1, 3, 5, 7, 9], [2, 4, -99, -99, -99], [-99, -99, -99, -99, -99]])
    pooled = pool(states, [5, 2, 0], ratio=2)
    assert pooled[..., 0].tolist() == [[2.0, 6.0, 9.0], [3.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


def test_fixed_count_splits_each_text_evenly() -> None:
    # Token t of n belongs to latent t * count // n: 5 tokens over 2 latents are 3 + 2.
    states = column([[1, 2, 3, 4, 5, -99], [3, 5, 7, 9, 11, 13], [8, -99, -99, -99, -99, -99]])
    pooled = pool(states, [5, 6, 1], fixed=2)
    assert pooled[..., 0].tolist() == [[2.0, 4.5], [5.0, 11.0], [8.0, 0.0]]


def test_every_fixed_latent_has_a_token() -> None:
    for length in range(1, 40):
        for fixed in range(1, 12):
            pooled = pool(torch.ones(1, length, 1), [length], fixed=fixed)
            torch.testing.assert_close(pooled, torch.ones(1, min(fixed, length), 1))


@pytest.mark.parametrize("fixed", [0, 3])
def test_padding_on_the_right_changes_nothing(fixed: int) -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(3, 9, 6, generator=generator)
    padded = torch.cat([states, torch.full((3, 5, 6), 1e6)], dim=1)
    expected = pool(states, [9, 6, 1], fixed=fixed)
    # The rows' own padding, inside and beyond the shorter tensor.
    states[1, 6:] = states[2, 1:] = -1e6
    assert torch.equal(pool(states, [9, 6, 1], fixed=fixed), expected)
    torch.testing.assert_close(pool(padded, [9, 6, 1], fixed=fixed), expected)


@pytest.mark.parametrize(("fixed", "spans"), [(0, [3, 3, 3]), (4, [3, 2, 2, 2])])
def test_gradient_reaches_each_token_once(fixed: int, spans: list[int]) -> None:
    states = torch.zeros(2, 12, 3, requires_grad=True)
    pool(states, [9, 0], fixed=fixed).sum().backward()  # type: ignore[no-untyped-call]
    assert states.grad is not None
    expected = [1 / span for span in spans for _ in range(span)] + [0.0] * 3
    torch.testing.assert_close(states.grad[0], torch.tensor(expected)[:, None].expand(-1, 3))
    assert not states.grad[1].any()


def test_a_text_becomes_wires_of_several_ratios() -> None:
    states = column([[1, 2, 3, 4, 5, 6, 7, 8]])
    texts = dataclasses.replace(
        wires_of([8], ratio=2),
        text_of=torch.tensor([0, 0]),
        counts=torch.tensor([4, 2]),
    )
    pooling = MeanPooling(1, 1)
    expected = [[1.5, 3.5, 5.5, 7.5], [2.5, 6.5, 0.0, 0.0]]
    torch.testing.assert_close(
        pooling(states, texts), pooling.project(torch.tensor(expected)[..., None])
    )


def test_block_pooling_starts_as_the_mean_and_stays_in_its_span() -> None:
    torch.manual_seed(0)
    pooling = BlockPooling(6, 8, 2)
    states = torch.randn(2, 9, 6)
    texts = wires_of([9, 5])
    values = pooling.attention.value(pooling.norm(states))
    means = MeanPooling(8, 8)
    means.project = pooling.attention.out
    pooled = pooling(states, texts)
    for row, count in enumerate(texts.counts.tolist()):
        torch.testing.assert_close(pooled[row, :count], means(values, texts)[row, :count])
    torch.nn.init.normal_(pooling.query)
    before = pooling(states, texts)
    changed = states.clone()
    changed[0, 4:] = 1e3
    after = pooling(changed, texts)
    assert torch.equal(after[0, 0], before[0, 0]), "the first span is tokens 0 to 3"
    assert not torch.equal(after[0, 1], before[0, 1])


def test_queries_start_at_their_own_place_and_see_the_whole_text() -> None:
    torch.manual_seed(0)
    wire = WireConfig(pooling="queries", num_latents=4, d_z=8, heads=2)
    pooling = FixedPooling(6, wire)
    states = torch.randn(64, 16, 6, requires_grad=True)
    pooled = pooling(states, wires_of([16] * 64, fixed=4))
    (grad,) = torch.autograd.grad(pooled[:, 1].square().sum(), states)
    reach = grad.norm(dim=-1).mean(0)
    assert (reach > 0).all(), "every token"
    assert reach[4:8].mean() > 2 * reach[12:].mean(), "its own quarter more than the far one"


def test_what_lies_behind_a_text_reaches_no_query() -> None:
    torch.manual_seed(0)
    wire = WireConfig(pooling="queries", num_latents=4, d_z=8, heads=2)
    for pooling in (FixedPooling(6, wire), BlockPooling(6, 8, 2)):
        states = torch.randn(2, 9, 6)
        texts = wires_of([9, 3], fixed=4)
        before = pooling(states, texts)
        states[1, 3:] = 1e6
        torch.testing.assert_close(pooling(states, texts)[1, :3], before[1, :3])
