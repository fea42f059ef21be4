"""From examples to what this rank feeds its encoder and its decoders.

Every rank lays out the whole global batch in text, so that lengths and counts are known everywhere
without communication, and makes tensors only of its own part.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from latentwire.data.batch import PrefixRow, PromptBatch, PromptRow, prompt_batch
from latentwire.data.encoder_texts import EncoderTexts, EncoderTokenizer
from latentwire.data.example import Example
from latentwire.data.prompts import DecoderPrompts, PromptTokens


@dataclass(frozen=True, kw_only=True)
class MixedSplit:
    """How much of each text travels as wire in a mixed step; the rest stays text."""

    seed: str
    """Names the draw; a text's own split also depends on the text."""
    share: float = 0.8
    """Largest part of a text that stays text."""

    def cut(self, text: str) -> int:
        """Where ``text`` is cut, at a white space; from ``1 - share`` of it up to its end."""
        rng = random.Random(f"{self.seed}/{text}")
        place = int(len(text) * rng.uniform(1 - self.share, 1.0))
        space = text.rfind(" ", 0, place)
        return space if space > 0 else len(text)


@dataclass(frozen=True, kw_only=True)
class GlobalBatch:
    """A micro-batch as every rank knows it: examples and the distinct texts they need."""

    examples: tuple[Example, ...]
    texts: tuple[str, ...]
    """Distinct encoder texts."""
    text_of: tuple[int, ...]
    """For each example its text."""
    kept: tuple[str, ...]
    """For each example what stays text behind the wire (mixed steps; else empty)."""


@dataclass(frozen=True, kw_only=True)
class DecoderBatch:
    """One rank's part of a micro-batch for one decoder."""

    latents_prompt: PromptBatch
    """The prompts with the wire in their slot."""
    texts: tuple[int, ...]
    """Which texts of the global batch the rows of the soft prompt are, in order."""
    counts: tuple[int, ...]
    """Latents of each of those texts."""
    examples: tuple[int, ...]
    """Which examples of the global batch these are."""


def global_batch(
    examples: Sequence[Example],
    prompts: DecoderPrompts,
    *,
    mixed: MixedSplit | None = None,
    replace: Mapping[str, str] | None = None,
) -> GlobalBatch:
    """Gathers the distinct texts of ``examples``.

    Args:
        prompts: any decoder's prompts, for the text of the slot.
        mixed: cut each text and keep the second part as text.
        replace: read another text's wire instead (the wrong-wire control).
    """
    texts: dict[str, int] = {}
    text_of, kept = [], []
    for example in examples:
        text = prompts.slot_text(example)
        cut = len(text) if mixed is None else mixed.cut(text)
        kept.append(text[cut:])
        text = text[:cut] if replace is None else replace[text]
        text_of.append(texts.setdefault(text, len(texts)))
    return GlobalBatch(
        examples=tuple(examples), texts=tuple(texts), text_of=tuple(text_of), kept=tuple(kept)
    )


def encoder_batch(
    batch: GlobalBatch, tokenizer: EncoderTokenizer, *, rank: int, world_size: int
) -> EncoderTexts:
    """This rank's slice of the texts: rank r encodes texts r * rows to (r + 1) * rows."""
    rows = -(-len(batch.texts) // world_size)
    own = list(batch.texts[rank * rows : (rank + 1) * rows])
    longest = max(tokenizer.num_latents(text) for text in batch.texts)
    return tokenizer.batch(own, rows=rows, max_latents=max(1, longest))


def decoder_batch(
    batch: GlobalBatch,
    prompts: DecoderPrompts,
    tokenizer: EncoderTokenizer,
    *,
    part: int,
    num_parts: int,
    answers: bool = True,
) -> DecoderBatch:
    """Part ``part`` of ``num_parts`` equal parts of the examples, for one decoder."""
    size = len(batch.examples) // num_parts
    own = range(part * size, (part + 1) * size)
    texts = tuple(dict.fromkeys(batch.text_of[index] for index in own))
    counts = tuple(tokenizer.num_latents(batch.texts[text]) for text in texts)
    rows = []
    for index in own:
        row = texts.index(batch.text_of[index])
        tokens = prompts.wire(batch.examples[index])
        num_soft = counts[row] + 2
        room = max(0, prompts.room(tokens) - num_soft)
        prefix = PrefixRow(
            before=tokens.before,
            soft_row=row,
            num_soft=num_soft,
            slot=prompts.plain_ids(batch.kept[index])[:room],
        )
        rows.append(PromptRow(prefix=prefix, after=tokens.after, answer=tokens.answer))
    return DecoderBatch(
        latents_prompt=prompt_batch(rows, pad=prompts.pad, answers=answers),
        texts=texts,
        counts=counts,
        examples=tuple(own),
    )


def text_batch(tokens: Sequence[PromptTokens], *, pad: int, answers: bool = True) -> PromptBatch:
    """The prompts with text in their slot."""
    rows = [
        PromptRow(
            prefix=PrefixRow(before=prompt.before, slot=prompt.slot),
            after=prompt.after,
            answer=prompt.answer,
        )
        for prompt in tokens
    ]
    return prompt_batch(rows, pad=pad, answers=answers)


def supervised_counts(
    examples: Sequence[Example], prompts: DecoderPrompts, *, k: int
) -> dict[str, int]:
    """What each objective of one decoder is divided by: its positions in the whole batch."""
    lengths = [len(prompts.wire(example).answer) for example in examples]
    num_tokens = sum(lengths)
    return {
        "tf": num_tokens,
        "first": len(lengths),
        "kce": sum(min(length, k) for length in lengths),
        "kd": num_tokens,
        "span": len(lengths),
    }
