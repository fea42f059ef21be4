"""The gist head: does the wire still know how the text began?"""

import math

import torch
from torch import Tensor, nn

from latentwire.config import GistConfig
from latentwire.wire.attention import Block, hidden_from, sinusoid


class GistHead(nn.Module):
    """Latents to a guess at the context's first tokens, in one decoder's embedding space.

    A learned query for each token attends to the latents. A guess is scored by its cosine with
    every input embedding of the decoder (``objectives.reconstruction``), which no size can hide, so
    that its loss is a cross-entropy in nats. The softmax's inverse temperature is learned.

    Args:
        hidden_size: the decoder's.
    """

    def __init__(self, d_z: int, hidden_size: int, config: GistConfig) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(config.gist_len, config.hidden) * 0.02)
        self.read = Block(config.hidden, config.heads, source_width=d_z)
        self.blocks = nn.ModuleList(
            Block(config.hidden, config.heads) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.hidden)
        self.out = nn.Linear(config.hidden, hidden_size)
        self.log_scale = nn.Parameter(torch.full((1,), math.log(10.0)))

    def forward(self, latents: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """[texts, num_latents, d_z], [texts] -> guesses [texts, gist_len, hidden_size], and the
        scale [1] of their cosines."""
        texts, slots, d_z = latents.shape
        place = torch.arange(slots, device=latents.device)
        bias = hidden_from(place[None, :] < counts[:, None])[:, None, None]
        source = latents + sinusoid(place, d_z).to(latents.dtype)
        states = self.read(self.queries.expand(texts, -1, -1), bias, source)
        for block in self.blocks:
            states = block(states, None)
        # Sharding hooks hang on what a unit returns, which must be no view.
        return self.out(self.norm(states)).clone(), self.log_scale.exp()
