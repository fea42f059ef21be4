"""A job that is moved: 4 ranks under ZeRO 2, then 2 under FSDP2, then 3 under ZeRO 3."""

from pathlib import Path
from typing import Any

import jobs
import pytest
import torch
from conftest import small_overrides

from latentwire import config_file
from latentwire.checkpointing.commit import newest
from latentwire.testing import run_distributed

WAY = [(4, "zero2"), (2, "fsdp"), (3, "zero3_sharded")]
"""World size and backend of each leg."""
LEG = 3
"""Steps of each."""


def leg_on_rank(
    rank: int, world_size: int, overrides: list[str], folder: str, first: int
) -> dict[str, Any]:
    """Resumes where there is something, trains a leg, saves; what was trained, and on what."""
    config = config_file.load("smoke", overrides)
    job = jobs.make_job(config, world_size)
    step = newest(Path(folder))
    loaded = True
    if step is not None:
        jobs.load_job(job, step)
        on_disk, now = jobs.stored(step.path), jobs.exported(job)
        loaded = all(torch.equal(on_disk[k], now[k]) for k in on_disk.keys() & now.keys())
        loaded = loaded and len(on_disk.keys() & now.keys()) > 20
    trainer, stage = jobs.make_trainer(job), jobs.make_stage(config)
    rows: list[dict[str, float]] = []
    questions: list[str] = []
    for number in range(first, first + LEG):
        plan = stage.plan(number)
        questions += [example.question + example.context for example in plan.examples]
        record = trainer.step(plan)
        rows.append({f"{row['decoder']}/tf": row["tf"] for row in record.rows()})
    jobs.save_job(job, Path(folder), first + LEG - 1)
    return {"rows": rows, "questions": questions, "loaded": loaded}


def test_a_moved_job_goes_on_as_if_it_had_stayed(pair: Path, tmp_path: Path) -> None:
    plain = small_overrides(pair, tmp_path, f"train.stage_a.steps={LEG * len(WAY)}")
    moved: list[list[dict[str, Any]]] = []
    for index, (world_size, backend) in enumerate(WAY):
        overrides = [*plain, *jobs.BACKENDS[backend]]
        arguments = (overrides, str(tmp_path / "moved"), 1 + LEG * index)
        moved.append(run_distributed(leg_on_rank, world_size, *arguments))
    assert all(rank["loaded"] for leg in moved for rank in leg), "bit-equal after each move"

    stayed = []
    for index in range(len(WAY)):
        arguments = ([*plain, *jobs.BACKENDS["fsdp"]], str(tmp_path / "one"), 1 + LEG * index)
        stayed.append(run_distributed(leg_on_rank, 1, *arguments)[0])
    for leg, expected in zip(moved, stayed, strict=True):
        for rank in leg:
            assert rank["questions"] == expected["questions"], "one global order, unbroken"
            for row, wanted in zip(rank["rows"], expected["rows"], strict=True):
                for key, value in row.items():
                    assert value == pytest.approx(wanted[key], abs=2e-5), key
    seen = [question for leg in stayed for question in leg["questions"]]
    assert len(seen) == len(set(seen)) == LEG * len(WAY) * 12, "nothing twice, nothing left out"
