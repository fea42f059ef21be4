"""What becomes of a job when an attempt ends, and the arrays of sweeps, without a scheduler."""

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY

from latentwire import config_file, slurm, train
from latentwire.config import Config
from latentwire.slurm import ArrayPoint, conclude, judge
from latentwire.training import exported_eval
from latentwire.training.status import note_refusal, write_status


@pytest.mark.parametrize(
    ("state", "code", "launcher", "num_stuck", "again", "why"),
    [
        ("finished", 0, 0, 0, False, "the run is finished"),
        ("preempted", 0, 0, 0, True, "the run was preempted; it goes on"),
        ("preempted", 0, 0, 2, True, "the run was preempted; it goes on"),
        ("preempted", 0, 0, 3, False, "3 attempts in a row left no new checkpoint"),
        ("failed", 1, 1, 0, True, "the run failed: no reason; it goes on"),
        ("failed", 1, 1, 3, False, "(distributed.max_attempts=3)"),
        ("failed", 2, 1, 0, False, "the run cannot start: no reason"),
        ("stopped", 1, 1, 0, False, "the run was stopped: no reason"),
        # Killed, so that nothing was written; or dead before it could write anything.
        ("running", None, 137, 1, True, "ended without a word (code 137)"),
        ("preempted", 0, 1, 1, True, "ended without a word (code 1)"),
    ],
)
def test_a_job_is_queued_again_as_long_as_that_leads_somewhere(
    state: str, code: int | None, launcher: int, num_stuck: int, again: bool, why: str
) -> None:
    verdict = judge(
        state, code, launcher=launcher, num_stuck=num_stuck, max_attempts=3, reason="no reason"
    )
    assert verdict.requeue == again
    assert why in verdict.why


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return config_file.load(
        "smoke",
        [
            f"run.root={tmp_path}/runs",
            f"checkpoint.root={tmp_path}/checkpoints",
            "run.tag=t",
            "distributed.max_attempts=2",
        ],
    )


