"""A decoder's answers after one reading: what it says of the right answer, and what it writes.

The right answer is read once, after the question, and every token of it is scored. As far as the
decoder would have written the same, that is its own answer too, written at once; from the first
token on that it would have chosen otherwise it writes on by itself. This is speculative decoding
(arXiv 2211.17192) with the right answer as the draft, which under greedy choice changes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentwire.data.batch import PromptBatch
from latentwire.data.prompts import DecoderPrompts
from latentwire.decoders.answered import Context
from latentwire.decoders.frozen import FrozenDecoder
from latentwire.decoders.generation import Writers
from latentwire.objectives.row_chunks import of_answer
from latentwire.objectives.tokens import token_losses


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


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Every example's answer, of which the last tokens may not be written yet."""

    losses: Sequence[Sequence[float]]
    first: Sequence[bool]
    top5: Sequence[bool]
    agreed: Sequence[list[int]]
    """What the decoder would have written just as it is in the right answer."""
    further: Sequence[list[int]]
    """What it writes after that; there when the writers have finished."""

    def reads(self, prompts: DecoderPrompts) -> list[Read]:
        """To be asked for when the writers have finished."""
        return [
            Read(text=prompts.decode([*agreed, *further]), losses=losses, first=first, top5=top5)
            for agreed, further, losses, first, top5 in zip(
                self.agreed, self.further, self.losses, self.first, self.top5, strict=True
            )
        ]


@torch.no_grad()
def answers(
    decoder: FrozenDecoder,
    batch: PromptBatch,
    context: Context,
    writers: Writers,
    *,
    ends: Sequence[int],
    max_new_tokens: int,
) -> Answers:
    """Every example's answer. The ranks of a sharded decoder must all call.

    Args:
        batch: laid out with answers, on the host.
        context: what the decoder has read of each example up to the suffix. It is spent.
        writers: of the same decoder.
    """
    there = batch.to(decoder.device)
    found = of_answer(decoder.answer_from(context, there), lambda *args: _scores(there, *args))
    losses, hits, chosen = (found[key].cpu() for key in ("losses", "hits", "chosen"))
    hits = hits[batch.target_place == 0]
    lengths = batch.target_mask.sum(1).tolist()
    right = [part.tolist() for part in batch.targets.split(lengths)]
    own = [part.tolist() for part in chosen.split(lengths)]
    agreed, further = _written(
        batch, context, writers, right, own, ends=ends, max_new_tokens=max_new_tokens
    )
    return Answers(
        losses=[each.tolist() for each in losses.split(lengths)],
        first=hits[:, 0].tolist(),
        top5=hits.any(1).tolist(),
        agreed=agreed,
        further=further,
    )


def _scores(there: PromptBatch, logits: Tensor, rows: slice) -> dict[str, Tensor]:
    """Of each row its target's loss, whether the target is among the five likeliest, by place, and
    the likeliest token."""
    targets = there.targets[rows]
    best = logits.topk(min(5, logits.shape[-1]), dim=-1).indices
    return {
        "losses": token_losses(logits, targets),
        "hits": best == targets[:, None],
        "chosen": logits.argmax(-1),
    }


def _written(
    batch: PromptBatch,
    context: Context,
    writers: Writers,
    right: Sequence[list[int]],
    own: Sequence[list[int]],
    *,
    ends: Sequence[int],
    max_new_tokens: int,
) -> tuple[list[list[int]], list[list[int]]]:
    """What greedy decoding writes where ``context`` has read the right answers: up to the first
    token that is another one, and from there on.

    Args:
        own: the decoder's choice in place of each token of ``right``.
    """
    length = batch.suffix_ids.shape[1]
    agreed, first, positions, unread, room = [], [], [], [], []
    for row, (answer, choice) in enumerate(zip(right, own, strict=True)):
        place = _num_agreed(answer, choice)
        agreed.append(answer[:place][:max_new_tokens])
        is_ended = place == len(answer) or any(token in ends for token in agreed[-1])
        room.append(0 if is_ended else max(0, max_new_tokens - place))
        first.append(choice[min(place, len(choice) - 1)])
        # The suffix ends with the answer, of which the last token is never read.
        begin = length - (len(answer) - 1)
        positions.append(int(batch.suffix_positions[row, begin - 1]) + 1 + place)
        unread.append(begin + place)
    columns = torch.arange(length)
    read = batch.suffix_mask & (columns < torch.tensor(unread)[:, None])
    # What was read of the right answer beyond this point is not the decoder's own.
    context.mask = torch.cat([context.mask[:, :-length], read.to(context.mask.device)], dim=1)
    device = context.mask.device
    further = writers.add(
        context,
        torch.tensor(first, device=device),
        torch.tensor(positions, device=device),
        rows=[row for row, number in enumerate(room) if number],
        room=room,
    )
    return agreed, further


def _num_agreed(answer: Sequence[int], choice: Sequence[int]) -> int:
    """How many tokens the decoder would have chosen too, before the first other one."""
    for place, (token, chosen) in enumerate(zip(answer, choice, strict=True)):
        if token != chosen:
            return place
    return len(answer)
