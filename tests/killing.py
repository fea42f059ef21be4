"""Jobs killed at random moments of training and saving, again and again on one run."""

import json
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import processes

from latentwire.checkpointing import commit
from latentwire.checkpointing.manifest import content_problems, read_manifest

Target = Literal["rank 0", "rank 1", "job"]
Moment = Literal["training", "saving"]
_FURTHEST = 12
"""Steps that a job may make before it is killed."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One kill, and what was left of the run."""

    target: Target
    moment: Moment
    reached: int
    """Steps that the run had come to."""
    left: int
    """Step of the newest valid checkpoint afterwards; 0 for none."""

    @property
    def lost(self) -> int:
        return self.reached - self.left


def kill_points(
    overrides: list[str], *, root: Path, seed: int, number: int, tag: str = "test"
) -> list[Point]:
    """Starts the same run ``number`` times, and kills it every time.

    Args:
        overrides: of a run that would go on for long.
        root: holds ``runs`` and ``checkpoints``.
    """
    draw = random.Random(seed)
    return [
        _kill_once(overrides, root=root, tag=tag, draw=draw, log=root / f"{index}.log")
        for index in range(number)
    ]


def _kill_once(
    overrides: list[str], *, root: Path, tag: str, draw: random.Random, log: Path
) -> Point:
    run, checkpoints = root / "runs" / tag, root / "checkpoints" / tag
    target: Target = draw.choice(("rank 0", "rank 1", "job"))
    moment: Moment = draw.choice(("training", "saving"))
    more = draw.randint(1, _FURTHEST)
    delay = draw.uniform(0, 0.2 if moment == "training" else 0.03)
    newest = commit.newest(checkpoints)
    aim = more + (0 if newest is None else newest.number)
    process = processes.start(*overrides, log=log)
    try:
        moved = processes.wait_for(
            lambda: resumed(log) and reached(run) >= aim or process.poll() is not None,
            seconds=120,
        )
        assert moved and process.poll() is None, log.read_text()[-3000:]
        if moment == "saving":
            saving = processes.wait_for(lambda: any(checkpoints.glob("stage*/*.tmp")), seconds=60)
            assert saving, log.read_text()[-3000:]
        time.sleep(delay)
        if target != "job":
            processes.kill(processes.rank_process(process.pid, int(target[-1])))
            # Who is left ends by itself, soon; the rest of the job is not needed for that.
            processes.wait_for(lambda: process.poll() is not None, seconds=10)
    finally:
        processes.kill_job(process)
    left = commit.newest(checkpoints)
    return Point(
        target=target,
        moment=moment,
        reached=reached(run),
        left=0 if left is None else left.number,
    )


def resumed(log: Path) -> bool:
    """Whether this attempt trains."""
    return log.is_file() and ": steps " in log.read_text()


def reached(run: Path) -> int:
    """The last step that the run's rows tell of."""
    path = run / "diagnostics.jsonl"
    last = 0
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            last = max(last, json.loads(line)["step"])
        except (ValueError, KeyError):
            continue  # torn
    return last


def check_whole(checkpoints: Path) -> None:
    """Every published step is what was written, and ``latest`` names one of them."""
    found = commit.published(checkpoints)
    for step in found:
        manifest = read_manifest(step.path)
        assert content_problems(step.path, manifest, manifest.files) == []
    if found:
        latest = commit.read_latest(checkpoints)
        # Killed between a publication and the pointer's own, it names the step before.
        assert latest in found[-2:], (latest, found)
