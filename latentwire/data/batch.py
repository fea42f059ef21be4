"""Token layout of a batch for one decoder: what is read once, and what each question adds.

Questions on one context share everything up to the end of the slot. That shared part is a
*prefix*, read once; the rest of a prompt is a *suffix*, which continues its prefix. Prefixes are
padded on the right and suffixes on the left, so that answers end in the same column and a padded
query always has something real to look at.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentwire.data.moving import moved


@dataclass(frozen=True, kw_only=True)
class PrefixRow:
    """The shared part of one or more prompts."""

    before: tuple[int, ...]
    num_constant: int = 0
    """Tokens that ``before`` begins with in every prompt of the decoder."""
    soft_row: int = -1
    """Row of the soft prompt that fills the slot; -1 for text."""
    num_soft: int = 0
    """Soft-prompt vectors in the slot."""
    slot: tuple[int, ...] = ()
    """Text tokens in the slot, after the soft prompt if there is one."""

    @property
    def length(self) -> int:
        return len(self.before) + self.num_soft + len(self.slot)


@dataclass(frozen=True, kw_only=True)
class PromptRow:
    """One example's prompt: its prefix, the tokens after it, and the supervised answer."""

    prefix: PrefixRow
    after: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class PromptBatch:
    """Tensors of a batch of prompts for one decoder."""

    prefix_ids: Tensor
    """[prefixes, length]; a slot position holds the padding token."""
    prefix_soft: Tensor
    """[prefixes, length]: which soft-prompt vector stands here; -1 for a token."""
    prefix_soft_row: Tensor
    """[prefixes]: row of the soft prompt; 0 where there is none."""
    prefix_mask: Tensor
    """[prefixes, length]: True at real positions."""
    prefix_of: Tensor
    """[examples]: the prefix each example continues."""
    prefix_readers: Tensor
    """[prefixes]: how many examples continue each."""
    suffix_ids: Tensor
    """[examples, length]: ``after`` and, in training, the answer without its last token."""
    suffix_mask: Tensor
    """[examples, length]"""
    suffix_positions: Tensor
    """[examples, length]: position ids, counted on from the prefix's own length."""
    columns: Tensor
    """[kept]: suffix columns whose logits are wanted."""
    target_mask: Tensor
    """[examples, kept]: True where a logit row predicts an answer token."""
    target_index: Tensor
    """[supervised]: the same positions in the flattened [examples * kept], known without asking
    the device."""
    targets: Tensor
    """[supervised]: the answer tokens, example by example."""
    target_place: Tensor
    """[supervised]: place of each target in its answer, from 0."""
    prefix_is_full: bool | None = None
    """Whether ``prefix_mask`` is True everywhere, known without asking the device; None where it
    is not known."""
    constant: tuple[int, ...] = ()
    """Tokens that all prefixes, of any batch, begin with; they are in ``prefix_ids`` too, and each
    prefix has at least one more."""

    def to(self, device: torch.device) -> "PromptBatch":
        return moved(self, device)


def num_shared(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens both begin with."""
    same = (a == b for a, b in zip(left, right, strict=False))
    return next(
        (place for place, equal in enumerate(same) if not equal), min(len(left), len(right))
    )


def _constant(prefixes: Sequence[PrefixRow]) -> tuple[int, ...]:
    first = prefixes[0].before
    shared = (
        min(prefix.num_constant, prefix.length - 1, num_shared(prefix.before, first))
        for prefix in prefixes
    )
    return first[: max(0, min(shared))]


def prompt_batch(rows: Sequence[PromptRow], *, pad: int, answers: bool = True) -> PromptBatch:
    """Lays out ``rows``; with ``answers=False`` the suffix ends at the answer cue, as generation
    wants it, and the last column's logits are kept."""
    prefixes = list(dict.fromkeys(row.prefix for row in rows))
    number = {prefix: index for index, prefix in enumerate(prefixes)}
    readers = Counter(row.prefix for row in rows)
    width = max(1, *(prefix.length for prefix in prefixes))
    prefix_ids = torch.full((len(prefixes), width), pad)
    prefix_soft = torch.full((len(prefixes), width), -1)
    prefix_mask = torch.zeros((len(prefixes), width), dtype=torch.bool)
    for index, prefix in enumerate(prefixes):
        slot = len(prefix.before)
        prefix_ids[index, :slot] = torch.tensor(prefix.before, dtype=torch.long)
        prefix_soft[index, slot : slot + prefix.num_soft] = torch.arange(prefix.num_soft)
        text = slot + prefix.num_soft
        prefix_ids[index, text : prefix.length] = torch.tensor(prefix.slot, dtype=torch.long)
        prefix_mask[index, : prefix.length] = True

    suffixes = [row.after + (row.answer[:-1] if answers else ()) for row in rows]
    length = max(len(suffix) for suffix in suffixes)
    suffix_ids = torch.full((len(rows), length), pad)
    suffix_mask = torch.zeros((len(rows), length), dtype=torch.bool)
    suffix_positions = torch.zeros((len(rows), length), dtype=torch.long)
    kept = max(len(row.answer) for row in rows) if answers else 1
    target_mask = torch.zeros((len(rows), kept), dtype=torch.bool)
    for index, (row, suffix) in enumerate(zip(rows, suffixes, strict=True)):
        first = length - len(suffix)
        suffix_ids[index, first:] = torch.tensor(suffix, dtype=torch.long)
        suffix_mask[index, first:] = True
        start = row.prefix.length
        suffix_positions[index, first:] = torch.arange(start, start + len(suffix))
        if answers:
            target_mask[index, kept - len(row.answer) :] = True
    supervised = [row.answer for row in rows] if answers else []
    return PromptBatch(
        prefix_ids=prefix_ids,
        prefix_soft=prefix_soft,
        prefix_soft_row=torch.tensor([max(prefix.soft_row, 0) for prefix in prefixes]),
        prefix_mask=prefix_mask,
        prefix_of=torch.tensor([number[row.prefix] for row in rows]),
        suffix_ids=suffix_ids,
        suffix_mask=suffix_mask,
        suffix_positions=suffix_positions,
        columns=torch.arange(length - kept, length),
        target_mask=target_mask,
        target_index=target_mask.flatten().nonzero()[:, 0],
        targets=torch.tensor([t for answer in supervised for t in answer], dtype=torch.long),
        target_place=torch.tensor(
            [place for answer in supervised for place in range(len(answer))], dtype=torch.long
        ),
        prefix_is_full=all(prefix.length == width for prefix in prefixes),
        prefix_readers=torch.tensor([readers[prefix] for prefix in prefixes]),
        constant=_constant(prefixes),
    )
