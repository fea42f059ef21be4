"""The job on this rank: its groups, its frozen decoders, and the wire between them.

Training and evaluation both read a batch through ``latents`` and ``inject``: one path from text to
what a decoder sees.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from latentwire.config import Config
from latentwire.data.encoder_texts import EncoderTexts, EncoderTokenizer
from latentwire.data.loader import DecoderBatch, GlobalBatch, decoder_batch, encoder_batch
from latentwire.data.moving import placed
from latentwire.data.part_texts import PartTexts
from latentwire.data.prompts import DecoderPrompts, prompts_for
from latentwire.decoders.copy_ranks import CopyRanks
from latentwire.decoders.frozen import FrozenDecoder
from latentwire.decoders.loading import load_decoder
from latentwire.decoders.teacher_cache import TeacherCache
from latentwire.distributed.exchange import exchange, scale_gradient
from latentwire.distributed.fsdp_backend import FsdpBackend
from latentwire.distributed.groups import ProcessGroups
from latentwire.distributed.sharding import ShardedUnit, ShardingBackend
from latentwire.wire.backbones import encoder_window
from latentwire.wire.parts import SHARED_UNIT, unit_name
from latentwire.wire.twin import Twin
from latentwire.wire.unit import DecoderShape, Injection
from latentwire.wire.wire import Wire, build_wire

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Job:
    """Everything a rank works with; built once by ``assemble``."""

    config: Config
    groups: ProcessGroups
    device: torch.device
    decoders: dict[str, FrozenDecoder]
    """The decoders this rank hosts."""
    prompts: dict[str, DecoderPrompts]
    """The prompts of each hosted decoder."""
    tokenizer: EncoderTokenizer
    wire: Wire
    shapes: dict[str, DecoderShape]
    """What the wire knows of each hosted decoder."""
    units: dict[str, ShardedUnit]
    """The trained units this rank holds a shard of, by checkpoint name."""
    twins: dict[str, Twin]
    """Of each unit, the module without its sharding, for gradient queries."""
    trained_parts: dict[str, tuple[str, ...]]
    """Of each unit, the parts (``wire.parts``) that are trained, in their order."""
    teachers: dict[str, TeacherCache] = field(default_factory=dict)
    """Of hosted decoders, what they say after the training's texts, where that is kept."""

    @property
    def any_prompts(self) -> DecoderPrompts:
        """Prompts of one hosted decoder, for what does not depend on the decoder."""
        return next(iter(self.prompts.values()))

    @property
    def unit_names(self) -> list[str]:
        """Every unit of the whole job, in one order on all ranks."""
        return [SHARED_UNIT, *(unit_name(spec.decoder) for spec in self.groups.topology.groups)]

    def latents(self, batch: GlobalBatch, texts: EncoderTexts | None = None) -> Tensor:
        """Every wire of the batch: [at least wires, num_latents, d_z].

        Each rank encodes its slice of them, once; the exchange does the rest.

        Args:
            texts: what ``texts`` makes of the batch, where it was made before.
        """
        texts = self.texts(batch) if texts is None else texts
        return exchange(self.wire.encode(texts.to(self.device)), self.groups.world)

    def texts(self, batch: GlobalBatch) -> EncoderTexts:
        """What this rank encodes of the batch."""
        world = self.groups.world
        return encoder_batch(batch, self.tokenizer, rank=world.rank, world_size=world.size)

    def part_texts(self, name: str, batch: GlobalBatch, own: DecoderBatch) -> PartTexts:
        """What objectives read of the texts of a decoder's part."""
        return PartTexts(
            batch,
            own,
            self.prompts[name],
            self.tokenizer,
            self.config,
            device=self.device,
            # What stands in for nothing reaches every weight that a text would: ranks that reduce
            # gradients together then have the same ones.
            never_none=self.groups.world.size > 1 or self.decoders[name].ranks is not None,
        )

    def parts(self, batch: GlobalBatch) -> Iterator[tuple[str, DecoderBatch]]:
        """This rank's part of a training batch for each decoder it hosts."""
        for name, prompts in self.prompts.items():
            group = self.groups.decoder(name)
            yield (
                name,
                decoder_batch(
                    batch, prompts, self.tokenizer, part=group.rank, num_parts=group.size
                ),
            )

    def inject(
        self,
        decoder: str,
        latents: Tensor,
        batch: DecoderBatch,
        *,
        unit: nn.Module | None = None,
    ) -> Injection:
        """What one decoder reads for the wires of its part of the batch.

        Args:
            latents: what ``latents`` returned for the global batch.
            unit: in place of the decoder's own.
        """
        counts = placed(batch.counts, self.device)
        rows = placed(batch.texts, self.device)
        # The gradient that enters the exchange is averaged over the world, the loss over a group.
        factor = self.scale(decoder)
        longest = self.num_private + max(1, *batch.counts)
        own = scale_gradient(latents, factor)[rows, :longest]
        return self.wire.inject(decoder, own, counts, unit=unit)

    def scale(self, decoder: str) -> float:
        """What multiplies a gradient where it enters the exchange; see ``scale_gradient``."""
        return self.groups.world.size / self.groups.decoder(decoder).size

    @property
    def num_private(self) -> int:
        """Private latents of all decoders, which stand before the shared ones."""
        return self.config.wire.latent_private_len * len(self.config.decoders)


