"""Frozen decoders: bytes of their weights, whole, quantised or shared out; how often they read."""

from collections.abc import Sequence

from latentwire.config import Config, DecoderConfig
from latentwire.planning import batch
from latentwire.planning.batch import DecoderRead, StepShape
from latentwire.planning.shapes import ModelShape

FP32 = 4


def shard_of(settings: DecoderConfig) -> int:
    """Ranks that share out a frozen decoder's weights."""
    return int(getattr(settings, "shard", 1))


def layer_bytes(settings: DecoderConfig, shape: ModelShape, *, bf16: bool) -> int:
    """Bytes of a frozen decoder's layer, as it is held."""
    size = number_bytes(settings, bf16=bf16)
    matrices = shape.layer_matrices
    if settings.quantization == "nf4":
        held = matrices // 2 + matrices // 64 * 4  # half a byte, and an fp32 scale for 64 of them
    elif settings.quantization == "int8":
        held = matrices
    else:
        held = matrices * size
    return held + shape.layer_vectors * size


def frozen_bytes(
    settings: DecoderConfig, shape: ModelShape, *, lengths: Sequence[int], bf16: bool
) -> tuple[int, int]:
    """A frozen decoder's weights: bytes that one rank holds, and more while it reads.

    Args:
        lengths: positions of each of its readings, over all rows.
    """
    size, shard = number_bytes(settings, bf16=bf16), shard_of(settings)
    layer = layer_bytes(settings, shape, bf16=bf16)
    outside = (shape.num_parameters - shape.num_layers * shape.layer) * size
    whole = shape.num_layers * layer + outside
    # A quantised layer's weights are there as numbers while it is at work.
    largest = max(num_in * num_out for num_in, num_out in shape.linears.values())
    working = 0 if settings.quantization == "none" else largest * size
    if shard == 1:
        return whole, working
    # A layer or the output layer, the buffer it was gathered in, and that of the one before.
    gathered = 3 * max(layer, shape.embedding * size)
    # Each rank looks up the tokens of all that hold the copy, and leaves zeros for what it has not.
    looked_up = 2 * shard * max(lengths) * shape.hidden_size * size
    if not getattr(settings, "reshard", True):
        gathered = whole
    return -(-whole // shard), working + max(gathered, looked_up)


def teacher_reads(config: Config, *, at_most: bool = False) -> bool:
    """Whether a decoder reads its texts in a step.

    Args:
        at_most: where the teacher is cached, in building that, and in steps that measure the norms
            of objectives which are not trained; otherwise in a usual step.
    """
    objectives = config.objectives
    return bool(objectives.kd or objectives.state) and (at_most or not config.teacher.cache)


def readings(
    config: Config, read: DecoderRead, step: StepShape, *, at_most: bool = False
) -> list[int]:
    """Positions of each of a decoder's readings in a micro-batch, over all rows: the wire's
    prefixes and what follows them, the teacher's two, the texts that spans are compared with.

    Args:
        at_most: as of ``teacher_reads``.
    """
    found = []
    for one in (read, *batch.written_reads(config, step, read)):
        found += [one.prefix_tokens, one.suffix_tokens]
    objectives = config.objectives
    if teacher_reads(config, at_most=at_most):
        found += [read.prefixes * (read.before + read.text), read.suffix_tokens]
    of_cache = config.adapter.use_deep_prefix
    if objectives.span and of_cache:
        found.append(read.prefixes * read.text)
    if objectives.span and objectives.span_layer and config.adapter.use_soft_prompt:
        found.append(read.prefixes * read.text)
    return found


def number_bytes(settings: DecoderConfig, *, bf16: bool) -> int:
    """Bytes of a number in a frozen decoder's forward."""
    if settings.precision is not None:
        bf16 = settings.precision == "bf16"
    return 2 if bf16 else FP32
