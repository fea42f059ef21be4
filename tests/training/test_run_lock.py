"""Two jobs on one run: the second is refused, and a dead one holds nothing."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import REPOSITORY, small_overrides
from launching import python, status

from latentwire.config import ConfigError
from latentwire.training import run_lock
from latentwire.training.run_lock import RunLock

HOLD = """
import sys, time
from pathlib import Path
from latentwire.training.run_lock import RunLock
with RunLock({"run.root": Path(sys.argv[1])}):
    print("held", flush=True)
    time.sleep(120)
"""


@pytest.fixture
def holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> subprocess.Popen[str]:
    """Another process that has the folder ``b``."""
    monkeypatch.setattr(run_lock, "_WAIT_SECONDS", 0.2)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "b")],
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_another_job_is_named_and_a_killed_one_holds_nothing(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    folders = {"run.root": tmp_path / "a", "checkpoint.root": tmp_path / "b"}
    with pytest.raises(ConfigError, match=f"another job has .*b.*{holder.pid}"), RunLock(folders):
        pass
    with RunLock({"run.root": tmp_path / "a"}):
        pass  # the first was let go when the second was refused
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait(timeout=30)
    with RunLock(folders):
        assert str(os.getpid()) in (tmp_path / "b" / run_lock.FILE).read_text()
    with RunLock(folders):
        pass


def test_that_a_run_is_held_can_be_asked(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    assert run_lock.is_held(tmp_path / "b")
    assert not run_lock.is_held(tmp_path / "never")
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait(timeout=30)
    assert (tmp_path / "b" / run_lock.FILE).exists() and not run_lock.is_held(tmp_path / "b")
    with RunLock({"run.root": tmp_path / "b"}):
        pass  # asking takes nothing


def test_a_job_waits_for_its_own_earlier_attempt(
    tmp_path: Path, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose node is dead, and whose lock a file server still keeps."""
    (tmp_path / "b" / run_lock.FILE).write_text('{"slurm_job": "7"}\n')
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    with pytest.raises(ConfigError, match="another job has"), RunLock({"k": tmp_path / "b"}):
        pass
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    threading.Timer(1.0, holder.kill).start()
    with RunLock({"k": tmp_path / "b"}):
        assert holder.wait(timeout=30) == -signal.SIGKILL


def test_a_file_that_runs_could_share_has_one_writer_at_a_time(tmp_path: Path) -> None:
    rows = tmp_path / "logs" / "all.jsonl"
    with (
        RunLock({"run.tag": tmp_path / "a"}, files={"--diagnostic_log": rows}),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(run_lock, "_WAIT_SECONDS", 0.1)
        said = f"--diagnostic_log: another job has {rows}.*or set another"
        with pytest.raises(ConfigError, match=said):
            RunLock({"run.tag": tmp_path / "b"}, files={"--diagnostic_log": rows}).__enter__()
        with RunLock({"run.tag": tmp_path / "b"}):
            pass
    with RunLock({"run.tag": tmp_path / "b"}, files={"--diagnostic_log": rows}):
        pass


def test_a_second_trainer_is_refused_and_touches_nothing(pair: Path, tmp_path: Path) -> None:
    overrides = small_overrides(pair, tmp_path)
    folder = tmp_path / "runs" / "test"
    with RunLock({"run.root": folder, "checkpoint.root": tmp_path / "checkpoints" / "test"}):
        found = python("-m", "latentwire.train", *overrides)
        assert found.returncode == 2, found.stderr
        assert "another job has" in found.stderr and str(os.getpid()) in found.stderr
        assert sorted(path.name for path in folder.iterdir()) == [run_lock.FILE]
    with pytest.raises(FileNotFoundError):
        status(tmp_path)
