"""Bytes that the trainer's collectives carry in a step, over each group and over the world.

``size`` is that of the whole tensor: what an all-gather makes, a reduce-scatter takes, an
all-reduce works on. What a rank sends of it is ``sent``, by the usual ring or by halves.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from latentwire.config import OBJECTIVES, Config
from latentwire.distributed.topology import Topology
from latentwire.planning import batch, state
from latentwire.planning.batch import Lengths, StepShape
from latentwire.planning.frozen import layer_bytes, number_bytes, readings, shard_of
from latentwire.planning.memory import NO_PARTS, Models, unit_sizes
from latentwire.planning.parts import UnitSize
from latentwire.wire.parts import unit_name

WORLD = "world"
_PARTS = 6
"""Parts of units that gradient norms are told apart by (``wire.parts``)."""
_OWN_FORWARD = ("ae", "continuation", "span")
"""Objectives whose gradient norms are measured where they are trained only."""

Kind = Literal["all-gather", "reduce-scatter", "all-reduce"]


@dataclass(frozen=True, kw_only=True)
class Collective:
    """One kind of message of a step."""

    what: str
    group: str
    """``world``, or a decoder's name."""
    ranks: int
    kind: Kind
    size: float
    """Bytes in a step, over all its calls; of what does not come every step, the mean."""
    calls: float
    """Calls in a step."""
    exposed: bool = True
    """Whether the step waits for it; what is gathered layer by layer runs beside the layers."""

    @property
    def sent(self) -> float:
        """Bytes that each rank sends, and receives, in a step."""
        share = (self.ranks - 1) / self.ranks
        return self.size * share * (2 if self.kind == "all-reduce" else 1)


def collectives(
    config: Config,
    models: Models,
    topology: Topology,
    step: StepShape,
    lengths: Lengths,
) -> list[Collective]:
    """Every collective of a training step; groups of one rank have none."""
    backend = state.backend_of(config)
    interval = config.diagnostics.grad_diag_interval
    diagnosed, balancing = 1 / interval if interval else 0.0, _balancing(config)
    measured = min(1.0, diagnosed + balancing)
    sizes = unit_sizes(config, models)
    world = topology.world_size
    found = _unit(config, backend, sizes["encoder"], "encoder", WORLD, world)
    found += _exchange(config, topology, step, lengths)
    for spec in topology.groups:
        unit = sizes[unit_name(spec.decoder)]
        found += _unit(config, backend, unit, "adapter", spec.decoder, spec.size)
        found += _frozen(config, models, topology, spec.decoder, step, lengths, diagnosed=measured)
    found += _scalars(config, topology)
    if config.diagnostics.grad_diag_units == NO_PARTS:
        diagnosed, measured = 0.0, balancing
    if diagnosed:
        found += _shared_norms(config, topology, sizes["encoder"], step, lengths, share=diagnosed)
    if measured:
        found += _norms(config, topology, sizes, share=measured)
    return [one for one in found if one.ranks > 1 and one.size]