def assemble(config: Config, groups: ProcessGroups, *, encoder_model: Any = None) -> Job:
    """Loads this rank's decoders, builds the wire and shards its units. All ranks must call.

    Args:
        encoder_model: the language model that the encoder is built on; None loads it.
    """
    device = groups.device
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    decoders: dict[str, FrozenDecoder] = {}
    prompts: dict[str, DecoderPrompts] = {}
    for spec in groups.hosted:
        name = spec.decoder
        settings = config.decoders[name]
        log.info("loading decoder '%s' from %s", name, settings.model)
        copy = groups.copy_of(name)
        ranks = None
        if copy is not None:
            ranks = CopyRanks(mesh=copy.mesh, bookkeeping=copy.bookkeeping)
        decoders[name] = load_decoder(name, settings, dtype=dtype, device=device, ranks=ranks)
        prompts[name] = prompts_for(
            config, name, decoders[name].tokenizer, window=decoders[name].window
        )
    log.info("building the wire: encoder %s %s", config.encoder.kind, config.encoder.model)
    with_cache = config.adapter.use_deep_prefix
    shapes = {name: d.shape(with_cache=with_cache) for name, d in decoders.items()}
    wire, tokenizer = _build(config, shapes, device, encoder_model)
    backend = _make_backend(config)
    # Taken before sharding changes the modules.
    twins = {SHARED_UNIT: Twin(wire.shared)}
    twins |= {unit_name(name): Twin(wire.units[name]) for name in decoders}
    trained_parts = {name: twin.trained_parts() for name, twin in twins.items()}
    units = {SHARED_UNIT: backend.wrap(SHARED_UNIT, wire.shared, groups.world)}
    wire.shared = units[SHARED_UNIT].module
    for name in decoders:
        key = unit_name(name)
        unit = backend.wrap(key, wire.units[name], groups.decoder(name))
        units[key], wire.units[name] = unit, unit.module
    return Job(
        config=config,
        groups=groups,
        device=device,
        decoders=decoders,
        prompts=prompts,
        tokenizer=tokenizer,
        wire=wire,
        shapes=shapes,
        units=units,
        twins=twins,
        trained_parts=trained_parts,
    )


def _build(
    config: Config, shapes: dict[str, DecoderShape], device: torch.device, encoder_model: Any
) -> tuple[Wire, EncoderTokenizer]:
    window = encoder_window(config.encoder)
    tokenizer = EncoderTokenizer(config, window=window)
    wire = build_wire(
        config, shapes, num_lead=len(tokenizer.lead), device=device, model=encoder_model
    )
    return wire, tokenizer


def _make_backend(config: Config) -> ShardingBackend:
    bf16 = config.precision == "bf16"
    if config.sharding.backend == "fsdp":
        return FsdpBackend(config.optim, bf16=bf16)
    # Only whoever asks for it needs it installed.
    from latentwire.distributed.deepspeed_backend import DeepspeedBackend
    from latentwire.distributed.ds_config import read_ds_config

    return DeepspeedBackend(config.optim, read_ds_config(config.sharding.ds_config), bf16=bf16)
