"""Batched greedy decoding after a prefix of text or wire."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentwire.data.batch import PromptBatch
from latentwire.decoders.answered import Context
from latentwire.decoders.contexts import is_plain, joined, selected
from latentwire.decoders.frozen import FrozenDecoder
from latentwire.wire.unit import Injection

_WORTHWHILE = 0.75
"""Rows that have ended are dropped when no more than this part of the batch is left: to drop them
copies what the others have read, as a step does."""


@torch.no_grad()
def greedy(
    decoder: FrozenDecoder,
    batch: PromptBatch,
    *,
    ends: Sequence[int],
    max_new_tokens: int,
    wire: Injection | None = None,
) -> Tensor:
    """Greedy continuations [examples, max_new_tokens]; a row that has ended is filled up.

    Args:
        batch: prompts laid out without answers.
        ends: tokens after which a row is over; the first fills it up.
        wire: what fills the slots; None for text.
    """
    context = decoder.read(batch, wire)
    logits, _ = decoder.continue_from(
        context, batch.suffix_ids, batch.suffix_mask, batch.suffix_positions, batch.columns
    )
    rows = len(batch.suffix_ids)
    written = go_on(
        decoder,
        context,
        logits[:, -1].argmax(-1),
        batch.suffix_positions[:, -1] + 1,
        rows=range(rows),
        room=[max_new_tokens] * rows,
        ends=ends,
    )
    padded = [row + [ends[0]] * (max_new_tokens - len(row)) for row in written]
    return torch.tensor(padded, device=logits.device)


@torch.no_grad()
def go_on(
    decoder: FrozenDecoder,
    context: Context,
    tokens: Tensor,
    positions: Tensor,
    *,
    rows: Sequence[int],
    room: Sequence[int],
    ends: Sequence[int],
) -> list[list[int]]:
    """Writes on greedily from a first token that each row has chosen and not yet read.

    Args:
        context: what every row has read so far. It is spent.
        tokens: [all rows] the first tokens.
        positions: [all rows] where they stand in their prompts.
        rows: those that write. A rank of a sharded decoder may have none while others have some.
        room: of each row of the context, how many tokens it may write, the first counted.
        ends: tokens after which a row is over.

    Returns:
        for each row of the context what it wrote, the first token and an end included; nothing of
        rows that do not write.
    """
    first = tokens.tolist()
    written: list[list[int]] = [[] for _ in room]
    for row in rows:
        written[row].append(first[row])

    def is_open(row: int) -> bool:
        return written[row][-1] not in ends and len(written[row]) < room[row]

    column = torch.zeros(1, dtype=torch.long, device=tokens.device)
    running, open_rows = list(range(len(room))), [row for row in rows if is_open(row)]
    # A sharded decoder goes on for as long as any of its ranks has something to write.
    while not decoder.all_agree(not open_rows):
        if len(open_rows) <= _WORTHWHILE * len(running):
            # One that has nothing to write reads along with its siblings.
            kept = open_rows or running[:1]
            place = {row: index for index, row in enumerate(running)}
            own = [place[row] for row in kept]
            context = selected(context, own)
            index = torch.tensor(own, device=tokens.device)
            tokens, positions, running = tokens[index], positions[index], kept
        real = torch.ones_like(tokens[:, None], dtype=torch.bool)
        logits, _ = decoder.continue_from(
            context, tokens[:, None], real, positions[:, None], column
        )
        tokens, positions = logits[:, -1].argmax(-1), positions + 1
        is_writing = set(open_rows)
        for row, token in zip(running, tokens.tolist(), strict=True):
            if row in is_writing:
                written[row].append(token)
        open_rows = [row for row in open_rows if is_open(row)]
    return written


@dataclass(frozen=True, kw_only=True)
class _Waiting:
    """Rows that are to be written on, and where what they write goes."""

    context: Context
    tokens: Tensor
    positions: Tensor
    room: list[int]
    written: list[list[int]]


class Writers:
    """Rows of several contexts that write on together: a step costs little more for many rows than
    for the few of one context that have not ended.

    They wait until together they are as large as the largest context they come from, so that the
    caches of no more than two such contexts are there at once.
    """

    def __init__(self, decoder: FrozenDecoder, *, ends: Sequence[int]) -> None:
        self._decoder, self._ends = decoder, ends
        self._waiting: list[_Waiting] = []
        self._most = 0

    def add(
        self,
        context: Context,
        tokens: Tensor,
        positions: Tensor,
        *,
        rows: Sequence[int],
        room: Sequence[int],
    ) -> list[list[int]]:
        """Arguments and result as those of ``go_on``; the result is filled by ``finish``."""
        if self._decoder.ranks is not None or context.lora or not is_plain(context):
            return go_on(
                self._decoder, context, tokens, positions, rows=rows, room=room, ends=self._ends
            )
        self._most = max(self._most, context.mask.numel())
        written: list[list[int]] = [[] for _ in room]
        if not rows:
            return written
        columns = context.mask.shape[1]
        number = sum(len(each.room) for each in self._waiting) + len(rows)
        longest = max([columns, *(each.context.mask.shape[1] for each in self._waiting)])
        if number * longest > self._most:
            self.finish()
        index = torch.tensor(rows, device=tokens.device)
        self._waiting.append(
            _Waiting(
                context=selected(context, rows),
                tokens=tokens[index],
                positions=positions[index],
                room=[room[row] for row in rows],
                written=[written[row] for row in rows],
            )
        )
        return written

    def finish(self) -> None:
        """Writes what waits."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        room = [number for each in waiting for number in each.room]
        context = joined([each.context for each in waiting])
        tokens = torch.cat([each.tokens for each in waiting])
        positions = torch.cat([each.positions for each in waiting])
        into = [row for each in waiting for row in each.written]
        waiting.clear()  # and with it the contexts that were joined
        found = go_on(
            self._decoder,
            context,
            tokens,
            positions,
            rows=range(len(room)),
            room=room,
            ends=self._ends,
        )
        for row, ids in zip(into, found, strict=True):
            row.extend(ids)
