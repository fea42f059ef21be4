"""What a step costs: floating-point operations by part of the model, and ranks by cost."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

from latentwire.config import Config
from latentwire.distributed.topology import Topology
from latentwire.planning.batch import DecoderRead, EncoderRead, StepShape, written_reads
from latentwire.planning.frozen import shard_of, teacher_reads
from latentwire.planning.shapes import ModelShape


@dataclass(frozen=True, kw_only=True)
class Device:
    """What a GPU and the links around it are taken to do; assumptions, not measurements."""

    flops: float = 400e12
    """Floating-point operations a second that training sustains."""
    node_bandwidth: float = 300e9
    """Bytes a second that each GPU sends inside a node."""
    link_bandwidth: float = 40e9
    """Bytes a second that each GPU sends to other nodes, over a link of its own."""
    latency: float = 10e-6
    """Seconds a message takes from one rank to another."""


def forward_flops(shape: ModelShape, tokens: float, attended: float) -> float:
    """A reading of ``tokens`` positions, each looking at ``attended`` others."""
    matrices = 2 * shape.layer_matrices * tokens
    attention = 4 * shape.query_width * tokens * attended
    return shape.num_layers * (matrices + attention)


def encoder_flops(config: Config, shape: ModelShape | None, read: EncoderRead) -> float:
    """Operations of one rank's encoder in a micro-batch, forward and backward."""
    tokens = read.texts * read.tokens
    if shape is None:
        byte = config.encoder.byte
        return 3 * byte.layers * tokens * (24 * byte.width**2 + 4 * byte.width * read.tokens)
    return trained_times(config) * forward_flops(shape, tokens, read.tokens)


def trained_times(config: Config) -> int:
    """How many forwards the encoder's model costs in a step, its backward included."""
    if config.encoder.kind == "stq":
        return 1
    # Gradients at the inputs, and where the weights themselves are trained at those too.
    times = 2 if config.encoder.lora.rank else 3
    return times + config.encoder.activation_checkpointing


def decoder_flops(
    config: Config, name: str, shape: ModelShape, read: DecoderRead, step: StepShape
) -> float:
    """Operations of one rank's decoder in a micro-batch: the wire's reading, what is written out of
    it, the teacher, the spans' states."""
    settings, objectives = config.decoders[name], config.objectives
    head = 2 * shape.embedding * read.supervised
    total = 0.0
    for one in (read, *written_reads(config, step, read)):
        student = forward_flops(shape, one.prefix_tokens, one.prefix / 2)
        student += forward_flops(shape, one.suffix_tokens, one.prefix + one.suffix)
        student += 2 * shape.embedding * one.supervised
        total += student * (2 + settings.gradient_checkpointing)
    prefix = read.before + read.text
    if teacher_reads(config):
        total += forward_flops(shape, read.prefixes * prefix, prefix / 2) + head
        total += forward_flops(shape, read.suffix_tokens, prefix + read.suffix)
    if objectives.span and config.adapter.use_deep_prefix:
        total += forward_flops(shape, read.prefixes * read.text, read.text / 2)
    return total


def shares(costs: Mapping[str, float]) -> dict[str, float]:
    """``share`` of each decoder by its cost, the cheapest at 1."""
    least = min(costs.values())
    return {name: round(cost / least, 2) for name, cost in costs.items()}


@dataclass(frozen=True, kw_only=True)
class Split:
    """Ranks by decoder."""

    ranks: Mapping[str, int]
    slowest: float
    """The largest cost over ranks of any decoder: what a step waits for."""


def best_split(
    config: Config, topology: Topology, costs: Mapping[str, float], *, micro_batch: int
) -> Split | None:
    """The ranks of each decoder with which the slowest group is fastest.

    Args:
        costs: of each decoder's whole part of a step on one rank, in any unit.
        micro_batch: examples, which every group must share out evenly.

    Returns:
        None where no split of the world divides the micro-batch.
    """
    names = list(config.decoders)
    options = []
    for name in names:
        shard = shard_of(config.decoders[name])
        sizes = range(shard, topology.world_size + 1, shard)
        options.append([size for size in sizes if micro_batch % size == 0])
    found: Split | None = None
    for others in itertools.product(*options[:-1]):
        last = topology.world_size - sum(others)
        if last not in options[-1]:
            continue
        ranks = dict(zip(names, (*others, last), strict=True))
        slowest = max(costs[name] / ranks[name] for name in names)
        if found is None or slowest < found.slowest:
            found = Split(ranks=ranks, slowest=slowest)
    return found
