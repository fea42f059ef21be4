"""On the embedded pair: what kills a wire is named within 200 steps, and a healthy one is left in
peace."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jobs
import pytest
import torch
from torch import Tensor

from latentwire import config_file
from latentwire.distributed.assembly import Job
from latentwire.objectives import tokens
from latentwire.testing import run_distributed
from latentwire.training.doctor import Doctor
from latentwire.training.held_out import draw_health
from latentwire.wire.unit import Injection

STEPS = 200
INTERVAL = 20


def random_frozen_encoder(job: Job) -> None:
    """No gradient comes back to an encoder that knows nothing."""
    generator = torch.Generator().manual_seed(0)
    for parameter in job.wire.shared.parameters():
        local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
        local.data.copy_(torch.randn(local.shape, generator=generator) * 0.05)
    real = job.latents
    job.latents = lambda *batch: real(*batch).detach()  # type: ignore[method-assign]


def overwritten_prefix(job: Job) -> None:
    """What stands where the wire should be is always the same."""
    real = job.inject

    def inject(*args: Any, **options: Any) -> Injection:
        wire = real(*args, **options)
        return dataclasses.replace(wire, vectors=wire.vectors * 0 + 0.1, added=None)

    job.inject = inject  # type: ignore[method-assign]


def twice_shifted_labels(job: Job) -> None:
    """Each position is to say the token after the next."""
    real = tokens.token_losses

    def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
        return real(logits, targets.roll(-1))

    tokens.token_losses = token_losses


def nothing(job: Job) -> None:
    pass


PLANTS: dict[str, tuple[Callable[[Job], None], list[str], str, str]] = {
    "encoder frozen at random": (random_frozen_encoder, [], "collapsed", "the encoder does not"),
    "prefix overwritten": (overwritten_prefix, [], "collapsed", "the deep_prefix does not learn"),
    "labels shifted twice": (twice_shifted_labels, [], "collapsed", "the labels are broken"),
    "learning rate 100x": (
        nothing,
        ["optim.encoder_lr=0.1", "optim.adapter_lr=0.2", "optim.prefix_lr=0.4"],
        "exploding",
        "lower its learning rate",
    ),
    "none": (nothing, ["train.batch_size=24"], "alive", ""),
}
"""What is done to a job, overrides, and the state and the words that name it."""


def examined_on_rank(
    rank: int, world_size: int, overrides: list[str], plant: str
) -> list[dict[str, Any]]:
    """Rows of health up to the first that finds something wrong."""
    config = config_file.load("smoke", overrides)
    job = jobs.make_job(config, world_size)
    PLANTS[plant][0](job)
    stages = [jobs.make_stage(config, name) for name in ("A", "B")]
    doctor = Doctor(job, draw_health(config), stages=stages)
    trainer = jobs.make_trainer(job)
    job.wire.train()
    found: list[dict[str, Any]] = []
    num_steps = 0
    for stage in stages:
        for step in range(1, stage.num_steps + 1):
            num_steps += 1
            record = trainer.step(stage.plan(step))
            if record.is_health_due:
                found += [row | {"num_steps": num_steps} for row in doctor.examine(record)]
            if num_steps == STEPS or {row["state"] for row in found} & {"collapsed", "exploding"}:
                return found
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("plant", list(PLANTS))
def test_what_is_wrong_is_named(plant: str, embedded_pair: Path) -> None:
    _, more, state, words = PLANTS[plant]
    overrides = [
        f"encoder.model={embedded_pair / 'llama'}",
        f"decoders.llama.model={embedded_pair / 'llama'}",
        f"decoders.qwen.model={embedded_pair / 'qwen'}",
        "placement=colocated",
        "sharding.backend=fsdp",
        "diagnostics.grad_diag_interval=0",
        f"diagnostics.health_interval={INTERVAL}",
        *more,
    ]
    (rows,) = run_distributed(examined_on_rank, 1, overrides, plant, timeout=1500)
    for row in rows:
        print({key: round(v, 4) if isinstance(v, float) else v for key, v in row.items()})
    last = rows[-2:]
    assert {row["decoder"] for row in last} == {"llama", "qwen"}
    assert {row["state"] for row in last} == {state}
    assert all(words in "; ".join(row["reasons"]) for row in last)
    if plant == "none":
        assert {row["state"] for row in rows} == {"warming", "alive"}
        assert rows[-1]["num_steps"] == STEPS
