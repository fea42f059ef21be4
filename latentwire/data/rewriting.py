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


def repeated_ids(text: str, prompts: DecoderPrompts, *, num_tokens: int) -> tuple[int, ...]:
    """What ``ae`` supervises: the text's first tokens, ``num_tokens`` of them; 0 is all."""
    ids = prompts.plain_ids(text)
    return ids[:num_tokens] if num_tokens else ids


def continued_ids(kept: str, prompts: DecoderPrompts) -> tuple[int, ...]:
    """What ``continuation`` reads behind a wire: the first token is given, the rest supervised."""
    ids = prompts.plain_ids(kept)
    return ids if len(ids) > 1 else ()


def repeat_batch(
    batch: GlobalBatch,
    own: DecoderBatch,
    prompts: DecoderPrompts,
    tokenizer: EncoderTokenizer,
    *,
    num_tokens: int,
) -> tuple[PromptBatch, Tensor] | None:
    """Every wire of a part, to be written out as its text.

    Returns:
        the prompts, and [supervised] how many examples read the wire of each target; None where
        there is nothing to write.
    """
    cue = prompts.plain_ids(REPEAT_CUE)
    answers = [repeated_ids(batch.texts[t], prompts, num_tokens=num_tokens) for t in own.texts]
    return _written(batch, own, prompts, tokenizer, [cue] * len(answers), answers)


def continue_batch(
    batch: GlobalBatch, own: DecoderBatch, prompts: DecoderPrompts, tokenizer: EncoderTokenizer
) -> tuple[PromptBatch, Tensor] | None:
    """Every wire of a part, to be gone on from with what stayed text; as ``repeat_batch``."""
    rests = [continued_ids(batch.kept[t], prompts) for t in own.texts]
    return _written(
        batch, own, prompts, tokenizer, [ids[:1] for ids in rests], [ids[1:] for ids in rests]
    )


def _written(
    batch: GlobalBatch,
    own: DecoderBatch,
    prompts: DecoderPrompts,
    tokenizer: EncoderTokenizer,
    cues: Sequence[tuple[int, ...]],
    answers: Sequence[tuple[int, ...]],
) -> tuple[PromptBatch, Tensor] | None:
    rows, weights = [], []
    for row, text in enumerate(own.texts):
        if not answers[row]:
            continue
        num_soft = tokenizer.num_positions(batch.texts[text], batch.ratios[text])
        prefix = PrefixRow(before=prompts.lead, soft_row=row, num_soft=num_soft)
        room = max(1, prompts.window - prefix.length - len(cues[row]))
        answer = answers[row][:room]
        rows.append(PromptRow(prefix=prefix, after=cues[row], answer=answer))
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
            len(repeated_ids(text, prompts, num_tokens=ae_tokens)),
            max(0, len(continued_ids(kept, prompts)) - 1),
        )
        for text, kept in zip(batch.texts, batch.kept, strict=True)
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
