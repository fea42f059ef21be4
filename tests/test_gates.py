"""The gates for every encoder with every way into a decoder; a third of them in the short tier."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jobs
import pytest
import torch
from conftest import small_overrides
from gates import COMBINATIONS, EVERYTHING, OVERFIT_STEPS, SHORT
from torch import Tensor

from latentwire import config_file
from latentwire.config import OBJECTIVES
from latentwire.data.encoder_texts import EncoderTokenizer
from latentwire.data.loader import DecoderBatch, GlobalBatch, decoder_batch, global_batch
from latentwire.data.prompts import DecoderPrompts
from latentwire.decoders.frozen import FrozenDecoder
from latentwire.decoders.generation import greedy
from latentwire.evaluation.arms import LATENT
from latentwire.evaluation.runner import evaluate
from latentwire.objectives.tokens import token_losses
from latentwire.testing import run_distributed
from latentwire.wire.unit import Injection

EVERY = [
    pytest.param(name, marks=() if name in SHORT else pytest.mark.slow) for name in COMBINATIONS
]
NUM_OVERFIT = 64


def settled(wire: Any, *, std: float = 0.05) -> None:
    """Weights as training leaves them: what starts near zero is not near zero any more."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in wire.units.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(std * noise)


def one_row(wire: Injection, row: int) -> Injection:
    """The wire of one text."""
    added = None if wire.added is None else wire.added[row : row + 1]
    return Injection(vectors=wire.vectors[row : row + 1], added=added)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One decoder with a batch and the wires it reads for it, as training would leave them."""

    decoder: FrozenDecoder
    prompts: DecoderPrompts
    tokenizer: EncoderTokenizer
    batch: GlobalBatch
    wire: Injection

    def laid_out(self, batch: GlobalBatch, *, answers: bool = True) -> DecoderBatch:
        return decoder_batch(
            batch, self.prompts, self.tokenizer, part=0, num_parts=1, answers=answers
        )


def readings(name: str, pair: Path, tmp_path: Path) -> Iterator[Reading]:
    """Of both decoders, for one combination."""
    overrides = small_overrides(pair, tmp_path, "train.batch_size=6", *COMBINATIONS[name])
    reference = jobs.SingleProcess(overrides)
    settled(reference.wire)
    examples = jobs.make_stage(reference.config).plan(1).examples
    with torch.no_grad():
        for decoder_name, decoder in reference.decoders.items():
            prompts = reference.prompts[decoder_name]
            batch = global_batch(examples, prompts)
            yield Reading(
                decoder=decoder,
                prompts=prompts,
                tokenizer=reference.tokenizer,
                batch=batch,
                wire=reference.inject(decoder_name, batch),
            )


@pytest.mark.parametrize("name", EVERY)
def test_loss_is_what_the_decoder_says_token_by_token(
    name: str, pair: Path, tmp_path: Path
) -> None:
    """Gate 1, and that decoding step by step is teacher forcing: one example alone, one token at
    a time, has the loss it has in a batch."""
    for reading in readings(name, pair, tmp_path):
        batch, own = reading.batch, reading.laid_out(reading.batch)
        prompt = own.latents_prompt
        losses = token_losses(reading.decoder.answer(prompt, reading.wire).logits, prompt.targets)
        for index, found in enumerate(losses.split(prompt.target_mask.sum(1).tolist())):
            alone = global_batch([batch.examples[index]], reading.prompts)
            wire = one_row(reading.wire, own.texts.index(batch.text_of[index]))
            asked = reading.laid_out(alone, answers=False).latents_prompt
            answer = reading.prompts.wire(batch.examples[index]).answer
            by_hand = token_by_token(reading.decoder, asked, wire, answer)
            torch.testing.assert_close(found, by_hand, atol=2e-4, rtol=1e-4)


def token_by_token(decoder: Any, asked: Any, wire: Injection, answer: tuple[int, ...]) -> Tensor:
    """The loss of each answer token, each read by a forward of its own."""
    context = decoder.read(asked, wire)
    logits, _ = decoder.continue_from(
        context, asked.suffix_ids, asked.suffix_mask, asked.suffix_positions, asked.columns
    )
    position = asked.suffix_positions[:, -1:]
    losses = []
    for token in answer:
        losses.append(-logits[0, -1].double().log_softmax(-1)[token])
        position = position + 1
        ids = torch.tensor([[token]])
        real = torch.ones_like(ids, dtype=torch.bool)
        logits, _ = decoder.continue_from(context, ids, real, position, torch.tensor([0]))
    return torch.stack(losses).float()


@pytest.mark.parametrize("name", EVERY)
def test_generation_is_teacher_forcing_of_what_it_generates(
    name: str, pair: Path, tmp_path: Path
) -> None:
    for reading in readings(name, pair, tmp_path):
        decoder, eos = reading.decoder, reading.prompts.eos
        asked = reading.laid_out(reading.batch, answers=False).latents_prompt
        generated = greedy(decoder, asked, ends=[eos], max_new_tokens=5, wire=reading.wire)
        given = generated[:, :-1]
        after = asked.suffix_positions[:, -1:] + torch.arange(1, generated.shape[1])
        ids = torch.cat([asked.suffix_ids, given], dim=1)
        logits, _ = decoder.continue_from(
            decoder.read(asked, reading.wire),
            ids,
            torch.cat([asked.suffix_mask, torch.ones_like(given, dtype=torch.bool)], dim=1),
            torch.cat([asked.suffix_positions, after], dim=1),
            torch.arange(asked.suffix_ids.shape[1] - 1, ids.shape[1]),
        )
        for tokens, forced in zip(generated.tolist(), logits.argmax(-1).tolist(), strict=True):
            end = tokens.index(eos) + 1 if eos in tokens else len(tokens)
            assert forced[:end] == tokens[:end]


def connected_on_rank(
    rank: int, world_size: int, overrides: list[str], names: list[str]
) -> dict[str, Any]:
    """Gates 3 and 5 in one process: the wire's reach before and after a resume, and whether the
    resumed training is the uninterrupted one, bit by bit."""
    found: dict[str, Any] = {}
    for name in names:
        config = config_file.load("smoke", [*overrides, *COMBINATIONS[name]])
        stage = jobs.make_stage(config)
        straight, broken = jobs.make_job(config, world_size), jobs.make_job(config, world_size)
        for step in range(1, 5):
            jobs.make_trainer(straight).step(stage.plan(step))
        for step in range(1, 3):
            jobs.make_trainer(broken).step(stage.plan(step))
        resumed = jobs.make_job(config, world_size)
        for key, unit in resumed.units.items():
            state = broken.units[key].export_state()
            unit.import_state(state)
        examples = stage.plan(9).examples
        reached = {
            "trained": jobs.wire_reach(broken, examples),
            "resumed": jobs.wire_reach(resumed, examples),
        }
        for step in range(3, 5):
            jobs.make_trainer(resumed).step(stage.plan(step))
        expected, again = jobs.exported(straight), jobs.exported(resumed)
        different = [key for key in expected if not torch.equal(expected[key], again[key])]
        found[name] = {"reached": reached, "different": different}
    return found


@pytest.mark.parametrize(
    "names",
    [list(SHORT), pytest.param(sorted({*COMBINATIONS} - {*SHORT}), marks=pytest.mark.slow)],
)
def test_wire_reaches_the_logits_and_a_resume_is_exact(
    names: list[str], pair: Path, tmp_path: Path
) -> None:
    overrides = small_overrides(pair, tmp_path, "sharding.backend=fsdp", "placement=colocated")
    (found,) = run_distributed(connected_on_rank, 1, overrides, names, timeout=280)
    for name, result in found.items():
        for when, norms in result["reached"].items():
            assert set(norms) == {"llama", "qwen"}
            assert all(norm > 1e-4 for norm in norms.values()), (name, when, norms)
        assert not result["different"], name


def overfit_on_rank(rank: int, world_size: int, overrides: list[str]) -> dict[str, float]:
    config = config_file.load("smoke", overrides)
    job = jobs.make_job(config, world_size)
    stage = jobs.make_stage(config, "B")
    trainer = jobs.make_trainer(job)
    for step in range(1, stage.num_steps + 1):
        trainer.step(stage.plan(step))
    seen = {example: None for step in (1, 2) for example in stage.plan(step).examples}
    assert len(seen) == NUM_OVERFIT
    result = evaluate(job, list(seen), arms=[LATENT])
    if result is None:
        return {}
    return {name: d["arms"]["latent"]["em"] for name, d in result[0]["decoders"].items()}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", EVERY)
def test_sixty_four_examples_are_learnt_through_the_wire(
    name: str, embedded_pair: Path, tmp_path: Path
) -> None:
    """Gate 4; with both decoders at once where each encoder and each path is there once."""
    is_alone = name not in SHORT and not name.startswith("byte")
    decoders = ["llama"] if is_alone else ["llama", "qwen"]
    overrides = small_overrides(
        embedded_pair,
        tmp_path,
        "objectives.kd=0",
        "wire.d_z=128",
        f"data.samples={NUM_OVERFIT}",
        f"train.batch_size={NUM_OVERFIT // 2}",
        f"train.stage_b.steps={OVERFIT_STEPS[name]}",
        "train.stage_b.warmup_steps=10",
        "diagnostics.log_interval=1000",
        "diagnostics.grad_diag_interval=0",
        f"eval.batch_size={NUM_OVERFIT}",
        *([] if "qwen" in decoders else ["decoders.qwen=null"]),
        *COMBINATIONS[name],
    )
    scores = run_distributed(overfit_on_rank, len(decoders), overrides, timeout=880)[0]
    assert list(scores) == decoders
    assert all(em > 0.9 for em in scores.values()), scores


def gradients_on_rank(rank: int, world_size: int, overrides: list[str]) -> dict[str, Tensor]:
    """Whole gradients of one step."""
    config = config_file.load("smoke", overrides)
    job = jobs.make_job(config, world_size)
    return jobs.job_gradients(job, jobs.make_stage(config).plan(1))


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        *(pytest.param(*own.values, "fsdp", marks=own.marks) for own in EVERY),
        *(pytest.param(name, "zero3_sharded", marks=pytest.mark.slow) for name in SHORT),
    ],
)
def test_gradients_equal_the_single_process(
    name: str, backend: str, pair: Path, tmp_path: Path
) -> None:
    """Gate 5, in groups of two ranks and of one."""
    overrides = small_overrides(
        pair,
        tmp_path,
        "optim.max_grad_norm=0",
        "placement=separate",
        *COMBINATIONS[name],
        *jobs.BACKENDS[backend],
    )
    reference = jobs.SingleProcess(overrides)
    expected = reference.gradients(jobs.make_stage(reference.config).plan(1))
    results = run_distributed(gradients_on_rank, 3, overrides)
    error = jobs.largest_gradient_difference(expected, results)
    print(f"gradients, {name}, {backend}: {error:.1e}")
    # What is above 1e-5 is one scalar's gradient, a sum over everything, rounded in another order.
    assert error < 5e-5


LAYOUTS = {
    "fsdp, 2 + 1": (3, ["placement=separate", *jobs.BACKENDS["fsdp"]]),
    "zero2, 2 + 1": (3, ["placement=separate", *jobs.BACKENDS["zero2"]]),
    # The decoders' units differ, and ZeRO 3 may compare them within their groups only.
    "zero3, 2 + 1": (3, ["placement=separate", *jobs.BACKENDS["zero3_sharded"]]),
    "zero3, 2 colocated": (2, ["placement=colocated", *jobs.BACKENDS["zero3_sharded"]]),
    "fsdp, 2 colocated, accumulated": (
        2,
        ["placement=colocated", "train.accumulation=2", *jobs.BACKENDS["fsdp"]],
    ),
}


def everything_on_rank(rank: int, world_size: int, overrides: list[str]) -> dict[str, Any]:
    config = config_file.load("smoke", overrides)
    job = jobs.make_job(config, world_size)
    stage = jobs.make_stage(config)
    rows = jobs.make_trainer(job).step(stage.plan(1)).rows()
    values = {f"{row['decoder']}/{key}": row[key] for row in rows for key in OBJECTIVES}
    norms = {
        f"{row['decoder']}/grad_{key}": row[f"grad_{key}"] for row in rows for key in OBJECTIVES
    }
    return {"values": values, "norms": norms, "grad_norm": rows[0]["grad_norm"]}


def test_every_component_at_once_is_the_same_in_every_layout(pair: Path, tmp_path: Path) -> None:
    """Each objective's value and the whole gradient; each objective reaches the wire."""
    overrides = small_overrides(pair, tmp_path, "optim.max_grad_norm=0", *EVERYTHING)
    alone = [*overrides, "placement=colocated", *jobs.BACKENDS["fsdp"]]
    (expected,) = run_distributed(everything_on_rank, 1, alone)
    assert all(value is not None for value in expected["values"].values())
    assert all(norm > 0 for norm in expected["norms"].values()), expected["norms"]
    for layout, (world_size, more) in LAYOUTS.items():
        for found in run_distributed(everything_on_rank, world_size, [*overrides, *more]):
            for key, value in found["values"].items():
                assert value == pytest.approx(expected["values"][key], abs=2e-5, rel=1e-5), (
                    layout,
                    key,
                )
            assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4), layout
