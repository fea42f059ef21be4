"""What did not fit: texts beyond the encoder's window, prompts beyond a decoder's."""

import logging
from collections.abc import Sequence

from latentwire.data.example import Example
from latentwire.distributed.assembly import Job

log = logging.getLogger(__name__)


def warn_of_long(job: Job, documents: Sequence[Sequence[Example]]) -> None:
    """Says of a few documents which do not fit, before much is trained on what is cut.

    Args:
        documents: of the training split, each with its examples.
    """
    examples = [document[0] for document in documents]
    if job.groups.rank == 0:
        for example in examples:
            job.tokenizer.ids(job.any_prompts.slot_text(example))
    train = job.config.train
    ratios = [*train.stage_a.ratios, *train.stage_b.ratios]
    longest = min(ratios, default=None)
    for name, prompts in job.prompts.items():
        for example in examples if job.groups.decoder(name).rank == 0 else ():
            prompts.text(example)
            slot = prompts.slot_text(example)
            tokens, num_soft = prompts.wire(example), job.tokenizer.num_positions(slot, longest)
            if num_soft > prompts.room(tokens) and prompts.fits(tokens):
                prompts.long_wires.add(hash(slot))
    warn_of_cuts(job, f"{len(examples)} training texts looked at first")


def warn_of_cuts(job: Job, when: str) -> None:
    """Says how many texts did not fit; counted anew after each stage."""
    cuts: dict[str, set[int]] = {}
    if job.groups.rank == 0:
        limit = job.tokenizer.max_tokens
        cuts[f"texts longer than the encoder's {limit} tokens"] = job.tokenizer.cut_texts
    for name, prompts in job.prompts.items():
        if job.groups.decoder(name).rank != 0:
            continue
        cuts[f"contexts longer than the window of {prompts.window} tokens of '{name}'"] = (
            prompts.cut_contexts
        )
        cuts[f"answers longer than {prompts.max_answer_tokens} tokens of '{name}'"] = (
            prompts.cut_answers
        )
        if prompts.merged_answers:
            log.warning(
                "%s: %d answers that the tokenizer of '%s' would merge with data.anchor were "
                "tokenized by themselves",
                when,
                len(prompts.merged_answers),
                name,
            )
            prompts.merged_answers.clear()
        if prompts.long_questions:
            log.warning(
                "%s: %d questions have no place in the window of %d tokens of '%s', whatever their "
                "context; shorten them, or leave them out",
                when,
                len(prompts.long_questions),
                prompts.window,
                name,
            )
            prompts.long_questions.clear()
        if prompts.long_wires:
            log.warning(
                "%s: the wires of %d texts and their prompts are longer than the window of %d "
                "tokens of '%s'; use a larger wire.ratio or a smaller encoder.max_tokens",
                when,
                len(prompts.long_wires),
                prompts.window,
                name,
            )
            prompts.long_wires.clear()
    for what, found in cuts.items():
        if found:
            log.warning("%s: cut %d %s", when, len(found), what)
        found.clear()
