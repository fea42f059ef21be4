"""Texts that a decoder writes out from their wire: reconstruction, continuation, and the gist.

Unlike the questions these belong to the text, so each is laid out once for a wire and counts as
often as examples read that wire: the sums then do not depend on which rank reads what.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from latentwire.data.batch import PrefixRow, PromptBatch, PromptRow, prompt_batch
from latentwire.data.encoder_texts import EncoderTokenizer
from latentwire.data.loader import DecoderBatch, GlobalBatch
from latentwire.data.prompts import DecoderPrompts

REPEAT_CUE = "\nRepeat:"
"""Stands between a wire and its reconstruction."""


_Writing = tuple[tuple[int, ...], tuple[int, ...]]
"""What a decoder reads behind a wire, and what it then writes; nothing where that is empty."""


def repeat_batch(
    batch: GlobalBatch,
    own: DecoderBatch,
    prompts: DecoderPrompts,
    tokenizer: EncoderTokenizer,
    *,
    num_tokens: int,
) -> tuple[PromptBatch, Tensor] | None:
    """Every wire of a part, to be written out as its text.

    Args:
        num_tokens: of the text; 0 is all of it.

    Returns:
        the prompts, and [supervised] how many examples read the wire of each target; None where
        there is nothing to write.
    """
    writings = [_repeated(batch, t, prompts, tokenizer, num_tokens) for t in own.texts]
    return _written(batch, own, prompts, tokenizer, writings)


def continue_batch(
    batch: GlobalBatch, own: DecoderBatch, prompts: DecoderPrompts, tokenizer: EncoderTokenizer
) -> tuple[PromptBatch, Tensor] | None:
    """Every wire of a part, to be gone on from with what stayed text; as ``repeat_batch``. The
    first token of the rest is given."""
    writings = [_continued(batch, t, prompts, tokenizer) for t in own.texts]
    return _written(batch, own, prompts, tokenizer, writings)


def _repeated(
    batch: GlobalBatch,
    wire: int,
    prompts: DecoderPrompts,
    tokenizer: EncoderTokenizer,
    num_tokens: int,
) -> _Writing:
    cue, ids = prompts.plain_ids(REPEAT_CUE), prompts.plain_ids(batch.texts[wire])
    room = _room(batch, wire, prompts, tokenizer, cue)
    return cue, ids[: min(num_tokens, room) if num_tokens else room]


def _continued(
    batch: GlobalBatch, wire: int, prompts: DecoderPrompts, tokenizer: EncoderTokenizer
) -> _Writing:
    ids = prompts.plain_ids(batch.kept[wire])
    cue, rest = ids[:1], ids[1:]
    return cue, rest[: _room(batch, wire, prompts, tokenizer, cue)]


def _room(
    batch: GlobalBatch,
    wire: int,
    prompts: DecoderPrompts,
    tokenizer: EncoderTokenizer,
    cue: tuple[int, ...],
) -> int:
    """What the decoder's window leaves behind a wire and a cue."""
    num_soft = tokenizer.num_positions(batch.texts[wire], batch.ratios[wire])
    return max(1, prompts.window - len(prompts.lead) - num_soft - len(cue))


def _written(
    batch: GlobalBatch,
    own: DecoderBatch,
    prompts: DecoderPrompts,
    tokenizer: EncoderTokenizer,
    writings: Sequence[_Writing],
) -> tuple[PromptBatch, Tensor] | None:
    rows, weights = [], []
    for row, (text, (cue, answer)) in enumerate(zip(own.texts, writings, strict=True)):
        if not answer:
            continue
        num_soft = tokenizer.num_positions(batch.texts[text], batch.ratios[text])
        prefix = PrefixRow(before=prompts.lead, soft_row=row, num_soft=num_soft)
        rows.append(PromptRow(prefix=prefix, after=cue, answer=answer))
        weights += [own.readers[row]] * len(answer)
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
) -> dict[str, int]:
    """What each objective of one decoder is divided by: its positions in the whole batch.

    Args:
        batch: the whole step's batch.
    """
    lengths = [len(prompts.wire(example).answer) for example in batch.examples]
    num_tokens, num_examples = sum(lengths), len(lengths)
    by_wire = [
        (
            len(prompts.plain_ids(text)[:gist_len]),
            len(_repeated(batch, wire, prompts, tokenizer, ae_tokens)[1]),
            len(_continued(batch, wire, prompts, tokenizer)[1]),
        )
        for wire, text in enumerate(batch.texts)
    ]
    gist, ae, continuation = (
        sum(by_wire[wire][part] for wire in batch.text_of) for part in range(3)
    )
    return {
        "tf": num_tokens,
        "first": num_examples,
        "kce": sum(min(length, k) for length in lengths),
        "kd": sum(min(length, kd_positions or length) for length in lengths),
        "state": num_tokens,
        **dict.fromkeys(("span", "latent_align", "manifold", "scale_l2"), num_examples),
        "gist": gist,
        "ae": ae,
        "continuation": continuation,
    }
