"""Texts that a decoder writes out from their wire: reconstruction, continuation, and the gist.

Unlike the questions these belong to the text, so each is laid out once for a wire and counts as
often as examples read that wire: the sums then do not depend on which rank reads what.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentwire.config import OBJECTIVES
from latentwire.data.batch import PrefixRow, PromptBatch, PromptRow, prompt_batch
from latentwire.data.encoder_texts import EncoderTokenizer
from latentwire.data.loader import DecoderBatch, GlobalBatch
from latentwire.data.prompts import DecoderPrompts, PromptTokens

REPEAT_CUE = "\nRepeat:"
"""Stands between a wire and its reconstruction."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a decoder writes after one wire: a cue that it is given, and supervised tokens."""

    cue: tuple[int, ...] = ()
    answer: tuple[int, ...] = ()


def repeated(
    batch: GlobalBatch,
    wire: int,
    prompts: DecoderPrompts,
    tokenizer: EncoderTokenizer,
    *,
    num_tokens: int,
) -> Written:
    """What ``ae`` supervises: the first tokens of what the encoder saw of the text.

    Args:
        num_tokens: how many of them; 0 is all.
    """
    text, ratio = batch.texts[wire], batch.ratios[wire]
    seen = max(tokenizer.latent_ends(text, ratio), default=0)
    ids = prompts.plain_ids(text[:seen])
    cue = prompts.plain_ids(REPEAT_CUE)
    room = _room(batch, wire, prompts, tokenizer, cue)
    return Written(cue=cue, answer=ids[: min(num_tokens or room, room)])


def continued(
    batch: GlobalBatch, wire: int, prompts: DecoderPrompts, tokenizer: EncoderTokenizer
) -> Written:
    """What ``continuation`` supervises: what stayed text, but for its first token, the cue."""
    ids = prompts.plain_ids(batch.kept[wire])
    return Written(cue=ids[:1], answer=ids[1:][: _room(batch, wire, prompts, tokenizer, ids[:1])])


def _room(
    batch: GlobalBatch,
    wire: int,
    prompts: DecoderPrompts,
    tokenizer: EncoderTokenizer,
    cue: tuple[int, ...],
) -> int:
    """Tokens that fit a decoder's window behind a wire and a cue."""
    num_soft = tokenizer.num_positions(batch.texts[wire], batch.ratios[wire])
    return max(0, prompts.window - len(prompts.lead) - num_soft - len(cue))


def written_batch(
    batch: GlobalBatch,
    own: DecoderBatch,
    prompts: DecoderPrompts,
    tokenizer: EncoderTokenizer,
    texts: Sequence[Written],
    *,
    never_none: bool = False,
) -> tuple[PromptBatch, Tensor] | None:
    """The wires of a part, each to be gone on from with what ``texts`` holds for it.

    Args:
        never_none: where there is nothing to write, one token that counts nothing is written, so
            that ranks which share a decoder read equally often.

    Returns:
        the prompts, and [supervised] how many examples read the wire of each target; None where
        there is nothing to write.
    """
    rows, weights, readers = [], [], own.readers
    if never_none and not any(text.answer for text in texts):
        texts = [Written(cue=(prompts.pad,), answer=(prompts.pad,)), *texts[1:]]
        readers = (0,) * len(texts)
    for row, (wire, text) in enumerate(zip(own.texts, texts, strict=True)):
        if not text.answer:
            continue
        num_soft = tokenizer.num_positions(batch.texts[wire], batch.ratios[wire])
        prefix = PrefixRow(before=prompts.lead, soft_row=row, num_soft=num_soft)
        rows.append(PromptRow(prefix=prefix, after=text.cue, answer=text.answer))
        weights += [readers[row]] * len(text.answer)
    if not rows:
        return None
    return prompt_batch(rows, pad=prompts.pad), torch.tensor(weights)


def gist_targets(
    texts: Sequence[str], prompts: DecoderPrompts, *, gist_len: int
) -> tuple[Tensor, Tensor]:
    """Each text's first tokens [texts, gist_len], and which of them there are."""
    ids = torch.full((len(texts), gist_len), prompts.pad)
    mask = torch.zeros(len(texts), gist_len, dtype=torch.bool)
    for row, text in enumerate(texts):
        own = prompts.plain_ids(text)[:gist_len]
        ids[row, : len(own)] = torch.tensor(own, dtype=torch.long)
        mask[row, : len(own)] = True
    return ids, mask


def supervised_counts(
    batch: GlobalBatch,
    prompts: DecoderPrompts,
    tokenizer: EncoderTokenizer,
    *,
    k: int,
    kd_positions: int,
    gist_len: int,
    ae_tokens: int,
    names: Collection[str] = OBJECTIVES,
    prompted: Sequence[PromptTokens] | None = None,
) -> dict[str, int]:
    """What each objective of one decoder is divided by: its positions in the whole batch.

    Args:
        batch: the whole step's batch; the counts of its parts add up to its own.
        names: objectives whose texts are counted; of ``gist``, ``ae`` and ``continuation``, the
            others are left out.
        prompted: ``prompts.wire`` of every example, where it has been made already.
    """
    prompted = prompted or [prompts.wire(example) for example in batch.examples]
    lengths = [len(tokens.answer) for tokens in prompted]
    num_tokens, num_examples = sum(lengths), len(lengths)
    of_texts: dict[str, Callable[[int], int]] = {
        "gist": lambda wire: len(prompts.plain_ids(batch.texts[wire])[:gist_len]),
        "ae": lambda wire: len(
            repeated(batch, wire, prompts, tokenizer, num_tokens=ae_tokens).answer
        ),
        "continuation": lambda wire: len(continued(batch, wire, prompts, tokenizer).answer),
    }
    by_wire = {
        name: [count(wire) for wire in range(len(batch.texts))]
        for name, count in of_texts.items()
        if name in names
    }
    return {
        "tf": num_tokens,
        "first": num_examples,
        "kce": sum(min(length, k) for length in lengths),
        "kd": sum(min(length, kd_positions or length) for length in lengths),
        "state": num_tokens,
        **dict.fromkeys(("span", "latent_align", "manifold", "scale_l2"), num_examples),
        **{name: sum(own[wire] for wire in batch.text_of) for name, own in by_wire.items()},
    }
