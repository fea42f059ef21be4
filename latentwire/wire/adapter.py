"""The adapter: latents to vectors that one decoder reads among its input embeddings."""

import math

import torch
from torch import Tensor, nn


class Adapter(nn.Module):
    """Latents to soft-prompt vectors, at the scale of the decoder's own input embeddings.

    A frozen decoder reads vectors of its embeddings' size; an adapter's raw output is a hundred
    times larger and drowns them. Every output vector is therefore brought to the embeddings' root
    mean square, times a learned scale.

    Args:
        d_z: width of a latent.
        hidden_size: the decoder's.
        hidden_mult: hidden layer over ``hidden_size``.
        embedding_rms: root mean square of the decoder's input embeddings.
        init_scale: the learned scale's first value.
        dropout: of the hidden layer.
    """

    def __init__(
        self,
        d_z: int,
        hidden_size: int,
        *,
        hidden_mult: float,
        embedding_rms: float,
        init_scale: float = 1.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        width = int(hidden_size * hidden_mult)
        self.norm = nn.LayerNorm(d_z)
        self.expand = nn.Linear(d_z, width)
        self.dropout = nn.Dropout(dropout)
        self.contract = nn.Linear(width, hidden_size)
        self.log_scale = nn.Parameter(torch.full((1,), math.log(init_scale)))
        self._embedding_rms = embedding_rms

    def forward(self, latents: Tensor) -> Tensor:
        """[texts, num_latents, d_z] -> [texts, num_latents, hidden_size]"""
        hidden = self.dropout(nn.functional.gelu(self.expand(self.norm(latents))))
        hidden = self.contract(hidden)
        size = hidden.float().pow(2).mean(-1, keepdim=True).add(1e-8).rsqrt().to(hidden.dtype)
        return hidden * size * (self._embedding_rms * self.log_scale.exp())


class Frame(nn.Module):
    """Learned vectors that mark the wire's begin and end.

    Args:
        embedding_rms: root mean square of the decoder's input embeddings, which they start with.
    """

    def __init__(self, hidden_size: int, *, embedding_rms: float) -> None:
        super().__init__()
        self.begin = nn.Parameter(torch.randn(hidden_size) * embedding_rms)
        self.end = nn.Parameter(torch.randn(hidden_size) * embedding_rms)

    def forward(self, body: Tensor, counts: Tensor) -> Tensor:
        """[texts, n, hidden_size], [texts] -> [texts, n + 2, hidden_size].

        Row i is begin, its ``counts[i]`` vectors, end; what follows is padding.
        """
        begin, end = (
            vector.to(body.dtype).expand(len(body), 1, -1) for vector in (self.begin, self.end)
        )
        framed = torch.cat([begin, body, end], dim=1)
        place = torch.arange(framed.shape[1], device=framed.device)
        is_end = place[None, :] == counts[:, None] + 1  # [texts, n + 2]
        return torch.where(is_end[..., None], end, framed)
