"""The adapter: the shared wire to one decoder's soft prompt."""

import math

import torch
from torch import Tensor, nn


class Adapter(nn.Module):
    """Latents to soft prompt, at the scale of the decoder's own input embeddings.

    A frozen decoder reads vectors of its embeddings' size; an adapter's raw output is a hundred
    times larger and drowns them. Every output vector is therefore brought to the embeddings' root
    mean square, times a learned scale. Learned vectors mark the wire's begin
    and end.

    Args:
        d_z: width of a latent.
        hidden_size: the decoder's.
        hidden_mult: hidden layer over ``hidden_size``.
        embedding_rms: root mean square of the decoder's input embeddings.
        init_scale: the learned scale's first value.
    """

    def __init__(
        self,
        d_z: int,
        hidden_size: int,
        *,
        hidden_mult: float,
        embedding_rms: float,
        init_scale: float = 1.0,
    ) -> None:
        super().__init__()
        width = int(hidden_size * hidden_mult)
        self.norm = nn.LayerNorm(d_z)
        self.expand = nn.Linear(d_z, width)
        self.contract = nn.Linear(width, hidden_size)
        self.log_scale = nn.Parameter(torch.full((1,), math.log(init_scale)))
        self.begin = nn.Parameter(torch.randn(hidden_size) * embedding_rms)
        self.end = nn.Parameter(torch.randn(hidden_size) * embedding_rms)
        self._embedding_rms = embedding_rms

    def forward(self, latents: Tensor, counts: Tensor) -> Tensor:
        """[texts, num_latents, d_z], [texts] -> [texts, num_latents + 2, hidden_size].

        Row i is begin, its ``counts[i]`` latents, end; what follows is padding.
        """
        hidden = self.contract(nn.functional.gelu(self.expand(self.norm(latents))))
        size = hidden.float().pow(2).mean(-1, keepdim=True).add(1e-8).rsqrt().to(hidden.dtype)
        body = hidden * size * (self._embedding_rms * self.log_scale.exp())
        texts = body.shape[0]
        begin = self.begin.to(body.dtype).expand(texts, 1, -1)
        end = self.end.to(body.dtype).expand(texts, 1, -1)
        soft = torch.cat([begin, body, end], dim=1)
        place = torch.arange(soft.shape[1], device=soft.device)
        is_end = place[None, :] == counts[:, None] + 1  # [texts, num_latents + 2]
        return torch.where(is_end[..., None], self.end.to(body.dtype), soft)
