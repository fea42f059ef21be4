"""Scores of texts rather than of questions: every text once, on the ranks of each decoder."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentwire.data.example import Example
from latentwire.data.loader import DecoderBatch, GlobalBatch, decoder_batch, global_batch
from latentwire.distributed.assembly import Job
from latentwire.distributed.messages import gather_json
from latentwire.distributed.topology import eval_batch_size


@dataclass(frozen=True, kw_only=True)
class TextBatch:
    """A batch of distinct texts and this rank's part of it."""

    examples: tuple[Example, ...]
    whole: GlobalBatch
    own: DecoderBatch
    texts: tuple[str, ...]
    """Those of this part, in the order of its wires."""
    counted: Tensor
    """[texts]: False where a text only fills up the last batch."""


def mean_by_decoder(
    job: Job, examples: Sequence[Example], score: Callable[[str, list[Example]], dict[str, float]]
) -> dict[str, dict[str, float]] | None:
    """Means over all texts of all ranks. All ranks must call.

    Args:
        score: of a decoder and one example a text, the sums over this rank's part of the texts,
            and under ``num`` what they are divided by.

    Returns:
        by decoder on rank 0, None elsewhere.
    """
    first = {job.any_prompts.slot_text(example): example for example in examples}
    own = {name: score(name, list(first.values())) for name in job.decoders}
    gathered = gather_json(own, job.groups.world)
    if gathered is None:
        return None
    totals: dict[str, dict[str, float]] = {}
    for ranks in gathered:
        for name, sums in ranks.items():
            total = totals.setdefault(name, dict.fromkeys(sums, 0.0))
            for key, value in sums.items():
                total[key] += value
    return {
        name: {key: value / total["num"] for key, value in total.items() if key != "num"}
        for name, total in totals.items()
    }


def text_batches(job: Job, name: str, examples: Sequence[Example]) -> Iterator[TextBatch]:
    """The texts of ``examples``, which have one each, in equal batches for one decoder."""
    group = job.groups.decoder(name)
    size = eval_batch_size(job.groups.topology, job.config.eval.batch_size)
    for start in range(0, len(examples), size):
        # What fills up the last batch is not counted.
        part = tuple(examples[min(i, len(examples) - 1)] for i in range(start, start + size))
        whole = global_batch(part, job.any_prompts)
        own = decoder_batch(
            whole, job.prompts[name], job.tokenizer, part=group.rank, num_parts=group.size
        )
        # A text that fills up stands in one part as the last, in others alone.
        counted = [whole.text_of.index(text) in own.examples for text in own.texts]
        yield TextBatch(
            examples=part,
            whole=whole,
            own=own,
            texts=tuple(whole.texts[text] for text in own.texts),
            counted=torch.tensor(counted, device=job.device),
        )
