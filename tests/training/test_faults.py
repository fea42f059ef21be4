"""What a run leaves when the machine fails it: a killed rank, a disk that is full."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import small_overrides
from launching import status
from processes import rank_process, start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs Linux's /proc")
def test_a_killed_rank_ends_the_run_and_the_same_command_goes_on(
    pair: Path, tmp_path: Path
) -> None:
    overrides = small_overrides(
        pair, tmp_path, "train.stage_a.steps=40", "checkpoint.interval=5", "train.stage_b.steps=0"
    )
    process = start(*overrides)
    first = tmp_path / "checkpoints" / "test" / "stageA" / "step-00000005"
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and not first.exists():
        time.sleep(0.02)
    os.kill(rank_process(process.pid, 1), signal.SIGKILL)
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 1, errors
    assert status(tmp_path)["state"] == "failed"
    assert "rank 0" in status(tmp_path)["reason"], "who was left says what it saw"

    again = start(*overrides)
    _, errors = again.communicate(timeout=150)
    assert again.returncode == 0, errors
    assert "resumed from" in errors
    assert status(tmp_path)["state"] == "finished"
    rows = [json.loads(line) for line in (tmp_path / "runs/test/diagnostics.jsonl").open()]
    assert [row["step"] for row in rows] == [step for step in range(1, 41) for _ in range(2)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_said_and_loses_nothing(
    pair: Path, tmp_path: Path, small_disk: Path
) -> None:
    overrides = small_overrides(
        pair, small_disk, "train.stage_a.steps=9", "checkpoint.interval=3", "train.stage_b.steps=0"
    )
    process = start(*overrides)
    _, errors = process.communicate(timeout=150)
    assert process.returncode == 1
    assert "the disk is full" in errors
    assert "latentwire/checkpointing" not in errors, "a message, no traceback of ours"
    steps = [path.name for path in (small_disk / "checkpoints/test/stageA").glob("step-????????")]
    assert steps, "what was published stays"
    assert status(small_disk)["state"] == "failed"
    assert "No space" in status(small_disk)["reason"]

    # More room, the same command: it goes on from what was published.
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    again = start(*overrides)
    _, errors = again.communicate(timeout=150)
    assert again.returncode == 0, errors
    assert "resumed from" in errors
    assert status(small_disk)["state"] == "finished"
    assert not list((small_disk / "checkpoints/test/stageA").glob("*.tmp"))


def test_a_run_that_goes_on_without_saving_evaluates_what_it_saved(
    pair: Path, tmp_path: Path, small_disk: Path
) -> None:
    """The wire in memory is further than any step on disk; metrics name the step they are of."""
    overrides = small_overrides(
        pair,
        small_disk,
        "train.stage_a.steps=9",
        "checkpoint.interval=3",
        "checkpoint.keep_last=0",
        "checkpoint.on_error=continue",
        "train.stage_b.steps=0",
    )
    process = start(*overrides)
    _, errors = process.communicate(timeout=150)
    assert process.returncode == 0, errors
    assert "could not be saved" in errors and "the run goes on" in errors
    steps = sorted((small_disk / "checkpoints/test/stageA").glob("step-????????"))
    assert steps and steps[-1].name != "step-00000009"
    assert f"loaded {steps[-1]}" in errors
    metrics = json.loads((small_disk / "runs/test/metrics.json").read_text())
    assert f"step-{metrics['checkpoint']['step']:08d}" == steps[-1].name
