"""The batch scripts of launch/slurm/, submitted to a real Slurm of two nodes on this machine."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm_lab
from conftest import REPOSITORY, small_overrides
from killing import check_whole
from safetensors.torch import load_file, save_file
from slurm_lab import SlurmLab, read_json

from latentwire.checkpointing import commit

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.timeout(600)]

SCRIPTS = sorted((REPOSITORY / "launch" / "slurm").glob("*.sbatch"))
TRAIN = "launch/slurm/train.sbatch"
STEPS = 60


@pytest.fixture(scope="module")
def lab() -> Iterator[SlurmLab]:
    with slurm_lab.slurm_lab() as found:
        yield found


def overrides(pair: Path, folder: Path, *more: str) -> list[str]:
    return small_overrides(
        pair,
        folder,
        f"train.stage_a.steps={STEPS}",
        "train.stage_b.steps=0",
        "diagnostics.grad_diag_interval=0",
        *more,
    )


def step_of(folder: Path) -> int:
    """The step that the run's status names."""
    path = folder / "runs/test/status.json"
    try:
        return int(read_json(path)["step"] or 0)
    except (OSError, ValueError):
        return 0


@pytest.fixture(scope="module")
def whole(lab: SlurmLab, pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    job = lab.submit(TRAIN, *overrides(pair, folder))
    lab.finish(job)
    (folder / "output").write_text(lab.output(job))
    (folder / "job").write_text(str(job))
    return folder


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_slurm_accepts_every_template(script: Path, lab: SlurmLab) -> None:
    """As it stands, GPUs and all."""
    array = ["--array=0-1"] if script.name == "sweep.sbatch" else []
    environment = lab.environment()
    del environment["SBATCH_GPUS_PER_NODE"]
    found = subprocess.run(
        ["sbatch", "--test-only", *array, script],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=REPOSITORY,
        env=environment,
    )
    assert found.returncode == 0, found.stderr
    assert "to start at" in found.stderr


def test_slurm_two_nodes_run_to_completion(lab: SlurmLab, whole: Path) -> None:
    assert read_json(whole / "runs/test/status.json")["state"] == "finished"
    output = (whole / "output").read_text()
    assert "attempt 0: 2 nodes (node1 node2), 1 processes each" in output
    assert "slurm: the run is finished" in output
    log = (whole / "runs/test/pipeline.log").read_text()
    assert "llama  1 ranks: 0 (node 0)" in log and "qwen   1 ranks: 1 (node 1)" in log
    logs = lab.folder / "logs" / (whole / "job").read_text() / "attempt-0"
    assert len(list(logs.glob("*/attempt_0/0/stderr.log"))) == 2


def test_slurm_preempted_job_is_queued_again_and_ends_as_the_whole_one(
    lab: SlurmLab, whole: Path, pair: Path, tmp_path: Path
) -> None:
    job = lab.submit(TRAIN, *overrides(pair, tmp_path))
    lab.wait_for(lambda: step_of(tmp_path) >= 5, job=job)
    lab.command("scancel", "--batch", "--signal=USR1", str(job))
    since = time.monotonic()
    lab.wait_for(lambda: (tmp_path / "checkpoints/test/latest").exists(), job=job, seconds=120)
    print(f"from USR1 to a published checkpoint: {time.monotonic() - since:.2f} s")
    lab.wait_for(lambda: lab.field(job, "Restarts") == "1", job=job, seconds=120)
    state = read_json(tmp_path / "runs/test/status.json")
    assert (state["state"], state["code"]) == ("preempted", 0)
    lab.finish(job)
    output = lab.output(job)
    assert "attempt 0: " in output and "attempt 1: " in output, "one file has both"
    assert "slurm: the run was preempted; it goes on" in output
    assert output.count("resumed from") == 1
    own, other = (read_json(folder / "runs/test/metrics.json") for folder in (tmp_path, whole))
    assert own["decoders"] == other["decoders"]
    attempts = (tmp_path / "runs/test/attempts.jsonl").read_text().splitlines()
    assert [json.loads(line)["requeued"] for line in attempts] == [True, False]


def test_slurm_evaluates_a_finished_run(lab: SlurmLab, whole: Path, pair: Path) -> None:
    """On one node with one process, what two have trained."""
    path = whole / "runs/test/metrics.json"
    before = path.read_text()
    given = [text for text in overrides(pair, whole) if not text.startswith("eval.samples")]
    try:
        job = lab.submit("launch/slurm/eval.sbatch", *given, "eval.samples=24")
        lab.finish(job)
        own = read_json(path)
    finally:
        path.write_text(before)
    assert own["num_examples"] == 24
    assert own["checkpoint"] == json.loads(before)["checkpoint"]
    assert "stage C: 24 test examples" in lab.output(job)
    assert "slurm: the run is finished" in lab.output(job)


def test_slurm_scancel_leaves_a_valid_checkpoint(lab: SlurmLab, pair: Path, tmp_path: Path) -> None:
    job = lab.submit(TRAIN, *overrides(pair, tmp_path, "train.stage_a.steps=100000"))
    lab.wait_for(lambda: step_of(tmp_path) >= 3, job=job)
    lab.command("scancel", str(job))
    lab.finish(job, state="CANCELLED", seconds=120)
    checkpoints = tmp_path / "checkpoints/test"
    assert commit.newest(checkpoints) is not None
    check_whole(checkpoints)
    assert read_json(tmp_path / "runs/test/status.json")["state"] == "preempted"
    assert "cancelled" in lab.output(job) and lab.field(job, "Restarts") == "0"


def test_slurm_crash_loop_is_not_queued_for_ever(lab: SlurmLab, pair: Path, tmp_path: Path) -> None:
    """A decoder whose weights do not fit is found when they are loaded, after all checks."""
    broken = tmp_path / "pair"
    shutil.copytree(pair, broken)
    path = broken / "qwen" / "model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if name.endswith("k_proj.weight"))
    weights[name] = weights[name][:-1].contiguous()
    save_file(weights, path, metadata={"format": "pt"})
    given = overrides(broken, tmp_path, "distributed.max_attempts=2")
    job = lab.submit("--nodes=1", TRAIN, *given)
    lab.finish(job, state="FAILED")
    assert lab.field(job, "Restarts") == "1"
    output = lab.output(job)
    assert "2 attempts in a row left no new checkpoint (distributed.max_attempts=2)" in output
    assert read_json(tmp_path / "runs/test/status.json")["state"] == "failed"


def test_slurm_array_sweep_ends_in_a_table(lab: SlurmLab, pair: Path, tmp_path: Path) -> None:
    given = [*overrides(pair, tmp_path, "train.stage_a.steps=2"), "decoders.qwen=null"]
    given = [text for text in given if not text.startswith("decoders.qwen.model")]
    sweep = ["sweep", "--slurm", "--nproc", "1", "--list", "wire.d_z=16,32"]
    given.remove("wire.d_z=32")
    found = lab.command(
        *(sys.executable, "-m", "latentwire.cli", *sweep, *given),
        SBATCH_OUTPUT=f"{lab.folder}/%A_%a.out",
    )
    assert found.returncode == 0, found.stderr
    table = tmp_path / "runs/test/sweep.md"
    job = int(found.stderr.split("array ")[1].split(":")[0])
    lab.wait_for(
        lambda: table.is_file() and table.read_text().count("| finished |") == 2,
        job=job,
        seconds=240,
    )
    assert "| 16  |" in table.read_text() and "| 32  |" in table.read_text()
    again = lab.command(sys.executable, "-m", "latentwire.cli", *sweep, *given)
    assert again.returncode == 0 and "all 2 points are finished" in again.stderr
