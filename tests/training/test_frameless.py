"""A wire without begin and end: what trains it, what its objectives see, and how long it counts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jobs
import pytest
import torch
from conftest import small_overrides
from torch import Tensor

from latentwire import config_file
from latentwire.data.example import Example
from latentwire.data.loader import decoder_batch, global_batch
from latentwire.data.spans import decoder_spans
from latentwire.distributed.assembly import Job
from latentwire.evaluation.arms import LATENT
from latentwire.evaluation.runner import evaluate
from latentwire.testing import run_distributed
from latentwire.training.stages import StepPlan

PRIVATE = 2
DEEP, FOUR = "adapter.use_deep_prefix=true", "adapter.deep_prefix_len=4"
WITH_PRIVATE = f"wire.latent_private_len={PRIVATE}"
WAYS = {
    "soft": [WITH_PRIVATE],
    "deep": [DEEP, "adapter.use_soft_prompt=false"],
    "both": [DEEP],
    "both, 4": [DEEP, FOUR],
}
SHORT = Example(context="Mira lives in Orsa.", question="Where does Mira live?", answers=("Orsa",))
LONG = Example(
    context="Tovan plays the flute. Tovan lives in Brelm. Tovan drinks tea and never coffee.",
    question="What does Tovan play?",
    answers=("the flute",),
)


@pytest.fixture
def overrides(pair: Path, tmp_path: Path) -> list[str]:
    return small_overrides(
        pair,
        tmp_path,
        "adapter.use_frame=false",
        "placement=colocated",
        "sharding.backend=fsdp",
        "optim.max_grad_norm=0",
        "train.batch_size=6",
        "data.questions_per_context=2",
    )


def first_step(overrides: list[str]) -> StepPlan:
    return jobs.make_stage(config_file.load("smoke", overrides)).plan(1)


def trained_on_rank(
    rank: int, world_size: int, overrides: list[str], ways: Mapping[str, list[str]]
) -> dict[str, Tensor]:
    """Of every way into a decoder: a step's gradients and objectives, and logits."""
    found: dict[str, Tensor] = {}
    for way, more in ways.items():
        config = config_file.load("smoke", [*overrides, *more])
        step = jobs.make_stage(config).plan(1)
        job = jobs.make_job(config, world_size)
        gradients = jobs.job_gradients(job, step)  # which are kept and not spent
        (curve,) = jobs.job_curve(job, [step])
        parts = {"gradient": gradients, "value": {k: torch.tensor(v) for k, v in curve.items()}}
        parts["logits"] = logits_of_short(job)
        found |= {f"{way}:{part}:{k}": v for part, own in parts.items() for k, v in own.items()}
    return found


@torch.no_grad()
def logits_of_short(job: Job) -> dict[str, Tensor]:
    """What each decoder says after the short wire: alone, beside the long one, and with all that
    fills its row up behind its own latents made large."""
    job.wire.eval()
    found = {}
    for case, examples in (
        ("alone", [SHORT]),
        ("beside", [LONG, SHORT]),
        ("filled", [LONG, SHORT]),
    ):
        batch = global_batch(examples, job.any_prompts)
        latents = job.latents(batch)
        for name, prompts in job.prompts.items():
            own = decoder_batch(batch, prompts, job.tokenizer, part=0, num_parts=1)
            if case != "alone":
                assert own.counts[0] > own.counts[1] + 2, "the short row is filled up"
            if case == "filled":
                latents[1, job.num_private + own.counts[1] :] = 1e3
            logits = (
                job.decoders[name].answer(own.latents_prompt, job.inject(name, latents, own)).logits
            )
            length = len(prompts.wire(SHORT).answer)
            found[f"{case}:{name}"] = logits[-length:]
    return found


def parts_of(found: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)
    }


