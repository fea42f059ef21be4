"""Can a decoder write out the text of a wire? Beside the same question with other wires.

What this shows holds for decoders that cannot answer about the text too: tokens that are likelier
after a text's own wire than after another text's were carried.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from latentwire.data.batch import PrefixRow, PromptBatch, PromptRow, prompt_batch
from latentwire.data.example import Example
from latentwire.data.loader import decoder_batch, global_batch
from latentwire.data.prompts import DecoderPrompts
from latentwire.data.rewriting import Written, repeated, written_batch
from latentwire.decoders.answered import Answered
from latentwire.distributed.assembly import Job
from latentwire.evaluation.texts import mean_by_decoder, text_batches
from latentwire.objectives.row_chunks import token_scores
from latentwire.wire.controls import wrong_slots, zero

ARMS = ("latent", "wrong_wire", "zero_wire", "no_wire")


@torch.no_grad()
def reconstruction_scores(
    job: Job, examples: Sequence[Example]
) -> dict[str, dict[str, dict[str, float]]] | None:
    """Each text's first tokens, written after its wire, another text's, a zero one and none.

    As many tokens as ``objectives.ae`` trains. All ranks must call.

    Returns:
        by decoder and arm on rank 0, None elsewhere: ``nll`` in nats per token, and the
        ``accuracy`` of the most likely token after the right ones before it.

    Raises:
        ValueError: all examples have the same text.
    """
    wrong = wrong_slots(examples, job.any_prompts, seed=job.config.run.seed)
    found = mean_by_decoder(job, examples, lambda name, texts: _scores(job, name, texts, wrong))
    if found is None:
        return None
    return {
        name: {arm: {what: means[f"{arm}/{what}"] for what in ("nll", "accuracy")} for arm in ARMS}
        for name, means in found.items()
    }


def _scores(
    job: Job, name: str, examples: Sequence[Example], wrong: dict[str, str]
) -> dict[str, float]:
    """Sums over this rank's part of the texts."""
    decoder, prompts = job.decoders[name], job.prompts[name]
    num_tokens = job.config.objectives.ae_tokens
    is_shared = decoder.ranks is not None
    sums = {f"{arm}/{what}": 0.0 for arm in ARMS for what in ("nll", "accuracy")} | {"num": 0.0}
    for batch in text_batches(job, name, examples):
        latents = job.latents(batch.whole)
        group = job.groups.decoder(name)
        other = global_batch(batch.examples, job.any_prompts, replace=wrong)
        other_latents = job.latents(other)
        other_own = decoder_batch(
            other, prompts, job.tokenizer, part=group.rank, num_parts=group.size
        )
        texts = [
            repeated(batch.whole, text, prompts, job.tokenizer, num_tokens=num_tokens)
            if counted
            else Written()
            for text, counted in zip(batch.own.texts, batch.counted.tolist(), strict=True)
        ]
        sums["num"] += sum(len(text.answer) for text in texts)
        read = {
            "latent": (batch.whole, batch.own, latents),
            "wrong_wire": (other, other_own, other_latents),
            "zero_wire": (batch.whole, batch.own, zero(latents)),
        }
        for arm, (whole, own, wires) in read.items():
            # Sharded weights are gathered for it: every rank of the group takes part.
            wire = job.inject(name, wires, own)
            laid_out = written_batch(
                whole, own, prompts, job.tokenizer, texts, never_none=is_shared
            )
            if laid_out is not None:
                prompt, is_counted = laid_out[0].to(job.device), bool(laid_out[1].any())
                _add(sums, arm, decoder.answer(prompt, wire), prompt.targets, is_counted)
        is_counted = any(text.answer for text in texts)
        if is_counted or is_shared:
            prompt = _bare(prompts, texts).to(job.device)
            _add(sums, "no_wire", decoder.answer(prompt), prompt.targets, is_counted)
    return sums


def _bare(prompts: DecoderPrompts, texts: Sequence[Written]) -> PromptBatch:
    """The cue alone; one token where there is nothing to write."""
    written = [text for text in texts if text.answer]
    written = written or [Written(cue=(prompts.pad,), answer=(prompts.pad,))]
    prefix = PrefixRow(before=prompts.lead)
    rows = [PromptRow(prefix=prefix, after=text.cue, answer=text.answer) for text in written]
    return prompt_batch(rows, pad=prompts.pad)


def _add(
    sums: dict[str, float], arm: str, said: Answered, targets: Tensor, is_counted: bool
) -> None:
    if not is_counted:
        return
    losses, right = token_scores(said, targets)
    sums[f"{arm}/nll"] += float(losses.sum())
    sums[f"{arm}/accuracy"] += int(right.sum())