def _unit(
    config: Config, backend: state.Backend, unit: UnitSize, what: str, group: str, ranks: int
) -> list[Collective]:
    size = 2 if config.precision == "bf16" else state.FP32
    micro = config.train.accumulation

    def one(name: str, kind: Kind, total: float, calls: float, exposed: bool) -> Collective:
        return Collective(
            what=f"{what} {name}",
            group=group,
            ranks=ranks,
            kind=kind,
            size=total,
            calls=calls,
            exposed=exposed,
        )

    layers, trained = unit.num_layers, unit.trained * state.FP32
    if backend.stage in (1, 2):
        times = micro if backend.stage == 2 else 1
        buckets = max(1, -(-unit.trained // backend.bucket))
        return [
            one("gradients", "all-reduce", times * trained, times * buckets, exposed=True),
            one("weights", "all-gather", unit.trained * size, 1, exposed=True),
        ]
    gathers = [
        one("weights, rest", "all-gather", micro * unit.rest * size, micro, exposed=True),
        one(
            "weights, layers",
            "all-gather",
            micro * 2 * layers * unit.layer * size,
            micro * 2 * layers,
            exposed=False,
        ),
    ]
    if backend.stage == 3:
        times = micro
        # What it may keep from the forward to the backward it gathers once.
        passes = micro * (1 if unit.total <= backend.live else 2)
        gathers = [one("weights", "all-gather", passes * unit.total * size, passes, exposed=True)]
    else:
        times = 1
    return [
        *gathers,
        one("gradients", "reduce-scatter", times * trained, times * (layers + 1), exposed=True),
    ]


def _exchange(
    config: Config, topology: Topology, step: StepShape, lengths: Lengths
) -> list[Collective]:
    read = batch.encoder_read(config, topology, step, lengths)
    size = 2 if config.precision == "bf16" else state.FP32
    world, micro = topology.world_size, config.train.accumulation
    total = micro * world * read.wires * read.latents * config.wire.d_z * size

    def one(what: str, kind: Kind) -> Collective:
        return Collective(what=what, group=WORLD, ranks=world, kind=kind, size=total, calls=micro)

    return [one("latents", "all-gather"), one("latents' gradients", "reduce-scatter")]


def _scalars(config: Config, topology: Topology) -> list[Collective]:
    """The gradient's norm, the agreement on a stop, and a logged step's values."""
    world, decoders = topology.world_size, len(topology.groups)

    def one(what: str, size: float, calls: float) -> Collective:
        return Collective(
            what=what, group=WORLD, ranks=world, kind="all-reduce", size=size, calls=calls
        )

    log, balancing = 1 / config.diagnostics.log_interval, _balancing(config)
    values = decoders * (len(OBJECTIVES) + 1) * 8
    return [
        one("gradient's norm", ((1 + decoders) * _PARTS + 1) * 4, 1),
        one("stop", 4, 1),
        one("logged values", values * log, log),
        one("balance", (len(OBJECTIVES) - 1) * 8 * balancing, balancing),
    ]


def _balancing(config: Config) -> float:
    """Share of steps that measure gradients for automatic weights."""
    return 1 / config.objectives.auto_interval if config.objectives.auto_weight else 0.0


def _frozen(
    config: Config,
    models: Models,
    topology: Topology,
    name: str,
    step: StepShape,
    at: Lengths,
    *,
    diagnosed: float,
) -> list[Collective]:
    """A sharded decoder's weights, gathered layer by layer each time that it reads, and what its
    embeddings are asked for: each rank looks up what it holds, for all that hold a copy."""
    settings, shape = config.decoders[name], models.decoders[name]
    shard = shard_of(settings)
    if shard == 1:
        return []
    read = batch.decoder_read(config, topology, name, step, at)
    bf16, micro = config.precision == "bf16", config.train.accumulation
    size = number_bytes(settings, bf16=bf16)
    lengths = readings(config, read, step)
    layers = shape.num_layers * layer_bytes(settings, shape, bf16=bf16)
    norm = shape.hidden_size * size
    head = shape.embedding * size
    # Each reading ends in the output layer; back through it go those that write something.
    writes = 1 + len(batch.written_reads(config, step, read))
    forwards, backwards = len(lengths), 2 * writes
    if not getattr(settings, "reshard", True):
        forwards, backwards, writes = 1, 0, 0
    weights: float = (forwards + backwards) * layers + (forwards + writes) * (head + norm)
    calls = (forwards + backwards) * (shape.num_layers + 2)
    looked_up = list(lengths)
    objectives = config.objectives
    if objectives.span and config.adapter.use_soft_prompt and not objectives.span_layer:
        looked_up.append(read.prefixes * read.text)
    asked = sum(looked_up)

    def one(what: str, kind: Kind, total: float, number: int, exposed: bool) -> Collective:
        return Collective(
            what=what,
            group=name,
            ranks=shard,
            kind=kind,
            size=micro * total,
            calls=micro * number,
            exposed=exposed,
        )

    number = len(looked_up)
    if objectives.latent_align or (objectives.gist and config.gist.use_gist_head):
        weights += head  # compared with every input embedding
    # Each objective's norm is another way back through the decoder.
    weights += diagnosed * _num_measured(config) * (2 * layers + head + norm)
    return [
        one("frozen weights", "all-gather", weights, calls, exposed=False),
        one("tokens to look up", "all-gather", shard * asked * 8, number, exposed=True),
        one("longest of them", "all-reduce", number * 8, number, exposed=True),
        one(
            "embeddings",
            "reduce-scatter",
            shard * asked * shape.hidden_size * size,
            number,
            exposed=True,
        ),
    ]


def _shared_norms(
    config: Config,
    topology: Topology,
    shared: UnitSize,
    step: StepShape,
    lengths: Lengths,
    *,
    share: float,
) -> list[Collective]:
    """Gradient norms of the shared parts: whole weights once, then each objective's gradients."""
    latents = _exchange(config, topology, step, lengths)[0].size
    micro = config.train.accumulation
    add = _norms_of(WORLD, topology.world_size, share)
    times = len(topology.groups) * _num_measured(config)
    num_shared = 1 + bool(config.wire.refiner.layers)
    found = [
        add("sizes", "all-reduce", times * num_shared * 4, 1),
        add("latents' gradients", "reduce-scatter", times * latents, times * micro),
        add("encoder gradients", "reduce-scatter", times * shared.trained * state.FP32, times),
    ]
    if whole := _whole_size(config):
        found.append(add("encoder weights", "all-gather", shared.total * whole, 1))
    return found


def _norms(
    config: Config, topology: Topology, sizes: dict[str, UnitSize], *, share: float
) -> list[Collective]:
    """The same of every decoder's own parts."""
    number = _num_measured(config)
    found = []
    for spec in topology.groups:
        unit = sizes[unit_name(spec.decoder)]
        parts = number * _num_parts(config, spec.decoder)
        add = _norms_of(spec.decoder, spec.size, share)
        found += [
            add("sizes", "all-reduce", parts * 4, 1),
            add("adapter gradients", "reduce-scatter", number * unit.trained * state.FP32, number),
        ]
        if whole := _whole_size(config):
            found.append(add("adapter weights", "all-gather", unit.total * whole, 1))
    return found


def _norms_of(
    group: str, ranks: int, share: float
) -> Callable[[str, Kind, float, float], Collective]:
    def add(what: str, kind: Kind, total: float, calls: float) -> Collective:
        return Collective(
            what=f"norms: {what}",
            group=group,
            ranks=ranks,
            kind=kind,
            size=total * share,
            calls=calls * share,
        )

    return add


def _whole_size(config: Config) -> int:
    """Bytes of each weight that is gathered for norms; 0 where ranks have them whole."""
    if state.backend_of(config).stage not in (0, 3):
        return 0
    # FSDP's are masters, not yet rounded.
    is_rounded = config.precision == "bf16" and config.sharding.backend != "fsdp"
    return 2 if is_rounded else state.FP32


def _num_parts(config: Config, name: str) -> int:
    """Trained parts of a decoder's unit."""
    adapter = config.adapter
    return (
        bool(adapter.use_soft_prompt or adapter.use_frame)
        + adapter.use_deep_prefix
        + config.gist.use_gist_head
        + bool(config.decoders[name].lora.rank)
    )


def _num_measured(config: Config) -> int:
    """Objectives whose gradient norms a diagnosed step measures (``training.objectives``)."""
    named = set(config.diagnostics.grad_diag_components)
    cheap = named or {name for name in OBJECTIVES if name not in _OWN_FORWARD}
    found = {"tf", "first", "kce"} | cheap
    found |= {name for name, weight in config.objectives.weights.items() if weight > 0}
    if not config.adapter.use_soft_prompt:
        found -= {"latent_align", "manifold", "scale_l2"}
    if not config.gist.use_gist_head:
        found.discard("gist")
    found.discard("continuation")  # in mixed steps only
    return len(found & named) if named else len(found)
