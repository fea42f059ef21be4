"""Is the wire alive? Gauges on held-out examples, measured on all ranks together.

Nothing is drawn from any random generator, and the wire is left in training mode, as it was.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from latentwire.data.example import Example
from latentwire.data.loader import DecoderBatch, GlobalBatch, global_batch
from latentwire.decoders.teacher import teacher
from latentwire.distributed.assembly import Job
from latentwire.distributed.messages import broadcast_json, gather_json
from latentwire.distributed.sharding import ShardedUnit
from latentwire.objectives import distillation, tokens
from latentwire.objectives.row_chunks import of_answer, token_scores
from latentwire.wire.controls import wrong_slots
from latentwire.wire.parts import SHARED_UNIT, unit_name

_BATCH = 24
"""Examples that are read at once, or a little more."""


WeightSquares = dict[str, dict[str, float]]
"""Squared size of the whole weights, by unit and part."""


def weight_squares(job: Job) -> WeightSquares:
    """Of every unit of the job, the same on every rank. All ranks must call."""
    own = {
        name: {part: _square(weights) for part, weights in unit.local_weights().items()}
        for name, unit in job.units.items()
    }
    ranks = gather_json(own, job.groups.world)
    total: WeightSquares = {}
    for rank in ranks or ():
        for unit, parts in rank.items():
            sums = total.setdefault(unit, {})
            for part, square in parts.items():
                sums[part] = sums.get(part, 0.0) + square
    agreed: WeightSquares = broadcast_json(total, job.groups.world)
    return agreed


class UpdateProbe:
    """How far one optimizer step moves each trained part, against the size of its weights.

    Made before the step; it holds a copy of this rank's share of the weights until it is read.
    """

    def __init__(self, units: Mapping[str, ShardedUnit]) -> None:
        self._units = units
        self._before = {
            name: {part: [w.clone() for w in own] for part, own in unit.local_weights().items()}
            for name, unit in units.items()
        }

    def squares(self) -> dict[str, dict[str, tuple[float, float]]]:
        """This rank's share, by unit and part: (squared size of the update, of the weights)."""
        found = {}
        for name, unit in self._units.items():
            after = unit.local_weights()
            found[name] = {
                part: (
                    _square([new - old for new, old in zip(after[part], own, strict=True)]),
                    _square(own),
                )
                for part, own in self._before[name].items()
            }
        return found


def measure(
    job: Job,
    held_out: Sequence[Example],
    trained: Sequence[Example],
    updates: Mapping[str, Mapping[str, tuple[float, float]]],
    start: WeightSquares,
) -> dict[str, dict[str, Any]]:
    """Every decoder's gauges, the same on every rank. All ranks must call.

    Args:
        held_out: at least two documents.
        trained: examples of the step, on whose targets the text teacher is scored.
        updates: what ``UpdateProbe`` found.
        start: what ``weight_squares`` was when training began.

    Raises:
        ValueError: the held-out examples are all of one document.
    """
    job.wire.eval()
    with torch.no_grad():
        own, shape = _read(job, held_out)
        for name, taught in _teachers_losses(job, trained).items():
            own[name] |= taught
    job.wire.train()
    world = job.groups.world
    ranks = gather_json({"read": own, "updates": updates}, world)
    found = None
    if ranks is not None:
        names = [spec.decoder for spec in job.groups.topology.groups]
        found = {name: _of_decoder(name, ranks, start) | shape for name in names}
    agreed: dict[str, dict[str, Any]] = broadcast_json(found, world)
    return agreed


def _read(
    job: Job, examples: Sequence[Example]
) -> tuple[dict[str, dict[str, Any]], dict[str, float]]:
    """Sums over this rank's part by decoder, and the shape of the wires of the first batch."""
    wrong = wrong_slots(examples, job.any_prompts, seed=job.config.run.seed)
    own: dict[str, dict[str, Any]] = {name: _nothing() for name in job.decoders}
    shape: dict[str, float] = {}
    for batch_examples in _batches(job, examples):
        for is_wrong in (False, True):
            replace = wrong if is_wrong else None
            batch = global_batch(batch_examples, job.any_prompts, replace=replace)
            latents = job.latents(batch)
            if not shape:
                shape = wire_shape(_real_latents(job, batch, latents))
            for name, part in job.parts(batch):
                _read_part(job, name, batch, part, latents, own[name], is_wrong=is_wrong)
    return own, shape


