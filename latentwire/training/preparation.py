"""From a step's plan to what its forward passes read: everything that no trained weight decides.

It is made once, on the host, and may be made while the step before computes: nothing here draws
from torch's generators or changes anything but caches of tokens.
"""

import dataclasses
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from latentwire.config import Config
from latentwire.data.encoder_texts import EncoderTexts
from latentwire.data.loader import GlobalBatch, decoder_batch, global_batch
from latentwire.data.moving import pinned
from latentwire.data.padding import Padding, of_prompts, of_texts
from latentwire.data.part_texts import PartTexts
from latentwire.data.rewriting import supervised_counts
from latentwire.distributed.assembly import Job
from latentwire.training.objectives import wanted
from latentwire.training.stages import StepPlan


@dataclass(frozen=True, kw_only=True)
class PreparedBatch:
    """A micro-batch, laid out."""

    batch: GlobalBatch
    texts: EncoderTexts
    """What this rank encodes."""
    num_tokens: int
    """Encoder tokens of all its wires."""
    parts: Mapping[str, PartTexts]
    """What each hosted decoder reads."""


@dataclass(frozen=True, kw_only=True)
class PreparedStep:
    """A step, laid out."""

    plan: StepPlan
    names: frozenset[str]
    """Objectives that the step measures."""
    with_norms: bool
    """Whether it measures their gradients too."""
    micro_batches: tuple[PreparedBatch, ...]
    counts: Mapping[str, Mapping[str, int]]
    """Per hosted decoder, what each objective is divided by, over the whole global batch."""
    padding: Padding = field(default_factory=Padding)
    """How much of what this rank reads is padding."""
    seconds: float = 0.0
    """How long it took."""


def is_diagnosed(config: Config, plan: StepPlan) -> bool:
    """Whether the step's row holds the gradient norms of its objectives."""
    interval = config.diagnostics.grad_diag_interval
    return bool(interval) and plan.step % interval == 0


def is_balancing(config: Config, plan: StepPlan) -> bool:
    """Whether the step measures the gradients' sizes for automatic weights."""
    objectives = config.objectives
    return objectives.auto_weight and (plan.step - 1) % objectives.auto_interval == 0


def prepare(job: Job, plan: StepPlan) -> PreparedStep:
    """Lays out a step. Every rank lays out its own."""
    start = time.perf_counter()
    config = job.config
    with_norms = is_diagnosed(config, plan) or is_balancing(config, plan)
    names = frozenset(wanted(config, with_norms=with_norms))
    counts: dict[str, Counter[str]] = {name: Counter() for name in job.prompts}
    padding = Padding()
    micro_batches = []
    for examples in plan.micro_batches(config.train.accumulation):
        batch = global_batch(examples, job.any_prompts, draws=plan.draws)
        texts = job.texts(batch)
        padding += of_texts(texts, num_lead=len(job.tokenizer.lead))
        parts = {}
        for name in job.prompts:
            parts[name], own_counts = _part(job, name, plan, batch, names)
            counts[name].update(own_counts)
            padding += of_prompts(name, parts[name].own.latents_prompt)
        micro_batches.append(
            PreparedBatch(
                batch=batch,
                texts=pinned(texts, job.device),
                # Of a text that is read at several ratios once.
                num_tokens=sum(len(job.tokenizer.ids(text)) for text in set(batch.texts)),
                parts=parts,
            )
        )
    return PreparedStep(
        plan=plan,
        names=names,
        with_norms=with_norms,
        micro_batches=tuple(micro_batches),
        counts=counts,
        padding=padding,
        seconds=time.perf_counter() - start,
    )


def _part(
    job: Job, name: str, plan: StepPlan, batch: GlobalBatch, names: frozenset[str]
) -> tuple[PartTexts, dict[str, int]]:
    """One decoder's part of a micro-batch, and its counts over the whole of it."""
    config, prompts, group = job.config, job.prompts[name], job.groups.decoder(name)
    prompted = [prompts.wire(example) for example in batch.examples]
    counts = supervised_counts(
        batch,
        prompts,
        job.tokenizer,
        k=plan.k,
        kd_positions=config.objectives.kd_positions,
        gist_len=config.gist.gist_len,
        ae_tokens=config.objectives.ae_tokens,
        names=names,
        prompted=prompted,
    )
    own = decoder_batch(
        batch, prompts, job.tokenizer, part=group.rank, num_parts=group.size, prompted=prompted
    )
    own = dataclasses.replace(own, latents_prompt=pinned(own.latents_prompt, job.device))
    texts = job.part_texts(name, batch, own)
    # What is kept of the teacher's answers needs no reading of texts.
    texts.make(names - {"kd"} if name in job.teachers else names)
    return texts, counts
