"""What one decoder makes of one batch under one arm."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from latentwire.data.batch import PromptBatch
from latentwire.data.example import Example
from latentwire.data.loader import GlobalBatch, decoder_batch, text_batch
from latentwire.decoders.generation import greedy
from latentwire.distributed.assembly import Job
from latentwire.evaluation.arms import Arm, TextArm, WireArm
from latentwire.evaluation.metrics import Prediction
from latentwire.objectives.row_chunks import of_answer
from latentwire.objectives.tokens import token_losses
from latentwire.wire.unit import Injection

_BF16_BYTES = 2


@dataclass(frozen=True, kw_only=True)
class Read:
    """One example's answer."""

    text: str
    """Generated."""
    losses: Sequence[float]
    """Of each token of the first accepted answer and its EOS, in nats."""
    first: bool
    """The answer's first token is the most likely one."""
    top5: bool
    """It is among the five most likely."""


def read_wire(job: Job, name: str, arm: WireArm, batch: GlobalBatch, latents: Tensor) -> list[Read]:
    """This rank's part of the batch, read from its wires."""
    group, prompts = job.groups.decoder(name), job.prompts[name]
    asked, answered = (
        decoder_batch(
            batch,
            prompts,
            job.tokenizer,
            part=group.rank,
            num_parts=group.size,
            answers=answers,
        )
        for answers in (False, True)
    )
    if arm.change is not None:
        latents = arm.change(latents)
    wire = job.inject(name, latents, asked)
    return _answers(job, name, asked.latents_prompt, answered.latents_prompt, wire)


def read_text(job: Job, name: str, arm: TextArm, batch: GlobalBatch, part: range) -> list[Read]:
    """This rank's part of the batch, read from text."""
    prompts = job.prompts[name]
    tokens = [
        arm.prompt(
            prompts,
            batch.examples[i],
            job.tokenizer.num_positions(batch.texts[batch.text_of[i]], arm.ratio),
        )
        for i in part
    ]
    asked = text_batch(tokens, pad=prompts.pad, answers=False)
    return _answers(job, name, asked, text_batch(tokens, pad=prompts.pad), None)


def _answers(
    job: Job, name: str, asked: PromptBatch, answered: PromptBatch, wire: Injection | None
) -> list[Read]:
    decoder, prompts = job.decoders[name], job.prompts[name]
    generated = greedy(
        decoder,
        asked.to(job.device),
        eos=prompts.eos,
        max_new_tokens=job.config.eval.max_new_tokens,
        wire=wire,
    )
    answered = answered.to(job.device)
    starts = answered.target_place == 0

    def per_row(logits: Tensor, rows: slice) -> dict[str, Tensor]:
        targets, first = answered.targets[rows], starts[rows]
        best = logits[first].topk(min(5, logits.shape[-1]), dim=-1).indices
        return {
            "losses": token_losses(logits, targets),
            "hits": best == targets[first][:, None],
        }

    found = of_answer(decoder.answer(answered, wire), per_row)
    losses, hits = found["losses"].cpu(), found["hits"].cpu()
    lengths = answered.target_mask.sum(1).tolist()
    return [
        Read(text=prompts.decode(ids), losses=own.tolist(), first=first, top5=top5)
        for ids, own, first, top5 in zip(
            generated.tolist(),
            losses.split(lengths),
            hits[:, 0].tolist(),
            hits.any(1).tolist(),
            strict=True,
        )
    ]


def prediction(
    job: Job, name: str, arm: Arm, read: Read, *, index: int, document: int, example: Example
) -> Prediction:
    """One example's answer with what its scores need to know."""
    sizes: dict[str, int] = {}
    if isinstance(arm, WireArm) and arm.carries:
        slot, config = job.prompts[name].slot_text(example), job.config.wire
        num_latents = job.tokenizer.num_latents(slot, arm.ratio) + config.latent_private_len
        sizes = {
            "context_tokens": job.prompts[name].num_context_tokens(example),
            "wire_positions": job.tokenizer.num_positions(slot, arm.ratio),
            "wire_bytes": num_latents * config.d_z * _BF16_BYTES,
            "text_bytes": len(example.context.encode()),
        }
    return Prediction(
        example=index,
        document=document,
        decoder=name,
        arm=arm.name,
        kind=example.kind,
        question=example.question,
        answers=example.answers,
        prediction=read.text,
        nll_sum=sum(read.losses),
        num_tokens=len(read.losses),
        first_correct=read.first,
        first_in_top5=read.top5,
        **sizes,
    )
