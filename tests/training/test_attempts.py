"""What a launcher starts again, a command that goes back, and one that only evaluates: each leaves
the run as what it is."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import small_overrides

from latentwire import train
from latentwire.checkpointing.manifest import manifest_digest
from latentwire.training import run
from latentwire.training.attempts import has_begun
from latentwire.training.status import write_status

RUN = ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")
EARLIER, LAST = "stageA/step-00000002", "stageA/step-00000004"


def launched_as(monkeypatch: pytest.MonkeyPatch, *values: str) -> None:
    for name, value in zip(RUN, values, strict=True):
        monkeypatch.delenv(name, raising=False)
        if value:
            monkeypatch.setenv(name, value)


@pytest.fixture
def own(pair: Path, tmp_path: Path) -> list[str]:
    more = ("train.stage_a.steps=4", "train.stage_b.steps=0", "checkpoint.interval=2")
    return ["--recipe", "smoke", *small_overrides(pair, tmp_path, *more)]


def read(tmp_path: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "runs" / "test" / name).read_text())
    return found


@pytest.mark.parametrize(
    ("begun", "now", "expected"),
    [
        (("7", "", "7.0", ""), ("7", "1", "7.1", ""), True),
        (("7", "", "7.0", ""), ("8", "1", "8.1", ""), False),
        (("7", "", "7.0", ""), ("7", "", "7.0", ""), False),
        (("", "", "x", "0"), ("", "", "x", "1"), True),
        (("", "", "x", "0"), ("", "", "y", "1"), False),
        (("7", "", "7.0", "0"), ("7", "", "7.0", "2"), True),
        (("", "", "", ""), ("", "", "", "1"), False),
    ],
)
def test_a_restart_knows_its_own_commands_run(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    begun: tuple[str, ...],
    now: tuple[str, ...],
    expected: bool,
) -> None:
    launched_as(monkeypatch, *begun)
    write_status(tmp_path, state="running", begun_by=run.launch())
    write_status(tmp_path, state="failed", code=1)
    launched_as(monkeypatch, *now)
    assert has_begun(tmp_path) == expected
    assert not has_begun(tmp_path / "none")


def test_a_restart_neither_deletes_nor_goes_back(
    own: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoints" / "test"
    launched_as(monkeypatch, "", "", "one", "0")
    assert train.main([*own, "--fresh"]) == 0
    inode = (folder / LAST).stat().st_ino
    launched_as(monkeypatch, "", "", "one", "1")
    for again in (["--fresh"], ["--fresh", "--overwrite"], ["--resume-from", EARLIER]):
        assert train.main([*own, *again]) == 0
        assert (folder / LAST).stat().st_ino == inode, again
    launched_as(monkeypatch, "", "", "other", "1")
    assert train.main([*own, "--fresh"]) == 2, "it is not this command's"
    assert train.main([*own, "--resume-from", EARLIER]) == 0
    assert (folder / LAST).stat().st_ino != inode


def test_what_was_evaluated_before_going_back_is_not_the_result(
    own: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("the node is lost")

    assert train.main(own) == 0
    before = read(tmp_path, "metrics.json")["checkpoint"]
    with monkeypatch.context() as patched:
        patched.setattr(run, "evaluate_into_folder", lost)
        with pytest.raises(RuntimeError, match="the node is lost"):
            train.main([*own, "--resume-from", EARLIER])
    assert read(tmp_path, "status.json")["state"] == "failed"
    assert train.main(own) == 0
    now = read(tmp_path, "metrics.json")["checkpoint"]
    assert now["step"] == before["step"]
    assert now["manifest"] == manifest_digest(tmp_path / "checkpoints" / "test" / LAST)


def test_an_evaluation_does_not_end_a_run_that_has_steps_left(
    own: list[str], tmp_path: Path
) -> None:
    assert train.main(own) == 0
    folder = tmp_path / "runs" / "test"
    write_status(folder, state="preempted", code=0, num_steps={"A": 9, "B": 0})
    assert train.main_eval(own) == 0
    status = read(tmp_path, "status.json")
    assert status["state"] == "stopped"
    assert f"evaluated at {LAST}, before its training is over" in status["reason"]
    write_status(folder, state="failed", code=1, num_steps={"A": 4, "B": 0})
    assert train.main_eval(own) == 0
    assert read(tmp_path, "status.json")["state"] == "finished"


def test_what_is_no_run_is_not_deleted(
    own: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for key, folder in (("run.root", "runs"), ("checkpoint.root", "checkpoints")):
        mine = tmp_path / folder / "test" / "thesis.txt"
        mine.parent.mkdir(parents=True)
        mine.write_text("mine")
        for refused in (["wire.ratio=0"], [], []):  # which leaves nothing that a run leaves
            assert train.main([*own, "--fresh", "--overwrite", *refused]) == 2
        assert f"{key}: --fresh --overwrite would delete" in capsys.readouterr().err
        assert mine.read_text() == "mine"
        mine.unlink()
    assert train.main([*own, "--fresh", "--overwrite"]) == 0
    assert train.main([*own, "--fresh", "--overwrite"]) == 0


@pytest.mark.parametrize("flag", [["--fresh"], ["--resume-from", EARLIER]])
def test_an_evaluation_takes_no_flags_of_training(
    own: list[str], capsys: pytest.CaptureFixture[str], flag: list[str]
) -> None:
    assert train.main_eval([*own, *flag]) == 2
    assert f"{flag[0]}: for training alone; leave it out" in capsys.readouterr().err


def test_a_dry_evaluation_evaluates_nothing(
    own: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(own) == 0
    metrics = (tmp_path / "runs" / "test" / "metrics.json").stat().st_mtime_ns
    assert train.main_eval([*own, "eval.samples=24", "--dry-run"]) == 0
    assert "samples: 24" in capsys.readouterr().out
    assert (tmp_path / "runs" / "test" / "metrics.json").stat().st_mtime_ns == metrics


def test_an_interrupt_before_training_leaves_the_run_what_it_was(
    own: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(run, "assemble", interrupted)
        assert train.main(own) == 130
    assert read(tmp_path, "status.json")["state"] == "stopped"
    assert train.main(own) == 0
    with monkeypatch.context() as patched:
        patched.setattr(run, "agreed_start", interrupted)
        assert train.main(own) == 130
    assert read(tmp_path, "status.json")["state"] == "finished"
