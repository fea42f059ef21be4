"""What one decoder makes of one batch under each arm."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from latentwire.data.batch import PromptBatch
from latentwire.data.example import Example
from latentwire.data.loader import GlobalBatch, decoder_batch, text_batch
from latentwire.data.prompts import PromptTokens
from latentwire.decoders.answered import Context
from latentwire.decoders.contexts import has_leading_parts, selected
from latentwire.decoders.generation import Writers
from latentwire.distributed.assembly import Job
from latentwire.evaluation.answering import Answers, Read, answers
from latentwire.evaluation.arms import Arm, TextArm, WireArm
from latentwire.evaluation.metrics import Prediction

_BF16_BYTES = 2


def read_wire(
    job: Job, name: str, arm: WireArm, batch: GlobalBatch, latents: Tensor, writers: Writers
) -> Answers:
    """This rank's part of the batch, read from its wires."""
    group, prompts = job.groups.decoder(name), job.prompts[name]
    decoder = job.decoders[name]
    if arm.change is not None:
        latents = arm.change(latents)
    if arm.is_alike:
        batch = _alike(job, batch)
    own = decoder_batch(batch, prompts, job.tokenizer, part=group.rank, num_parts=group.size)
    wire = job.inject(name, latents, own)
    context = decoder.read(own.latents_prompt.to(job.device), wire)
    return _answers(job, name, own.latents_prompt, context, writers)


def _answers(
    job: Job, name: str, batch: PromptBatch, context: Context, writers: Writers
) -> Answers:
    return answers(
        job.decoders[name],
        batch,
        context,
        writers,
        ends=job.prompts[name].ends,
        max_new_tokens=job.config.eval.max_new_tokens,
    )


def _alike(job: Job, batch: GlobalBatch) -> GlobalBatch:
    """The batch with one wire for all texts that have as many latents."""
    pairs = zip(batch.texts, batch.ratios, strict=True)
    counts = [job.tokenizer.num_latents(text, ratio) for text, ratio in pairs]
    return replace(batch, text_of=tuple(counts.index(counts[text]) for text in batch.text_of))


def read_texts(
    job: Job, name: str, arms: Sequence[TextArm], examples: Sequence[Example], writers: Writers
) -> dict[str, Answers]:
    """This rank's part of the batch, read from text: by arm, example by example.

    The longest prompt of each example is read once; of an arm whose prompts begin as those do, only
    what comes after the slot is read beside it.
    """
    if not arms:
        return {}
    decoder, prompts = job.decoders[name], job.prompts[name]
    by_arm = {arm.name: [_prompt(job, name, arm, each) for each in examples] for arm in arms}
    longest = [max(each, key=_length) for each in zip(*by_arm.values(), strict=True)]
    batch = text_batch(longest, pad=prompts.pad)
    whole = decoder.read_prefixes(batch.to(job.device), None)
    has_parts = has_leading_parts(decoder, whole)
    rows = batch.prefix_of.tolist()
    found = {}
    for arm, tokens in by_arm.items():
        own = text_batch(tokens, pad=prompts.pad)
        pairs = list(zip(tokens, longest, strict=True))
        is_same = all(_before_question(part) == _before_question(full) for part, full in pairs)
        is_leading = all(_is_leading(part, full) for part, full in pairs)
        # The ranks of a sharded decoder read as often as each other.
        if decoder.all_agree(is_same or (has_parts and is_leading)):
            context = selected(
                whole,
                rows,
                lengths=None if is_same else [_length(part) for part in tokens],
                first=0 if decoder.constant is None else decoder.constant.length,
            )
        else:
            context = decoder.read(own.to(job.device), None)
        found[arm] = _answers(job, name, own, context, writers)
    return found


def _prompt(job: Job, name: str, arm: TextArm, example: Example) -> PromptTokens:
    prompts = job.prompts[name]
    text = prompts.slot_text(example)
    return arm.prompt(prompts, example, job.tokenizer.num_positions(text, arm.ratio))


def _before_question(tokens: PromptTokens) -> tuple[int, ...]:
    return tokens.before + tokens.slot


def _length(tokens: PromptTokens) -> int:
    return len(tokens.before) + len(tokens.slot)


def _is_leading(part: PromptTokens, full: PromptTokens) -> bool:
    """Token by token."""
    return _before_question(full)[: _length(part)] == _before_question(part)


def prediction(
    job: Job, name: str, arm: Arm, read: Read, *, index: int, document: int, example: Example
) -> Prediction:
    """One example's answer with what its scores need to know."""
    sizes: dict[str, int] = {}
    if isinstance(arm, WireArm) and arm.carries:
        slot, config = job.prompts[name].slot_text(example), job.config.wire
        context = job.prompts[name].read_context(example, job.tokenizer.num_read(slot))
        num_latents = job.tokenizer.num_latents(slot, arm.ratio) + config.latent_private_len
        sizes = {
            "context_tokens": job.prompts[name].num_context_tokens(context),
            "wire_positions": job.tokenizer.num_positions(slot, arm.ratio),
            "wire_bytes": num_latents * config.d_z * _BF16_BYTES,
            "text_bytes": len(context.encode()),
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
