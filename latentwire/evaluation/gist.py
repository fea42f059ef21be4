"""Does the gist head know the text? Its loss beside what is known without any text."""

from collections.abc import Sequence
from typing import Any

import torch

from latentwire.data.example import Example
from latentwire.data.loader import decoder_batch, global_batch
from latentwire.data.rewriting import gist_targets
from latentwire.distributed.assembly import Job
from latentwire.distributed.messages import gather_json
from latentwire.distributed.topology import eval_batch_size
from latentwire.objectives import reconstruction


@torch.no_grad()
def gist_scores(
    job: Job, examples: Sequence[Example], *, trained_on: Sequence[str]
) -> dict[str, dict[str, float]] | None:
    """Each decoder's gist on the examples' texts, in nats per token. All ranks must call.

    Args:
        trained_on: texts whose tokens the baselines have counted.

    Returns:
        by decoder on rank 0, None elsewhere: ``nll``, ``accuracy``, and as baselines the
        ``unigram_nll`` of tokens by their frequency and the ``mean_embedding_nll`` of a head that
        always says the same.
    """
    first = {job.any_prompts.slot_text(example): example for example in examples}
    own = {name: _scores(job, name, list(first.values()), trained_on) for name in job.decoders}
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


def _scores(
    job: Job, name: str, examples: list[Example], trained_on: Sequence[str]
) -> dict[str, Any]:
    """Sums over this rank's part of the texts."""
    decoder, prompts, group = job.decoders[name], job.prompts[name], job.groups.decoder(name)
    length = job.config.gist.gist_len
    ids, mask = gist_targets(trained_on, prompts, gist_len=length)
    counts = reconstruction.count_tokens(ids, mask, vocabulary=len(decoder.embeddings))
    counts = counts.to(job.device)
    sums = dict.fromkeys(("num", "nll", "accuracy", "unigram_nll", "mean_embedding_nll"), 0.0)
    size = eval_batch_size(job.groups.topology, job.config.eval.batch_size)
    for start in range(0, len(examples), size):
        # What fills up the last batch is not counted.
        part = [examples[min(i, len(examples) - 1)] for i in range(start, start + size)]
        batch = global_batch(part, job.any_prompts)
        read = decoder_batch(batch, prompts, job.tokenizer, part=group.rank, num_parts=group.size)
        wire = job.inject(name, job.latents(batch), read)
        assert wire.gist is not None and wire.gist_scale is not None
        texts = [batch.texts[text] for text in read.texts]
        targets, real = (
            tensor.to(job.device) for tensor in gist_targets(texts, prompts, gist_len=length)
        )
        # A text that fills up stands in one part as the last, in others alone.
        real &= torch.tensor(
            [batch.text_of.index(text) in read.examples for text in read.texts], device=job.device
        )[:, None]
        table, scale = decoder.embeddings, wire.gist_scale
        losses, right = reconstruction.gist(wire.gist, targets, real, table, scale)
        unigram = reconstruction.unigram_nll(counts, targets, real)
        mean = reconstruction.mean_embedding_nll(counts, targets, real, table, scale)
        parts = (real, losses, right, unigram, mean)
        for key, values in zip(sums, parts, strict=True):
            sums[key] += float(values.sum())
    return sums