def test_attempts_without_a_new_checkpoint_are_counted_by_job(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest: list[Any] = [None]
    monkeypatch.setattr(slurm, "newest", lambda root: newest[0])
    folder = Path(config.run.root) / "t"

    def end(job: str, *, reached: int, state: str = "failed") -> bool:
        newest[0] = type("Step", (), {"name": f"stageA/step-{reached:08d}"}) if reached else None
        write_status(folder, state=state, code=1 if state == "failed" else 0, reason="r")
        return conclude(config, job=job, attempt=0, code=1 if state == "failed" else 0).requeue

    assert end("1", reached=5), "a step further"
    assert end("1", reached=5), "once without"
    assert not end("1", reached=5), "twice"
    assert end("2", reached=5), "another job counts its own"
    assert end("2", reached=9, state="preempted")
    assert end("2", reached=9, state="preempted")
    assert not end("2", reached=9, state="preempted"), "a time limit too short for the work left"
    lines = [json.loads(line) for line in (folder / slurm.ATTEMPTS).read_text().splitlines()]
    assert [line["num_stuck"] for line in lines] == [0, 1, 2, 1, 0, 1, 2]
    assert lines[-1]["why"].startswith("the run was preempted; 2 attempts in a row")


def test_what_an_earlier_attempt_left_is_not_this_ones_end(config: Config) -> None:
    folder = Path(config.run.root) / "t"
    write_status(folder, state="finished", code=0)
    told = json.loads((folder / "status.json").read_text())
    written = datetime.fromisoformat(told["time"])

    def end(code: int, *, seconds: int) -> slurm.Verdict:
        since = written + timedelta(seconds=seconds)
        return conclude(config, job=f"{code}{seconds}", attempt=0, code=code, since=since)

    assert not end(1, seconds=-60).requeue
    assert not end(0, seconds=60).requeue, "clocks of nodes may differ"
    silent = end(1, seconds=60)
    assert silent.requeue
    assert "ended without a word (code 1)" in silent.why
    write_status(folder, state="failed", code=2, reason="a wrong path")
    assert end(1, seconds=600).requeue, "the path may have been mended"
    # A command that was refused leaves a finished run what it is, and is not queued again.
    write_status(folder, state="finished", code=0)
    note_refusal(folder, "a wrong key")
    refused = end(1, seconds=-60)
    assert not refused.requeue
    assert refused.why == "the run cannot start: a wrong key"
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"
    assert end(1, seconds=601).requeue, "that was another command"


def test_a_refused_export_is_not_queued_again(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    gone = replace(config, decoders={"x": replace(config.decoders["llama"], model="./gone")})
    for module in (train, exported_eval):
        monkeypatch.setattr(module, "exported_config", lambda folder, overrides: gone)
    monkeypatch.setattr(train, "trained_with", lambda folder: gone)
    wire = ["--wire", str(tmp_path / "wire")]
    assert train.main_eval(wire) == 2
    assert slurm.main(["requeue", "--code", "1", "eval", *wire]) == 3
    assert "the run cannot start: decoders.x.model: './gone'" in capsys.readouterr().err


def test_a_torn_line_of_an_attempt_is_left_out(config: Config) -> None:
    folder = Path(config.run.root) / "t"
    write_status(folder, state="failed", code=1, reason="r")
    (folder / slurm.ATTEMPTS).write_text('{"job": "1", "chec')
    assert conclude(config, job="1", attempt=1, code=1).requeue
    torn, line = (folder / slurm.ATTEMPTS).read_text().splitlines()
    assert torn == '{"job": "1", "chec'
    assert json.loads(line)["num_stuck"] == 1
    assert not conclude(config, job="1", attempt=2, code=1).requeue, "the one before still counts"


def test_an_attempt_that_cannot_be_counted_is_the_last(config: Config) -> None:
    folder = Path(config.run.root) / "t"
    write_status(folder, state="failed", code=1, reason="r")
    (folder / slurm.ATTEMPTS).mkdir()
    verdict = conclude(config, job="1", attempt=1, code=1)
    assert not verdict.requeue
    assert "cannot be written" in verdict.why


def test_the_command_says_it_by_its_code(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    trainer = ["--recipe", "smoke", f"run.root={tmp_path}/runs", "run.tag=t"]
    folder = tmp_path / "runs" / "t"
    write_status(folder, state="preempted", code=0)
    assert slurm.main(["requeue", "--code", "0", "train", *trainer]) == 0
    assert "preempted" in capsys.readouterr().err
    write_status(folder, state="finished", code=0)
    assert slurm.main(["requeue", "--code", "0", "eval", *trainer]) == 3
    assert slurm.main(["requeue", "--code", "0", "train", "--recipe", "none"]) == 2
    assert slurm.main(["nothing"]) == 2


def test_an_array_hands_its_points_arguments_on_as_they_are(tmp_path: Path, capsys: Any) -> None:
    """Spaces and line ends, which a template of prompts has."""
    words = ("--recipe", "smoke", "data.template=a b\n{context}", "")
    point = ArrayPoint(name="p", values=("1",), run=str(tmp_path / "p"), arguments=words)
    code = slurm.submit(tmp_path, "t", ["x"], [point], left=[], nproc=1)
    assert code == 0, "nothing is left, so nothing is submitted"
    file = tmp_path / slurm.SWEEP
    assert slurm.main(["point", str(file), "0"]) == 0
    assert capsys.readouterr().out.split("\0") == [*words, ""]
    assert slurm.main(["point", str(file), "1"]) == 2
    assert slurm.main(["point", str(tmp_path / "sweep.md"), "0"]) == 2
    assert "| not started |" in (tmp_path / "sweep.md").read_text()


def test_a_sweep_for_slurm_without_slurm_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(logging.getLogger("latentwire"), "propagate", True)
    point = ArrayPoint(name="p", values=(), run=str(tmp_path / "p"), arguments=())
    assert slurm.submit(tmp_path, "t", [], [point], left=[0], nproc=1) == 2
    assert "sbatch is not on this machine" in caplog.text


def test_what_a_batch_script_asks_brings_no_torch() -> None:
    script = (
        "import sys, latentwire.slurm;"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env=os.environ,
    )
    assert result.stdout.strip() == "[]"
