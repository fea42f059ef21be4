"""The gist head's score, and what it is reported against."""

import math

import pytest
import torch
from torch import Tensor

from latentwire.objectives.reconstruction import (
    count_tokens,
    gist,
    mean_embedding_nll,
    unigram_nll,
)

EMBEDDINGS = torch.randn(40, 16, generator=torch.Generator().manual_seed(3))
# Common tokens are small ids.
TARGETS = torch.randn(8, 12, generator=torch.Generator().manual_seed(4)).abs().mul(8).long()
MASK = torch.arange(12) < torch.tensor([12, 12, 5, 9, 0, 12, 1, 12])[:, None]
NUM = int(MASK.sum())


def head(vectors: Tensor, scale: float) -> tuple[float, int]:
    """Nats a token, and tokens right."""
    found, right = gist(vectors, TARGETS, MASK, EMBEDDINGS, torch.tensor(scale), chunk=16)
    assert found.shape == right.shape == (8,)
    return float(found.sum()) / NUM, int(right.sum())


def test_the_right_embedding_is_named_at_any_length() -> None:
    vectors = EMBEDDINGS[TARGETS] * torch.linspace(0.1, 10, 12)[:, None]
    nats, right = head(vectors, 100.0)
    assert nats == pytest.approx(0.0, abs=1e-4)
    assert right == NUM


def test_a_head_without_scale_knows_nothing() -> None:
    nats, _ = head(EMBEDDINGS[TARGETS], 0.0)
    assert nats == pytest.approx(math.log(40), rel=1e-6)


def test_a_wrong_vector_is_not_right() -> None:
    nats, right = head(EMBEDDINGS[(TARGETS + 1) % 40], 30.0)
    assert right == 0
    assert nats > math.log(40)


@pytest.mark.parametrize("chunk", [1, 7, 16, 40, 100])
def test_chunks_change_nothing(chunk: int) -> None:
    torch.manual_seed(0)
    vectors = torch.randn(8, 12, 16, requires_grad=True)
    found: list[tuple[Tensor, ...]] = []
    for size in (chunk, 40):
        scale = torch.tensor(7.0, requires_grad=True)
        losses, right = gist(vectors, TARGETS, MASK, EMBEDDINGS, scale, chunk=size)
        found.append((losses, right, *torch.autograd.grad(losses.sum(), (vectors, scale))))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_scores_of_the_vocabulary_are_not_kept_for_the_gradient() -> None:
    shapes: set[tuple[int, ...]] = set()

    def pack(values: Tensor) -> Tensor:
        shapes.add(tuple(values.shape))
        return values

    vectors = torch.randn(8, 12, 16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda values: values):
        gist(vectors, TARGETS, MASK, EMBEDDINGS, torch.tensor(5.0), chunk=20)
    assert (96, 16) in shapes, "directions, from which a chunk's scores are computed again"
    assert (96, 20) not in shapes


def test_only_masked_positions_are_learned() -> None:
    vectors = torch.randn(8, 12, 16, requires_grad=True)
    losses, _ = gist(vectors, TARGETS, MASK, EMBEDDINGS, torch.tensor(7.0))
    losses.sum().backward()
    assert vectors.grad is not None
    assert torch.equal(vectors.grad.norm(dim=-1) > 0, MASK)


def test_counts_of_parts_add_up() -> None:
    whole = count_tokens(TARGETS, MASK, vocabulary=40)
    parts = [
        count_tokens(TARGETS[rows], MASK[rows], vocabulary=40)
        for rows in (slice(0, 3), slice(3, 8))
    ]
    assert torch.equal(parts[0] + parts[1], whole)
    assert whole.tolist() == [int(((token == TARGETS) & MASK).sum()) for token in range(40)]


def test_mean_embedding_is_a_head_that_always_says_it() -> None:
    counts, scale = count_tokens(TARGETS, MASK, vocabulary=40), torch.tensor(5.0)
    mean = EMBEDDINGS[TARGETS[MASK]].mean(0)
    expected, _ = gist(mean.expand(8, 12, 16), TARGETS, MASK, EMBEDDINGS, scale)
    found = mean_embedding_nll(counts, TARGETS, MASK, EMBEDDINGS, scale)
    torch.testing.assert_close(found, expected, check_dtype=False)


def test_baselines_are_ordered() -> None:
    """A head that sees the text beats common tokens, which beat their mean, which beats nothing."""
    counts, scale = count_tokens(TARGETS, MASK, vocabulary=40), torch.tensor(5.0)
    noisy = EMBEDDINGS[TARGETS] + 0.3 * torch.randn(8, 12, 16)
    unigram = unigram_nll(counts, TARGETS, MASK).sum().item() / NUM
    mean = mean_embedding_nll(counts, TARGETS, MASK, EMBEDDINGS, scale).sum().item() / NUM
    assert head(noisy, 20.0)[0] < unigram < mean < math.log(40)


def test_an_unseen_token_is_possible() -> None:
    nothing = torch.zeros(40, dtype=torch.long)
    found = unigram_nll(nothing, TARGETS, MASK)
    assert found.tolist() == pytest.approx([n * math.log(40) for n in MASK.sum(1).tolist()])
