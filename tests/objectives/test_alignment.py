"""What alignment draws a soft prompt towards."""

import pytest
import torch

from latentwire.objectives import alignment

VECTORS = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(1))
EMBEDDINGS = torch.randn(50, 5, generator=torch.Generator().manual_seed(2)) + 0.2
MASK = torch.tensor([[True, True, False, True], [False, True, False, False], [False] * 4])


def test_span_draws_a_vector_towards_its_tokens_only() -> None:
    vectors = VECTORS[:1].clone().requires_grad_()
    latent = torch.tensor([[1, 1, -1]])
    alignment.span(vectors, torch.randn(1, 3, 5), latent).sum().backward()
    assert vectors.grad is not None
    assert (vectors.grad[0].norm(dim=-1) > 0).tolist() == [False, True, False, False]


def test_span_does_not_see_the_latents_left_out() -> None:
    states, latent = torch.randn(1, 3, 5), torch.tensor([[0, 1, 1]])
    changed = VECTORS[:1].clone()
    changed[:, 0] = 9.0
    alone = latent.masked_fill(latent == 0, -1)
    found = [alignment.span(vectors, states, alone) for vectors in (VECTORS[:1], changed)]
    assert torch.equal(*found)
    assert not torch.equal(found[0], alignment.span(VECTORS[:1], states, latent))


def test_latent_align_is_zero_on_an_embedding_of_any_length() -> None:
    vectors = (EMBEDDINGS[[3, 0, 49, 7]] * torch.tensor([0.1, 1.0, 5.0, 30.0])[:, None])[None]
    mask = torch.ones(1, 4, dtype=torch.bool)
    found = alignment.latent_align(vectors, mask, EMBEDDINGS, chunk=8)
    assert found.item() == pytest.approx(0.0, abs=1e-6)


def test_latent_align_pulls_real_vectors_only() -> None:
    vectors, embeddings = VECTORS.clone().requires_grad_(), EMBEDDINGS.clone().requires_grad_()
    alignment.latent_align(vectors, MASK, embeddings).sum().backward()
    assert vectors.grad is not None
    assert torch.equal(vectors.grad.norm(dim=-1) > 0, MASK)
    assert embeddings.grad is None


@pytest.mark.parametrize("objective", ["latent_align", "manifold"])
def test_a_row_does_not_see_the_others(objective: str) -> None:
    mean, std = alignment.embedding_statistics(EMBEDDINGS)

    def rows(vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if objective == "manifold":
            return alignment.manifold(vectors, mask, mean, std)
        return alignment.latent_align(vectors, mask, EMBEDDINGS)

    parts = [rows(VECTORS[row : row + 1], MASK[row : row + 1]) for row in range(3)]
    torch.testing.assert_close(torch.cat(parts), rows(VECTORS, MASK))


def test_manifold_is_zero_on_the_embeddings_and_does_not_see_their_scale() -> None:
    real = torch.ones(1, 50, dtype=torch.bool)
    found = []
    for scale in (1.0, 0.01):
        mean, std = alignment.embedding_statistics(scale * EMBEDDINGS)
        assert alignment.manifold(scale * EMBEDDINGS[None], real, mean, std).item() < 1e-10
        found.append(alignment.manifold(scale * VECTORS, MASK, mean, std))
    torch.testing.assert_close(found[0], found[1])


def test_manifold_of_random_embeddings_falls_with_their_number() -> None:
    table = torch.randn(4096, 64)
    mean, std = alignment.embedding_statistics(table)
    for slots in (8, 32):
        vectors = table[: 64 * slots].view(64, slots, 64)
        mask = torch.ones(64, slots, dtype=torch.bool)
        floor = alignment.manifold(vectors, mask, mean, std).mean().item()
        assert 1 / slots < floor < 2 / slots


def test_statistics_do_not_depend_on_the_chunk() -> None:
    whole = alignment.embedding_statistics(EMBEDDINGS.bfloat16())
    for found, expected in zip(
        alignment.embedding_statistics(EMBEDDINGS.bfloat16(), chunk=7), whole, strict=True
    ):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected)


def test_scale_l2_is_of_the_relative_drift() -> None:
    half = torch.tensor([0.5]).log()
    assert alignment.scale_l2(half, 0.5).item() == pytest.approx(0.0, abs=1e-12)
    assert alignment.scale_l2(half, 1.0).item() == pytest.approx(0.25)
    assert alignment.scale_l2(half, 0.25).item() == pytest.approx(1.0)
