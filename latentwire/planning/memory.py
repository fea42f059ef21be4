"""What one rank holds at each point of a training step, and where that is most."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from latentwire.config import Config
from latentwire.distributed.topology import Topology
from latentwire.planning import activations, batch, state
from latentwire.planning.batch import DecoderRead, EncoderRead, Lengths, StepShape
from latentwire.planning.frozen import frozen_bytes, number_bytes, readings
from latentwire.planning.parts import UnitSize, decoder_size, encoder_size
from latentwire.planning.shapes import ModelShape
from latentwire.wire.parts import PARTS, SHARED_PARTS, unit_name

GIB = 2**30
NO_PARTS = ("none",)
"""No part's norms."""
WEIGHTS = "frozen weights"
TRAINED = "trained weights"
MOMENTS = "moments"
GRADIENTS = "gradients"
GATHERED = "gathered weights"
ENCODER = "encoder activations"
DECODER = "decoder activations"
UNIT = "adapter, deep prefix"
CACHE = "keys and values"
LOGITS = "logits"
PASSING = "for a moment"
ROWS = (
    *(WEIGHTS, TRAINED, MOMENTS, GRADIENTS, GATHERED),
    *(ENCODER, UNIT, DECODER, CACHE, LOGITS, PASSING),
)
"""What is told apart, in the order of tables."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A rank at one point of a step."""

    name: str
    parts: Mapping[str, int]
    """Bytes by ``ROWS``."""

    @property
    def total(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """The ranks of one group, all of which hold the same."""

    ranks: tuple[int, ...]
    decoders: tuple[str, ...]
    """That each of them hosts."""
    moments: tuple[Moment, ...]
    """Of the step that needs most."""
    step: StepShape
    host: int
    """Bytes that a file offloads to the host, of each rank."""

    @property
    def peak(self) -> Moment:
        return max(self.moments, key=lambda moment: moment.total)

    @property
    def at_rest(self) -> int:
        """Bytes between two steps: weights and optimizer state."""
        parts = self.moments[-1].parts
        return sum(parts[row] for row in (WEIGHTS, TRAINED, MOMENTS))


@dataclass(frozen=True, kw_only=True)
class Models:
    """Shapes of every model of a configuration."""

    encoder: ModelShape | None
    """None for ``byte``."""
    decoders: Mapping[str, ModelShape]


def predict(
    config: Config,
    models: Models,
    topology: Topology,
    lengths: Lengths,
) -> list[RankMemory]:
    """The memory of every group's ranks; of one of them where all host everything."""
    groups = topology.groups if topology.placement == "separate" else topology.groups[:1]
    found = []
    for group in groups:
        names = tuple(spec.decoder for spec in topology.hosted_by(group.ranks[0]))
        steps = [
            _rank(config, models, topology, names, group.ranks, step, lengths)
            for step in batch.step_shapes(config)
        ]
        found.append(max(steps, key=lambda rank: rank.peak.total))
    return found


def fullest(ranks: Sequence[RankMemory]) -> RankMemory:
    """The ranks that hold most."""
    return max(ranks, key=lambda rank: rank.peak.total)


def _rank(
    config: Config,
    models: Models,
    topology: Topology,
    names: tuple[str, ...],
    ranks: tuple[int, ...],
    step: StepShape,
    lengths: Lengths,
) -> RankMemory:
    bf16, backend = config.precision == "bf16", state.backend_of(config)
    size = 2 if bf16 else state.FP32
    shared = encoder_size(config, models.encoder)
    whole = state.unit_bytes(backend, shared, ranks=topology.world_size, bf16=bf16)
    units = {
        name: state.unit_bytes(
            backend,
            decoder_size(config, name, models.decoders[name]),
            ranks=topology.group(name).size,
            bf16=bf16,
        )
        for name in names
    }
    reads = {name: batch.decoder_read(config, topology, name, step, lengths) for name in names}
    encoded = batch.encoder_read(config, topology, step, lengths)
    timeline = _Timeline(config, models, whole, units, encoded, reads, step, size=size)
    return RankMemory(
        ranks=ranks,
        decoders=names,
        moments=timeline.moments(),
        step=step,
        host=whole.host + sum(unit.host for unit in units.values()),
    )


class _Timeline:
    """The points of one step on one rank at which it may hold most."""

    def __init__(
        self,
        config: Config,
        models: Models,
        shared: state.UnitBytes,
        units: Mapping[str, state.UnitBytes],
        encoded: EncoderRead,
        reads: Mapping[str, DecoderRead],
        step: StepShape,
        *,
        size: int,
    ) -> None:
        self._config = config
        self._units = [shared, *units.values()]
        self._shared = shared
        bf16 = config.precision == "bf16"
        frozen = {
            name: frozen_bytes(
                config.decoders[name],
                models.decoders[name],
                lengths=readings(config, read, step, at_most=True),
                bf16=bf16,
            )
            for name, read in reads.items()
        }
        self._frozen = sum(held for held, _ in frozen.values())
        self._reading = {name: working for name, (_, working) in frozen.items()}
        self._encoder = activations.encoder(config, models.encoder, encoded, size=size)
        self._kept = {
            name: activations.decoder(
                config,
                name,
                models.decoders[name],
                read,
                size=number_bytes(config.decoders[name], bf16=bf16),
            )
            for name, read in reads.items()
        }
        # What is written out from the wires comes after the answers, and is kept with them.
        self._written = {
            name: [
                activations.decoder(
                    config,
                    name,
                    models.decoders[name],
                    one,
                    size=number_bytes(config.decoders[name], bf16=bf16),
                    taught=False,
                )
                for one in batch.written_reads(config, step, read)
            ]
            for name, read in reads.items()
        }
        self._of_units = {
            name: activations.unit(config, models.decoders[name], read, size=size)
            for name, read in reads.items()
        }
        self._accumulates = config.train.accumulation > 1

    def moments(self) -> tuple[Moment, ...]:
        names = list(self._kept)
        last = names[-1]
        before = names[:-1]
        kept = self._kept[last]
        gathered = sum(unit.gathered for unit in self._units)
        all_units = sum(unit.kept for unit in self._of_units.values())
        earlier = sum(self._layers(name) for name in before)
        earlier_logits = sum(self._logits(name) for name in before)
        working = max(self._reading.values())
        of_units = list(self._of_units.values())
        reading = {
            GATHERED: gathered,
            ENCODER: self._encoder.kept,
            UNIT: all_units,
            DECODER: earlier + kept.layers,
        }
        logits = earlier_logits + kept.logits
        written = self._written[last]
        all_layers = {DECODER: earlier + self._layers(last)}
        most = [(one.logits_forward, one.backward, one.logits_backward) for one in written]
        more_logits, *backwards = (max(column) for column in zip((0, 0, 0), *most, strict=True))
        return (
            self._at("loading", {MOMENTS: 0, PASSING: self._loading()}),
            self._at(
                "encoder's forward",
                {
                    GATHERED: self._shared.gathered + self._shared.forward,
                    ENCODER: self._encoder.kept,
                    PASSING: self._encoder.forward,
                },
            ),
            self._at(
                "decoder's reading",
                reading
                | {
                    CACHE: kept.cache,
                    LOGITS: earlier_logits + kept.logits_forward // 2,
                    PASSING: working + max(unit.forward for unit in of_units),
                },
            ),
            self._at("text teacher", reading | {LOGITS: logits, PASSING: working + kept.teacher}),
            self._at("objectives", reading | {LOGITS: earlier_logits + kept.logits_forward}),
            self._at(
                "writing from the wire", reading | all_layers | {LOGITS: logits + more_logits}
            ),
            self._at(
                "decoder's backward",
                reading
                | all_layers
                | {
                    LOGITS: earlier_logits + self._logits(last),
                    PASSING: working
                    + max(
                        kept.logits_backward,
                        kept.backward,
                        *backwards,
                        *(unit.backward for unit in of_units),
                    ),
                },
            ),
            self._at(
                "encoder's backward",
                {
                    GATHERED: self._shared.gathered,
                    GRADIENTS: sum(unit.gradients for unit in self._units[1:]),
                    ENCODER: self._encoder.kept,
                    PASSING: self._encoder.backward,
                },
            ),
            self._at(
                "gradients' reduction",
                {
                    GATHERED: self._shared.gathered,
                    GRADIENTS: sum(unit.gradients for unit in self._units),
                    PASSING: max(unit.backward for unit in self._units),
                },
            ),
            *self._norms(),
            self._at("optimizer", {GRADIENTS: sum(unit.gradients for unit in self._units)}),
        )

    def _norms(self) -> Iterator[Moment]:
        """A diagnosed step's second backward: whole weights of a unit, whole gradients of it and
        their sum, and the encoder's activations once more."""
        diagnostics = self._config.diagnostics
        parts = diagnostics.grad_diag_units or PARTS
        is_diagnosed = bool(diagnostics.grad_diag_interval) and parts != NO_PARTS
        if not is_diagnosed and not self._config.objectives.auto_weight:
            return
        of_encoder = is_diagnosed and any(part in parts for part in SHARED_PARTS)
        asked = self._units if of_encoder else self._units[1:]
        largest = max(asked, key=lambda unit: unit.diagnosed)
        kept = self._encoder.kept if largest is self._shared else 0
        yield self._at(
            "gradient norms by part",
            {
                GRADIENTS: sum(unit.gradients for unit in self._units),
                ENCODER: kept,
                PASSING: largest.diagnosed,
            },
        )

    def _layers(self, name: str) -> int:
        return self._kept[name].layers + sum(one.layers for one in self._written[name])

    def _logits(self, name: str) -> int:
        return self._kept[name].logits + sum(one.logits for one in self._written[name])

    def _loading(self) -> int:
        """Whole units before they are sharded, in place of their share."""
        return sum(max(0, unit.loading - unit.weights) for unit in self._units)

    def _at(self, name: str, parts: Mapping[str, int]) -> Moment:
        waiting = sum(unit.accumulated for unit in self._units) if self._accumulates else 0
        always = {
            WEIGHTS: self._frozen,
            TRAINED: sum(unit.weights for unit in self._units),
            MOMENTS: sum(unit.moments for unit in self._units),
        }
        found = dict.fromkeys(ROWS, 0) | always | dict(parts)
        if name not in ("loading", "optimizer"):
            found[GRADIENTS] += waiting
        return Moment(name=name, parts=found)


def unit_sizes(config: Config, models: Models) -> dict[str, UnitSize]:
    """Every unit's parameters, by the name it has in checkpoints."""
    found = {"encoder": encoder_size(config, models.encoder)}
    return found | {
        unit_name(name): decoder_size(config, name, shape)
        for name, shape in models.decoders.items()
    }
