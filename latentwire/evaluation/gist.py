"""Does the gist head know the text? Its loss beside what is known without any text."""

from collections.abc import Sequence

import torch

from latentwire.data.example import Example
from latentwire.data.rewriting import gist_targets
from latentwire.distributed.assembly import Job
from latentwire.evaluation.texts import mean_by_decoder, text_batches
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
    return mean_by_decoder(job, examples, lambda name, texts: _scores(job, name, texts, trained_on))


def _scores(
    job: Job, name: str, examples: Sequence[Example], trained_on: Sequence[str]
) -> dict[str, float]:
    """Sums over this rank's part of the texts."""
    decoder, prompts = job.decoders[name], job.prompts[name]
    length = job.config.gist.gist_len
    ids, mask = gist_targets(trained_on, prompts, gist_len=length)
    counts = reconstruction.count_tokens(ids, mask, vocabulary=decoder.inputs.vocabulary)
    counts = counts.to(job.device)
    sums = dict.fromkeys(("num", "nll", "accuracy", "unigram_nll", "mean_embedding_nll"), 0.0)
    for batch in text_batches(job, name, examples):
        wire = job.inject(name, job.latents(batch.whole), batch.own)
        assert wire.gist is not None and wire.gist_scale is not None
        targets, real = (
            tensor.to(job.device) for tensor in gist_targets(batch.texts, prompts, gist_len=length)
        )
        real &= batch.counted[:, None]
        table, scale = decoder.inputs.whole, wire.gist_scale
        losses, right = reconstruction.gist(wire.gist, targets, real, table, scale)
        unigram = reconstruction.unigram_nll(counts, targets, real)
        mean = reconstruction.mean_embedding_nll(counts, targets, real, table, scale)
        parts = (real, losses, right, unigram, mean)
        for key, values in zip(sums, parts, strict=True):
            sums[key] += float(values.sum())
    return sums
