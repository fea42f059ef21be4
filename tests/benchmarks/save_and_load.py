"""Saving and loading the trained state of a large encoder, beside plain writes of the same bytes.

``python tests/benchmarks/save_and_load.py --parameters 500_000_000 --folder /scratch/new`` runs two
ranks under FSDP2 and prints seconds and MB/s of: a save that training waits for, the stall of a
background save, a load; torch's own distributed checkpoint; one plain safetensors file per rank.
Each write is forced to the disk; reads come from the page cache; a plain load only maps its file.
"""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from latentwire.checkpointing import commit, state
from latentwire.checkpointing.state import Place
from latentwire.checkpointing.writer import CheckpointWriter
from latentwire.config import CheckpointConfig, DecoderConfig, OptimConfig
from latentwire.distributed.fsdp_backend import FsdpBackend
from latentwire.distributed.groups import ProcessGroups
from latentwire.distributed.messages import barrier
from latentwire.distributed.topology import plan
from latentwire.testing import run_distributed

WIDTH = 2048
BYTES = 12
"""Of a parameter: fp32 master weight and two moments."""


class Large(nn.Module):
    """Square layers, as many as it takes."""

    def __init__(self, num_parameters: int) -> None:
        super().__init__()
        layers = max(1, round(num_parameters / WIDTH**2))
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x

    def part_of(self, name: str) -> str:
        return "encoder"

    def parameter_groups(self) -> dict[str, Any]:
        return {"encoder": list(self.named_parameters())}


def measure_on_rank(
    rank: int, world_size: int, folder: str, num_parameters: int
) -> dict[str, float]:
    layout = plan({"d": DecoderConfig(model="d")}, placement="auto", world_size=world_size)
    world = ProcessGroups(layout, device=torch.device("cpu"), timeout=1800).world
    unit = FsdpBackend(OptimConfig(), bf16=False).wrap("encoder", Large(num_parameters), world)
    unit.module(torch.randn(1, WIDTH)).sum().backward()
    unit.step({"encoder": 1e-4}, torch.ones(()))
    unit.zero_grad()
    units, groups = {"encoder": unit}, {"encoder": world}
    root = Path(folder) / "checkpoints"
    found: dict[str, float] = {"parameters": unit.num_parameters}

    def timed(work: Callable[[], object]) -> float:
        barrier(world)
        start = time.perf_counter()
        work()
        barrier(world)
        return time.perf_counter() - start

    def writer(*, background: bool) -> CheckpointWriter:
        return CheckpointWriter(
            root,
            units,  # type: ignore[arg-type]
            groups,
            world=world,
            settings=CheckpointConfig(background=background, keep_last=1),
            decoders={},
            config_text="",
            metric="em",
        )

    with writer(background=False) as own:
        found["save"] = timed(lambda: own.save(Place(stage="A", step=1, samples=0)))
    with writer(background=True) as own:
        for step, name in ((2, "first stall"), (3, "stall")):
            found[name] = timed(lambda at=step: own.save(Place(stage="A", step=at, samples=0)))
            own.wait()
    step = commit.newest(root)
    assert step is not None
    found["bytes"] = sum(p.stat().st_size for p in step.path.rglob("*") if p.is_file())
    found["load"] = timed(lambda: state.restore(step, units, groups))  # type: ignore[arg-type]

    copied = unit.export_state()
    tensors = {
        f"{part}.{name}": tensor
        for part in ("weights", "first_moments", "second_moments")
        for name, tensor in getattr(copied, part).items()
    }
    plain = Path(folder) / "dcp"
    found["torch's save"] = timed(
        lambda: dcp.save(dict(tensors), checkpoint_id=str(plain), process_group=world.saving)
    )
    found["torch's load"] = timed(
        lambda: dcp.load(dict(tensors), checkpoint_id=str(plain), process_group=world.saving)
    )
    shutil.rmtree(plain, ignore_errors=True)
    path = Path(folder) / f"plain-{rank}.safetensors"
    parts = {name: tensor.to_local() for name, tensor in tensors.items()}

    def write() -> None:
        save_file(parts, path)
        with path.open("rb") as file:
            os.fsync(file.fileno())

    found["plain save"] = timed(write)
    found["plain load"] = timed(lambda: load_file(path))
    path.unlink()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parameters", type=int, default=500_000_000)
    parser.add_argument("--folder", type=Path, default=Path("save_and_load"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    try:
        found = run_distributed(
            measure_on_rank, 2, str(options.folder), options.parameters, timeout=1800
        )[0]
    finally:
        shutil.rmtree(options.folder, ignore_errors=True)
    size = found["bytes"]
    names = ("save", "load", "torch's save", "torch's load", "plain save", "plain load")
    print(f"{found['parameters'] / 1e6:.0f} M parameters, {size / 1e6:.0f} MB, 2 ranks")
    for name in names:
        print(f"{name:<14} {found[name]:>8.2f} s {size / 1e6 / found[name]:>8.0f} MB/s")
    for name in ("first stall", "stall"):
        print(
            f"{name:<14} {found[name]:>8.2f} s {100 * found[name] / found['save']:>8.1f} % of save"
        )
    print(f"bytes / (12 x parameters): {size / (BYTES * found['parameters']):.4f}")
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
