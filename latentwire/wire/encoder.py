"""The encoder: a backbone reads the text, pooling makes latents of its states, a refiner relates
them.

The results of peers agree on the default's parts: start from a language model and train it, let
it look both ways, pool contiguous spans (arXiv 2510.20797, arXiv 2510.20535).
"""

from typing import Any

import torch
from torch import Tensor, nn

from latentwire.config import Config
from latentwire.data.encoder_texts import EncoderTexts
from latentwire.wire.attention import Block, hidden_from
from latentwire.wire.backbones import NamedParameters, make_backbone, named_trainable
from latentwire.wire.pooling import QueryPooling, make_pooling


class Encoder(nn.Module):
    """Texts to latents: each decoder's private ones, then the shared ones.

    Args:
        num_lead: how many leading tokens ``EncoderTokenizer`` puts before a text.
        model: the language model to build on; None loads it.
    """

    def __init__(self, config: Config, *, num_lead: int, model: Any = None) -> None:
        super().__init__()
        wire = config.wire
        self._num_lead = num_lead
        self.backbone = make_backbone(config.encoder, model)
        width = self.backbone.width
        self.pooling = make_pooling(width, wire)
        self._private_len = wire.latent_private_len
        self._num_private = wire.latent_private_len * len(config.decoders)
        self.private = (
            QueryPooling(
                width,
                wire.d_z,
                wire.heads,
                num_queries=wire.latent_private_len,
                num_sets=len(config.decoders),
            )
            if self._num_private
            else None
        )
        self.refiner = nn.ModuleList(
            Block(wire.d_z, wire.refiner.heads, identity=True) for _ in range(wire.refiner.layers)
        )

    def forward(self, texts: EncoderTexts) -> Tensor:
        """-> latents [rows, private + max_latents, d_z], a wire's own before its padding."""
        lead = self._num_lead
        place = torch.arange(texts.ids.shape[1], device=texts.ids.device)
        # An empty text still shows one token, so that no row of the softmax is empty.
        real = place[None, :] < (texts.num_tokens + lead).clamp(min=1)[:, None]  # [texts, tokens]
        states = self.backbone(texts.ids, real)[:, lead:]  # [texts, tokens, width]
        latents = self.pooling(states, texts) * texts.keep[..., None]
        if self.private is not None:
            num_tokens = texts.num_tokens[texts.text_of]
            private = self.private(states[texts.text_of], num_tokens)
            latents = torch.cat([private, latents], dim=1)
        if len(self.refiner):
            bias = hidden_from(self._visible(texts))[:, None]
            for block in self.refiner:
                latents = block(latents, bias)
            private = texts.keep.new_ones(len(texts.keep), self._num_private)
            # What is dropped stays dropped, for what a latent itself becomes too.
            latents = latents * torch.cat([private, texts.keep], dim=1)[..., None]
        refined: Tensor = latents
        return refined

    def _visible(self, texts: EncoderTexts) -> Tensor:
        """[rows, private + max_latents, private + max_latents]: whom a latent may look at in the
        refiner. All see the shared ones that are kept; a decoder's private ones see each other
        too, and no other latent sees them."""
        slots = torch.arange(texts.max_latents, device=texts.counts.device)
        shared = (slots[None, :] < texts.counts[:, None]) & texts.keep
        width = self._num_private + texts.max_latents
        visible = nn.functional.pad(shared, (self._num_private, 0))[:, None].repeat(1, width, 1)
        place = torch.arange(self._num_private, device=slots.device)
        owner = place // max(1, self._private_len)
        own = owner[:, None] == owner[None, :]
        visible[:, : self._num_private, : self._num_private] = own
        return visible

    def layers(self) -> list[nn.Module]:
        """The transformer layers, for sharding them one by one."""
        layers: list[nn.Module] = self.backbone.layers()
        return layers

    def parameter_groups(self) -> dict[str, NamedParameters]:
        """Trained parameters by the learning rate they follow."""
        pretrained = self.backbone.pretrained()
        slow = set() if pretrained is None else {id(p) for p in pretrained.parameters()}
        groups: dict[str, NamedParameters] = {"encoder": [], "adapter": []}
        for name, parameter in named_trainable(self):
            groups["encoder" if id(parameter) in slow else "adapter"].append((name, parameter))
        return groups
