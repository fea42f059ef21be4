"""An evaluation: arms on every decoder over held-out examples, on all ranks together."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from latentwire.data.example import Example
from latentwire.data.loader import GlobalBatch, global_batch
from latentwire.data.sampler import Sampler
from latentwire.data.sources import DataSource
from latentwire.decoders.generation import Writers
from latentwire.distributed.assembly import Job
from latentwire.distributed.messages import gather_json
from latentwire.distributed.topology import eval_batch_size
from latentwire.evaluation.arms import ARMS, Arm, TextArm, WireArm, names
from latentwire.evaluation.metrics import Prediction, summarize
from latentwire.evaluation.reading import prediction, read_texts, read_wire
from latentwire.wire.controls import wrong_slots


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
        wrong = wrong_slots(examples, job.any_prompts, seed=job.config.run.seed)
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
    order = by_length(job, examples)
    for start in range(0, len(order), size):
        indices = [order[min(place, len(order) - 1)] for place in range(start, start + size)]
        yield indices, tuple(examples[index] for index in indices)


def by_length(job: Job, examples: Sequence[Example]) -> list[int]:
    """The examples' indices by the length of their texts, so that batches have little padding: the
    same on every rank and in every layout.

    The longest come first: what does not fit shows at once. Questions on one text stay together.
    """
    texts = [job.any_prompts.slot_text(example) for example in examples]
    first = {text: index for index, text in reversed(list(enumerate(texts)))}
    length = {text: len(job.tokenizer.ids(text)) for text in first}
    return sorted(range(len(texts)), key=lambda i: (-length[texts[i]], first[texts[i]], i))


Wires = dict[tuple[bool, int | None], tuple[GlobalBatch, Tensor]]
"""By whether they are wrong ones and by ratio: the batch with its latents."""


def _wires(
    job: Job, examples: Sequence[Example], arms: Sequence[WireArm], wrong: dict[str, str]
) -> Wires:
    """Every wire that the arms read. A text is encoded once, whatever the number of its ratios."""
    found: Wires = {}
    for is_wrong in (False, True):
        ratios = list(dict.fromkeys(arm.ratio for arm in arms if arm.wrong == is_wrong))
        if not ratios:
            continue
        replaced = wrong if is_wrong else None
        batches = [
            global_batch(examples, job.any_prompts, replace=replaced, ratio=ratio)
            for ratio in ratios
        ]
        # A text's wires stand side by side, so that one rank makes all or most of them.
        texts = batches[0].texts
        every = replace(
            batches[0],
            examples=(),
            text_of=(),
            texts=tuple(text for text in texts for _ in ratios),
            ratios=tuple(ratios) * len(texts),
            kept=("",) * (len(texts) * len(ratios)),
        )
        latents = job.latents(every)[: len(every.texts)]
        for place, (ratio, batch) in enumerate(zip(ratios, batches, strict=True)):
            found[is_wrong, ratio] = (batch, latents[place :: len(ratios)])
    return found


def _predict(
    job: Job,
    indices: list[int],
    examples: tuple[Example, ...],
    arms: Sequence[Arm],
    wrong: dict[str, str],
    documents: dict[str, int],
) -> list[Prediction]:
    wire_arms = [arm for arm in arms if isinstance(arm, WireArm)]
    text_arms = [arm for arm in arms if isinstance(arm, TextArm)]
    wires = _wires(job, examples, wire_arms, wrong)
    found = []
    for name in job.decoders:
        group = job.groups.decoder(name)
        size = len(examples) // group.size
        part = range(group.rank * size, (group.rank + 1) * size)
        # What fills up the last batch repeats an index and is not counted.
        counted = [i for i in part if i == 0 or indices[i] != indices[i - 1]]
        writers = Writers(job.decoders[name], ends=job.prompts[name].ends)
        answers = read_texts(job, name, text_arms, examples[part.start : part.stop], writers)
        for arm in wire_arms:
            answers[arm.name] = read_wire(
                job, name, arm, *wires[arm.wrong, arm.ratio], writers=writers
            )
        writers.finish()
        read = {arm: each.reads(job.prompts[name]) for arm, each in answers.items()}
        found += [
            prediction(
                job,
                name,
                arm,
                read[arm.name][i - part.start],
                index=indices[i],
                document=documents[examples[i].context],
                example=examples[i],
            )
            for arm in arms
            for i in counted
        ]
    return found