def _nothing() -> dict[str, Any]:
    sums = ("right", "wrong", "kl", "square", "taught")
    return {key: 0.0 for key in sums} | {
        "tokens": 0,
        "numbers": 0,
        "taught_tokens": 0,
        "examples": 0,
        "predicted": [],
        "gold": [],
    }


def _read_part(
    job: Job,
    name: str,
    batch: GlobalBatch,
    part: DecoderBatch,
    latents: Tensor,
    sums: dict[str, Any],
    *,
    is_wrong: bool,
) -> None:
    decoder = job.decoders[name]
    prompt = part.latents_prompt.to(job.device)
    wire = job.inject(name, latents, part)
    said = decoder.answer(prompt, wire)
    if is_wrong:
        sums["wrong"] += float(token_scores(said, prompt.targets)[0].sum())
        return
    examples = [batch.examples[index] for index in part.examples]
    taught = teacher(decoder, job.prompts[name], examples)

    def per_row(logits: Tensor, rows: slice) -> dict[str, Tensor]:
        return {
            "losses": tokens.token_losses(logits, prompt.targets[rows]),
            "kl": distillation.kd_rows(logits, taught.logits_of(rows), temperature=1.0),
            "chosen": logits.argmax(-1),
        }

    found = of_answer(said, per_row)
    sums["right"] += float(found["losses"].sum())
    sums["tokens"] += len(found["losses"])
    sums["examples"] += len(part.examples)
    sums["kl"] += float(found["kl"].sum())
    is_first = prompt.target_place == 0
    sums["predicted"] += found["chosen"][is_first].tolist()
    sums["gold"] += prompt.targets[is_first].tolist()
    vectors = _soft_prompt(job, wire.vectors, part).float()
    sums["square"] += float(vectors.square().sum())
    sums["numbers"] += vectors.numel()


def _teachers_losses(job: Job, examples: Sequence[Example]) -> dict[str, dict[str, Any]]:
    """The text teacher's loss on the targets that the step trains on, whatever they are."""
    found: dict[str, dict[str, Any]] = {}
    batch = global_batch(_even(job, examples), job.any_prompts)
    for name, part in job.parts(batch):
        own = [batch.examples[index] for index in part.examples]
        said = teacher(job.decoders[name], job.prompts[name], own)
        losses, _ = token_scores(said, part.latents_prompt.targets.to(job.device))
        found[name] = {
            "taught": float(losses.sum()),
            "taught_tokens": len(losses),
            "vocabulary": said.vocabulary,
            "embedding_rms": job.decoders[name].inputs.rms,
        }
    return found


def _of_decoder(
    name: str, ranks: Sequence[Mapping[str, Any]], start: WeightSquares
) -> dict[str, Any]:
    """One decoder's gauges from what its ranks have summed."""
    parts = [rank["read"][name] for rank in ranks if name in rank["read"]]
    total = {key: sum(part[key] for part in parts) for key in ("tokens", "taught_tokens")}
    sums = {
        key: math.fsum(part[key] for part in parts)
        for key in ("right", "wrong", "kl", "square", "taught", "numbers")
    }
    predicted = [token for part in parts for token in part["predicted"]]
    gold = [token for part in parts for token in part["gold"]]
    right, wrong = sums["right"] / total["tokens"], sums["wrong"] / total["tokens"]
    # Without a soft prompt there is nothing to measure.
    rms = math.sqrt(sums["square"] / sums["numbers"]) if sums["numbers"] else None
    embedding_rms = parts[0]["embedding_rms"]
    return {
        "num_examples": sum(part["examples"] for part in parts),
        "nll_right": right,
        "nll_wrong": wrong,
        "right_minus_wrong": right - wrong,
        "kl_teacher": sums["kl"] / total["tokens"],
        "teacher_nll": sums["taught"] / total["taught_tokens"],
        "chance_nll": math.log(parts[0]["vocabulary"]),
        "prediction_diversity": len(Counter(predicted)) / len(Counter(gold)),
        "wire_rms": rms,
        "wire_rms_ratio": None if rms is None else rms / embedding_rms,
        **_update_ratios(name, ranks, start),
    }


