"""What a unit keeps: how much of it each rank holds, and how it moves between layouts."""

from pathlib import Path
from typing import Any

import jobs
import pytest
import torch
from conftest import small_overrides

from latentwire import config_file
from latentwire.checkpointing.commit import newest
from latentwire.config import ConfigError
from latentwire.distributed.assembly import Job
from latentwire.testing import run_distributed

EVERY = {
    name: (jobs.BACKENDS | jobs.BF16_BACKENDS)[name]
    for name in (
        *("fsdp", "zero2", "zero3", "zero2_offload", "zero3_offload", "zero3_sharded"),
        *("fsdp bf16", "zero1 bf16", "zero2 bf16", "zero3 bf16"),
    )
}
"""Each way in which a backend keeps its state (in fp32, ZeRO 1 keeps it as ZeRO 2 does)."""
BYTES = 3 * 4
"""A weight and two moments, in fp32."""


def bytes_on_rank(
    rank: int, world_size: int, overrides: list[str]
) -> dict[str, dict[str, list[int]]]:
    """Bytes held and parameters in all, of each unit, after one step of each backend."""
    found = {}
    for backend in ("fsdp", "zero1", "zero2", "zero3"):
        config = config_file.load("smoke", [*overrides, *jobs.BACKENDS[backend]])
        job = jobs.make_job(config, world_size)
        jobs.make_trainer(job).step(jobs.make_stage(config).plan(1))
        found[backend] = {n: [u.state_bytes(), u.num_parameters] for n, u in job.units.items()}
    return found


@pytest.mark.parametrize(("world_size", "sharers"), [(2, (2, 1)), (4, (4, 2))])
def test_optimizer_state_is_divided_among_the_ranks(
    world_size: int, sharers: tuple[int, int], pair: Path, tmp_path: Path
) -> None:
    """The encoder's over the world, an adapter's over its group."""
    for rank in run_distributed(bytes_on_rank, world_size, small_overrides(pair, tmp_path)):
        for backend, units in rank.items():
            for name, (held, num_parameters) in units.items():
                share = BYTES * num_parameters / sharers[name != "encoder"]
                # Partitions are padded to equal sizes, and FSDP2 shards by rows.
                assert 0.9 * share < held < 1.1 * share, (backend, name)


def train(job: Job, first: int, last: int) -> None:
    trainer, stage = jobs.make_trainer(job), jobs.make_stage(job.config)
    for step in range(first, last + 1):
        trainer.step(stage.plan(step))


def save(job: Job, folder: Path, step: int) -> None:
    jobs.save_job(job, folder, step)


def restored(overrides: list[str], folder: Path, world_size: int) -> Job:
    job = jobs.make_job(config_file.load("smoke", overrides), world_size)
    jobs.load_job(job, newest(folder))
    return job


def first_weights_on_rank(rank: int, world_size: int, overrides: list[str]) -> dict[str, list[str]]:
    """Master weights that differ from FSDP2's, which keeps what it is given, by backend."""
    found = {}
    expected: dict[str, Any] = {}
    for backend, more in jobs.BF16_BACKENDS.items():
        config = config_file.load("smoke", [*overrides, *more])
        now = jobs.exported(jobs.make_job(config, world_size))
        expected = expected or now
        found[backend] = [key for key in expected if not torch.equal(now[key], expected[key])]
    weights = [value for key, value in expected.items() if ".weights." in key]
    assert any(not torch.equal(w, w.bfloat16().float()) for w in weights), "rounding would show"
    return found


def test_master_weights_in_bf16_start_unrounded(pair: Path, tmp_path: Path) -> None:
    for rank in run_distributed(first_weights_on_rank, 2, small_overrides(pair, tmp_path)):
        assert rank == {name: [] for name in jobs.BF16_BACKENDS}


def resume_on_rank(
    rank: int, world_size: int, overrides: list[str], root: str
) -> dict[str, list[str]]:
    """Tensors that a resume between two steps changed, by backend and precision."""
    found = {}
    for name, more in EVERY.items():
        config = config_file.load("smoke", [*overrides, *more])
        job = jobs.make_job(config, world_size)
        folder = Path(root) / name.replace(" ", "-")
        train(job, 1, 1)
        save(job, folder, 1)
        train(job, 2, 2)
        expected = jobs.exported(job)
        again = restored([*overrides, *more], folder, world_size)
        train(again, 2, 2)
        state_again = jobs.exported(again)
        assert state_again.keys() == expected.keys()
        found[name] = [k for k in expected if not torch.equal(expected[k], state_again[k])]
    return found


def test_a_resume_is_bitwise_on_every_backend(pair: Path, tmp_path: Path) -> None:
    overrides = small_overrides(
        pair, tmp_path, "train.stage_a.steps=4", "encoder.lora.rank=4", "adapter.dropout=0.1"
    )
    for rank in run_distributed(resume_on_rank, 2, overrides, str(tmp_path)):
        assert rank == {name: [] for name in EVERY}


def write_on_rank(rank: int, world_size: int, overrides: list[str], folder: str) -> None:
    job = jobs.make_job(config_file.load("smoke", overrides), world_size)
    train(job, 1, 2)
    save(job, Path(folder), 2)
    train(job, 3, 3)
    save(job, Path(folder) / "after", 3)


def move_on_rank(rank: int, world_size: int, overrides: list[str], folder: str) -> dict[str, Any]:
    """Loads the same checkpoint into every backend: what changed, and how far a step leads off."""
    step = newest(Path(folder))
    after = newest(Path(folder) / "after")
    assert step is not None and after is not None
    found: dict[str, Any] = {}
    for name, more in jobs.BACKENDS.items():
        job = restored([*overrides, *more], Path(folder), world_size)
        now = jobs.exported(job)
        loaded = jobs.stored(step.path)
        changed = [k for k, t in loaded.items() if k in now and not torch.equal(t, now[k])]
        train(job, 3, 3)
        then = jobs.exported(job)
        expected = {k: t for k, t in jobs.stored(after.path).items() if ".weights." in k}
        error = max(
            (float((then[key] - expected[key]).abs().max()) for key in expected if key in then),
            default=0.0,
        )
        found[name] = {"changed": changed, "error": error, "num_tensors": len(now)}
    return found | {"refusals": refusals([*overrides, "wire.d_z=16"], folder, world_size)}


def refusals(overrides: list[str], folder: str, world_size: int) -> list[str]:
    messages = []
    for backend in ("fsdp", "zero2", "zero3"):
        with pytest.raises(ConfigError) as caught:
            restored([*overrides, *jobs.BACKENDS[backend]], Path(folder), world_size)
        messages.append(str(caught.value))
    return messages


def test_a_checkpoint_moves_to_any_backend_and_world(pair: Path, tmp_path: Path) -> None:
    """Written by FSDP2 on one rank, read by all on three, where partitions do not divide."""
    overrides = small_overrides(pair, tmp_path, "train.stage_a.steps=4")
    folder = str(tmp_path / "moved")
    run_distributed(write_on_rank, 1, [*overrides, *jobs.BACKENDS["fsdp"]], folder)
    ranks = run_distributed(move_on_rank, 3, overrides, folder)
    for rank in ranks:
        # Another width is refused, with the reason.
        for message in rank.pop("refusals"):
            assert "holds 'encoder.pooling.query' of shape (32,)" in message
            assert "unit 'encoder'" in message and "the model has (16,)" in message
        for name, result in rank.items():
            assert result["changed"] == [], name
            # AdamW divides by the square root of tiny second moments: rounding grows there.
            assert result["error"] < 1e-5, name
    assert all(result["num_tensors"] > 50 for result in ranks[0].values())
