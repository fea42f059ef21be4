"""Gate 5: every layout gives the gradients and the curve of one process holding everything."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import small_overrides

from latentwire import config_file
from latentwire.config import Config
from latentwire.data.encoder_texts import EncoderTokenizer
from latentwire.data.loader import decoder_batch, global_batch
from latentwire.data.prompts import DecoderPrompts
from latentwire.data.sources import open_source
from latentwire.data.spans import decoder_spans
from latentwire.decoders.frozen import load_decoder
from latentwire.decoders.teacher import teacher_logits
from latentwire.distributed.assembly import Job, assemble
from latentwire.distributed.groups import ProcessGroups
from latentwire.distributed.topology import plan
from latentwire.objectives import alignment, distillation, tokens
from latentwire.testing import run_distributed
from latentwire.training.records import StepRecord
from latentwire.training.stages import Stage
from latentwire.training.trainer import Trainer
from latentwire.wire.wire import DecoderShape, build_wire

LAYOUTS = {
    "1 colocated": (1, ["placement=colocated"]),
    "2 separate": (2, ["placement=separate"]),
    "2 colocated": (2, ["placement=colocated"]),
    "4 as 1 + 3": (4, ["placement=separate", "decoders.llama.ranks=1"]),
    "4 accumulated": (4, ["placement=separate", "train.accumulation=3"]),
}
CURVE_STEPS = 20


def make_job(config: Config, world_size: int) -> Job:
    topology = plan(config.decoders, placement=config.placement, world_size=world_size)
    return assemble(config, ProcessGroups(topology, device=torch.device("cpu"), timeout=60))


def make_stage(config: Config) -> Stage:
    source = open_source(source="profiles", path=None, split="train", seed=config.run.seed)
    return Stage(config, "A", source)


def gradients_on_rank(rank: int, world_size: int, overrides: list[str]) -> dict[str, Any]:
    """Whole gradients of one step, of every unit this rank has a part in."""
    config = config_file.load("smoke", overrides)
    job = make_job(config, world_size)
    found: dict[str, torch.Tensor] = {}

    for name, unit in job.units.items():
        # Keeps the gradients in place of spending them.
        def keep(rates: Any, factor: Any, name: str = name, unit: Any = unit) -> None:
            for key, parameter in unit.module.named_parameters():
                found[f"{name}.{key}"] = parameter.grad.full_tensor()

        unit.step = keep  # type: ignore[method-assign]
    trainer = Trainer(job, record=lambda record: None, save=lambda stage, step: None)
    record = trainer.step(make_stage(config).plan(1))
    found["norm"] = record._norm.reshape(1)
    return found


def reference_gradients(overrides: list[str]) -> dict[str, torch.Tensor]:
    """The same gradients by plain autograd: no groups, no sharding, no exchange."""
    config = config_file.load("smoke", overrides)
    cpu = torch.device("cpu")
    decoders = {
        name: load_decoder(name, settings, dtype=torch.float32, device=cpu)
        for name, settings in config.decoders.items()
    }
    shapes = {
        name: DecoderShape(hidden_size=d.hidden_size, embedding_rms=d.embedding_rms())
        for name, d in decoders.items()
    }
    tokenizer = EncoderTokenizer(config.encoder, config.wire, window=1024)
    wire = build_wire(config, shapes, num_lead=len(tokenizer.lead), device=cpu)
    examples = make_stage(config).plan(1).examples
    total = torch.zeros(())
    for name, decoder in decoders.items():
        prompts = DecoderPrompts(
            decoder.tokenizer, max_answer_tokens=config.data.max_answer_tokens, window=1024
        )
        batch = global_batch(examples, prompts)
        counts = [tokenizer.num_latents(text) for text in batch.texts]
        texts = tokenizer.batch(list(batch.texts), rows=len(batch.texts), max_latents=max(counts))
        soft = wire.soft_prompt(name, wire.encode(texts), torch.tensor(counts))
        own = decoder_batch(batch, prompts, tokenizer, part=0, num_parts=1)
        logits = decoder.answer_logits(own.latents_prompt, soft)
        prompt = own.latents_prompt
        losses = tokens.token_losses(logits, prompt.targets)
        kd = distillation.kd(logits, teacher_logits(decoder, prompts, examples), temperature=1.0)
        weights = config.objectives
        loss = weights.tf * losses.mean()
        loss = loss + weights.first * losses[prompt.target_place == 0].mean()
        loss = loss + weights.kd * kd / len(losses)
        spans = decoder_spans(batch.texts, tokenizer, prompts)
        states = decoder.states(spans.ids, spans.mask, layer=weights.span_layer)
        distances = alignment.span(soft[:, 1:-1], states, spans.latent)
        loss = loss + weights.span * distances[list(batch.text_of)].mean()
        total = total + config.decoders[name].weight * loss
    total.backward()  # type: ignore[no-untyped-call]
    units = {"encoder": wire.shared} | {f"adapter_{n}": wire.units[n] for n in decoders}
    found = {}
    for name, unit in units.items():
        for key, parameter in unit.named_parameters():
            assert parameter.grad is not None, key
            found[f"{name}.{key}"] = parameter.grad
    return found


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_gradients_equal_the_single_process(layout: str, pair: Path, tmp_path: Path) -> None:
    world_size, more = LAYOUTS[layout]
    overrides = small_overrides(
        pair, tmp_path, "train.stage_a.mixed=0", "optim.max_grad_norm=0", *more
    )
    expected = reference_gradients(overrides)
    norm = torch.cat([grad.flatten() for grad in expected.values()]).norm()
    seen = set()
    for result in run_distributed(gradients_on_rank, world_size, overrides):
        torch.testing.assert_close(result.pop("norm")[0], norm, rtol=1e-4, atol=0)
        for key, grad in result.items():
            scale = max(float(expected[key].norm()), 1e-3)
            error = float((grad - expected[key]).norm()) / scale
            assert error < 1e-4, f"{key}: relative error {error:.2e}"
            seen.add(key)
    assert seen == expected.keys()


def curve_on_rank(rank: int, world_size: int, overrides: list[str]) -> list[dict[str, Any]]:
    config = config_file.load("smoke", overrides)
    job = make_job(config, world_size)
    rows: list[dict[str, Any]] = []

    def record(step: StepRecord) -> None:
        rows.extend(step.rows())

    trainer = Trainer(job, record=record, save=lambda stage, step: None)
    stage = make_stage(config)
    for step in range(1, CURVE_STEPS + 1):
        record(trainer.step(stage.plan(step)))
    return rows


def test_curves_of_twenty_steps_are_equal(pair: Path, tmp_path: Path) -> None:
    curves = {}
    for layout in ("1 colocated", "2 separate", "4 as 1 + 3"):
        world_size, more = LAYOUTS[layout]
        overrides = small_overrides(
            pair,
            tmp_path,
            f"train.stage_a.steps={CURVE_STEPS}",
            "diagnostics.grad_diag_interval=0",
            *more,
        )
        results = run_distributed(curve_on_rank, world_size, overrides)
        rows = [row for rank_rows in results for row in rank_rows]
        curves[layout] = {
            (r["decoder"], r["step"], k): r[k] for r in rows for k in ("tf", "kd", "span")
        }
        assert len(curves[layout]) == 2 * CURVE_STEPS * 3
        modes = {row["mode"] for row in rows}
        assert modes == {"latent", "mixed"}, "the curve covers both modes"
    reference = curves.pop("1 colocated")
    start, end = reference["llama", 1, "tf"], reference["llama", CURVE_STEPS, "tf"]
    assert end < start - 0.1, "the curve is one of training"
    for layout, curve in curves.items():
        for key, value in reference.items():
            assert curve[key] == pytest.approx(value, abs=1e-4), f"{layout}: {key}"