def _update_ratios(
    name: str, ranks: Sequence[Mapping[str, Any]], start: WeightSquares
) -> dict[str, float]:
    found = {}
    for unit in (SHARED_UNIT, unit_name(name)):
        sums: dict[str, list[float]] = {}
        for rank in ranks:
            for part, (update, weight) in rank["updates"].get(unit, {}).items():
                own = sums.setdefault(part, [0.0, 0.0])
                own[0] += update
                own[1] += weight
        for part, (update, weight) in sums.items():
            before = start[unit][part]
            found[f"update_ratio/{part}"] = math.sqrt(update / weight) if weight else 0.0
            found[f"weight_growth/{part}"] = math.sqrt(weight / before) if before else 1.0
    return found


def wire_shape(latents: Tensor) -> dict[str, float]:
    """How many directions latents [n, d_z] use, and how alike they are.

    Returns:
        ``wire_rank``: effective rank, the exponential of the entropy of the normalised singular
        values (Roy & Vetterli 2007); ``wire_cosine``: mean cosine over all pairs.
    """
    number = len(latents)
    singular = torch.linalg.svdvals(latents.double())
    shares = singular / singular.sum()
    shares = shares[shares > 0]
    unit = torch.nn.functional.normalize(latents.double(), dim=-1)
    pairs = unit.sum(0).square().sum() - unit.square().sum()
    return {
        "wire_rank": float((-(shares * shares.log()).sum()).exp()),
        "wire_cosine": float(pairs / max(1, number * (number - 1))),
    }


def _real_latents(job: Job, batch: GlobalBatch, latents: Tensor) -> Tensor:
    """The shared latents of every wire of a batch, without padding: [n, d_z]."""
    pairs = zip(batch.texts, batch.ratios, strict=True)
    counts = [job.tokenizer.num_latents(text, ratio) for text, ratio in pairs]
    first = job.num_private
    rows = [latents[row, first : first + count] for row, count in enumerate(counts)]
    found = torch.cat(rows)
    return found if found.isfinite().all() else torch.zeros_like(found)


def _soft_prompt(job: Job, vectors: Tensor, part: DecoderBatch) -> Tensor:
    """What stands for latents in a soft prompt: [n, hidden_size], none where there is none."""
    adapter = job.config.adapter
    if not adapter.use_soft_prompt:
        return vectors.flatten(0, 1)[:0]
    first = int(adapter.use_frame) + adapter.deep_prefix_len
    lengths = [job.config.wire.latent_private_len + count for count in part.counts]
    rows = [vectors[row, first : first + length] for row, length in enumerate(lengths)]
    return torch.cat(rows)


def _batches(job: Job, examples: Sequence[Example]) -> list[tuple[Example, ...]]:
    size = len(_even(job, examples[:_BATCH]))
    number = -(-len(examples) // size)
    every = [examples[index % len(examples)] for index in range(number * size)]
    return [tuple(every[start : start + size]) for start in range(0, len(every), size)]


def _even(job: Job, examples: Sequence[Example]) -> tuple[Example, ...]:
    """The examples, repeated from the front where ranks could not share them evenly."""
    divisor = math.lcm(*(len(spec.ranks) for spec in job.groups.topology.groups))
    number = -(-len(examples) // divisor) * divisor
    return tuple(examples[index % len(examples)] for index in range(number))


def _square(tensors: Sequence[Tensor]) -> float:
    return math.fsum(float(tensor.double().square().sum()) for tensor in tensors)
