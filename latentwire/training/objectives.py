"""One decoder's objectives on its part of a micro-batch, from a single student forward."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from latentwire.data.loader import DecoderBatch, GlobalBatch
from latentwire.data.spans import decoder_spans
from latentwire.decoders.teacher import teacher_logits
from latentwire.distributed.assembly import Job
from latentwire.objectives import alignment, distillation, tokens


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one decoder made of its part."""

    sums: dict[str, Tensor]
    """Each objective summed over this part's positions; differentiable."""
    first_right: Tensor
    """Answers whose first token is the decoder's own choice."""
    num_tokens: int
    """Supervised tokens of this part."""
    soft: Tensor
    """The soft prompt [rows, num_latents + 2, hidden]."""


def measure(
    job: Job,
    name: str,
    batch: GlobalBatch,
    own: DecoderBatch,
    soft: Tensor,
    *,
    with_teacher: bool = False,
) -> Measured:
    """Reads the wire with decoder ``name`` and takes every objective's sum.

    Args:
        own: the part of ``batch`` this rank's decoder reads.
        soft: what the decoder reads for the wire [rows, num_latents + 2, hidden].
        with_teacher: measure ``kd`` even where its weight is 0.
    """
    decoder, prompts, config = job.decoders[name], job.prompts[name], job.config.objectives
    # The view keeps gradient queries at the soft prompt clear of the sharded module's own hooks.
    soft = soft.view_as(soft)
    prompt = own.latents_prompt.to(job.device)
    logits = decoder.answer_logits(prompt, soft)
    losses = tokens.token_losses(logits, prompt.targets)
    sums = {
        "tf": tokens.tf(losses),
        "first": tokens.first(losses, prompt.target_place),
        "kce": tokens.kce(losses, prompt.target_place, k=config.k),
    }
    if config.span > 0:
        spans = decoder_spans([batch.texts[text] for text in own.texts], job.tokenizer, prompts)
        spans = spans.to(job.device)
        states = decoder.states(spans.ids, spans.mask, layer=config.span_layer)
        distances = alignment.span(soft[:, 1:-1], states, spans.latent)
        # Each example counts its own text, so that the sum does not depend on who reads what.
        readers = torch.tensor([own.texts.index(batch.text_of[i]) for i in own.examples])
        sums["span"] = distances[readers.to(job.device)].sum()
    if config.kd > 0 or with_teacher:
        teacher = teacher_logits(decoder, prompts, [batch.examples[i] for i in own.examples])
        sums["kd"] = distillation.kd(logits, teacher, temperature=config.kd_temperature)
    return Measured(
        sums=sums,
        first_right=tokens.num_first_right(logits.detach(), prompt.targets, prompt.target_place),
        num_tokens=len(prompt.targets),
        soft=soft,
    )


def weighted(
    normalised: Mapping[str, Tensor], weights: Mapping[str, float], *, decoder_weight: float
) -> Tensor:
    """One decoder's loss: its normalised objectives by weight."""
    parts = [weights[name] * value for name, value in normalised.items() if weights[name] > 0]
    return decoder_weight * torch.stack(parts).sum()
