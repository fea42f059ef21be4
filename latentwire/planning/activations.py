"""Bytes of activations: what a forward keeps for its backward, and what passes for a moment.

Follows autograd operation by operation for the transformers that ``shapes`` knows, run by torch's
scaled-dot-product attention: a norm keeps its input in fp32; attention keeps queries, keys, values
(each head its own copy of them, wherever a mask is given) and its result; a gated MLP three inner
activations. A trained layer keeps the inputs of its linear layers too.
"""

from dataclasses import dataclass

from latentwire.config import Config
from latentwire.objectives.budget import rows_within
from latentwire.planning.batch import DecoderRead, EncoderRead
from latentwire.planning.parts import prefix_width
from latentwire.planning.shapes import ModelShape

FP32 = 4


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Bytes of one part of the model on one rank."""

    kept: int
    """From its forward to its backward."""
    backward: int
    """More of them for a moment, in the part's backward where it is largest."""
    forward: int = 0
    """The same in its forward."""


def encoder(config: Config, shape: ModelShape | None, read: EncoderRead, *, size: int) -> Kept:
    """The shared unit's activations.

    Args:
        shape: of the encoder's model; None for ``byte``.
        size: bytes of a number in the forward.
    """
    tokens = read.texts * read.tokens
    pooled = _pooling(config, shape, read, size=size)
    if shape is None:
        width = config.encoder.byte.width
        layers = config.encoder.byte.layers * _block(width, tokens, size=size)
        mask = FP32 * read.texts * read.tokens
        return Kept(kept=layers + mask + pooled, backward=tokens * 6 * width * size)
    mask = size * read.texts * read.tokens**2
    stream = tokens * shape.hidden_size * size
    if config.encoder.kind == "stq":
        # No gradient enters the frozen model; what is read of it is kept.
        num_read = len(config.encoder.layers) or shape.num_layers + 1
        states = shape.num_layers * stream + num_read * 2 * stream
        passing = _moment(shape, tokens, size=size)
        return Kept(kept=states + pooled + mask, backward=2 * stream, forward=passing)
    lora = bool(config.encoder.lora.rank)
    layer = tokens * _layer_token(shape, size=size, linears=True, norms=not lora)
    if lora:
        rank, num_linears = config.encoder.lora.rank, len(shape.linears)
        layer += tokens * rank * num_linears * size
    backward = _moment(shape, tokens, size=size)
    final = tokens * shape.hidden_size * (FP32 + (0 if lora else size)) + stream
    if config.encoder.activation_checkpointing:
        kept = shape.num_layers * stream
        return Kept(kept=kept + final + mask + pooled, backward=layer + backward, forward=layer)
    kept = shape.num_layers * layer
    return Kept(kept=kept + final + mask + pooled, backward=backward)


def _layer_token(shape: ModelShape, *, size: int, linears: bool, norms: bool) -> int:
    """What a layer keeps of a token, keys and values of its own repeated for every head.

    Args:
        linears: linear layers are trained, and keep their inputs.
        norms: norms are trained, and keep what they scale.
    """
    hidden, query, inner = shape.hidden_size, shape.query_width, shape.intermediate_size
    norm = FP32 * hidden + norms * size * hidden + linears * size * hidden
    attention = size * 4 * query + FP32 * shape.num_heads
    mlp = size * inner * (3 + linears)
    return 2 * norm + attention + mlp


def _moment(shape: ModelShape, tokens: int, *, size: int) -> int:
    """Gradients that are there at once in an MLP's backward, about as large as its forward."""
    return tokens * size * (3 * shape.intermediate_size + 2 * shape.hidden_size)


def _pooling(config: Config, shape: ModelShape | None, read: EncoderRead, *, size: int) -> int:
    width = config.encoder.byte.width if shape is None else shape.hidden_size
    wire, tokens = config.wire, read.wires * read.tokens
    rows = read.wires * read.latents
    states = tokens * width * size
    out = rows * wire.d_z * size
    weights = rows * read.tokens * size
    refiner = wire.refiner.layers * _block(wire.d_z, rows, size=size)
    if wire.pooling == "mean":
        return weights + states + rows * width * size + 2 * out + refiner
    keys = tokens * 2 * wire.d_z * size
    return weights * FP32 // size + 2 * states + keys + 5 * out + refiner


def _block(width: int, tokens: int, *, size: int) -> int:
    """A layer of the wire's own: norms, attention with keys and values, an MLP four times wide."""
    return tokens * size * width * (2 + 4 + 2 + 1 + 8)


def unit(config: Config, shape: ModelShape, read: DecoderRead, *, size: int) -> Kept:
    """One decoder's unit: soft prompt and deep prefix, and adding the latter to the cache."""
    adapter, d_z = config.adapter, config.wire.d_z
    rows = read.prefixes * read.latents
    kept = 3 * rows * d_z * size
    backward = 0
    if adapter.use_soft_prompt:
        width = int(shape.hidden_size * adapter.hidden_mult)
        kept += rows * (2 * width + 4 * shape.hidden_size) * size
        backward = rows * 2 * width * size
    if config.gist.use_gist_head:
        gist = config.gist
        kept += read.prefixes * gist.gist_len * (gist.hidden * 17 * 2 + shape.hidden_size) * size
        kept += read.prefixes * gist.gist_len * shape.vocab_size * FP32
    forward = 0
    if adapter.use_deep_prefix:
        slots = read.prefixes * (adapter.deep_prefix_len or read.latents)
        width = prefix_width(shape)
        kept += slots * 8 * d_z * size
        # Held as the unit's output; then taken apart by layer, and its keys turned.
        kept += slots * width * size
        forward = read.prefixes * read.prefix * width * size * 3
        backward = max(backward, read.prefixes * read.prefix * width * size * 2)
    return Kept(kept=kept, backward=backward, forward=forward)


