"""The assembled wire: one shared unit and one unit per decoder, built in one place.

Training, evaluation and inference all build it here and read it through the same two calls, so
that they cannot drift apart.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latentwire.config import AdapterConfig, Config
from latentwire.data.encoder_texts import EncoderTexts
from latentwire.wire.adapter import Adapter
from latentwire.wire.encoder import LMEncoder


@dataclass(frozen=True, kw_only=True)
class DecoderShape:
    """What a decoder's unit must know of its decoder."""

    hidden_size: int
    embedding_rms: float


class SharedUnit(nn.Module):
    """Text to wire; the same for every decoder."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.encoder = LMEncoder(config.encoder, config.wire)

    def forward(self, texts: EncoderTexts) -> Tensor:
        """-> latents [texts, max_latents, d_z]"""
        latents: Tensor = self.encoder(texts.ids, texts.num_tokens, texts.counts, texts.max_latents)
        # Sharding hooks hang on the output tensor, which a view would share with its base.
        return latents.clone()

    def parameter_groups(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        return {
            name: [(f"encoder.{key}", parameter) for key, parameter in group]
            for name, group in self.encoder.parameter_groups().items()
        }


class DecoderUnit(nn.Module):
    """Wire to what one decoder reads."""

    def __init__(self, shape: DecoderShape, *, d_z: int, adapter: AdapterConfig) -> None:
        super().__init__()
        self.adapter = Adapter(
            d_z,
            shape.hidden_size,
            hidden_mult=adapter.hidden_mult,
            embedding_rms=shape.embedding_rms,
            init_scale=adapter.init_scale,
        )

    def forward(self, latents: Tensor, counts: Tensor) -> Tensor:
        """[texts, num_latents, d_z] -> soft prompt [texts, num_latents + 2, hidden_size]"""
        soft: Tensor = self.adapter(latents, counts)
        return soft

    def parameter_groups(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        return {"adapter": [(k, p) for k, p in self.named_parameters() if p.requires_grad]}


class Wire(nn.Module):
    """The shared unit and the units of the decoders that this process hosts."""

    def __init__(self, shared: SharedUnit, units: Mapping[str, DecoderUnit]) -> None:
        super().__init__()
        # Sharding puts its own modules in their place.
        self.shared: nn.Module = shared
        self.units = nn.ModuleDict(dict(units))

    def encode(self, texts: EncoderTexts) -> Tensor:
        """Texts to latents [texts, max_latents, d_z]."""
        latents: Tensor = self.shared(texts)
        return latents

    def soft_prompt(self, decoder: str, latents: Tensor, counts: Tensor) -> Tensor:
        """Latents to one decoder's soft prompt [texts, num_latents + 2, hidden_size]."""
        soft: Tensor = self.units[decoder](latents, counts)
        return soft


def build_wire(
    config: Config, shapes: Mapping[str, DecoderShape], *, num_lead: int, device: torch.device
) -> Wire:
    """The wire with fresh adapters and a pretrained encoder.

    A unit's first weights depend on the seed and the unit's name only, so every layout of the
    same job starts from the same wire.
    """
    with _seeded(config.run.seed, "shared"):
        shared = SharedUnit(config)
    shared.encoder.num_lead = num_lead
    units = {}
    for name, shape in shapes.items():
        with _seeded(config.run.seed, name):
            units[name] = DecoderUnit(shape, d_z=config.wire.d_z, adapter=config.adapter)
    return Wire(shared, units).to(device)


def trainable(module: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    """The parameters that training changes: these are what a checkpoint holds."""
    return ((name, p) for name, p in module.named_parameters() if p.requires_grad)


@contextmanager
def _seeded(seed: int, name: str) -> Iterator[None]:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(digest[:7], "big"))
        yield
