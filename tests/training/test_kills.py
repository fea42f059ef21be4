"""``kill -9`` at seeded random moments of training and of saving, by real torchrun."""

import json
import os
import signal
from pathlib import Path

import killing
import processes
import pytest
from conftest import small_overrides
from launching import status

from latentwire.checkpointing import commit

INTERVAL = 4

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs Linux's /proc"),
    pytest.mark.timeout(1500),
]


def overrides_of(pair: Path, root: Path, *more: str) -> list[str]:
    return small_overrides(
        pair,
        root,
        "train.stage_a.steps=100000",
        "train.stage_b.steps=0",
        f"checkpoint.interval={INTERVAL}",
        "diagnostics.log_interval=1",
        "diagnostics.grad_diag_interval=0",
        *more,
    )


def kill_and_check(overrides: list[str], root: Path, *, seed: int, number: int) -> None:
    """Kills a run again and again, then lets it end; nothing valid is ever lost."""
    checkpoints = root / "checkpoints" / "test"
    points = killing.kill_points(overrides, root=root, seed=seed, number=number)
    for point, before in zip(points, [None, *points], strict=False):
        # One interval, and the one that a save in flight takes. A step that is to be saved has its
        # row before it waits for the save in flight, which may be of two intervals ago then.
        waits = point.reached % INTERVAL == 0
        assert point.lost < 2 * INTERVAL + waits, point
        assert before is None or point.left >= before.left, (before, point)
    assert points[-1].left > 0
    killing.check_whole(checkpoints)

    log = root / "last.log"
    process = processes.start(*overrides, log=log)
    assert processes.wait_for(lambda: killing.resumed(log), seconds=120), log.read_text()
    # A request to stop that comes in the middle of a save.
    saving = processes.wait_for(lambda: any(checkpoints.glob("stage*/*.tmp")), seconds=60)
    assert saving, log.read_text()
    os.kill(process.pid, signal.SIGTERM)
    process.wait(timeout=120)
    assert status(root)["state"] == "preempted", log.read_text()
    assert f"resumed from {checkpoints / 'stageA'}/step-{points[-1].left:08d}" in log.read_text()
    killing.check_whole(checkpoints)
    assert commit.read_latest(checkpoints) == commit.newest(checkpoints)
    assert not list(checkpoints.glob("stage*/*.tmp"))
    rows = [json.loads(line) for line in (root / "runs/test/diagnostics.jsonl").open()]
    places = [(row["step"], row["rank"]) for row in rows if row.get("kind", "step") == "step"]
    last = max(step for step, _ in places)
    assert sorted(places) == [(step, rank) for step in range(1, last + 1) for rank in (0, 1)]


def test_eight_kills_lose_nothing(pair: Path, tmp_path: Path) -> None:
    kill_and_check(overrides_of(pair, tmp_path), tmp_path, seed=0, number=8)


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "backend"), [(1, "fsdp"), (2, "deepspeed")])
def test_many_kills_lose_nothing(seed: int, backend: str, pair: Path, tmp_path: Path) -> None:
    overrides = overrides_of(pair, tmp_path, f"sharding.backend={backend}")
    kill_and_check(overrides, tmp_path, seed=seed, number=12)
