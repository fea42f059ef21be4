"""The adapter: where begin and end stand, and at what size the decoder reads the wire."""

import pytest
import torch
from torch import Tensor, nn

from latentwire.wire.adapter import Adapter, Frame

D_Z, HIDDEN, RMS = 16, 24, 0.03
COUNTS = torch.tensor([5, 2, 0])


class Framed(nn.Module):
    """An adapter's vectors between begin and end, as a decoder's unit puts them together."""

    def __init__(self) -> None:
        super().__init__()
        self.adapter = Adapter(D_Z, HIDDEN, hidden_mult=2.0, embedding_rms=RMS)
        self.frame = Frame(HIDDEN, embedding_rms=RMS)

    def forward(self, latents: Tensor, counts: Tensor) -> Tensor:
        soft: Tensor = self.frame(self.adapter(latents), counts)
        return soft


@pytest.fixture
def framed() -> Framed:
    torch.manual_seed(0)
    return Framed()


@pytest.fixture
def latents() -> Tensor:
    """[3, 5, d_z], of a size that has nothing to do with the embeddings'."""
    return 40 * torch.randn(3, 5, D_Z, generator=torch.Generator().manual_seed(1))


def test_begin_latents_end(framed: Framed, latents: Tensor) -> None:
    soft = framed(latents, COUNTS)
    assert soft.shape == (3, 7, HIDDEN)
    alone = framed(latents[:1], COUNTS[:1])
    # A row does not depend on the others, but for how a matrix product adds up.
    torch.testing.assert_close(alone[0], soft[0])
    for row, count in enumerate(COUNTS.tolist()):
        assert torch.equal(soft[row, 0], framed.frame.begin)
        assert torch.equal(soft[row, count + 1], framed.frame.end)
        ends = (soft[row] == framed.frame.end).all(-1).sum()
        # The tensor's own last column is end too; that is padding in a shorter row.
        assert ends == (1 if count == 5 else 2)
    assert not torch.equal(framed.frame.begin, framed.frame.end)
    assert not torch.equal(soft[0, 1], soft[0, 2]), "latents are read, not replaced"


def test_latents_come_out_at_the_embeddings_size(framed: Framed, latents: Tensor) -> None:
    body = framed(latents, torch.full((3,), 5))[:, 1:-1]
    rms = body.pow(2).mean(-1).sqrt()
    torch.testing.assert_close(rms, torch.full_like(rms, RMS), rtol=1e-3, atol=0)
    for vector in (framed.frame.begin, framed.frame.end):
        assert RMS / 2 < vector.pow(2).mean().sqrt() < RMS * 2


def test_learned_scale_starts_at_one_and_scales_the_latents(
    framed: Framed, latents: Tensor
) -> None:
    before = framed(latents, COUNTS)
    with torch.no_grad():
        framed.adapter.log_scale.fill_(torch.tensor(3.0).log())
    after = framed(latents, COUNTS)
    torch.testing.assert_close(after[0, 1:6], 3 * before[0, 1:6])
    assert torch.equal(after[0, 0], before[0, 0])


def test_what_lies_beyond_the_end_is_never_read(framed: Framed, latents: Tensor) -> None:
    soft = framed(latents, COUNTS)
    changed = latents.clone()
    changed[1, 2:] = float("nan")
    changed[2] = float("inf")
    again = framed(changed, COUNTS)
    for row, count in enumerate(COUNTS.tolist()):
        assert torch.equal(again[row, : count + 2], soft[row, : count + 2])
    shorter = framed(latents[1:, :2], COUNTS[1:])
    torch.testing.assert_close(shorter[0, :4], soft[1, :4])
    torch.testing.assert_close(shorter[1, :2], soft[2, :2])


def test_gradient_reaches_every_parameter_and_real_latent(framed: Framed, latents: Tensor) -> None:
    latents.requires_grad_()
    soft = framed(latents, COUNTS)
    place = torch.arange(soft.shape[1])
    real = place[None, :] < COUNTS[:, None] + 2
    weights = torch.randn(soft.shape, generator=torch.Generator().manual_seed(2))
    (soft * weights)[real].sum().backward()
    for name, parameter in framed.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    assert latents.grad is not None
    reached = latents.grad.abs().amax(-1) > 0
    assert torch.equal(reached, torch.arange(5)[None, :] < COUNTS[:, None])
