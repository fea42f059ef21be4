"""From examples to what this rank feeds its encoder and its decoders.

Every rank lays out the whole global batch in text, so that lengths and counts are known everywhere
without communication, and makes tensors only of its own part.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from latentwire.data.batch import PrefixRow, PromptBatch, PromptRow, prompt_batch
from latentwire.data.draws import StepDraws
from latentwire.data.encoder_texts import EncoderTexts, EncoderTokenizer, WireText
from latentwire.data.example import Example
from latentwire.data.prompts import DecoderPrompts, PromptTokens


@dataclass(frozen=True, kw_only=True)
class GlobalBatch:
    """A micro-batch as every rank knows it: examples, and the distinct wires they need."""

    examples: tuple[Example, ...]
    """An example that is read at several ratios stands here once for each."""
    texts: tuple[str, ...]
    """The encoder's text of each wire; a text that is read at several ratios is here once for
    each."""
    ratios: tuple[int | None, ...]
    """The ratio of each wire; None is the configuration's own."""
    kept: tuple[str, ...]
    """For each wire, what stays text behind it (mixed steps; else empty)."""
    text_of: tuple[int, ...]
    """For each example its wire."""
    draws: StepDraws

    def wire(self, index: int, tokenizer: EncoderTokenizer) -> WireText:
        """One of the wires, with what this step keeps of it."""
        text, ratio = self.texts[index], self.ratios[index]
        keep = self.draws.keep(text, tokenizer.num_latents(text, ratio))
        return WireText(text=text, ratio=ratio, keep=keep)


@dataclass(frozen=True, kw_only=True)
class DecoderBatch:
    """One rank's part of a micro-batch for one decoder."""

    latents_prompt: PromptBatch
    """The prompts with the wire in their slot."""
    texts: tuple[int, ...]
    """Which wires of the global batch this part reads: the rows of its soft prompt, in order."""
    counts: tuple[int, ...]
    """Shared latents of each of those wires."""
    readers: tuple[int, ...]
    """Examples of this part that read each of them."""
    examples: tuple[int, ...]
    """Which examples of the global batch these are."""


def global_batch(
    examples: Sequence[Example],
    prompts: DecoderPrompts,
    *,
    draws: StepDraws | None = None,
    replace: Mapping[str, str] | None = None,
    ratio: int | None = None,
) -> GlobalBatch:
    """Gathers the distinct wires of ``examples``.

    Args:
        prompts: any decoder's prompts, for the text of the slot.
        draws: of a training step: what stays text, and at which ratios a text is read.
        replace: read another text's wire instead (the wrong-wire control).
        ratio: without draws, the ratio of every wire; None is the configuration's own.
    """
    drawn = draws or StepDraws()
    # Under ``carries: prompt`` two questions may share the wire's part and differ in the rest.
    wires: dict[tuple[str, int | None, str], int] = {}
    read: list[tuple[Example, int]] = []
    for example in examples:
        text = prompts.slot_text(example)
        cut = drawn.cut(text)
        ratios = drawn.ratios_of(text) if draws else (ratio,)
        rest, text = text[cut:], text[:cut] if replace is None else replace[text]
        for at in ratios:
            wire = wires.setdefault((text, at, rest), len(wires))
            read.append((example, wire))
    return GlobalBatch(
        examples=tuple(example for example, _ in read),
        texts=tuple(text for text, _, _ in wires),
        ratios=tuple(at for _, at, _ in wires),
        kept=tuple(rest for _, _, rest in wires),
        text_of=tuple(wire for _, wire in read),
        draws=drawn,
    )


def encoder_batch(
    batch: GlobalBatch, tokenizer: EncoderTokenizer, *, rank: int, world_size: int
) -> EncoderTexts:
    """This rank's slice of the wires: rank r makes wires r * rows to (r + 1) * rows."""
    rows = -(-len(batch.texts) // world_size)
    counts = [tokenizer.num_latents(*pair) for pair in zip(batch.texts, batch.ratios, strict=True)]
    own = range(rank * rows, min((rank + 1) * rows, len(batch.texts)))
    wires = [batch.wire(index, tokenizer) for index in own]
    return tokenizer.batch(wires, rows=rows, max_latents=max(1, *counts))


def decoder_batch(
    batch: GlobalBatch,
    prompts: DecoderPrompts,
    tokenizer: EncoderTokenizer,
    *,
    part: int,
    num_parts: int,
    answers: bool = True,
    prompted: Sequence[PromptTokens] | None = None,
) -> DecoderBatch:
    """Part ``part`` of ``num_parts`` equal parts of the examples, for one decoder.

    Args:
        prompted: ``prompts.wire`` of every example, where it has been made already.
    """
    size = len(batch.examples) // num_parts
    own = range(part * size, (part + 1) * size)
    texts = tuple(dict.fromkeys(batch.text_of[index] for index in own))
    num_readers = Counter(batch.text_of[index] for index in own)
    rows = []
    for index in own:
        wire = batch.text_of[index]
        tokens = prompts.wire(batch.examples[index]) if prompted is None else prompted[index]
        num_soft = tokenizer.num_positions(batch.texts[wire], batch.ratios[wire])
        room = prompts.room(tokens) - num_soft
        if room < 0 and prompts.fits(tokens):
            prompts.long_wires.add(hash(batch.texts[wire]))
        kept = prompts.plain_ids(batch.kept[wire])[: max(0, room)]
        # A deep prefix is there for what is read after the prefix only.
        slot, after = ((), kept) if tokenizer.has_deep_prefix else (kept, ())
        prefix = PrefixRow(
            before=tokens.before,
            num_constant=tokens.num_constant,
            soft_row=texts.index(wire),
            num_soft=num_soft,
            slot=slot,
        )
        row = PromptRow(prefix=prefix, after=(*after, *tokens.after), answer=tokens.answer)
        rows.append(row)
    return DecoderBatch(
        latents_prompt=prompt_batch(rows, pad=prompts.pad, answers=answers),
        texts=texts,
        counts=tuple(tokenizer.num_latents(batch.texts[t], batch.ratios[t]) for t in texts),
        readers=tuple(num_readers[text] for text in texts),
        examples=tuple(own),
    )


def text_batch(tokens: Sequence[PromptTokens], *, pad: int, answers: bool = True) -> PromptBatch:
    """The prompts with text in their slot."""
    rows = [
        PromptRow(
            prefix=PrefixRow(
                before=prompt.before, num_constant=prompt.num_constant, slot=prompt.slot
            ),
            after=prompt.after,
            answer=prompt.answer,
        )
        for prompt in tokens
    ]
    return prompt_batch(rows, pad=pad, answers=answers)
