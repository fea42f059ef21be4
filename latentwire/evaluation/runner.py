"""An evaluation: arms on every decoder over held-out examples, on all ranks together."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from latentwire.data.batch import PromptBatch
from latentwire.data.example import Example
from latentwire.data.loader import GlobalBatch, decoder_batch, global_batch, text_batch
from latentwire.data.sampler import Sampler
from latentwire.data.sources import DataSource
from latentwire.decoders.generation import greedy
from latentwire.distributed.assembly import Job
from latentwire.distributed.messages import gather_json
from latentwire.distributed.topology import eval_batch_size
from latentwire.evaluation.arms import ARMS, Arm, WireArm, names
from latentwire.evaluation.metrics import Prediction, summarize
from latentwire.objectives.tokens import token_losses
from latentwire.wire.controls import wrong_texts
from latentwire.wire.unit import Injection

_BF16_BYTES = 2


class Interrupted(Exception):  # noqa: N818
    """An evaluation was asked to stop; every rank raises it at the same batch."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def held_out(source: DataSource, *, seed: int, samples: int) -> list[Example]:
    """The evaluated examples: ``samples`` of the split, drawn by the seed; 0 is all of it."""
    sampler = Sampler(
        source.counts(), seed=seed, stage="C", questions_per_context=1 << 30, samples=samples
    )
    pairs = sampler.take(0, sampler.num_examples)
    return [source.examples(document)[question] for document, question in pairs]


def evaluate(
    job: Job,
    examples: Sequence[Example],
    *,
    arms: Sequence[Arm] = ARMS,
    description: str = "stage C",
    stop: Callable[[], str] = lambda: "",
) -> tuple[dict[str, Any], list[Prediction]] | None:
    """Runs the arms and scores them; the wire is left in evaluation mode.

    Every group splits the same batches over its ranks. All ranks must call.

    Args:
        arms: the same on every rank; tables follow their order.
        description: what the progress bar calls it.
        stop: asked before each batch for a reason to stop; the same answer on every rank.

    Returns:
        (metrics, predictions) on rank 0, None elsewhere.

    Raises:
        Interrupted: ``stop`` gave a reason.
        ValueError: an arm reads a wrong wire, and all examples have the same text.
    """
    world = job.groups.world
    wrong: dict[str, str] = {}
    if any(_is_wrong(arm) for arm in arms):
        slots = [job.any_prompts.slot_text(example) for example in examples]
        wrong = wrong_texts(slots, seed=job.config.run.seed)
    contexts = dict.fromkeys(example.context for example in examples)
    documents = {context: index for index, context in enumerate(contexts)}
    predictions: list[Prediction] = []
    job.wire.eval()
    batches = list(_batches(job, examples))
    with torch.no_grad():
        # Under another bar it goes when it is done.
        bar = tqdm(batches, desc=description, leave=None, disable=_quiet(job))
        for indices, batch_examples in bar:
            if reason := stop():
                raise Interrupted(reason)
            predictions += _predict(job, indices, batch_examples, arms, wrong, documents)
    gathered = gather_json([asdict(prediction) for prediction in predictions], world)
    if gathered is None:
        return None
    every = [
        Prediction(**(row | {"answers": tuple(row["answers"])}))
        for rows in gathered
        for row in rows
    ]
    decoders = [spec.decoder for spec in job.groups.topology.groups]
    order = {name: index for index, name in enumerate(names(arms))}
    every.sort(key=lambda p: (p.example, decoders.index(p.decoder), order[p.arm]))
    metrics = summarize(every, decoders=decoders, arms=names(arms), seed=job.config.run.seed)
    return metrics, every


def _is_wrong(arm: Arm) -> bool:
    return isinstance(arm, WireArm) and arm.wrong


def _quiet(job: Job) -> bool | None:
    return True if job.groups.rank else None  # None: tqdm looks whether stderr is a terminal


def _batches(
    job: Job, examples: Sequence[Example]
) -> Iterator[tuple[list[int], tuple[Example, ...]]]:
    """Equal batches; the last is filled up with its final example, whose index then repeats."""
    size = eval_batch_size(job.groups.topology, job.config.eval.batch_size)
    for start in range(0, len(examples), size):
        indices = [min(index, len(examples) - 1) for index in range(start, start + size)]
        yield indices, tuple(examples[index] for index in indices)