def test_a_step_is_that_of_plain_autograd_and_reads_no_padding(overrides: list[str]) -> None:
    (found,) = run_distributed(trained_on_rank, 1, overrides, WAYS)
    for way, more in WAYS.items():
        step = first_step([*overrides, *more])
        reference = jobs.SingleProcess([*overrides, *more])
        lengths = {len(reference.tokenizer.ids(example.context)) for example in step.examples}
        assert len(lengths) > 1, "rows are of unequal length"
        expected = reference.losses(step)[1]
        values = parts_of(found, f"{way}:value:")
        assert values.keys() == expected.keys()
        for key, value in expected.items():
            assert float(values[key]) == pytest.approx(value, rel=1e-4), f"{way}: {key}"
        own = parts_of(found, f"{way}:gradient:")
        assert not any("frame" in name for name in own)
        error = jobs.largest_gradient_difference(reference.gradients(step), [own])
        assert error < 1e-5, f"{way}: relative error {error:.2e}"
        for name, gradient in own.items():
            if name.startswith("adapter_"):
                assert gradient.any(), f"{way}: {name}"
        for name in reference.decoders:
            logits = parts_of(found, f"{way}:logits:")
            alone = logits[f"alone:{name}"]
            for case in ("beside", "filled"):
                torch.testing.assert_close(
                    logits[f"{case}:{name}"], alone, atol=1e-4, rtol=1e-4, msg=f"{way}: {case}"
                )


@pytest.mark.parametrize("own", [[], [WITH_PRIVATE]], ids=["shared", "private too"])
def test_span_is_of_each_latent_and_its_tokens(own: list[str], overrides: list[str]) -> None:
    """The objective from the adapter's own vectors, one latent after the other."""
    more = [*overrides, *own, "adapter.use_deep_prefix=false"]
    reference, step = jobs.SingleProcess(more), first_step(more)
    values = reference.losses(step)[1]
    num_private = reference.config.wire.latent_private_len
    layer = reference.config.objectives.span_layer
    for name, decoder in reference.decoders.items():
        prompts, tokenizer = reference.prompts[name], reference.tokenizer
        batch = global_batch(step.examples, prompts, draws=step.draws)
        wires = [batch.wire(index, tokenizer) for index in range(len(batch.texts))]
        spans = decoder_spans(wires, tokenizer, prompts)
        states = decoder.states(spans.ids, spans.mask, layer=layer)
        distances = []
        for wire, count in enumerate(tokenizer.num_latents(text) for text in batch.texts):
            texts = tokenizer.batch([wires[wire]], rows=1, max_latents=count)
            with torch.no_grad():
                shared = reference.wire.encode(texts)[:, num_private * len(reference.decoders) :]
                vectors = reference.units[f"adapter_{name}"].adapter(shared)[0]
            assert len(vectors) == count
            found = []
            for latent, vector in enumerate(vectors):
                stands_for = states[wire, spans.latent[wire] == latent]
                if len(stands_for):
                    found.append(1 - torch.cosine_similarity(vector, stands_for.mean(0), dim=0))
            distances.append(torch.stack(found).mean())
        by_hand = torch.stack([distances[wire] for wire in batch.text_of]).mean()
        assert values[f"{name}/span"] == pytest.approx(float(by_hand), rel=1e-5)


def evaluated_on_rank(rank: int, world_size: int, overrides: list[str]) -> dict[str, Any]:
    job = jobs.make_job(config_file.load("smoke", overrides), world_size)
    result = evaluate(job, [SHORT, LONG], arms=[LATENT])
    assert result is not None
    metrics, predictions = result
    lengths = {
        f"{item.decoder}/{item.example}": [item.context_tokens, item.wire_positions]
        for item in predictions
    }
    return {"metrics": metrics, "lengths": lengths}


def test_compression_counts_no_frame(overrides: list[str]) -> None:
    more = [*overrides, WITH_PRIVATE, "eval.batch_size=2", "eval.max_new_tokens=1"]
    (found,) = run_distributed(evaluated_on_rank, 1, more)
    reference = jobs.SingleProcess(more)
    for name, prompts in reference.prompts.items():
        ratios = []
        for index, example in enumerate((SHORT, LONG)):
            num_tokens = len(reference.tokenizer.ids(example.context))
            num_latents = -(-num_tokens // reference.config.wire.ratio)
            context = prompts.num_context_tokens(example.context)
            assert found["lengths"][f"{name}/{index}"] == [context, num_latents + PRIVATE]
            ratios.append(context / (num_latents + PRIVATE))
        scores = found["metrics"]["decoders"][name]
        assert scores["compression_tokens"] == pytest.approx(sum(ratios) / 2)
