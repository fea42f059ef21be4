"""The assembled wire: one shared unit and one unit per decoder, built in one place.

Training, evaluation and inference all build it here and read it through the same two calls, so
that they cannot drift apart.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from latentwire.config import Config
from latentwire.data.encoder_texts import EncoderTexts
from latentwire.wire.backbones import NamedParameters
from latentwire.wire.encoder import Encoder
from latentwire.wire.parts import part_of_shared
from latentwire.wire.unit import DecoderShape, DecoderUnit, Injection


class SharedUnit(nn.Module):
    """Text to wire; the same for every decoder. Arguments are those of ``Encoder``."""

    def __init__(self, config: Config, *, num_lead: int, model: Any = None) -> None:
        super().__init__()
        self.encoder = Encoder(config, num_lead=num_lead, model=model)

    def forward(self, texts: EncoderTexts) -> Tensor:
        """-> latents [rows, private + max_latents, d_z]"""
        latents: Tensor = self.encoder(texts)
        # Sharding hooks hang on the output tensor, which a view would share with its base.
        return latents.clone()

    def part_of(self, name: str) -> str:
        """The part (``wire.parts``) that a parameter belongs to."""
        return part_of_shared(name)

    def parameter_groups(self) -> dict[str, NamedParameters]:
        return {
            name: [(f"encoder.{key}", parameter) for key, parameter in group]
            for name, group in self.encoder.parameter_groups().items()
        }


class Wire(nn.Module):
    """The shared unit and the units of the decoders that this process hosts.

    Args:
        decoders: every decoder of the job, in the order in which the encoder makes their private
            latents.
        private_len: private latents of each.
    """

    def __init__(
        self,
        shared: SharedUnit,
        units: Mapping[str, DecoderUnit],
        *,
        decoders: list[str],
        private_len: int,
    ) -> None:
        super().__init__()
        # Sharding puts its own modules in their place.
        self.shared: nn.Module = shared
        self.units = nn.ModuleDict(dict(units))
        self._decoders = decoders
        self._private_len = private_len

    def encode(self, texts: EncoderTexts) -> Tensor:
        """Texts to latents [rows, every decoder's private ones + max_latents, d_z]."""
        latents: Tensor = self.shared(texts)
        return latents

    def inject(
        self, decoder: str, latents: Tensor, counts: Tensor, *, unit: nn.Module | None = None
    ) -> Injection:
        """What one decoder reads.

        Args:
            latents: as ``encode`` makes them.
            counts: [rows] shared latents of each row.
            unit: in place of the decoder's own.
        """
        each, first = self._private_len, self._decoders.index(decoder) * self._private_len
        own = latents[:, first : first + each]
        shared = latents[:, each * len(self._decoders) :]
        if each:
            shared = torch.cat([own, shared], dim=1)
        unit = self.units[decoder] if unit is None else unit
        return Injection(**unit(shared, counts + each))


def build_wire(
    config: Config,
    shapes: Mapping[str, DecoderShape],
    *,
    num_lead: int,
    device: torch.device,
    model: Any = None,
) -> Wire:
    """The wire with fresh adapters and its encoder as the configuration starts it.

    A unit's first weights depend on the seed and the unit's name only, so every layout of the
    same job starts from the same wire.

    Args:
        shapes: of the decoders this process hosts.
        model: the language model that the encoder is built on; None loads it.
    """
    with _seeded(config.run.seed, "shared"):
        shared = SharedUnit(config, num_lead=num_lead, model=model)
    units = {}
    for name, shape in shapes.items():
        with _seeded(config.run.seed, name):
            units[name] = DecoderUnit(shape, config, lora=config.decoders[name].lora)
    wire = Wire(
        shared,
        units,
        decoders=list(config.decoders),
        private_len=config.wire.latent_private_len,
    )
    return wire.to(device)


@contextmanager
def _seeded(seed: int, name: str) -> Iterator[None]:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(digest[:7], "big"))
        yield
