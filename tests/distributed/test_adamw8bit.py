"""AdamW with 8-bit moments over FSDP2's shards: what it computes, keeps, and resumes from."""

from pathlib import Path
from typing import Any

import jobs
import pytest
import torch
from conftest import small_overrides
from torch import Tensor, nn

from latentwire import config_file
from latentwire.checkpointing.commit import newest
from latentwire.config import OptimConfig
from latentwire.distributed.assembly import Job
from latentwire.distributed.fsdp_backend import SCALES, FsdpBackend
from latentwire.distributed.groups import ProcessGroups
from latentwire.distributed.state_tensors import whole_tensor
from latentwire.distributed.topology import plan
from latentwire.testing import run_distributed

EIGHT_BIT = ["sharding.backend=fsdp", "optim.optimizer=adamw8bit"]


class Mixed(nn.Module):
    """A matrix that is quantised (its rows divide no world), a small one, and a vector."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.large = nn.Parameter(torch.randn(67, 80))
        self.small = nn.Parameter(torch.randn(5, 8))
        self.vector = nn.Parameter(torch.randn(80))

    def parameter_groups(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        return {"adapter": list(self.named_parameters())}

    def part_of(self, name: str) -> str:
        return "adapter"

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.large.T).tanh().sum() + (self.small**2).sum() + (x @ self.vector).sum()


def inputs() -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(4, 80) for _ in range(5)]


def mixed_on_rank(rank: int, world_size: int) -> dict[str, Tensor]:
    """What ``Mixed`` is after five steps; every rank has the whole batch."""
    topology = plan(
        config_file.load("smoke", ["decoders.qwen=null"]).decoders,
        placement="colocated",
        world_size=world_size,
    )
    groups = ProcessGroups(topology, device=torch.device("cpu"), timeout=60)
    backend = FsdpBackend(OptimConfig(optimizer="adamw8bit", weight_decay=0.1), bf16=False)
    unit = backend.wrap("mixed", Mixed(), groups.world)
    for x in inputs():
        unit.module(x).backward()
        unit.step({"adapter": 1e-2}, torch.tensor(0.5))
        unit.zero_grad()
        assert all(p.grad is None for p in unit.module.parameters())
    state = unit.export_state()
    assert state.num_steps == 5
    moments = {f"{key}.{n}": t for key, part in state.moments.items() for n, t in part.items()}
    return {name: whole_tensor(tensor) for name, tensor in (state.weights | moments).items()}


def by_hand() -> tuple[dict[str, Tensor], Any]:
    """The same by bitsandbytes itself, in one process."""
    from bitsandbytes.optim import AdamW8bit

    module = Mixed()
    decays = [module.large, module.small]
    groups: list[dict[str, Any]] = [
        {"params": decays, "weight_decay": 0.1},
        {"params": [module.vector], "weight_decay": 0.0},
    ]
    optim = OptimConfig()
    optimizer = AdamW8bit(groups, lr=1e-2, betas=(optim.beta1, optim.beta2))
    for x in inputs():
        (0.5 * module(x)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return dict(module.named_parameters()), optimizer.state[module.large]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_steps_are_those_of_the_library(world_size: int) -> None:
    """Bitwise on one rank; on more, blocks start elsewhere, so moments are rounded otherwise."""
    weights, expected = by_hand()
    found = run_distributed(mixed_on_rank, world_size)[0]
    for name, weight in weights.items():
        weight = weight.detach()
        if world_size == 1 or name != "large":
            torch.testing.assert_close(found[name], weight, rtol=1e-6, atol=1e-7)
        moved = (weight - dict(Mixed().named_parameters())[name]).norm()
        assert float((found[name] - weight).norm() / moved) < 0.05
    for key, number in (("exp_avg", 1), ("exp_avg_sq", 2)):
        assert found[f"{key}.large"].dtype == torch.uint8
        assert found[f"{key}.small"].dtype == found[f"{key}.vector"].dtype == torch.float32
        assert len(found[f"{key}.large{SCALES}"]) == world_size
        if world_size == 1:
            assert torch.equal(found["large"], weights["large"])
            assert torch.equal(found[f"{key}.large"], expected[f"state{number}"])
            assert torch.equal(found[f"{key}.large{SCALES}"][0], expected[f"absmax{number}"])


def curves_on_rank(rank: int, world_size: int, overrides: list[str]) -> list[Any]:
    found = []
    for more in (EIGHT_BIT, jobs.BACKENDS["fsdp"]):
        config = config_file.load("smoke", [*overrides, *more])
        stage = jobs.make_stage(config)
        steps = [stage.plan(step) for step in range(1, stage.num_steps + 1)]
        found.append(jobs.job_curve(jobs.make_job(config, world_size), steps))
    return found


@pytest.mark.slow
def test_the_curve_is_nearly_that_of_adamw(pair: Path, tmp_path: Path) -> None:
    overrides = small_overrides(pair, tmp_path, "train.stage_a.steps=30")
    for eight_bit, adamw in run_distributed(curves_on_rank, 2, overrides):
        for key in adamw[0]:
            first, last = adamw[0][key], adamw[-1][key]
            difference = max(abs(a[key] - b[key]) for a, b in zip(eight_bit, adamw, strict=True))
            assert 0 < difference < 0.1 * max(abs(first - last), 0.5), key
        assert adamw[-1][key] < adamw[0][key], "it trains"


def bytes_on_rank(rank: int, world_size: int, overrides: list[str]) -> dict[str, list[int]]:
    """Bytes of the encoder's state with 8-bit and fp32 moments; quantised and all parameters."""
    found = []
    for more in (EIGHT_BIT, jobs.BACKENDS["fsdp"]):
        config = config_file.load("smoke", [*overrides, *more])
        job = jobs.make_job(config, world_size)
        jobs.make_trainer(job).step(jobs.make_stage(config).plan(1))
        found.append(job.units["encoder"].state_bytes())
    named = jobs.parameters(job.units["encoder"]).values()
    large = sum(p.numel() for p in named if p.ndim == 2 and p.numel() >= 4096)
    return {"bytes": found, "parameters": [large, sum(p.numel() for p in named)]}