@dataclass(frozen=True, kw_only=True)
class DecoderKept:
    """Bytes of a frozen decoder's reading on one rank."""

    layers: int
    """Kept by the layers from forward to backward."""
    cache: int
    """Keys and values that the cache holds until the answer is read."""
    backward: int
    """Gradients that are there at once."""
    logits_forward: int
    """Logits, and what the objectives make of them, where that is most."""
    logits: int
    """What of that is kept for the backward."""
    logits_backward: int
    teacher: int
    """The text teacher's own reading, without its logits; for a moment after the forward."""


def decoder(
    config: Config,
    name: str,
    shape: ModelShape,
    read: DecoderRead,
    *,
    size: int,
    taught: bool = True,
) -> DecoderKept:
    """A frozen decoder's activations: gradients reach its inputs through every layer.

    Args:
        taught: the text teacher and the texts of spans are read beside it.
    """
    checkpointed = config.decoders[name].gradient_checkpointing
    whole = read.prefix + read.suffix
    prefix, suffix = read.prefix_tokens, read.suffix_tokens
    keys = 2 * shape.kv_width * size
    """Of a position, in a layer's cache."""
    repeated = 2 * shape.query_width * size
    # A LoRA update keeps the input of its linear layer.
    updated = bool(config.decoders[name].lora.rank)
    token = _layer_token(shape, size=size, linears=updated, norms=False) - repeated
    masks = size * read.examples * read.suffix * whole + size * read.prefixes * read.prefix**2
    in_prefix = prefix * (token + repeated)
    in_suffix = suffix * token + read.examples * whole * repeated
    layer = in_prefix + in_suffix + masks
    num_layers = shape.num_layers
    # The last layer's states of the prefix lead nowhere: only its keys and values do.
    last = prefix * (token + repeated - keys - FP32 * shape.hidden_size)
    layers = num_layers * layer - last
    cache = num_layers * read.examples * whole * keys
    if checkpointed:
        stream = (prefix + suffix) * shape.hidden_size * size
        layers = num_layers * (stream + read.examples * read.prefix * keys)
        masks_once = read.examples * read.suffix * whole
        layers += masks_once
    moment = _moment(shape, max(prefix, suffix), size=size)
    backward = moment + (max(in_prefix, in_suffix) + masks if checkpointed else 0)
    kd = bool(config.objectives.kd) and taught
    # A sharded decoder's head is gathered by the forward of the whole only.
    is_chunked = config.decoders[name].shard == 1
    passing, kept, logits_backward = _logits(shape, read, size=size, kd=kd, is_chunked=is_chunked)
    return DecoderKept(
        layers=layers,
        cache=cache,
        backward=backward,
        logits_forward=passing,
        logits=kept,
        logits_backward=logits_backward,
        teacher=_teacher(config, shape, read, size=size) if taught else 0,
    )


def _logits(
    shape: ModelShape, read: DecoderRead, *, size: int, kd: bool, is_chunked: bool
) -> tuple[int, int, int]:
    """Bytes at the answers' positions: most in the forward, kept, and most in the backward."""
    rows = read.supervised
    if is_chunked and rows > (at_a_time := rows_within(shape.vocab_size)):
        # Each chunk is differentiated in the forward; gradients at the states are kept by loss.
        forward, kept, backward = _whole_logits(shape, at_a_time, size=size, kd=kd)
        states = rows * shape.hidden_size
        kept_states = (1 + kd) * states * size
        return forward + backward + kept_states, kept_states, 2 * states * FP32
    return _whole_logits(shape, rows, size=size, kd=kd)


def _whole_logits(shape: ModelShape, rows: int, *, size: int, kd: bool) -> tuple[int, int, int]:
    whole = rows * shape.vocab_size
    logits = whole * size
    cast = 0 if size == FP32 else whole * FP32
    losses = whole * FP32  # the log-softmax that cross-entropy keeps
    if not kd:
        forward = max(2 * logits, logits + cast + losses)
        return forward, losses, 2 * whole * FP32 + logits
    # Log-softmax of student and teacher, the teacher's probabilities, their difference and product.
    forward = 2 * logits + losses + 6 * whole * FP32
    return forward, losses + 2 * whole * FP32, 3 * whole * FP32 + logits


def _teacher(config: Config, shape: ModelShape, read: DecoderRead, *, size: int) -> int:
    """Reading the texts without gradients: for the teacher, or for the states of spans."""
    objectives = config.objectives
    keys = 2 * shape.kv_width * size
    found = [0]
    if objectives.kd or objectives.state:
        prefix = read.before + read.text
        suffix = read.suffix
        prompts = read.prefixes * prefix
        rows = read.examples * (prefix + suffix)
        cache = shape.num_layers * keys * rows
        reading = shape.num_layers * keys * prompts + _moment(shape, prompts, size=size)
        reading += size * read.prefixes * prefix**2
        asking = cache + _moment(shape, read.examples * suffix, size=size)
        asking += rows * 2 * shape.query_width * size
        found.append(max(reading, asking))
    if objectives.span and config.adapter.use_deep_prefix:
        tokens = read.prefixes * read.text
        cache = 2 * shape.num_layers * keys * tokens
        found.append(cache + _moment(shape, tokens, size=size))
    elif objectives.span:
        tokens = read.prefixes * read.text
        layered = _moment(shape, tokens, size=size) if config.objectives.span_layer else 0
        found.append(tokens * shape.hidden_size * (size + FP32) + layered)
    return max(found)