def _predict(
    job: Job,
    indices: list[int],
    examples: tuple[Example, ...],
    arms: Sequence[Arm],
    wrong: dict[str, str],
    documents: dict[str, int],
) -> list[Prediction]:
    batch = global_batch(examples, job.any_prompts)
    own = swapped = (batch, job.latents(batch))
    if wrong:
        other = global_batch(examples, job.any_prompts, replace=wrong)
        swapped = (other, job.latents(other))
    found = []
    for name in job.decoders:
        group = job.groups.decoder(name)
        size = len(examples) // group.size
        part = range(group.rank * size, (group.rank + 1) * size)
        # What fills up the last batch repeats an index and is not counted.
        counted = [i for i in part if i == 0 or indices[i] != indices[i - 1]]
        for arm in arms:
            if isinstance(arm, WireArm):
                scored = _read_wire(job, name, arm, *(swapped if arm.wrong else own))
            else:
                scored = _read_text(job, name, arm, batch, part)
            texts, losses, first, top5 = scored
            for i in counted:
                row = i - part.start
                found.append(
                    _prediction(
                        job,
                        name,
                        arm,
                        index=indices[i],
                        document=documents[examples[i].context],
                        example=examples[i],
                        text=texts[row],
                        nll=losses[row],
                        first=first[row],
                        top5=top5[row],
                    )
                )
    return found


_Scored = tuple[list[str], list[list[float]], list[bool], list[bool]]


def _read_wire(job: Job, name: str, arm: WireArm, batch: GlobalBatch, latents: Tensor) -> _Scored:
    group, prompts = job.groups.decoder(name), job.prompts[name]
    asked, answered = (
        decoder_batch(
            batch,
            prompts,
            job.tokenizer,
            part=group.rank,
            num_parts=group.size,
            answers=answers,
        )
        for answers in (False, True)
    )
    if arm.change is not None:
        latents = arm.change(latents)
    wire = job.inject(name, latents, asked)
    return _score(job, name, asked.latents_prompt, answered.latents_prompt, wire)


def _read_text(job: Job, name: str, arm: Arm, batch: GlobalBatch, part: range) -> _Scored:
    assert not isinstance(arm, WireArm)
    prompts = job.prompts[name]
    tokens = [
        arm.prompt(prompts, batch.examples[i], _positions(job, batch.texts[batch.text_of[i]]))
        for i in part
    ]
    asked = text_batch(tokens, pad=prompts.pad, answers=False)
    return _score(job, name, asked, text_batch(tokens, pad=prompts.pad), None)


def _positions(job: Job, text: str) -> int:
    """Positions a decoder reads for the wire of ``text``."""
    return job.tokenizer.num_positions(text)


def _score(
    job: Job, name: str, asked: PromptBatch, answered: PromptBatch, wire: Injection | None
) -> _Scored:
    decoder, prompts = job.decoders[name], job.prompts[name]
    generated = greedy(
        decoder,
        asked.to(job.device),
        eos=prompts.eos,
        max_new_tokens=job.config.eval.max_new_tokens,
        wire=wire,
    )
    answered = answered.to(job.device)
    logits = decoder.answer_logits(answered, wire)
    losses = token_losses(logits, answered.targets).cpu()
    starts = answered.target_place == 0
    best = logits[starts].topk(min(5, logits.shape[-1]), dim=-1).indices
    hits = (best == answered.targets[starts][:, None]).cpu()
    lengths = answered.target_mask.sum(1).tolist()
    return (
        [prompts.decode(row) for row in generated.tolist()],
        [part.tolist() for part in losses.split(lengths)],
        hits[:, 0].tolist(),
        hits.any(1).tolist(),
    )


def _prediction(
    job: Job,
    name: str,
    arm: Arm,
    *,
    index: int,
    document: int,
    example: Example,
    text: str,
    nll: list[float],
    first: bool,
    top5: bool,
) -> Prediction:
    latent = arm.name == "latent"
    slot = job.prompts[name].slot_text(example)
    num_latents = job.tokenizer.num_latents(slot)
    return Prediction(
        example=index,
        document=document,
        decoder=name,
        arm=arm.name,
        kind=example.kind,
        question=example.question,
        answers=example.answers,
        prediction=text,
        nll_sum=sum(nll),
        num_tokens=len(nll),
        first_correct=first,
        first_in_top5=top5,
        context_tokens=job.prompts[name].num_context_tokens(example) if latent else None,
        wire_positions=_positions(job, slot) if latent else None,
        wire_bytes=num_latents * job.config.wire.d_z * _BF16_BYTES if latent else None,
        text_bytes=len(example.context.encode()) if latent else None,
    )
