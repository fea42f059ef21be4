"""Pooling: contiguous spans, worked out by hand, whatever the padding around them."""

import pytest
import torch
from torch import Tensor

from latentwire.data.encoder_texts import num_latents
from latentwire.wire.pooling import mean_pool


def pool(states: Tensor, lengths: list[int], *, ratio: int = 4, fixed: int = 0) -> Tensor:
    counts = [num_latents(length, ratio=ratio, fixed=fixed) for length in lengths]
    return mean_pool(
        states,
        torch.tensor(lengths),
        torch.tensor(counts),
        max_latents=max(1, *counts),
        ratio=ratio,
        fixed=fixed,
    )


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
    # The last span has what is left: one token, divided by one and not by the ratio.
    states = column([[1, 2, 3, 4, 10, 20, 30, 40, 7]])
    assert pool(states, [9]).flatten().tolist() == [2.5, 25.0, 7.0]
    assert pool(states, [9], ratio=2).flatten().tolist() == [1.5, 3.5, 15.0, 35.0, 7.0]
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


@pytest.mark.parametrize(("fixed", "spans"), [(0, [4, 4, 1]), (4, [3, 2, 2, 2])])
def test_gradient_reaches_each_token_once(fixed: int, spans: list[int]) -> None:
    states = torch.zeros(2, 12, 3, requires_grad=True)
    counts = torch.tensor([len(spans), 0])
    pooled = mean_pool(states, torch.tensor([9, 0]), counts, max_latents=5, ratio=4, fixed=fixed)
    pooled.sum().backward()
    assert states.grad is not None
    expected = [1 / span for span in spans for _ in range(span)] + [0.0] * 3
    torch.testing.assert_close(states.grad[0], torch.tensor(expected)[:, None].expand(-1, 3))
    assert not states.grad[1].any()
