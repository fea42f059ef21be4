"""What one rank reads in a micro-batch: rows and lengths, from the configuration and a layout."""

import dataclasses
import math
from dataclasses import dataclass

from latentwire.config import Config
from latentwire.distributed.topology import Topology
from latentwire.planning.shapes import ModelShape

_BYTES_PER_TOKEN = 4
_BYTE_WINDOW = 4096
"""Longest text of the byte encoder where the configuration says nothing else."""


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """How long texts and prompts are, in tokens of any of the models."""

    context: int
    """Of a text that the encoder reads, or a text teacher."""
    before: int = 40
    """Of a prompt in front of the wire: what a chat template opens with."""
    after: int = 64
    """Behind it: the question, and what the template puts around it."""
    answer: int
    """With the EOS."""


def longest(
    config: Config,
    encoder: ModelShape | None,
    *,
    context: int | None = None,
    prompt: int | None = None,
) -> Lengths:
    """The longest texts that a configuration lets through.

    Args:
        encoder: shape of the encoder's model; None for ``byte``.
        context: tokens of a text instead.
        prompt: tokens of a prompt before and after the wire, together.
    """
    limit = config.encoder.max_tokens
    if context is None and encoder is None:
        context = (limit or _BYTE_WINDOW) // _BYTES_PER_TOKEN
    elif context is None:
        assert encoder is not None
        context = min(limit or encoder.window, encoder.window)
    answer = config.data.max_answer_tokens + 1
    if prompt is None:
        return Lengths(context=context, answer=answer)
    before = prompt * 2 // 5
    return Lengths(context=context, before=before, after=prompt - before, answer=answer)


@dataclass(frozen=True, kw_only=True)
class EncoderRead:
    """What the encoder reads on one rank, and what it makes of it."""

    texts: int
    tokens: int
    """Of each text; bytes for ``byte``."""
    wires: int
    latents: int
    """Of each wire, private ones of every decoder included."""


@dataclass(frozen=True, kw_only=True)
class DecoderRead:
    """What one decoder reads on one rank."""

    prefixes: int
    """Distinct contexts."""
    prefix: int
    """Positions of each up to the wire's end: text before it, and the wire."""
    examples: int
    suffix: int
    """Positions of each example after its prefix, its answer but for the last token included."""
    answer: int
    """Supervised positions of each example."""
    latents: int
    """Latents of a wire that the adapter turns into a soft prompt."""
    slots: int
    """Positions of a wire in the prefix."""
    text: int
    """Tokens of a context as the text teacher reads it."""
    before: int

    @property
    def suffix_tokens(self) -> int:
        return self.examples * self.suffix

    @property
    def prefix_tokens(self) -> int:
        return self.prefixes * self.prefix

    @property
    def supervised(self) -> int:
        return self.examples * self.answer


@dataclass(frozen=True, kw_only=True)
class StepShape:
    """How a kind of step reads its texts."""

    batch_size: int
    ratio: int
    """Encoder tokens per latent: the smallest of the step's, which makes the longest wires."""
    num_ratios: int = 1
    """Ratios at which each text is read in the same step."""
    text_share: float = 0.0
    """Part of a context that stays text."""


def step_shapes(config: Config) -> list[StepShape]:
    """Every kind of step that the configuration's stages have and that may be the largest."""
    found = []
    for name in ("A", "B"):
        stage = config.train.stage(name)
        if stage.steps == 0 and stage.epochs is None:
            continue
        ratios = stage.ratios or (config.wire.ratio,)
        shares = {0.0}
        if stage.warmup_text_latent_prob > 0:
            shares.add(max(stage.warmup_text_latent_share, stage.warmup_text_latent_share_end))
        found += [
            StepShape(
                batch_size=config.train.stage_batch_size(name),
                ratio=min(ratios),
                num_ratios=len(ratios) if stage.ratio_mode == "summed" else 1,
                text_share=share,
            )
            for share in sorted(shares)
        ]
    return list(dict.fromkeys(found)) or [
        StepShape(batch_size=config.train.batch_size, ratio=config.wire.ratio)
    ]


def num_latents(config: Config, step: StepShape, tokens: int) -> int:
    """Shared latents of a text of so many encoder tokens."""
    fixed = config.wire.num_latents
    return min(fixed, tokens) if fixed else math.ceil(tokens / step.ratio)


def encoder_read(config: Config, topology: Topology, step: StepShape, at: Lengths) -> EncoderRead:
    """What a rank encodes of a micro-batch."""
    examples = step.batch_size // config.train.accumulation
    texts = math.ceil(examples / config.data.questions_per_context)
    wires = math.ceil(texts * step.num_ratios / topology.world_size)
    tokens = _read_tokens(step, at)
    if config.encoder.kind == "byte":
        tokens *= _BYTES_PER_TOKEN
    private = config.wire.latent_private_len * len(config.decoders)
    return EncoderRead(
        texts=math.ceil(wires / step.num_ratios),
        tokens=tokens + 1,
        wires=wires,
        latents=private + num_latents(config, step, tokens),
    )


def decoder_read(
    config: Config, topology: Topology, name: str, step: StepShape, at: Lengths
) -> DecoderRead:
    """What a decoder's rank reads of a micro-batch."""
    adapter = config.adapter
    examples = step.batch_size // config.train.accumulation // topology.group(name).size
    prefixes = math.ceil(examples / config.data.questions_per_context)
    tokens = _read_tokens(step, at)
    left = at.context - tokens
    if config.encoder.kind == "byte":
        tokens *= _BYTES_PER_TOKEN
    latents = num_latents(config, step, tokens) + config.wire.latent_private_len
    slots = latents
    if adapter.deep_prefix_len:
        slots = adapter.deep_prefix_len + (latents if adapter.use_soft_prompt else 0)
    slots += 2 * adapter.use_frame
    # What stays text stands behind a deep prefix, which only what comes later can read.
    in_suffix = left if adapter.use_deep_prefix else 0
    return DecoderRead(
        prefixes=prefixes * step.num_ratios,
        prefix=at.before + slots + left - in_suffix,
        examples=examples * step.num_ratios,
        suffix=in_suffix + at.after + at.answer - 1,
        answer=at.answer,
        latents=latents,
        slots=slots,
        text=at.context,
        before=at.before,
    )


def written_reads(config: Config, step: StepShape, read: DecoderRead) -> list[DecoderRead]:
    """What a decoder writes out from each wire beside answering: ``ae`` and ``continuation``."""
    objectives, cue = config.objectives, 4
    left = math.floor(step.text_share * read.text)
    lengths = []
    if objectives.ae:
        lengths.append(min(objectives.ae_tokens or read.text, read.text - left))
    if objectives.continuation and left > 1:
        lengths.append(left - 1)
    return [
        dataclasses.replace(
            read,
            prefix=1 + read.slots,
            examples=read.prefixes,
            suffix=cue + tokens - 1,
            answer=tokens,
        )
        for tokens in lengths
    ]


def _read_tokens(step: StepShape, at: Lengths) -> int:
    """Tokens of a context that the encoder reads."""
    return max(1, at.context - math.floor(step.text_share * at.context))
