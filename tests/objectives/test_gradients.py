"""Gradients of every objective: as finite differences have them, and finite where values are."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from latentwire.objectives import alignment, distillation, reconstruction, tokens

TARGETS, PLACE = torch.tensor([0, 3, 2]), torch.tensor([0, 1, 0])
MASK = torch.tensor([[True, True], [True, False], [False, False]])
IDS = torch.tensor([[0, 6], [3, 2], [0, 0]])
EMBEDDINGS = torch.randn(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
STATES = torch.randn(3, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
LATENT = torch.tensor([[0, 1], [1, 1], [-1, 0]])
STATISTICS = alignment.embedding_statistics(EMBEDDINGS)
TEACHER = torch.randn(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


def gist(vectors: Tensor, scale: Tensor) -> Tensor:
    return reconstruction.gist(vectors, IDS, MASK, EMBEDDINGS, scale, chunk=3)[0]


OF_LOGITS: dict[str, Callable[[Tensor], Tensor]] = {
    "tf": lambda logits: tokens.tf(tokens.token_losses(logits, TARGETS)),
    "first": lambda logits: tokens.first(tokens.token_losses(logits, TARGETS), PLACE),
    "kce": lambda logits: tokens.kce(tokens.token_losses(logits, TARGETS), PLACE, k=1),
    "kd": lambda logits: distillation.kd(
        logits, TEACHER.to(logits.dtype), temperature=1.7, place=PLACE, positions=1
    ),
}
OF_VECTORS: dict[str, Callable[[Tensor], Tensor]] = {
    "state": lambda vectors: distillation.state(vectors, STATES.to(vectors.dtype)),
    "span": lambda vectors: alignment.span(vectors, STATES.to(vectors.dtype), LATENT),
    "latent_align": lambda vectors: alignment.latent_align(vectors, MASK, EMBEDDINGS),
    "manifold": lambda vectors: alignment.manifold(vectors, MASK, *STATISTICS),
    "gist": lambda vectors: gist(vectors, torch.tensor(5.0, dtype=vectors.dtype)),
}


@pytest.mark.parametrize("name", OF_LOGITS)
def test_gradients_of_logits(name: str) -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(OF_LOGITS[name], logits)


@pytest.mark.parametrize("name", OF_VECTORS)
def test_gradients_of_vectors(name: str) -> None:
    torch.manual_seed(0)
    vectors = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(OF_VECTORS[name], vectors)


def test_gradients_of_scales() -> None:
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda value: gist(STATES, value), scale)
    log_scale = torch.tensor([0.4], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda value: alignment.scale_l2(value, 0.7), log_scale)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e4, 1e15])
@pytest.mark.parametrize("name", [*OF_LOGITS, *OF_VECTORS])
def test_extreme_values_stay_finite(name: str, size: float) -> None:
    torch.manual_seed(0)
    shape = (3, 7) if name in OF_LOGITS else (3, 2, 4)
    values = (size * torch.randn(shape)).requires_grad_()
    found = (OF_LOGITS | OF_VECTORS)[name](values).sum()
    (gradient,) = torch.autograd.grad(found, values)
    assert found.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("scale", [1e-6, 1e4])
def test_extreme_scales_of_the_gist_stay_finite(scale: float) -> None:
    learned = torch.tensor(scale, requires_grad=True)
    found = gist(STATES.float(), learned).sum()
    found.backward()
    assert found.isfinite()
    assert learned.grad is not None
    assert learned.grad.isfinite()
