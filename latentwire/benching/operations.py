"""Floating-point operations of a step that nothing can save, and of the plain loop's same step.

Counted over real tokens, padding left out: products with weights, attention, and the output layer.
A decoder's forward costs about 2 operations a parameter and token, its gradient at the activations
as many; an encoder's gradient at its weights as many again. Where a teacher's answers are read from
a cache, none are counted for it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentwire.config import Config, ConfigError
from latentwire.data.batch import PromptBatch
from latentwire.data.loader import (
    GlobalBatch,
    decoder_batch,
    encoder_batch,
    global_batch,
    text_batch,
)
from latentwire.distributed.assembly import Job
from latentwire.planning import shapes
from latentwire.planning.cost import forward_flops, trained_times
from latentwire.planning.shapes import ModelShape
from latentwire.training.stages import StepPlan


@dataclass(frozen=True, kw_only=True)
class Operations:
    """Of one step on this rank."""

    encoder: float
    decoders: dict[str, float]
    """The student's, forward and backward, by decoder."""
    teachers: dict[str, float]
    """The text teacher's forward, by decoder."""
    tokens: dict[str, int]
    """Positions that each decoder reads of the student's prompts."""

    @property
    def total(self) -> float:
        return self.encoder + sum(self.decoders.values()) + sum(self.teachers.values())


def of_step(job: Job, plan: StepPlan, *, teacher: bool) -> Operations:
    """Of the step as the trainer takes it: each context once, its questions behind it.

    Args:
        teacher: the text teacher reads the texts in every step.

    Raises:
        ConfigError: a model's shape cannot be told.
    """
    config, world = job.config, job.groups.world
    models = shapes_of(config)
    encoder, tokens = 0.0, dict.fromkeys(job.decoders, 0)
    decoders, teachers = dict.fromkeys(job.decoders, 0.0), dict.fromkeys(job.decoders, 0.0)
    for batch in _batches(job, plan):
        texts = encoder_batch(batch, job.tokenizer, rank=world.rank, world_size=world.size)
        lengths = [len(job.tokenizer.lead) + count for count in texts.num_tokens.tolist()]
        encoder += _encoded(config, models["encoder"], lengths)
        for name, prompts in job.prompts.items():
            group = job.groups.decoder(name)
            part = decoder_batch(
                batch, prompts, job.tokenizer, part=group.rank, num_parts=group.size
            )
            read = part.latents_prompt
            recomputed = config.decoders[name].gradient_checkpointing
            decoders[name] += _shared(models[name], read) * (2 + recomputed)
            tokens[name] += int(read.prefix_mask.sum() + read.suffix_mask.sum())
            if teacher:
                asked = [prompts.text(batch.examples[index]) for index in part.examples]
                teachers[name] += _shared(models[name], text_batch(asked, pad=prompts.pad))
    return Operations(encoder=encoder, decoders=decoders, teachers=teachers, tokens=tokens)


def of_plain_step(job: Job, plan: StepPlan, *, teacher: bool) -> Operations:
    """Of the same step in the plain loop: one sequence a question, logits at every position.

    Args:
        teacher: as in ``of_step``.
    """
    config, models = job.config, shapes_of(job.config)
    encoder, tokens = 0.0, dict.fromkeys(job.decoders, 0)
    decoders, teachers = dict.fromkeys(job.decoders, 0.0), dict.fromkeys(job.decoders, 0.0)
    for batch in _batches(job, plan):
        texts = [batch.texts[wire] for wire in batch.text_of]
        lengths = [len(job.tokenizer.lead) + len(job.tokenizer.ids(text)) for text in texts]
        encoder += _encoded(config, models["encoder"], lengths)
        for name, prompts in job.prompts.items():
            shape = models[name]
            for example, text in zip(batch.examples, texts, strict=True):
                asked = prompts.text(example)
                around = len(asked.before) + len(asked.after) + len(asked.answer) - 1
                length = around + job.tokenizer.num_positions(text)
                tokens[name] += length
                decoders[name] += 2 * _whole(shape, length)
                if teacher:
                    teachers[name] += _whole(shape, around + len(asked.slot))
    return Operations(encoder=encoder, decoders=decoders, teachers=teachers, tokens=tokens)


def shapes_of(config: Config) -> dict[str, ModelShape]:
    """Of the encoder and of every decoder, by name.

    Raises:
        ConfigError: one cannot be told.
    """
    found = {}
    if config.encoder.kind == "byte":
        raise ConfigError(
            ["encoder.kind: 'byte' is no model whose operations can be counted; use lm"]
        )
    named = {name: settings.model for name, settings in config.decoders.items()}
    for name, model in {"encoder": config.encoder.model, **named}.items():
        one = shapes.find(model, ask_hub=False)
        if one.shape is None:
            key = "encoder.model" if name == "encoder" else f"decoders.{name}.model"
            raise ConfigError([f"{key}: {one.origin}; its operations cannot be counted"])
        found[name] = one.shape
    return found


def _batches(job: Job, plan: StepPlan) -> Iterator[GlobalBatch]:
    for examples in plan.micro_batches(job.config.train.accumulation):
        yield global_batch(examples, job.any_prompts, draws=plan.draws)


def _encoded(config: Config, shape: ModelShape, lengths: Sequence[int]) -> float:
    times = trained_times(config)
    return times * sum(forward_flops(shape, length, length) for length in lengths)


def _whole(shape: ModelShape, length: int) -> float:
    """A sequence's forward with logits at every position."""
    return forward_flops(shape, length, length / 2) + 2 * shape.embedding * length


def _shared(shape: ModelShape, read: PromptBatch) -> float:
    """Prefixes and what follows them, forward, with logits at the supervised positions."""
    prefixes = _lengths(read.prefix_mask)
    total = sum(forward_flops(shape, length, length / 2) for length in prefixes)
    suffixes = _lengths(read.suffix_mask)
    for prefix, length in zip(read.prefix_of.tolist(), suffixes, strict=True):
        total += forward_flops(shape, length, prefixes[prefix] + length / 2)
    return total + 2 * shape.embedding * len(read.targets)


def _lengths(mask: Tensor) -> list[int]:
    found: list[int] = mask.sum(1).to(torch.long).tolist()
    return found