def test_moments_take_a_quarter(pair: Path, tmp_path: Path) -> None:
    overrides = small_overrides(pair, tmp_path)
    ranks = run_distributed(bytes_on_rank, 2, overrides)
    large, total = ranks[0]["parameters"]
    assert large > 0.7 * total
    eight_bit, adamw = (sum(rank["bytes"][i] for rank in ranks) for i in (0, 1))
    assert adamw == 12 * total
    # A code a number, and four bytes a block of at most 256.
    exact = 4 * total + 2 * large + 8 * (total - large)
    assert exact + 8 * large / 256 <= eight_bit < exact + 8 * large / 200


def save(job: Job, folder: Path, step: int) -> None:
    jobs.save_job(job, folder, step)


def train(job: Job, first: int, last: int) -> None:
    trainer, stage = jobs.make_trainer(job), jobs.make_stage(job.config)
    for step in range(first, last + 1):
        trainer.step(stage.plan(step))


def restored(overrides: list[str], folder: Path, world_size: int) -> Job:
    job = jobs.make_job(config_file.load("smoke", overrides), world_size)
    jobs.load_job(job, newest(folder))
    return job


def resume_on_rank(
    rank: int, world_size: int, overrides: list[str], folder: str
) -> dict[str, list[str]]:
    """Tensors that a resume between two steps changed, right after it and a step later."""
    job = jobs.make_job(config_file.load("smoke", overrides), world_size)
    train(job, 1, 2)
    save(job, Path(folder), 2)
    then = jobs.exported(job)
    train(job, 3, 3)
    expected = jobs.exported(job)
    again = restored(overrides, Path(folder), world_size)
    found = {"read": jobs.exported(again)}
    train(again, 3, 3)
    found["trained"] = jobs.exported(again)
    save(job, Path(folder) / "after", 3)
    assert any(tensor.dtype == torch.uint8 for tensor in then.values()) or not then
    return {
        name: [key for key in wanted if not torch.equal(found[name][key], wanted[key])]
        for name, wanted in (("read", then), ("trained", expected))
    }


def move_on_rank(rank: int, world_size: int, overrides: list[str], folder: str) -> dict[str, float]:
    """Difference, over the step's own size, of a step on other ranks from that on the old ones."""
    job = restored(overrides, Path(folder), world_size)
    # On one rank what is exported is the live weight itself.
    before = {key: tensor.clone() for key, tensor in jobs.exported(job).items()}
    train(job, 3, 3)
    now = jobs.exported(job)
    expected = jobs.exported(restored(overrides, Path(folder) / "after", world_size))
    found = {}
    for name in (key for key in now if ".weights." in key):
        step = float((expected[name] - before[name]).norm())
        found[name] = float((now[name] - expected[name]).norm()) / max(step, 1e-6)
    return found


def test_a_resume_is_bitwise_and_other_ranks_can_go_on(pair: Path, tmp_path: Path) -> None:
    """On three ranks, where parameters do not divide evenly; then on one and on two."""
    overrides = small_overrides(pair, tmp_path, "train.stage_a.steps=4", *EIGHT_BIT)
    folder = str(tmp_path / "saved")
    for rank in run_distributed(resume_on_rank, 3, overrides, folder):
        assert rank == {"read": [], "trained": []}
    for world_size in (1, 2):
        for rank in run_distributed(move_on_rank, world_size, overrides, folder):
            assert {name: error for name, error in rank.items() if error > 0.2} == {}
