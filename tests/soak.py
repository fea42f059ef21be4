"""A soak of the checkpoints: jobs of two ranks, killed again and again while they train and save.

``python tests/soak.py --points 450 --out soak.jsonl`` goes on where an earlier call was stopped.
Each point forks two ranks from a process that has imported everything, lets them resume, verify
every byte and number, train and save, and kills one of them or both within two seconds, some steps
later. The state is a function of the step, so that a corrupt load cannot pass for a good one. What
the ranks print goes to ``soak.log`` beside the points. Ends with 1 if anything was lost, or if most
points had nothing to resume from: such a soak shows nothing.
"""

import argparse
import json
import multiprocessing as mp
import os
import random
import signal
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # what the first sharded tensor would import, once for all ranks
import torch.distributed as dist
from torch import Tensor

from latentwire.checkpointing import commit, state
from latentwire.checkpointing.state import Place
from latentwire.checkpointing.writer import CheckpointWriter
from latentwire.config import CheckpointConfig, DecoderConfig
from latentwire.distributed.groups import Group, ProcessGroups
from latentwire.distributed.sharding import UnitState, export_parts
from latentwire.distributed.state_tensors import HostBuffers, own_rows, whole_tensor
from latentwire.distributed.topology import plan
from latentwire.training.start import agreed_start

INTERVAL = 5
STEP_SECONDS = 0.004
LONGEST = 2.0
"""Seconds of a point at most, from the fork to the kill."""
FURTHEST = 4 * INTERVAL
"""Steps that a point may make before it is killed."""
SHAPES = {"encoder.w": torch.Size([257, 512]), "encoder.refiner.b": torch.Size([3])}


class Numbers:
    """A unit whose numbers are its step's."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self.step = 0

    def tensor(self, name: str, moment: str | None) -> Tensor:
        """The whole tensor as it must be at this step."""
        whole = torch.arange(SHAPES[name].numel(), dtype=torch.float32).view(SHAPES[name])
        return whole * (1 + len(moment or "")) + self.step

    def export_state(self, buffers: HostBuffers | None = None) -> UnitState:
        def read(name: str, moment: str | None) -> Tensor:
            return own_rows(self.tensor(name, moment), self._group)

        return export_parts(read, SHAPES, self._group, num_steps=self.step, buffers=buffers)

    def import_state(self, found: UnitState) -> None:
        """Takes over a state, and ends the point if it is not what the step's must be."""
        self.step = found.num_steps
        parts = {None: found.weights, **found.moments}
        for moment, tensors in parts.items():
            for name in SHAPES:
                assert torch.equal(whole_tensor(tensors[name]), self.tensor(name, moment)), name


def train(rank: int, root: str, store: str, log: str, steps: Any, start: Any, corrupt: Any) -> None:
    """One rank: resumes, then trains and saves until it is killed."""
    torch.set_num_threads(1)
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(store, 2),
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=20),
    )
    layout = plan({"d": DecoderConfig(model="d")}, placement="auto", world_size=2)
    world = ProcessGroups(layout, device=torch.device("cpu"), timeout=20).world
    unit = Numbers(world)
    units, groups = {"encoder": unit}, {"encoder": world}
    found = agreed_start(Path(root), world)
    if found is not None:
        try:
            place = state.restore(found[0], units, groups)  # type: ignore[arg-type]
            assert unit.step == place.step == found[0].number
        except AssertionError:
            corrupt.value += 1
            raise
    start.value = unit.step
    writer = CheckpointWriter(
        Path(root),
        units,  # type: ignore[arg-type]
        groups,
        world=world,
        settings=CheckpointConfig(keep_last=3),
        decoders={},
        config_text="",
        metric="em",
    )
    while True:
        time.sleep(STEP_SECONDS)
        unit.step += 1
        dist.all_reduce(torch.ones(1), group=world.bookkeeping)
        if rank == 0:
            steps.value = unit.step
        if unit.step % INTERVAL == 0:
            writer.save(Place(stage="A", step=unit.step, samples=unit.step))


def passed(begin: float, share: float) -> bool:
    """Whether that share of a point's longest time is over."""
    return time.monotonic() - begin > LONGEST * share


def one_point(number: int, root: Path, context: Any) -> dict[str, Any]:
    """Forks a job on the run, kills it, and looks at what is left."""
    draw = random.Random(number)
    target = draw.choice(("rank 0", "rank 1", "job"))
    moment = draw.choice(("training", "saving", "resuming"))
    more = draw.randint(1, FURTHEST)
    steps, start, corrupt = (context.Value("l", 0) for _ in range(3))
    before = commit.newest(root)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (
            str(root),
            f"{folder}/store",
            str(root.with_suffix(".log")),
            steps,
            start,
            corrupt,
        )
        ranks = [context.Process(target=train, args=(rank, *arguments)) for rank in (0, 1)]
        for rank in ranks:
            rank.start()
        aim = more + (before.number if before else 0)
        while moment != "resuming" and steps.value < aim and not passed(begin, 0.7):
            time.sleep(0.001)
        while moment == "saving" and not any(root.glob("stage*/*.tmp")) and not passed(begin, 0.9):
            pass
        time.sleep(draw.uniform(0, 0.3 if moment == "resuming" else 0.02))
        took = time.monotonic() - begin
        doomed = ranks if target == "job" else [ranks[int(target[-1])]]
        for rank in doomed:
            os.kill(rank.pid, signal.SIGKILL)
        time.sleep(0.01)
        for rank in ranks:
            rank.kill()
            rank.join()
    newest = commit.newest(root)
    reached, left = int(steps.value), newest.number if newest else 0
    latest = commit.read_latest(root)
    return {
        "point": number,
        "target": target,
        "moment": moment,
        "seconds": round(took, 3),
        "resumed": start.value > 0,
        "trained": reached > 0,
        "left": left,
        "lost": max(0, reached - left),
        "corrupt": int(corrupt.value),
        "went back": before is not None and left < before.number,
        # ``latest`` may be one step behind, where the kill came between the two.
        "latest valid": newest is None or (latest is not None and latest in commit.published(root)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=450)
    parser.add_argument("--out", type=Path, default=Path("soak.jsonl"))
    options = parser.parse_args()
    root = options.out.with_suffix(".run")
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    done = [json.loads(line) for line in lines]
    context = mp.get_context("fork")
    with options.out.open("a") as file:
        for number in range(len(done), options.points):
            done.append(one_point(number, root, context))
            file.write(json.dumps(done[-1]) + "\n")
            file.flush()
    summary = {
        "points": len(done),
        "resumes": sum(point["resumed"] for point in done),
        "killed while training or saving": sum(point["trained"] for point in done),
        "last step": done[-1]["left"],
        "lost steps at most": max(point["lost"] for point in done),
        "interval": INTERVAL,
        "corrupt loads": sum(point["corrupt"] for point in done),
        "went back": sum(point["went back"] for point in done),
        "latest invalid": sum(not point["latest valid"] for point in done),
        "seconds of a point at most": max(point["seconds"] for point in done),
    }
    print(json.dumps(summary, indent=2))
    lost = summary["lost steps at most"] > 2 * INTERVAL  # one, and one while a save is in flight
    bad = summary["corrupt loads"] or summary["went back"] or summary["latest invalid"] or lost
    return 1 if bad or summary["resumes"] < len(done) / 2 else 0


if __name__ == "__main__":
    sys.exit(main())
