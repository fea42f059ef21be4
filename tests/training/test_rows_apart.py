"""Rows of a batch are apart: what one example's text says does not reach another's loss."""

import dataclasses
from pathlib import Path
from typing import Any

import jobs
import torch
from conftest import small_overrides

from latentwire import config_file
from latentwire.data.example import Example
from latentwire.data.loader import global_batch
from latentwire.distributed.assembly import Job
from latentwire.objectives import tokens
from latentwire.testing import run_distributed


def losses(job: Job, examples: list[Example]) -> dict[str, list[float]]:
    """Each example's loss, by decoder."""
    found = {}
    batch = global_batch(examples, job.any_prompts)
    with torch.no_grad():
        latents = job.latents(batch)
        for name, own in job.parts(batch):
            prompt = own.latents_prompt
            logits = job.decoders[name].answer(prompt, job.inject(name, latents, own)).logits
            each = tokens.token_losses(logits, prompt.targets)
            owner = (prompt.target_place == 0).cumsum(0) - 1
            sums = torch.zeros(len(examples)).index_add(0, owner, each)
            found[name] = sums.tolist()
    return found


def on_rank(rank: int, world_size: int, overrides: list[str]) -> dict[str, Any]:
    config = config_file.load("smoke", overrides)
    job = jobs.make_job(config, world_size)
    examples = list(jobs.make_stage(config).plan(1).examples)
    changed = list(examples)
    first = examples[0].context
    for index, example in enumerate(examples):
        if example.context == first:
            # Much longer, so that every other row is padded anew.
            context = "Nothing of the kind. " * 12 + first[::-1]
            changed[index] = dataclasses.replace(example, context=context)
    return {
        "before": losses(job, examples),
        "after": losses(job, changed),
        "changed": [a != b for a, b in zip(examples, changed, strict=True)],
    }


def test_another_rows_text_changes_no_loss(pair: Path, tmp_path: Path) -> None:
    more = ("sharding.backend=fsdp", "wire.refiner.layers=1", "data.questions_per_context=3")
    overrides = small_overrides(pair, tmp_path, *more)
    (found,) = run_distributed(on_rank, 1, overrides)
    assert any(found["changed"]) and not all(found["changed"])
    for name, before in found["before"].items():
        pairs = list(zip(before, found["after"][name], found["changed"], strict=True))
        assert max(abs(a - b) for a, b, is_changed in pairs if not is_changed) < 1e-4, name
        assert max(abs(a - b) for a, b, is_changed in pairs if is_changed) > 1e-2, name
